"""Sections 5, 9 and 10 of the document."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.paper.ablation import BAR
from experiments.paper.comparisons import ALLOWED, against, averaged, bar
from experiments.paper.markup import count, missing, number, percent, short, table
from experiments.paper.records import Records
from experiments.paper.text_theory import figure

ORDER = ("random", "magnitude", "taylor", "gfs", "obs", "local", "global", "combined")
REFITS = ("none", "greedy", "least-squares", "lockstep")

FORMULAS = (
    (
        "statistics of a layer (all but global, taylor)",
        "R D²",
        "D²",
        "R rows sampled from the calibration set, D = units x kernel positions; once per layer, whatever is selected "
        "later",
    ),
    ("K of a group from them", "D² M", "N² + D²", "M outputs of the reader"),
    (
        "gfs, local: one step",
        "N",
        "N",
        "beside K: all N units are scored from Ka, which takes one row of K per step, and all of it once in N",
    ),
    (
        "gfs, local: a path to every width",
        "N²",
        "N²",
        "3 N steps, and a bounded number for each width that was not visited; coefficients of every width are kept",
    ),
    (
        "local as equation 4 of the paper, without K",
        "N · T · F",
        "T · M",
        "T samples, F the cost of one layer: every step would run the layer N times; K replaces this",
    ),
    (
        "global (Gauss-Newton in the gates)",
        "p backward passes for *all* groups, + T N²",
        "N² per group",
        "p projections (`--probes`); sequential: once more per group, on up to 384 samples, from that group on",
    ),
    (
        "global, exact",
        "per step 1 backward and 2 c forward passes behind the group",
        "the activations kept in front of the group",
        "c candidates (4)",
    ),
    ("Taylor (Molchanov 2019)", "the same backward passes, once", "N per group", "a score per unit; nothing is solved"),
    ("block OBS", "N steps of D²: N D²; inverse D³", "D²", "the strongest for one layer, and the dearest"),
    ("magnitude, random", "the weights once", "N", ""),
)


def scaling(records: Records, figures: Mapping[str, str]) -> str:
    """Section 5."""
    found = [
        "Formulas, for one group of N units whose readers have D columns:",
        table(["method", "time", "memory", "where"], FORMULAS),
    ]
    section = records.section("scaling")
    if not section:
        return "\n\n".join([*found, missing("scaling")])
    found.append(
        "Measured on synthetic correlated data (`experiments/paper/scaling.py`), one BLAS thread. Time is *processor* "
        "time of the process, the least of up to three runs, as other jobs shared the machine; caches and memory "
        "bandwidth were shared too, so the exponents are worth more than the seconds. Memory is the most that numpy "
        "held at once (tracemalloc). Exponents are fitted to the measured sizes; small sizes are dominated by fixed "
        "costs, which lowers them."
    )
    for name, what in (
        ("units", "units N, D = 4 N"),
        ("columns", "columns D; 2,048 rows, or 64 units"),
        ("samples", "samples"),
    ):
        if name not in section:
            continue
        r = section[name]
        sizes = r[name]
        rows = []
        for k, m in r["methods"].items():
            rows.append(
                [
                    k,
                    *m["seconds"],
                    m.get("time_exponent"),
                    number(m["mib"][-1]) if name != "samples" else "",
                    m.get("memory_exponent") if name != "samples" else "",
                ]
            )
        found += [
            f"Against {what}:",
            table(["", *(f"s at {n:,}" for n in sizes), "exponent", f"MiB at {sizes[-1]:,}", "exponent"], rows),
        ]
        if name == "samples":
            found.append(
                f"On {short(r['network'])}. One projection's gate Gram for all groups at once takes "
                f"{', '.join(number(x) for x in r['passes'])} forward passes. Memory is that of one batch in "
                "onnxruntime, which is bounded (512 MiB) whatever the number of samples, and not seen by tracemalloc."
            )
    if "scaling" in figures:
        found.append(figure(figures, "scaling"))
    return "\n\n".join(found)


def ablation(records: Records) -> str:
    """Section 9."""
    rows = averaged([r for _, r in records.rows("ablation")])
    if not rows:
        return missing("ablation")
    found = [
        "**These rows are of an earlier version**: coefficients are convex unless a row says *free*, those of *gfs* "
        "are of a larger class (Σ a ≤ N) than those of *local*, and *gfs* selects once, on the uncut network, where "
        "it now selects in sequence as *local* does. They are to be measured anew.",
        "Each row is a full run of `prune`: allocation over the layers, selection and refit, `round_to=1`. *local*, "
        "*global* and *combined* select layer by layer on the inputs that the cuts before have left; the others "
        "select once, on the unpruned network. *combined* takes by layer whichever leaves the smaller error, and of "
        "this mixture, all local and all global the network that ends closest to the original on the calibration "
        "samples. *global* and *combined* use the gate metric. Top-1 and agreement with "
        "the original on the test split (500 CIFAR-10 or 400 ImageNet images: one standard error of top-1 is about "
        "1.1 and 2.1 points; agreement is sharper). `error` is the relative squared error of the logits.",
    ]
    for network, ratio in sorted({(r["network"], r["ratio"]) for r in rows}, key=lambda x: (x[0], -x[1])):
        some = [r for r in rows if (r["network"], r["ratio"]) == (network, ratio)]
        some.sort(key=lambda r: (REFITS.index(r["refit"]), ORDER.index(r["method"]), r["label"]))
        samples = sorted({r["samples"] for r in some})
        found += [
            f"**{short(network)}, -{100 * ratio:.0f} % MACs**, {' or '.join(map(str, samples))} calibration samples, "
            f"top-1 of the original {percent(some[0]['top1_before'])}:",
            table(
                ["refit", "selection", "top-1", "agree", "error", "parameters left", "seeds"],
                (
                    [
                        r["refit"],
                        r["label"],
                        percent(r["top1"]),
                        percent(r["agreement"]),
                        r["output_error"],
                        r["parameters_left"],
                        ", ".join(map(str, r["seeds"])),
                    ]
                    for r in some
                ),
            ),
        ]
    compared = bar(records)
    if compared:
        missed = sum(not c.holds for c in compared)
        found += [
            f"**The bar: combined within {ALLOWED} points of the better of local and global**, in the same refit "
            "mode, means over the seeds that all three have. One of 500 images is 0.2 points.",
            table(
                [
                    "network",
                    "MACs removed",
                    "refit",
                    "seeds",
                    *(f"{m}: top-1" for m in BAR),
                    "combined - better",
                    "holds",
                ]
                + [f"{m}: error" for m in BAR],
                (
                    [
                        *(short(c.network), f"{100 * c.ratio:.0f} %", c.refit, c.seeds),
                        *(percent(x) for x in c.top1),
                        f"{c.difference:+.1f}",
                        "yes" if c.holds else "**no**",
                        *c.error,
                    ]
                    for c in compared
                ),
            ),
            f"The bar is missed in {count(missed, len(compared), 'comparisons')}. The relative error of the logits, "
            "which `combined` chooses by (on calibration samples), is within 5 % of the better "
            "one's, or below it, in "
            f"{count(sum(c.error[2] <= 1.05 * min(c.error[:2]) for c in compared), len(compared), 'comparisons')}.",
        ]
    pairs = [("local", "gfs"), ("combined", "gfs"), ("combined", "taylor"), ("combined", "obs")]
    rows_of = [(a, b, against(records, a, b)) for a, b in pairs]
    if any(d for *_, d in rows_of):
        found += [
            "**Method against method**, all else equal (network, ratio, refit, seed): mean difference, and in how "
            "many the first is the better one.",
            table(
                ["", "pairs", "top-1, points", "agreement, points", "lower error in"],
                (
                    [
                        f"{a} against {b}",
                        len(d),
                        *(f"{np.mean([x[k] for x in d]):+.1f}" for k in ("top1", "agreement")),
                        f"{sum(x['output_error'] < 0 for x in d)} of {len(d)}",
                    ]
                    for a, b, d in rows_of
                    if d
                ),
            ),
        ]
    found += [
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
    ]
    return "\n\n".join(found)


PUBLISHED = (
    (
        "GFS, and this paper's authors, MobileNetV2, ImageNet",
        "their code's defaults: 150 epochs of fine-tuning, then 10 more at a rate of 5e-4, labels, 2 GPUs",
        "`mobile2_finetune.py` of github.com/lushleaf/Network-Pruning-Greedy-Forward-Selection",
    ),
    (
        "HRank, ResNet-56, CIFAR-10, -50.0 % FLOPs: 93.17 %",
        "their code's default: 30 epochs with labels *per convolution*, one after the other",
        "README and `main.py` of github.com/lmbxmu/HRank",
    ),
    (
        "SCP, DPFPS, PPSM, ResNet-56, CIFAR-10, about -50 % FLOPs: -0.46, -0.61, +0.13 points",
        "full fine-tuning or training with labels; budgets not attested here",
        "as recorded in this project's design notes; not verified here",
    ),
    (
        "NAS by reinforcement learning (Zoph et al.)",
        "more than 20,000 networks trained, 500 GPUs, 4 days",
        "as cited in arXiv 1905.07529, section 1",
    ),
    (
        "ProxylessNAS",
        "cost of about one regular training of the network found; it states 10⁴ GPU hours for earlier NAS",
        "arXiv 1812.00332, abstract",
    ),
    (
        "Single-Path NAS",
        "search: 8 epochs, 30 TPU hours; then training of what was found",
        "arXiv 1904.02877, abstract",
    ),
    (
        "Knowledge distillation (Hinton et al. 2015), designed small networks",
        "a full training of the small network, with the large one's outputs as targets; the small network is given, "
        "not found",
        "kind of cost; no figure attested here",
    ),
)


def epochs_of(records: Records) -> list[float]:
    """What each lockstep run on ResNet-56 costs, in epochs of training on CIFAR-10: passes x samples / 150,000."""
    rows = [r for _, r in records.rows("ablation") if "resnet56" in r["network"] and r["refit"] == "lockstep"]
    return [r["passes"] * r["samples"] / 150_000 for r in rows]


def efficiency(records: Records) -> str:
    """Section 10."""
    rows = [r for _, r in records.rows("ablation")]
    found = [
        "What one run costs here: no labels, no training, no GPU; a few hundred samples. Seconds are wall-clock "
        "seconds on two processor cores *shared with other jobs*, so they are upper bounds; *passes* is the same run "
        "over the time of one plain onnxruntime pass over the same samples, measured in the same run, and under the "
        "same load as far as that was steady."
    ]
    if rows:
        shown = []
        for network, ratio in sorted({(r["network"], r["ratio"]) for r in rows}, key=lambda x: (x[0], -x[1])):
            for method in ("obs", "gfs", "local", "global", "combined"):
                some = [
                    r
                    for r in rows
                    if (r["network"], r["ratio"], r["label"], r["refit"]) == (network, ratio, method, "lockstep")
                ]
                if some:
                    mean = {
                        k: float(np.mean([r[k] for r in some])) for k in ("seconds", "passes", "top1_before", "top1")
                    }
                    stages: dict[str, float] = {}
                    for r in some:
                        for k, v in r["stages"].items():
                            stages[k] = stages.get(k, 0.0) + v / len(some)
                    longest = max(stages, key=lambda k: stages[k])
                    lost = mean["top1"] - mean["top1_before"]
                    shown.append(
                        [
                            short(network),
                            f"-{100 * ratio:.0f} %",
                            method,
                            f"{lost:+.1f}",
                            mean["seconds"],
                            mean["passes"],
                            f"{longest} ({100 * stages[longest] / mean['seconds']:.0f} %)",
                        ]
                    )
        found.append(
            table(
                ["network", "MACs", "selection, lockstep refit", "top-1, points", "seconds", "passes", "longest stage"],
                shown,
            )
        )
    else:
        found.append(missing("ablation"))
    epochs = epochs_of(records)
    said = (
        f" The runs on ResNet-56 above took {number(min(epochs))} to {number(max(epochs))} such epochs."
        if epochs
        else ""
    )
    found += [
        "Training-based routes to a small network, as published. These figures were not measured here, and their "
        "machines differ; the table says what *kind* of cost each route has.",
        table(["route", "cost", "where it is stated"], PUBLISHED),
        "One epoch over CIFAR-10 is 50,000 images forward and backward, or about 150,000 forward passes of an image "
        "(a backward pass costs about two forward ones)." + said,
        "The other routes train for tens or hundreds of epochs, with labels, and reach more: fine-tuned ones lose "
        "between nothing and 0.6 points at half the MACs of a ResNet-56, runs without training lose what section 9 "
        "shows. The two combine: a network pruned so is a starting point for fine-tuning, or for distillation from "
        "the original. NAS and design answer another question, which network to train; pruning answers what of a "
        "trained one is needed.",
    ]
    return "\n\n".join(found)
