"""Sections 4, 6, 7 and 8 of the document."""

from __future__ import annotations

from experiments.paper.markup import count, missing, number, percent, short, table
from experiments.paper.records import Records, Row


def parameters(records: Records) -> str:
    """Section 4."""
    rows = list(records.rows("parameters"))
    if not rows:
        return missing("parameters")
    found = [
        "**In short** (review 2g): `a` and `b` are two numbers per unit that exist between the choice and the "
        "folding. Neither is a parameter that networks have of their own, and neither is left in the written model: no "
        "operator, no initializer.",
        "- `a` scales what the readers of the unit see, so it folds into the columns of their weights: `W[:, i] ← a_i "
        "W[:, i]` (`refit.layerwise.scaled`), exactly, wherever all readers are layers; a_i = 0 removes the unit. "
        "Behind BatchNormalization or another affine map per channel it is that map's scale, but only if what stands "
        "between it and the readers passes a factor on, as a ReLU does for a_i ≥ 0; folding into the readers needs no "
        "such condition.\n"
        "- `b`, one number per unit added to its activation, folds into the bias of each reader as `Σ_i W[:, i] b_i`. "
        "That is exact where the reader does not pad, and wrong at the border where it pads with zeros, which see no "
        "b. The program has no `b`: least squares and lockstep fit the reader's bias itself, which covers every b at "
        "once; greedy coefficients alone leave the mean of what was removed uncorrected.",
        "Measured: one group cut to half by `prune(method='local', refit='greedy', coefficients='convex', "
        "uniform=0.5, include=GROUP)`. The "
        "written model is run on the whole test split and compared with `gated_network.GatedNetwork`, which runs the "
        "*original* graph with `a` multiplied in front of the readers and shares no code with the rewriting.",
        table(
            [
                "network",
                "group",
                "units kept",
                "operators before",
                "after",
                "`Mul`, `Add` added",
                "initializers whose shape changed",
                "largest difference",
                "tolerance",
            ],
            (
                [
                    short(k),
                    r["group"],
                    f"{r['kept']} of {r['units']}",
                    sum(r["operators"][0].values()),
                    sum(r["operators"][1].values()),
                    sum(max(r["operators"][1].get(o, 0) - r["operators"][0].get(o, 0), 0) for o in ("Mul", "Add")),
                    len(r["changed"]),
                    r["difference"],
                    r["tolerance"],
                ]
                for k, r in rows
            ),
        ),
    ]
    for k, r in rows:
        before, after = r["operators"]
        gone = {o: n - after.get(o, 0) for o, n in before.items() if n != after.get(o, 0)}
        changed = "; ".join(
            f"`{n}` {'x'.join(map(str, a))} → {'x'.join(map(str, b))}" for n, (a, b) in r["changed"].items()
        )
        new, were = len(r["new_initializers"]), r["were_constants"]
        text = f"- {short(k)}: changed {changed}."
        if gone:
            names = ", ".join(f"{n} {o}" for o, n in sorted(gone.items()))
            text += f" Operators that went, by constant folding of shape arithmetic: {names}."
        if new:
            text += f" New initializers: {new}, of which {were} are outputs of nodes of the original that were folded."
        a = r["coefficients"]
        text += f" Coefficients: {number(a[0])} to {number(a[-2])}, and one of {number(a[-1])}"
        free = r["free"]["coefficients"]
        text += (
            f"; `free`: {number(free[0])} to {number(free[-1])} (largest difference {number(r['free']['difference'])})."
        )
        b = r["bias"]
        pads = "pads its input" if b["padded"] else "does not pad"
        text += f" `b` drawn at random and folded into the bias of the reader ({b['reader']}, which {pads}): "
        text += f"largest difference {number(b['difference'])}."
        found.append(text)
    convex, free = (sum(outlier(c) for c in cs) for cs in coefficients(rows))
    found.append(
        "**Unfavourable.** The first step, γ = 1, takes the unit with the least damage, which is one that hardly "
        "fires; where Σα = 1 is kept (`convex`) this unit then holds the weight that the others do not need. It does "
        "no harm on the data that it was chosen on, and may do on others. A coefficient of more than five times the "
        f"next is left in {count(convex, len(rows), 'networks')} with `convex` and in "
        f"{count(free, len(rows), 'networks')} with `free`, the program's default, which asks for Σα ≤ 1 alone: the "
        "hull with the origin as one more corner."
    )
    return "\n\n".join(found)


