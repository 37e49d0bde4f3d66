"""Sections 1 to 3 of the document."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.fits import RATES
from experiments.paper.markup import called, count, missing, number, percent, short, table
from experiments.paper.records import Records

Figures = Mapping[str, str]
METHODS = ("gfs", "local", "global", "combined", "obs", "random")


def figure(figures: Figures, name: str) -> str:
    """An image, where it was drawn."""
    return f"![{short(name)}](paper/{figures[name]})" if name in figures else ""


def best_rate(fit: Mapping[str, object]) -> str:
    """The rate with the least residual."""
    return str(fit.get("best", ""))


def facts_of_steps(records: Records) -> dict[str, tuple[int, int]]:
    """By method: in how many layers the exponential has the least residual, by steps."""
    rows = [r for _, r in records.rows("convergence")]
    return {
        m: (sum(r["steps"][m]["fit"].get("best") == "exp(-cn)" for r in rows), len(rows))
        for m in ("gfs", "local", "local, no removal")
    }


def at_half(curve: Mapping[str, Mapping[str, list[float]]], units: int) -> float:
    """The network's discrepancy at the width nearest to half of the units."""
    n = curve["output"]["n"]
    return curve["output"]["d"][int(np.argmin(np.abs(np.asarray(n) - units / 2)))]


