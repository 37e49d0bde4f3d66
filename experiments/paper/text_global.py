"""Section 2 of the document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from experiments.paper.alone import REFITS
from experiments.paper.markup import count, missing, number, percent, short, span, table
from experiments.paper.records import Records

# By the method of a cut: what the page calls it.
CALLED = {"local": "local", "global": "global, gates", "exact": "global, network"}
Cuts = Mapping[tuple[str, float, str], Mapping[str, Any]]


def cuts_of(records: Records) -> Cuts:
    """By layer, share removed and method."""
    return {(k, c["removed"], c["method"]): c for k, r in records.rows("alone") for c in r["cuts"]}


def lower(cuts: Cuts, method: str, measure: str, share: float | None = None) -> tuple[int, int]:
    """In how many cuts, and of how many, a method's error is below local imitation's. measure: a discrepancy, or the
    refit whose test error counts."""
    wins, total = 0, 0
    for (key, removed, m), c in cuts.items():
        if m != method or share not in (None, removed):
            continue
        a, b = (
            (x[measure]["output_error"] if measure in REFITS else x[measure]) for x in (cuts[key, removed, "local"], c)
        )
        wins, total = wins + (b < a), total + 1
    return wins, total


def factors(cuts: Cuts, method: str, share: float) -> list[float]:
    """The network's discrepancy over that by local imitation, on calibration samples, per layer."""
    return [
        c["output"] / cuts[key, removed, "local"]["output"]
        for (key, removed, m), c in cuts.items()
        if (m, removed) == (method, share)
    ]


def median_of(cuts: Cuts, method: str, refit: str) -> float:
    """The error on the test split over that by local imitation, as a median over all cuts."""
    ratios = [
        c[refit]["output_error"] / cuts[key, removed, "local"][refit]["output_error"]
        for (key, removed, m), c in cuts.items()
        if m == method
    ]
    return float(np.median(ratios))


def fits(records: Records) -> list[tuple[str, dict[str, Mapping[str, float]]]]:
    """Per layer, by method: constant and exponent of exp(-cn) along its path, by the network's discrepancy."""
    return [(k, {m: c["fit"].get("exp(-cn)", {}) for m, c in r["curves"].items()}) for k, r in records.rows("alone")]


def better(found: Iterable[tuple[str, Mapping[str, Mapping[str, float]]]], method: str, key: str) -> tuple[int, int]:
    """In how many layers the constant is below local imitation's, or the exponent above it."""
    pairs = [(f["local"][key], f[method][key]) for _, f in found if f.get(method) and f.get("local")]
    return sum(b < a if key == "constant" else b > a for a, b in pairs), len(pairs)


def alone(records: Records) -> str:
    """Section 2."""
    rows = list(records.rows("alone"))
    if not rows:
        return missing("alone")
    cuts = cuts_of(records)
    return "\n\n".join([_measured(rows, cuts), _why(records, cuts), _premise(records, cuts)])


def _measured(rows: list[tuple[str, Any]], cuts: Cuts) -> str:
    shown = [
        [short(k), percent(100 * c["removed"]), CALLED[c["method"]], c["local"], c["output"]]
        + [
            v
            for level in REFITS
            for v in (c[level]["output_error"], percent(c[level]["agreement"]), percent(c[level]["top1"]))
        ]
        for k, r in rows
        for c in r["cuts"]
    ]
    walks = [r["exact"] for _, r in rows if r["exact"]]
    cost = (
        f"`global, network` walks on the network itself, on the first {span([w['samples'] for w in walks])} of "
        "these samples (as the program with `--metric exact`: four "
        f"units are searched per step; {span([w['evaluations'] for w in walks])} evaluations "
        "of the network for the path of one layer), and "
        f"was walked in {count(len(walks), len(rows), 'layers')}; on the others it would take longer than all else. "
        if walks
        else ""
    )
    head = [
        *("layer", "removed %", "by", "D layer", "D network"),
        *("none: error", "agree", "top-1", "greedy: error", "agree", "top-1", "least squares: error", "agree", "top-1"),
    ]
    return "\n\n".join(
        [
            "Measured: layers cut alone to three widths, those of section 1 and some of the bundled models, "
            "by local imitation and by global imitation "
            "in two metrics. `global, gates` walks on a Gauss-Newton quadratic, right to second order at the full "
            f"layer. {cost}Every size of every path has settled coefficients of one class (a ≥ 0, Σ a ≤ N). `D layer` "
            "and `D network` are the discrepancies on all calibration samples with these; the others are the relative "
            "error of the logits, the agreement with the original's answers and top-1 on the test split, for three "
            "refits of the readers.",
            table(head, shown),
            *(_wins(cuts, m) for m in ("global", "exact") if lower(cuts, m, "output")[1]),
        ]
    )


