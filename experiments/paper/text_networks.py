"""Section 11 of the document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from experiments.paper.comparisons import BAR
from experiments.paper.markup import count, missing, number, percent, short, table
from experiments.paper.paper_networks import ARCHITECTURES, EVERY_REFIT, SECTION, runs
from experiments.paper.records import Records, Row
from onnxprune.methods import METHODS, REFITS, with_scales

PAIRS = (
    ("local", "gfs"),
    ("global", "gfs-outputs"),
    ("combined", "local"),
    ("combined", "global"),
    *((m, other) for m in BAR for other in ("obs", "taylor", "magnitude", "random")),
)
# Network, ratio, refit → method → row.
Cells = Mapping[tuple[str, float, str], Mapping[str, Row]]


def cells_of(records: Records) -> Cells:
    """The runs that were no refusals."""
    found: dict[tuple[str, float, str], dict[str, Row]] = {}
    for _, r in records.rows(SECTION):
        if "refused" not in r:
            found.setdefault((r["network"], r["ratio"], r["refit"]), {})[r["label"]] = r
    return found


def lower(cells: Cells, first: str, second: str, refit: str, *, trained: bool) -> tuple[int, int, int]:
    """How many pairs there are, all else equal, and in how many the first has the lower error, or the same."""
    both = [(c[first], c[second]) for (*_, r), c in cells.items() if r == refit and {first, second} <= set(c)]
    errors = [(a["output_error"], b["output_error"]) for a, b in both if a["trained"] == trained]
    return len(errors), sum(a < b for a, b in errors), sum(a == b for a, b in errors)


def best(cells: Cells, refit: str, *, trained: bool) -> Counter[str]:
    """Which methods leave the least error, and in how many tables that have all of them; equal ones count all."""
    every = with_scales() if REFITS[refit].scales else tuple(METHODS)
    found: Counter[str] = Counter()
    for (*_, r), c in cells.items():
        errors = {m: row["output_error"] for m, row in c.items() if r == refit and row["trained"] == trained}
        if set(errors) == set(every):
            found.update(m for m, e in errors.items() if e == min(errors.values()))
    return found


def not_above_parts(cells: Cells, refit: str) -> tuple[int, int]:
    """In how many of how many `combined` leaves no more error than the better of local and global."""
    some = [[c[m]["output_error"] for m in BAR] for (*_, r), c in cells.items() if r == refit and set(BAR) <= set(c)]
    return sum(combined <= min(parts) for *parts, combined in some), len(some)


def walked(cells: Cells, *, trained: bool) -> tuple[int, int]:
    """In how many of how many runs lockstep leaves less error than the least squares of each layer for itself."""
    pairs = [
        (r["output_error"], cells.get((network, ratio, "least-squares"), {}).get(method, {}).get("output_error"))
        for (network, ratio, refit), c in cells.items()
        for method, r in c.items()
        if refit == "lockstep" and r["trained"] == trained
    ]
    known = [(a, b) for a, b in pairs if b is not None]
    return sum(a < b for a, b in known), len(known)


def _share(found: tuple[int, int]) -> str:
    return f"{found[0]} of {found[1]}" if found[1] else ""


def _pair(of: int, won: int, equal: int) -> str:
    return f"{won} of {of}" + (f", {equal} equal" if equal else "") if of else "none"


def _refits_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Those of the rows, in the order in which they are listed."""
    some = {r["refit"] for r in rows}
    return tuple(f for f in EVERY_REFIT if f in some)


def _results(rows: Sequence[Row], *, trained: bool) -> list[list[object]]:
    """A line per method: for each refit what the run measured, or the reason why there is none."""
    columns = ("top1", "agreement", "output_error") if trained else ("agreement", "output_error")
    known = {(r["label"], r["refit"]): r for r in rows}
    refits = _refits_of(rows)
    lines: list[list[object]] = []
    for method in METHODS:
        line: list[object] = [method]
        for refit in refits:
            r = known.get((method, refit))
            if r is None or "refused" in r:
                impossible = refit == "greedy" and method not in with_scales()
                line += ["-" if impossible else "" if r is None else r["refused"], *[""] * (len(columns) - 1)]
            else:
                line += [r[k] if k == "output_error" else percent(r[k]) for k in columns]
        lines.append(line)
    return lines


def _table(rows: Sequence[Row]) -> list[str]:
    """One network at one ratio."""
    trained = rows[0]["trained"]
    said = f"**{short(rows[0]['network'])}, -{100 * rows[0]['ratio']:.0f} % MACs**, "
    said += f"{'trained' if trained else 'random'} weights, {rows[0]['samples']} calibration samples"
    done = [r for r in rows if "refused" not in r]
    if done:
        left = sorted({f"{r['macs_left']:.3f}" for r in done})
        said += f", {done[0]['tests']:,} test samples ({percent(done[0]['common'])} % of them of the class that the "
        said += f"original gives most often), {' to '.join(dict.fromkeys((left[0], left[-1])))} of the MACs left"
        said += f", top-1 of the original {percent(done[0]['top1_before'])}" if trained else ""
    heads = ("top-1", "agree", "error") if trained else ("agree", "error")
    return [
        said + ":",
        table(["", *(f"{f}: {h}" for f in _refits_of(rows) for h in heads)], _results(rows, trained=trained)),
    ]


def _order(r: Row) -> tuple[int, str, float]:
    """Architectures as they are listed, the larger cut first."""
    names = [a.name for a in ARCHITECTURES]
    return (names.index(r["network"]) if r["network"] in names else len(names), r["network"], -r["ratio"])