def convergence(records: Records, figures: Figures) -> str:
    """Section 1."""
    rows = list(records.rows("convergence"))
    if not rows:
        return missing("convergence")
    by_steps, by_units = [], []
    for key, r in rows:
        for m, s in r["steps"].items():
            f = s["fit"]
            by_steps.append(
                [
                    *(short(key), called(m), s["removals"]),
                    *(f.get(q, {}).get("residual") for q in RATES),
                    best_rate(f),
                    *(f.get(q, {}).get("exponent") for q in ("exp(-cn)", "n^-p")),
                ]
            )
        for m in METHODS:
            own, true = (r["curves"][m][k]["fit"] for k in ("local", "output"))
            by_units.append(
                [short(key), m]
                + [
                    v
                    for f in (own, true)
                    for v in (best_rate(f), *(f.get("exp(-cn)", {}).get(k) for k in ("exponent", "residual")))
                ]
            )
    facts = facts_of_steps(records)
    expo, free, fixed = (count(*facts[m], "layers") for m in ("local", "local, no removal", "gfs"))
    powers = [r["steps"]["local, no removal"]["fit"]["n^-p"]["exponent"] for _, r in rows]
    by_random = sum(r["curves"]["random"]["local"]["fit"].get("best") == "exp(-cn)" for _, r in rows), len(rows)
    half = [at_half(r["curves"]["gfs"], r["units"]) / at_half(r["curves"]["local"], r["units"]) for _, r in rows]
    constants = list(records.rows("constants"))
    bound = (
        table(
            ["layer", "units", "dead units", "r / R", "c of the bound", "c measured", "measured / bound"],
            (
                [
                    short(k),
                    r["units"],
                    r["dead"],
                    r["ratio"],
                    r["bound"],
                    r["measured"],
                    r["measured"] / r["bound"] if r["bound"] else None,
                ]
                for k, r in constants
            ),
        )
        if constants
        else missing("constants")
    )
    return "\n\n".join(
        [
            "Measured: the layer's own discrepancy (squared error of what its readers compute, over that of the "
            "empty layer) and the true discrepancy of the network's outputs (relative squared error of the logits "
            "when this layer alone is cut), both on the calibration samples. Coefficients are those of the method; "
            "*random* and *obs* keep theirs at 1 here. *combined* takes at each step the better of a local and a "
            "global step by the true discrepancy. Every rate is fitted by least squares to log D, down to a "
            "millionth of the largest value; the residual is in decades. 1/n and 1/n² have one free constant, "
            "exp(-cn) and n^-p have two.",
            "**By steps, which is what Theorem 1 speaks of.**",
            table(
                ["layer", "steps by", "steps with γ < 0", *(f"residual {q}" for q in RATES), "best", "c", "p"], by_steps
            ),
            f"The exponential fits best for greedy local imitation in {expo}. The same steps without the negative end "
            f"of U_i, so that nothing is ever taken back, follow it in {free}: they fall as n^-p with p from "
            f"{number(min(powers))} to {number(max(powers))}. GFS, with its fixed step, follows it in {fixed}; its "
            "dips in the figures are at multiples of N, where every unit has been taken equally often and the mean "
            "is the full layer. So on real layers the exponential rate comes from letting γ be negative, not from "
            "optimising γ alone. It is not that units are removed: such steps take weight back from a unit and seldom "
            "all of it (section 8 counts them). There is a reason: a step with γ < 0 is A + |γ| (A - e_i), the *away "
            "step* of the Frank-Wolfe method, and Frank-Wolfe with away steps converges linearly over any polytope "
            "(Lacoste-Julien & Jaggi 2015, arXiv 1511.05932), while without them it needs a ball around the target, "
            "and a large one.",
            "**Where the theorem does not apply.** Its target is the layer itself, which is inside the hull of its own "
            "units. In a network that is cut layer by layer that holds for the first layer alone: behind a cut the "
            "units are computed from what is left and the target is still the original output, which then lies outside "
            "their hull. D has a floor above zero there, and no rate towards zero is promised. All curves of this "
            "section are of layers whose inputs are whole.",
            "**By units kept**, which is what a pruned network pays for. `best` is the rate with the least residual.",
            table(["layer", "method", "layer: best", "c", "residual", "network: best", "c", "residual"], by_units),
            *(figure(figures, f"convergence {k}") for k, _ in rows),
            "**Where the exponential shows, and where it does not.** Against units, the exponential fits best in "
            f"{count(*by_random, 'layers')} even for the *random* order: a curve that must reach zero at N bends down "
            "at its end whatever is done, and units that never fire end it early. The difference between the "
            "theories (1/n, 1/n², exp) is one of *steps*; a layer of N units takes more than N steps before it "
            "shows. At about half of the units, where networks are cut, the network's discrepancy by GFS is "
            f"{number(min(half))} to {number(max(half))} times that by local imitation: a factor, at times in favour "
            "of GFS, and not an order. That is why the gain in theory is small in accuracy (review 3): it is "
            "asymptotic in n, and n ends at N. A refit of the readers and of the layers behind then repairs most of "
            "what a factor in the discrepancy would cost (section 9).",
            "**How tight is the bound?** (reviews 2b, 4.) A proof of the rate in five lines, in the notation of "
            "`onnxprune/selection/imitation.py`. Let e = f - f_A, D = ||e||², let a ball of radius r around f (in the "
            "affine span of the units) lie inside the hull of the s_i, and R be the largest ||s_i - f_A||. The point "
            "f + r e/||e|| is in the hull, so some i has <e, s_i - f> ≥ r||e||, that is <e, s_i - f_A> ≥ ||e||² + "
            "r||e||. The best γ on that line leaves D - <e, s_i - f_A>²/||s_i - f_A||² ≤ D (1 - r²/R²); that γ is at "
            "most 1, as D at γ = 1 would otherwise be below D - <e, s_i - f_A> < 0. This needs f_A in the hull, so it "
            "holds from the second step on: the first, γ = 1 from nothing, ends at a corner, and may be further from f "
            "than nothing is. Hence, with q = 1 - r²/R² and c = -log q, D(n) ≤ D(1) qⁿ⁻¹ ≤ R² qⁿ⁻¹ after n steps, with "
            "at most n units. (D(0) qⁿ with D(0) = ||f||² is no bound: sixteen orthonormal contributions have D(0) = "
            "16 and D(1) = 240.) Lipschitz continuity plays no part in this: it enters only where the layer's "
            "discrepancy is carried to the network's outputs (section 2). Without a ball (r = 0), and without steps "
            "back, only 1/n remains.",
            "For affinely independent corners r is known exactly: the least of each corner's height in the simplex "
            "times the weight of f at it, which is 1/N for a unit. Units that never fire have their corner at the "
            "origin together, with weight dead/N; the walk may use it as any other.",
            bound,
            "The bound is true and far from tight: the measured rate is larger by orders of magnitude. It proves "
            "that a constant c > 0 exists; it does not predict it. A ball as small as these cannot be seen within 3 "
            "N steps, which is why the steps with γ ≥ 0 look like 1/n although their bound is exponential too.",
        ]
    )