def coefficients(rows: list[tuple[str, Row]]) -> tuple[list[list[float]], list[list[float]]]:
    """Of each network: convex ones, and free ones; ascending."""
    return [r["coefficients"] for _, r in rows], [r["free"]["coefficients"] for _, r in rows]


def outlier(coefficients: list[float]) -> bool:
    """Whether the largest, of ascending ones, is more than five times the next."""
    return len(coefficients) > 1 and coefficients[-1] > 5 * coefficients[-2]


def equivalence(records: Records) -> str:
    """Section 7."""
    rows = list(records.rows("equivalence"))
    if not rows:
        return missing("equivalence")
    return "\n\n".join(
        [
            "Removing column i of a reader, removing row i of the producer, and doing both are the same function, "
            "where *removed* means: the reader does not see it. Measured: half of the units of *every* group gone at "
            "random. `inputs`: the original graph at full size, with a 0/1 mask in front of every reader "
            "(`verification.oracle.masked_model`: inputs pruned, nothing cut). `cut`: rows of producers and columns of "
            "readers sliced out of the graph (`surgery.cut`: outputs and inputs pruned). `silenced`: only weights and "
            "bias of the producers' rows are set to zero, which is what pruning outputs means where it is done with "
            "zeros.",
            table(
                [
                    "network",
                    "groups",
                    "units removed",
                    "images",
                    "largest difference, cut against inputs",
                    "silenced against inputs",
                ],
                (
                    [
                        short(k),
                        r["groups"],
                        f"{r['removed']:,} of {r['units']:,}",
                        r["images"],
                        r["cut_against_inputs"],
                        r["silenced_against_inputs"],
                    ]
                    for k, r in rows
                ),
            ),
            "Cut and masked inputs agree to rounding in both exports. Silencing agrees only where nothing stands "
            "between producer and reader that makes a zero into something else: with BatchNormalization folded into "
            "the convolution it does, with the node in the graph it does not, as its shift is added behind the "
            "zeros. This is why removal is defined at the readers here, and the mask stands there.",
        ]
    )


def interval(records: Records) -> str:
    """Section 8."""
    rows = list(records.rows("interval"))
    if not rows:
        return missing("interval")
    key, r = rows[0]
    right, wrong = r["losses"]["as implemented"], r["losses"]["other sign"]
    return "\n\n".join(
        [
            "A step is A ← (1 - γ) A + γ e_i, so α_i becomes α_i + γ (1 - α_i) and every other α_j becomes (1 - γ) "
            "α_j. All stay at or above 0 exactly for γ in U_i = [-α_i / (1 - α_i), 1]. The lower end is *negative*, "
            "and removes unit i. With the sign as the reviewer read it, α_i = 0.3 gives [0.43, 1], which leaves no "
            "small step.",
            f"The example: α_i = {r['share']}, the others 0.5 and 0.2. Of 30,001 values of γ between -1.5 and 1.5, "
            f"those from {r['feasible'][0]:.4f} to {r['feasible'][1]:.4f} keep every α at or above 0; the formula "
            f"says {r['low']:.4f} to 1, and α_i is {number(abs(r['at_low']))} at the lower end.",
            f"On a real layer ({short(key)}, {r['group']}, {r['units']} units) {r['negative_steps']} of {r['steps']} "
            f"steps have γ < 0, {r['removals']} of which remove a unit. The same walk with the other sign at the "
            "lower end:",
            table(["steps", "D / D(0), as implemented"], zip(right["at"], right["d"], strict=True)),
            table(["steps", "D / D(0), other sign"], zip(wrong["at"], wrong["d"], strict=True)),
            f"With the other sign it ends after {wrong['steps']} steps at {number(wrong['d'][-1])}: no step is small "
            "enough to improve.",
            "**Scalars and vectors** (line 53 of the paper, review 2d), as used in `onnxprune/selection/imitation.py`:",
            table(
                ["symbol", "kind", "meaning"],
                [
                    ["N, n, k", "integers", "units of the layer; units kept; step"],
                    [
                        "s_i",
                        "vector, or function of the input",
                        "contribution of unit i to what the readers compute, over all samples, positions and "
                        "outputs, times N",
                    ],
                    [
                        "f, f_A",
                        "vectors of the same kind",
                        "the full layer's output, and the pruned one's: f_A = Σ α_i s_i",
                    ],
                    ["α_i, a_i = N α_i, b_i", "scalars per unit", "coefficients; a_i = 1 in the full layer"],
                    ["A = (α_1 … α_N)", "vector (N)", "at or above 0, sum 1"],
                    ["e_i", "vector (N)", "1 at i"],
                    ["γ, U_i", "scalar, interval", "step, and where it may lie"],
                    [
                        "K, t, c",
                        "matrix (N, N), vector (N), scalar",
                        "K_ij = <s_i, s_j>, t_i = <f, s_i>, c = <f, f>: D = c - 2tᵀa + aᵀKa",
                    ],
                ],
            ),
        ]
    )