def _errors(cells: Cells) -> list[str]:
    """Which method leaves the least error, and whether a mixture or chance does as well as the paper's choice."""
    said = []
    for refit in EVERY_REFIT:
        first = {
            what: ", ".join(f"{m} {n}" for m, n in best(cells, refit, trained=trained).most_common())
            for trained, what in ((True, "trained"), (False, "random"))
        }
        names = "; ".join(f"on {what} weights {named}" for what, named in first.items() if named)
        said += (
            [f"The least error with {refit}, by the number of tables that have all methods: {names}."] if names else []
        )
    parts = {refit: not_above_parts(cells, refit) for refit in EVERY_REFIT}
    named = ", ".join(f"{_share(n)} tables with {refit}" for refit, n in parts.items() if n[1])
    if named:
        said.append(f"`combined` leaves no more error than the better of local and global in {named}.")
    for trained, what in ((True, "trained"), (False, "random")):
        pairs = [lower(cells, m, "random", refit, trained=trained) for m in BAR for refit in EVERY_REFIT]
        won, of = sum(w for _, w, _ in pairs), sum(n for n, *_ in pairs)
        if of:
            said.append(
                f"On {what} weights the paper's choice (local, global or combined) leaves less error than units chosen "
                f"at random in {count(won, of, 'pairs')}."
            )
    return said


def _refits(records: Records, cells: Cells) -> list[str]:
    """What refits change, what is lost, and what went wrong."""
    said = []
    for trained, what in ((True, "trained"), (False, "random")):
        won, of = walked(cells, trained=trained)
        if of:
            said.append(f"On {what} weights lockstep leaves less error than least squares in {won} of {of} runs.")
    lost = [
        (r["top1"] - r["top1_before"], m, key)
        for key, c in cells.items()
        for m, r in c.items()
        if r["trained"] and key[2] == "lockstep" and m in BAR
    ]
    if lost:
        points, method, (network, ratio, _) = min(lost)
        said.append(
            f"The most that one of the paper's three loses with lockstep is {-points:.1f} points of top-1 ({method}, "
            f"{short(network)}, -{100 * ratio:.0f} %)."
        )
    every = [r for c in cells.values() for r in c.values()]
    useless = Counter((r["refit"], r["label"], short(r["network"])) for r in every if r["output_error"] >= 1)
    if useless:
        which = ", ".join(f"{m} with {refit} on {where} ({n})" for (refit, m, where), n in useless.most_common())
        said.append(
            "Runs whose outputs end further from the original's than their mean is (error of 1 or more): "
            f"{useless.total()}, namely {which}."
        )
    worst = max(every, key=lambda r: r["output_error"], default=None)
    if worst is not None:
        said.append(
            f"The largest error is {number(worst['output_error'])} ({worst['label']} with {worst['refit']}, "
            f"{short(worst['network'])}, -{100 * worst['ratio']:.0f} %)."
        )
    gave_way = sum(r["refit_kept"] != r["refit"] for r in every)
    if gave_way:
        said.append(f"Runs that kept the weights of a simpler refit, which did better on held-out samples: {gave_way}.")
    refused = sum("refused" in r for _, r in records.rows(SECTION))
    said.append(f"Refused runs: {refused}; the reason stands in the cell." if refused else "No run was refused.")
    absent = sum(f"{r.network} {r.ratio:g} {r.label} {r.refit}" not in records.section(SECTION) for r in runs(False))
    return [*said, *([f"Runs that are not measured yet, their cells empty: {absent}."] if absent else [])]


def networks(records: Records) -> str:
    """Section 11."""
    rows = sorted((r for _, r in records.rows(SECTION)), key=_order)
    if not rows:
        return missing(SECTION)
    cells = cells_of(records)
    found = [
        "The paper prunes ResNets with bottlenecks, MobileNetV2 and MobileNetV3 on ImageNet, and DGCNN on ModelNet40. "
        "Here each architecture goes through every method on the weights that there are: a bottleneck ResNet and a "
        "MobileNetV2 *trained on MNIST*, and MobileNetV3-Small and DGCNN with *random weights*, which nobody trained: "
        "there is nothing to classify, so that they have an error of the outputs and an agreement with the original, "
        "on random inputs, and no top-1. These show that the methods run on such graphs (squeeze and excitation, "
        "hard swish, neighbours by distance) and how well an arbitrary function is imitated, not what accuracy a "
        "trained network keeps; and where the original gives most inputs the same class, agreement says little. The "
        "MobileNetV2 that was trained on ImageNet stands in section 9, with the methods that were run there.",
        "Each cell is a full run of `prune` (`round_to=1`, `fast=True`, seed 0, free coefficients). `error` is the "
        "squared error of the outputs over their spread. One standard error of top-1 is about 0.5 points at 97 % of "
        "1,000 images. Methods that find no coefficients have no greedy refit. The MobileNets have one cut, "
        "with the refit that users get, as a run of them takes minutes.",
    ]
    for _, same in groupby(rows, key=_order):
        found += _table(list(same))
    found += [
        "Method against method, all else equal: in how many tables the first leaves the lower error, on trained "
        "weights / on random ones.",
        table(
            ["", *EVERY_REFIT],
            (
                [
                    f"{a} against {b}",
                    *(
                        " / ".join(_pair(*lower(cells, a, b, refit, trained=trained)) for trained in (True, False))
                        for refit in EVERY_REFIT
                    ),
                ]
                for a, b in PAIRS
            ),
        ),
        " ".join(["**What the rows show.**", *_errors(cells), *_refits(records, cells)]),
        "Of MobileNetV3 and DGCNN there are no trained weights here, and none of these networks is fine-tuned behind "
        "the cut, as those of the paper's tables are (*Start here* says what that needs). So none of its figures "
        "stands beside these; what can be compared is the selection alone, with the same refit behind it.",
    ]
    return "\n\n".join(found)