def alone(records: Records) -> str:
    """Section 2."""
    rows = list(records.rows("alone"))
    if not rows:
        return missing("alone")
    shown, wins, total = [], {"output": 0, "none": 0, "greedy": 0, "least-squares": 0, "local": 0}, 0
    for key, r in rows:
        cuts = {(c["removed"], c["method"]): c for c in r["cuts"]}
        for (share, method), c in cuts.items():
            shown.append(
                [short(key), percent(100 * share), method, c["local"], c["output"]]
                + [
                    v
                    for level in ("none", "greedy", "least-squares")
                    for v in (c[level]["output_error"], percent(c[level]["agreement"]), percent(c[level]["top1"]))
                ]
            )
        for share in sorted({s for s, _ in cuts}):
            a, b = cuts[share, "local"], cuts[share, "global"]
            total += 1
            wins["local"] += b["local"] < a["local"]
            wins["output"] += b["output"] < a["output"]
            for level in ("none", "greedy", "least-squares"):
                wins[level] += b[level]["output_error"] < a[level]["output_error"]
    cuts_of = {m: [c for _, r in rows for c in r["cuts"] if c["method"] == m] for m in ("local", "global")}
    promised = {m: float(np.median([c["output"] / c["gauss_newton"] for c in v])) for m, v in cuts_of.items()}
    slopes = []
    for key, r in records.rows("convergence"):
        fits = {m: r["curves"][m]["output"]["fit"].get("exp(-cn)", {}) for m in ("local", "global")}
        s = r["sensitivity"]
        slopes.append(
            [short(key)]
            + [fits[m].get(k) for k in ("constant", "exponent") for m in ("local", "global")]
            + [s[m].get(k) for m in ("local", "global") for k in ("least", "median", "most")]
        )
    better_slope = sum((row[4] or 0) > (row[3] or 0) for row in slopes)
    better_constant = sum((row[2] or 0) < (row[1] or 0) for row in slopes)
    return "\n\n".join(
        [
            "Measured: each layer of section 1 cut alone, by local and by global imitation (Gauss-Newton in the "
            "gates), to three widths. `layer` and `network` are the discrepancies on the calibration samples with "
            "the greedy coefficients; the others are the relative error of the logits, the agreement with the "
            "original's answers and top-1 on the test split, for three refits of the readers.",
            table(
                [
                    "layer",
                    "removed %",
                    "by",
                    "layer",
                    "network",
                    "none: error",
                    "agree",
                    "top-1",
                    "greedy: error",
                    "agree",
                    "top-1",
                    "least squares: error",
                    "agree",
                    "top-1",
                ],
                shown,
            ),
            f"Global imitation has the lower error of the *layer* in {count(wins['local'], total, 'cuts')}, and the "
            f"lower error of the *network* on the calibration samples in {count(wins['output'], total, 'cuts')}. On "
            f"the test split it has the lower error in {count(wins['none'], total, 'cuts')} without refit, in "
            f"{count(wins['greedy'], total, 'cuts')} with its own coefficients and in "
            f"{count(wins['least-squares'], total, 'cuts')} after least squares.",
            "**Is the slope better and the constant worse?** exp(-cn) fitted to the network's discrepancy along the "
            "path of each (log10 of the constant, and c), and the ratio of the network's to the layer's discrepancy "
            "along the path:",
            table(
                [
                    "layer",
                    "constant local",
                    "constant global",
                    "c local",
                    "c global",
                    "ratio local: least",
                    "median",
                    "most",
                    "ratio global: least",
                    "median",
                    "most",
                ],
                slopes,
            ),
            f"The slope of global imitation is the better one in {count(better_slope, len(slopes), 'layers')}, its "
            f"constant in {count(better_constant, len(slopes), 'layers')}. So where the two differ it is rather the "
            "reverse of the reviewer's guess: global imitation starts lower and falls more slowly. With few units it "
            "is ahead, since it spends the layer's error in directions that the outputs do not depend on (its ratios "
            "are lower); with many units local imitation overtakes it, since the layer's error goes to zero in every "
            "direction.",
            "**The premise does not hold here in general.** On these layers, with a few hundred calibration samples, "
            "global imitation does not beat local imitation consistently. One reason can be measured: the selection "
            "trusts a quadratic that is known from few samples, and takes what looks cheap in it. The true "
            f"discrepancy is {number(promised['local'])} times the quadratic's (median) for the cuts that local "
            f"imitation proposes, and {number(promised['global'])} times for those that global imitation found by it. "
            "The gates of one layer have one number per sample and projection; the layer's own outputs have one per "
            "sample, position and output channel, so the local problem is known far better. A refit of the readers "
            "by least squares takes away most of what distinguishes the two, since it reduces the layer's error "
            "whatever the selection; over whole networks section 9 compares them.",
            "The bound that carries a layer's error to the outputs by a Lipschitz constant has to assume the worst "
            "direction; the ratios above show that the factor differs by method, and is not constant along one path "
            "(review 4).",
        ]
    )


