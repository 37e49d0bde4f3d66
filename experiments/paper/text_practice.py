"""Sections 5 and 10 of the document."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.paper.markup import missing, number, short, table
from experiments.paper.records import Records
from experiments.paper.text_theory import figure

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