def _wins(cuts: Cuts, method: str) -> str:
    own = count(*lower(cuts, method, "local"), "cuts")
    at = ", ".join(
        f"{count(*lower(cuts, method, 'output', s), 'layers')} at -{100 * s:.0f} %"
        for s in sorted({k[1] for k in cuts})
    )
    after = [count(*lower(cuts, method, level), "cuts") for level in REFITS]
    return (
        f"*{CALLED[method]}* against local imitation: the lower error of the *layer* in {own}; of the *network*, on "
        f"the calibration samples, in {count(*lower(cuts, method, 'output'), 'cuts')} ({at}); on the test split in "
        f"{after[0]} without refit, in {after[1]} with its own coefficients and in {after[2]} after least squares."
    )


def _why(records: Records, cuts: Cuts) -> str:
    found = fits(records)
    methods = [m for m in CALLED if any(m in f for _, f in found)]
    lines = [[short(k), *(f.get(m, {}).get(x) for x in ("constant", "exponent") for m in methods)] for k, f in found]
    answers = []
    for m in methods[1:]:
        constant, slope = better(found, m, "constant"), better(found, m, "exponent")
        said = ", ".join(
            f"{span(f)} times at -{100 * s:.0f} %"
            for s in sorted({k[1] for k in cuts}, reverse=True)
            if (f := factors(cuts, m, s))
        )
        answers.append(
            f"*{CALLED[m]}* has the better constant in {count(*constant, 'layers')} and the better slope in "
            f"{count(*slope, 'layers')}; its discrepancy of the network is {said} that of local imitation."
        )
    ratios = {
        m: [c["output"] / c["local"] for (_, _, x), c in cuts.items() if x == m and c["local"] > 1e-9] for m in methods
    }
    spent = "; ".join(f"{CALLED[m]}: {number(float(np.median(v)))}" for m, v in ratios.items() if v)
    return "\n\n".join(
        [
            '**Why does global imitation win, where it does?** (review 2c: "perhaps the slope is better, but the '
            "constant is worse?\") exp(-cn) fitted to the network's discrepancy along the path of each: log10 of the "
            "constant, and c. Both are relative to the empty layer, so that a lower constant is the better one.",
            table(["layer", *(f"constant {CALLED[m]}" for m in methods), *(f"c {CALLED[m]}" for m in methods)], lines),
            " ".join(answers),
            _verdict(records, cuts, methods),
            "What it buys this with is the layer's own error, which it spends in directions that the outputs do not "
            f"depend on: the network's discrepancy over the layer's is, as the median of all cuts, {spent}. Bounds "
            "cannot show this. The global walk's bound is loose as it takes the worst direction for every step; the "
            "local one's is tight for the layer, and then pays L² for the outputs. A tighter bound of another "
            "quantity says nothing of which error is smaller. The factor differs by method, and is not constant "
            "along one path, which is how far a Lipschitz constant can explain a gain (review 4).",
        ]
    )


def _verdict(records: Records, cuts: Cuts, methods: list[str]) -> str:
    """Where the method itself was walked: with few units, with many, and by slope or constant."""
    best = "exact" if "exact" in methods else "global"
    shares = sorted({k[1] for k in cuts})
    few, many = lower(cuts, best, "output", shares[-1]), lower(cuts, best, "output", shares[0])
    found = fits(records)
    (c, of), (s, _) = better(found, best, "constant"), better(found, best, "exponent")
    guess = (
        "it is the reverse of the reviewer's guess: the constant is better, the slope is not"
        if c > s
        else "the reviewer's guess holds: the slope is better, the constant is not"
        if s > c
        else "its constant and its slope are the better ones equally often"
    )
    if few[0] / few[1] > many[0] / many[1]:
        where = "with few units it is ahead, with many local imitation catches up, as the layer's error then goes to "
        where += "zero in every direction"
    else:
        where = "and few units favour it no more than many do"
    return (
        f"So by *{CALLED[best]}* {guess} ({c} against {s} of {of} layers); {where} ({few[0]} of {few[1]} layers at "
        f"-{100 * shares[-1]:.0f} %, {many[0]} of {many[1]} at -{100 * shares[0]:.0f} %)."
    )


