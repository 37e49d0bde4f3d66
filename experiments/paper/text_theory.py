"""Sections 1 to 3 of the document."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.fits import RATES
from experiments.paper import text_theorem
from experiments.paper.markup import called, count, missing, number, short, span, table
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
        for m in (m for m in METHODS if m in r["curves"]):
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
    dips = [max(r["steps"]["gfs"]["d"][r["units"] - 1], 0.0) for _, r in rows]
    by_random = sum(r["curves"]["random"]["local"]["fit"].get("best") == "exp(-cn)" for _, r in rows), len(rows)
    curved = [r for _, r in rows if {"gfs", "local"} <= set(r["curves"])]
    half = [at_half(r["curves"]["gfs"], r["units"]) / at_half(r["curves"]["local"], r["units"]) for r in curved]
    return "\n\n".join(
        [
            text_theorem.statement(),
            "**Measured**: the layer's own discrepancy (squared error of what its readers compute, over that of the "
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
            f"{span(powers)}. GFS, with its fixed step, follows it in {fixed}; its "
            "dips in the figures are at multiples of N, where nearly every unit has been taken equally often: after N "
            f"steps D / D(0) is {span(dips)}. "
            "So on real layers the exponential rate comes from letting γ be negative, not from "
            "optimising γ alone. It is not that units are removed: such steps take weight back from a unit and seldom "
            "all of it (section 8 counts them). There is a reason: a step with γ < 0 is A + |γ| (A - e_i), the *away "
            "step* of the Frank-Wolfe method, and Frank-Wolfe with away steps converges linearly over any polytope "
            "(Lacoste-Julien & Jaggi 2015, arXiv 1511.05932), while without them it needs a ball around the target, "
            "and a large one.",
            text_theorem.steps_to(records),
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
            f"{span(half)} times that by local imitation, {_sized(half)}. "
            "That is why the gain in theory is small in accuracy (review 3): it is "
            "asymptotic in n, and n ends at N. A refit of the readers and of the layers behind then repairs most of "
            "what a factor in the discrepancy would cost (section 9).",
            text_theorem.proof(records),
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
            lemmas(),
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


def _sized(ratios: list[float]) -> str:
    """What ratios of GFS to local imitation amount to."""
    order = "an order of magnitude at most" if max(ratios) < 10 else "more than an order of magnitude where it is most"
    return f"{order}, and in favour of GFS in {count(sum(r < 1 for r in ratios), len(ratios), 'layers')}"


def lemmas() -> str:
    """What is proved of a mixture, and what is not."""
    return "\n\n".join(
        [
            "**The structure of the proof** (reviews 2a, 2h, 4), with D the true squared error of the outputs, D_l "
            "that of the layer, and lemmas 1 to 3 of section 1.",
            "- *Lemma 4, from layer to outputs.* D ≤ L² D_l, for what lies behind the readers has the Lipschitz "
            "constant L.\n"
            "- *Lemma 5, local imitation.* By 3 and 4 its outputs are within D ≤ L² D_l(1) qⁿ⁻¹ after n steps.\n"
            "- *Lemma 6, comparison.* Let a local run be carried along, and let at every n the mixture's D be at most "
            "that run's. Then its D is at most L² D_l(1) qⁿ⁻¹. There is nothing to prove: the bound is the local "
            "run's. Global steps contract by no lemma.\n"
            "- *No lemma, mixed iterates.* If both candidates start from the mixed iterate, as we read algorithm 1, a "
            "global step may raise D_l; the next local step contracts the raised value, so that nothing bounds D_l, "
            "and lemma 6 does not apply, as the local candidate is not a local run's.",
            "So the outline of review 2a is right where the local run is separate, and has a gap where it is not. "
            "**Line 164** (review 2h), which 'as noted above' ties to that outline, we take for the rate of algorithm "
            "1: by lemmas 1 to 6 it is exponential for the better of two runs at each n, and unproved for steps that "
            "are mixed. The weaker variants, as far as they are proved: a fixed γ gives 1/n² (section 1); global steps "
            "alone, or screened by their slope, give no rate here, as D is not convex in A and no ball is known for "
            "it. This program's `combined` keeps to lemma 6: per layer it makes a whole local and a whole global cut "
            "and takes the better by the network's outputs; and it carries a purely local and a purely global run to "
            "the end beside the mixture, and keeps the network that is closest to the original on the calibration "
            "samples. Both by measurement on these samples: lemma 6 asks for the true D on them, not on others.",
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
