"""Section 9 of the document."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.paper.ablation import CELLS, SECTION, SELECTIONS, runs
from experiments.paper.comparisons import ALLOWED, BAR, CLEAR, Comparison, Difference, against, averaged, bar
from experiments.paper.markup import count, missing, number, percent, short, table
from experiments.paper.records import Records, Row
from onnxprune.methods import REFITS as ROWS

REFITS = tuple(reversed(ROWS))
# What is held against what, and what that tells.
PAIRS = (
    ("local", "gfs", "the best step against a fixed one, towards the layer's outputs"),
    ("global", "gfs-outputs", "the same towards the network's"),
    ("gfs", "gfs, at once", "each group on pruned inputs, or on the uncut network"),
    ("gfs-outputs", "gfs-outputs, at once", "the same"),
    ("gfs-outputs", "gfs", "the network's outputs or the layer's, by fixed steps"),
    ("global", "local", "the same by best steps"),
    ("local", "local, convex", "free coefficients or those of the paper's letter"),
    ("global", "global, convex", "the same"),
    ("combined", "combined, convex", "the same"),
    ("combined", "local", "the better of two by group, or one of them"),
    ("combined", "global", "the same"),
    ("local", "obs", "the paper's method against block OBS, this program's default"),
    ("combined", "obs", "the same"),
    ("local", "taylor", "against Molchanov's scores"),
    ("local", "magnitude", "against no data at all"),
    ("gfs", "magnitude", "the same"),
)

RELATIONS = (
    "**Relation to Taylor pruning** (Molchanov et al. 2017, arXiv 1611.06440; 2019, arXiv 1906.10771; review "
    "2k). Both use gradients of a gate per channel. Molchanov's score is that of the *loss* at the *full* "
    "network, E[d_j²], one number per channel and no interaction. The diagonal of our gate Gram is that score, "
    "with random projections of the outputs in place of the loss, as there are no labels (`--labels` puts the "
    "loss back). Global imitation uses the whole matrix, so it knows that of two channels that say the same "
    "either may go, but not both. Its Taylor screening (metric `exact`) takes the gradient of the *discrepancy* "
    "at the *pruned* layer, at every step (at the full layer that gradient is zero), and compares lines, dD/da_i "
    "- Σ_j α_j dD/da_j, rather than units. The auxiliary variables are the same gates; here they are folded away "
    "(section 4).",
    "**Relation to GFS** (Ye et al. 2020, arXiv 2003.01794; reviews 2j, 3, 4). GFS is the same walk with γ = "
    "1/(k+1) and without removal: A is the mean of the units chosen so far. Its limits, as measured in section "
    "1: a unit that was chosen once stays, the step shrinks whatever the layer needs, and D need not fall from "
    "step to step. Theorem 1 cannot be carried over to it: the proof needs the best γ on the line. With γ = "
    "1/(k+1) A is a mean of k corners, so that D ≥ λ N δ²/k², with δ the distance of k/N from the next integer and "
    "λ the least eigenvalue of the Gram matrix of the s_i: 1/k² but at multiples of N, where D may be 0, as every "
    "unit has been taken equally often. What this paper's method relaxes: the step "
    "is optimised, units are taken back, and coefficients differ by unit.",
    "**Relation to other methods that match activations** (review 3). ThiNet and channel pruning by lasso (He et "
    "al. 2017) choose inputs by the error of one layer's output, as local imitation does, the first greedily "
    "with equal coefficients, the second by a convex relaxation; both refit by least squares, as `--refit "
    "least-squares` does. Block OBS removes with the refit inside the step. Methods that propagate importance "
    "from the last layer, and Taylor scores, look at the output, as global imitation does, but score each unit "
    "by itself.",
)


def ablation(records: Records) -> str:
    """Section 9."""
    rows = dict(records.rows(SECTION))
    if not rows:
        return missing(SECTION)
    means = averaged(list(rows.values()))
    found = [
        "Each cell is a full run of `prune`: allocation over the layers, selection and refit, `round_to=1`. Methods "
        "select layer by layer on the inputs that the cuts before have left, but for *taylor*, *obs*, *magnitude*, "
        "*random* and what says *at once*: these select on the uncut network. *gfs* takes steps of fixed size towards "
        "the outputs of the layers that read a group, *gfs-outputs* towards those of the network; Ye et al. (2020) "
        "minimise the network's loss, with labels and by running the network for every candidate, which *gfs-outputs* "
        "does to second order and without labels. *combined* takes by layer whichever leaves the smaller error, and of "
        "this mixture, all local and all global the network that ends closest to the original on the calibration "
        "samples. Coefficients are free (at or above 0, Σ a ≤ N) unless a row says *convex* (Σ a = N after every "
        "step); those of *gfs* are settled like the others' once its steps have chosen the units, so that the choices "
        "alone differ. *global*, *combined* and *gfs-outputs* use the gate metric. A cell is top-1 on the test split / "
        "relative squared error of the logits there.",
    ]
    wanted = {run.key for run in runs(quick=False)}
    measured = wanted & rows.keys()
    if measured and measured != wanted:
        found.append(
            f"{len(measured)} of {len(wanted)} runs are measured. What is not leaves a cell empty, or has fewer seeds; "
            "*greedy* has cells for methods with coefficients alone."
        )
    for network, ratio in CELLS:
        found += _cell(network, ratio, [r for r in means if (r["network"], r["ratio"]) == (network, ratio)])
    others = [r for r in means if (r["network"], r["ratio"]) not in CELLS]
    if others:
        found += [
            "Other networks:",
            table(
                ["network", "MACs removed", "refit", "selection", "seeds", "top-1 before", "top-1", "agree", "error"],
                (
                    [
                        *(short(r["network"]), f"{100 * r['ratio']:.0f} %", r["refit"], r["label"], len(r["seeds"])),
                        *(percent(r[k]) for k in ("top1_before", "top1", "agreement")),
                        r["output_error"],
                    ]
                    for r in sorted(others, key=lambda r: (r["network"], -r["ratio"], r["output_error"]))
                ),
            ),
        ]
    found += _differences(records)
    found += _bar(bar(records))
    found += RELATIONS
    return "\n\n".join(found)


def _cell(network: str, ratio: float, rows: Sequence[Row]) -> list[str]:
    """The table of one network and share."""
    if not rows:
        return []
    by_place = {(r["label"], r["refit"]): r for r in rows}
    seeds = sorted({len(r["seeds"]) for r in rows})

    def cell(label: str, refit: str) -> str:
        r = by_place.get((label, refit))
        return "" if r is None else f"{percent(r['top1'])} / {number(r['output_error'])}"

    best = min(rows, key=lambda r: r["output_error"])
    samples = " or ".join(sorted({str(r["samples"]) for r in rows}))
    return [
        f"**{short(network)}, -{100 * ratio:.0f} % MACs**, {samples} calibration samples, top-1 of the original "
        f"{percent(rows[0]['top1_before'])}; means of {' or '.join(map(str, seeds))} "
        f"{'seed' if seeds == [1] else 'seeds'}. The least error is that of {best['label']} with {best['refit']}: "
        f"{number(best['output_error'])}, top-1 {percent(best['top1'])}.",
        table(
            ["selection", *REFITS],
            ([label, *(cell(label, refit) for refit in REFITS)] for label in SELECTIONS),
        ),
    ]


def _differences(records: Records) -> list[str]:
    """One selection against another, refit by refit."""
    compared = [(a, b, what, against(records, a, b)) for a, b, what in PAIRS]
    if not any(d for *_, d in compared):
        return []

    def shown(d: Difference) -> str:
        text = f"{d.top1:+.1f} ± {d.noise:.1f}"
        return f"**{text}**" if d.clear else text

    def row(a: str, b: str, what: str, found: Sequence[Difference], network: str, ratio: float) -> list[str]:
        at = {d.cell.refit: d for d in found if (d.cell.network, d.cell.ratio) == (network, ratio)}
        cells = [f"{shown(at[r])}; {number(at[r].error)}" if r in at else "" for r in REFITS]
        return [f"{a} - {b}", what, *cells]

    parts = [
        f"**Selection against selection**, refit by refit: the difference of top-1 in points ± its standard error "
        "(over the test images, whose two answers are paired, and over seeds), and the error of the first over that "
        f"of the second. In bold where the difference is more than {CLEAR:g} standard errors. A ratio below 1 is in "
        "favour of the first.",
    ]
    for network, ratio in CELLS:
        some = [c for c in compared if any((d.cell.network, d.cell.ratio) == (network, ratio) for d in c[3])]
        if some:
            parts += [
                f"{short(network)}, -{100 * ratio:.0f} %:",
                table(["", "what differs", *REFITS], (row(*c, network, ratio) for c in some)),
            ]
    parts.append(_summary([(f"{a} against {b}", d) for a, b, _, d in compared]))
    return parts


def _summary(compared: Sequence[tuple[str, Sequence[Difference]]]) -> str:
    """Which differences are beyond noise, in either direction."""
    rows = [
        [
            what,
            " / ".join(f"{sum(d.clear and sign * d.top1 > 0 for d in found)}" for sign in (1, -1)) + f" / {len(found)}",
            f"{sum(d.lower for d in found)} of {sum(d.seeds for d in found)}",
        ]
        for what, found in compared
        if found
    ]
    return table(["", "clearly better / clearly worse / cells", "lower error in"], rows)


def _bar(compared: Sequence[Comparison]) -> list[str]:
    """`combined` against its parts."""
    if not compared:
        return []
    missed = sum(not c.holds for c in compared)
    worse = [c for c in compared if c.excess > 0]
    most = max(c.excess for c in compared)
    beyond = f", by {number(100 * most)} % at most" if worse else ""
    return [
        f"**The bars of combined**: top-1 within {ALLOWED} points of the better of local and global, and an error not "
        "above that of the better one; same refit, means over the seeds that all three have. One of 500 images is 0.2 "
        "points.",
        table(
            [
                *("network", "MACs removed", "refit", "seeds", *(f"{m}: top-1" for m in BAR), "combined - better"),
                *(f"{m}: error" for m in BAR),
                "over the better",
            ],
            (
                [
                    *(short(c.cell.network), f"{100 * c.cell.ratio:.0f} %", c.cell.refit, c.seeds),
                    *(percent(x) for x in c.top1),
                    f"{c.difference:+.1f}" if c.holds else f"**{c.difference:+.1f}**",
                    *c.error,
                    f"{100 * c.excess:+.1f} %" if c.excess <= 0 else f"**{100 * c.excess:+.1f} %**",
                ]
                for c in compared
            ),
        ),
        f"The first bar is missed in {count(missed, len(compared), 'comparisons')}, the second in "
        f"{count(len(worse), len(compared), 'comparisons')}{beyond}. `combined` chooses by the error on calibration "
        "samples; the table is of test images.",
    ]