def combining(records: Records, figures: Figures) -> str:
    """Section 3."""
    rows = list(records.rows("combining"))
    if not rows:
        return missing("combining")
    shown = []
    for key, r in rows:
        for name, k in r["kinds"].items():
            f, taken = k["fit"], k.get("taken", {})
            finite = [v for v in k["output"] if v is not None]
            shown.append(
                [
                    short(key),
                    name,
                    len(k["n"]) and k["n"][-1],
                    min(finite),
                    k["held"][int(np.argmin(finite))],
                    k["grew"],
                    best_rate(f),
                    f.get("exp(-cn)", {}).get("exponent"),
                    f"{taken['local']} / {taken['global']}" if taken else "",
                ]
            )
    least = {
        name: [min(v for v in r["kinds"][name]["output"] if v is not None) for _, r in rows]
        for name in ("local", "global", "combined", "exact")
    }
    wins = sum(c < min(a, b) for a, b, c in zip(least["local"], least["global"], least["combined"], strict=True))
    early = sum(lead(r["kinds"]) for _, r in rows)
    best = [
        f"{m}: {sum(best_rate(r['kinds'][m]['fit']) == 'exp(-cn)' for _, r in rows)}"
        for m in ("local", "global", "combined", "exact")
    ]
    rates = [{m: r["kinds"][m]["fit"].get("exp(-cn)", {}).get("exponent", 0.0) for m in least} for _, r in rows]
    nearer = sum(abs(c["combined"] - c["global"]) < abs(c["combined"] - c["local"]) for c in rates)
    factors = [c / max(a, 1e-7) for a, c in zip(least["local"], least["combined"], strict=True)]
    above = sum(f > 1 for f in factors)
    steps = [r["kinds"]["combined"]["taken"] for _, r in rows]
    globally = 100 * sum(t["global"] for t in steps) / sum(sum(t.values()) for t in steps)
    return "\n\n".join(
        [
            "**What is proved** (reviews 2a, 2h, 4). Let D be the true discrepancy of the outputs and D_l that of "
            "the layer, with D ≤ L² D_l for the network's Lipschitz constant L. If at every step the global "
            "candidate is taken only where it leaves D no larger than the local candidate *of a local run that is "
            "carried along* would, then D after n steps is at most that of the local run, L² D_l(0) exp(-cn): the "
            "exponential bound carries over by comparison, not because global steps contract. If instead, as we "
            "read algorithm 1, both candidates start from the *mixed* iterate, a global step may raise D_l, and the "
            "local contraction then restarts from the raised value; the bound survives for D itself only where D is "
            "the quantity that a step must lower. So the rate of the mixture is guaranteed by keeping the local run "
            "beside it, and is otherwise an empirical question. This program's `combined` keeps the two apart: per "
            "layer it makes a local and a global cut and takes the better by the network's outputs, which is the "
            "comparison that the proof needs; and it carries a purely local and a purely global run to the end beside "
            "the mixture, and keeps the network that is closest to the original on the calibration samples.",
            "Measured: steps on single layers, up to twice as many as there are units (at most 96). `combined` tries "
            "a local and a global step from the mixed iterate and takes the better by the true discrepancy, even "
            "where it is worse than no step; `exact` searches the two steepest units of each end on the network "
            "itself.",
            table(
                [
                    "layer",
                    "steps by",
                    "steps",
                    "least D of the network",
                    "units held there",
                    "steps that raised D",
                    "best rate",
                    "c",
                    "taken local / global",
                ],
                shown,
            ),
            *(figure(figures, f"combining {k}") for k, _ in rows),
            f"The better step of the moment is a global one in {number(globally)} % of the steps, and yet mixing step "
            f"by step ends lower than both pure runs in {count(wins, len(rows), 'layers')}; after a quarter of the "
            f"steps it is lower than both in {count(early, len(rows), 'layers')}. It ends above the pure local run in "
            f"{count(above, len(rows), 'layers')}, by a factor of up to {number(max(factors))}. The fitted c of the "
            "mixture is nearer to that of the global run than to that of the local one in "
            f"{count(nearer, len(rows), 'layers')}. The exponential fits best for {'; '.join(best)} of {len(rows)} "
            "layers.",
            "So mixing step by step does affect the rate: the mixture takes what pays at once, which is mostly a "
            "global step, and so walks at the global rate, which on these layers is the slower one; it inherits no "
            "local rate from the few local steps. Choosing between a whole local and a whole global cut, as this "
            "program does, avoids that inside a layer; from layer to layer it is a greedy choice again, and section "
            "9 shows what that costs.",
            "`exact` starts worst: its first step, γ = 1, multiplies one unit by N, which the layers behind do not "
            "treat linearly, and it spends its first steps on the way back.",
        ]
    )


def lead(kinds: Mapping[str, Mapping[str, list[float]]]) -> bool:
    """Whether mixed steps are ahead of both others after a quarter of the steps."""
    last = min(kinds[m]["n"][-1] for m in ("local", "global", "combined"))
    found = {}
    for m in ("local", "global", "combined"):
        reached = [d for n, d in zip(kinds[m]["n"], kinds[m]["output"], strict=True) if n <= last / 4 and d is not None]
        found[m] = min(reached)
    return found["combined"] < min(found["local"], found["global"])


def sentence_rates(records: Records) -> str:
    """For the opening table."""
    facts = facts_of_steps(records)
    n, of = facts["local"]
    k, _ = facts["local, no removal"]
    return (
        f"By steps the exponential fits local imitation best in {n} of {of} layers and steps with γ ≥ 0 alone in {k}; "
        "by units all curves end at N, so half-width cuts "
        "see little of it"
        if of
        else "Not measured yet"
    )