def sentence(records: Records) -> str:
    """For the opening table."""
    cuts, found = cuts_of(records), fits(records)
    best = "exact" if lower(cuts, "exact", "output")[1] else "global"
    n, of = lower(cuts, best, "output")
    if not of:
        return "Not measured yet"
    (c, layers), (s, _) = better(found, best, "constant"), better(found, best, "exponent")
    return (
        f"By the network's true error it does in {n} of {of} cuts; its constant is the better one in {c}, its slope in "
        f"{s} of {layers} layers; it spends the layer's error where the outputs do not see it"
    )


def _premise(records: Records, cuts: Cuts) -> str:
    promised = {
        m: float(np.median([c["output"] / c["gauss_newton"] for (_, _, x), c in cuts.items() if x == m]))
        for m in ("local", "global")
    }
    methods = [m for m in ("global", "exact") if lower(cuts, m, "output")[1]]
    left = "; ".join(
        f"{CALLED[m]} {number(median_of(cuts, m, 'greedy'))} and {number(median_of(cuts, m, 'least-squares'))}"
        for m in methods
    )
    both = [
        (cuts[k, s, "exact"]["output"], c["output"])
        for (k, s, m), c in cuts.items()
        if m == "global" and (k, s, "exact") in cuts
    ]
    stand_in = (
        f"The network itself leaves less than the gates do in {count(sum(a < b for a, b in both), len(both), 'cuts')}; "
        "its walk ends where no single step gains more than float32 shows, and settles each size in two steps, where "
        "the quadratics are settled in 32 or more. "
        if both
        else ""
    )
    return (
        "**What is unfavourable.** On the test split the error by global imitation is, as a median over the cuts, so "
        "many times that by local imitation, with its own coefficients and after a refit by least squares, which "
        f"reduces the layer's error whatever was selected: {left}. Cuts that it loses are counted above. The gates are "
        "a stand-in: the "
        f"true discrepancy is {number(promised['local'])} times the quadratic's (median) for the cuts that local "
        f"imitation proposes, and {number(promised['global'])} times for those that it found itself, as a selection "
        f"trusts what looks cheap in it. {stand_in}These are single layers behind whole inputs; over whole networks, "
        "behind cuts, section 9 compares them."
    )


def kept(records: Records) -> str:
    """What local, global and obs leave of each layer of one network."""
    rows = [r for _, r in records.rows("kept")]
    if not rows:
        return missing("kept")
    first = rows[0]
    methods = [r["method"] for r in rows]
    of = {r["method"]: r for r in rows}
    shares = {m: [k / u for k, u in zip(of[m]["kept"], of[m]["units"], strict=True)] for m in methods}
    apart = [(max(v) - min(v), name) for name, *v in zip(first["names"], *(shares[m] for m in methods), strict=True)]
    most, where = max(apart)
    same = sum(a == 0 for a, _ in apart)
    gone = "; ".join(f"{m}: {sum(k == 0 for k in of[m]['kept'])}" for m in methods)
    return "\n\n".join(
        [
            f"**Units kept per layer** of {short(first['network'])} at -{100 * first['ratio']:.0f} % MACs, "
            f"{first['samples']} calibration samples, the program's defaults but `round_to=1` (`--fast`). Layers in "
            "the order of the graph; groups that share channels, as the sum of a residual stream does, are one row.",
            table(
                ["group", "units", *methods],
                (
                    [f"`{name}`", units, *kept]
                    for name, units, *kept in zip(
                        first["names"], first["units"], *(of[m]["kept"] for m in methods), strict=True
                    )
                ),
            ),
            f"Groups that lose everything (their branch goes): {gone}. The methods keep equally many in "
            f"{count(same, len(apart), 'groups')}; they are furthest apart in `{where}`, by "
            f"{number(100 * most)} % of its units.",
        ]
    )