def batchnorm(records: Records) -> str:
    """Section 6."""
    rows = list(records.rows("batchnorm"))
    if not rows:
        return missing("batchnorm")
    names = {k: short(k.split()[0].removesuffix("_legacy_bn")) for k, _ in rows}
    gains: dict[str, list[float]] = {}
    for _, r in rows:
        gains.setdefault(r["refit"], []).append(r["reestimated"]["top1"] - r["kept"]["top1"])

    def gained(refit: str) -> str:
        found = gains.get(refit, [0.0])
        return f"{min(found):+.1f} to {max(found):+.1f}"

    apart = [abs(r["kept"]["top1"] - r["folded"]["top1"]) for _, r in rows]
    said = "; ".join(f"{k}: {', '.join(f'{g:+.1f}' for g in v)}" for k, v in gains.items())
    return "\n\n".join(
        [
            "Measured: the same trained network exported with its BatchNormalization nodes (`kept`) and with them "
            "folded into the convolutions (`folded`), cut by the same call. `re-estimated`: the cut model with "
            "nodes, mean and variance of every one measured anew on the calibration samples, in the order of the "
            "graph, scale and shift as they were (`experiments/paper/batchnorm.py`). Top-1 and agreement with the "
            "uncut network on the test split, in percent; 512 calibration samples, seed 0.",
            table(
                [
                    "network",
                    "MACs removed %",
                    "selection",
                    "refit",
                    "top-1 before",
                    "folded: top-1",
                    "agree",
                    "kept: top-1",
                    "agree",
                    "re-estimated: top-1",
                    "agree",
                ],
                (
                    [names[k], percent(100 * r["ratio"]), r["method"], r["refit"], percent(r["kept"]["top1_before"])]
                    + [percent(r[kind][m]) for kind in ("folded", "kept", "reestimated") for m in ("top1", "agreement")]
                    for k, r in rows
                ),
            ),
            f"What re-estimating changes in top-1, in points, by refit: {said}.",
            f"Kept and folded networks differ by {number(min(apart))} to {number(max(apart))} points of top-1. "
            "Removal means the same in both, as BatchNormalization is an affine map per channel at inference "
            "(section 7). The selection is not the same: where the node is kept, the error of a convolution is "
            "measured in front of it, where it is folded, behind it, in the scale that the next layer sees; so other "
            "units are chosen.",
            "What a cut does is to change the mean and the variance of what reaches the nodes behind it. Where no "
            "refit repairs that, statistics measured anew repair most of it, with one pass over the calibration "
            "samples and no gradient. Where the readers are fitted on the inputs of the unpruned network (least "
            f"squares), {gained('least-squares')} points are left to gain, since earlier cuts still shift what later "
            f"layers see. Behind lockstep, which fits on the pruned network's inputs, it is {gained('lockstep')} "
            "points: nothing is left to repair. Folded networks have no statistics to measure anew; there the refit "
            "is what helps.",
        ]
    )
