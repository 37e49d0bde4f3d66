"""Theorem 1 in section 1: what it says, its proof, its constants on real layers, and what fixed steps can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.paper.markup import called, count, missing, short, span, table
from experiments.paper.records import Records, Row

DECADES = (1e-1, 1e-2, 1e-3, 1e-4)
UNITS_BY = ("local", "gfs")
WALKS = ("local", "local, no removal", "gfs")
# Each decade takes so many times the steps of the one before where D falls as n^-p: 10^(1/p), and 1 where log 1/ε does.
# Halfway, in the logarithm, between that and 1/n².
LIKE_A_LOGARITHM = 10**0.25


def reached(d: Sequence[float | None], at_most: float) -> int | None:
    """After how many steps D is at or below a bound for the first time; None where it never is."""
    return next((n for n, v in enumerate(d, 1) if v is not None and v <= at_most), None)


def decades(d: Sequence[float | None]) -> list[int | None]:
    """Steps to each of DECADES."""
    return [reached(d, e) for e in DECADES]


def fewest(curve: Mapping[str, Sequence[float]], at_most: float, units: int) -> int:
    """Of the sizes of a curve, the least with D at or below a bound; all units where there is none."""
    return int(next((n for n, d in zip(curve["n"], curve["d"], strict=True) if d <= at_most), units))


def growth(n: Sequence[int | None]) -> float | None:
    """How many times the steps of a decade the next one takes, as a geometric mean from the second decade on.

    The first ends the walk's start, which says nothing of a rate. None where fewer than two decades are left.
    """
    known = [x for x in n if x is not None]
    more = np.diff(known)
    if len(more) < 2 or (more <= 0).any():
        return None
    return float((more[-1] / more[0]) ** (1 / (len(more) - 1)))


def statement() -> str:
    """What opens section 1."""
    return "\n\n".join(
        [
            "**Theorem 1, in this page's words.** A layer has N units. s_i, N times what unit i adds to the outputs of "
            "the layer's readers, is a vector over all calibration samples, positions and outputs; the full layer is "
            "the mean f = Σ s_i / N, a pruned one f_A = Σ α_i s_i with α ≥ 0 and Σ α = 1, and D = ||f - f_A||². Local "
            "imitation starts from nothing; each step moves A towards or away from one unit, with the unit and the "
            "step γ in U_i (section 8) that leave the least D of all. Then there is a c > 0 such that D(n) ≤ D(1) "
            "exp(-c (n - 1)) after n steps: D ≤ ε takes n = O(log 1/ε) steps, and at most that many units.",
            "It assumes (A1) finitely many samples and bounded contributions, so that the s_i are N points of a "
            "Euclidean space; (A2) a target that is the mean of the very units that are chosen from, so that the "
            "layer's inputs are those of the uncut network; (A3) the exact minimum over units and steps, neither a "
            "fixed γ nor a screening; and (A4), for the network's outputs alone, that what lies behind the readers has "
            "a Lipschitz constant L: the squared error of the outputs is then at most L² D. It assumes nothing of the "
            "weights, of the data's distribution or of how the network was trained, and no independence of the units. "
            "From (A2) alone follows what the proof lives on: f has weight 1/N > 0 at every unit, so it lies in the "
            "relative interior of their hull, and some ball around it, of radius r > 0 in the span of the hull, lies "
            "inside.",
            "Proved on this page: lemmas 1 to 3 below, for the steps as `onnxprune/selection/imitation.py` takes them, "
            "with constants; the two bounds of GFS; and lemmas 4 to 6 (section 3). Taken from the paper: the steps, "
            "the interval U_i, algorithm 1 as we read it, and that the theorem is stated as n = O(log 1/ε). Neither: a "
            "rate for a network that is cut layer by layer. The paper's own constants, its appendix and its line "
            "numbers were not at hand.",
        ]
    )


def steps_to(records: Records) -> str:
    """n against log 1/ε."""
    rows = list(records.rows("convergence"))
    shown: list[list[object]] = []
    for key, r in rows:
        for m in WALKS:
            walk = r["steps"][m]
            n = decades(walk["d"])
            held = [None if x is None else walk["held"][x - 1] for x in n[:2]]
            reached_by = [f"> {len(walk['d'])}" if x is None else x for x in n]
            shown.append([short(key), r["units"], called(m), *reached_by, growth(n), *held])
    if not shown:
        return missing("convergence")
    return "\n\n".join(
        [
            "**n against log 1/ε.** Steps until D / D(0) ≤ ε. Where n = O(log 1/ε) every further decade takes the same "
            "number of steps; where D falls as n^-p it takes 10^(1/p) times those of the decade before: 10 for 1/n, "
            "3.16 for 1/n². *growth* is that factor, from the second decade on; *held*, the units in use then.",
            table(
                ["layer", "N", "steps by", *(f"ε = {e:g}" for e in DECADES), "growth", "held at 0.1", "held at 0.01"],
                shown,
            ),
            _said_of_steps([r for _, r in rows]),
            "Units, which is what `--layer-tolerance ε` decides: the fewest that stay with a settled D / D(0) ≤ ε.",
            table(
                ["layer", "N", *(f"{m}, ε = {e:g}" for m in UNITS_BY for e in DECADES)],
                (
                    [
                        short(k),
                        r["units"],
                        *(fewest(r["curves"][m]["local"], e, r["units"]) for m in UNITS_BY for e in DECADES),
                    ]
                    for k, r in rows
                    if set(UNITS_BY) <= set(r["curves"])
                ),
            ),
        ]
    )


def _said_of_steps(rows: list[Row]) -> str:
    local = [growth(decades(r["steps"]["local"]["d"])) for r in rows]
    grown = [g for g in local if g is not None]
    like = sum(g < LIKE_A_LOGARITHM for g in grown)
    found = [
        (r["steps"]["local"]["held"][n - 1], r["units"]) for r in rows if (n := decades(r["steps"]["local"]["d"])[1])
    ]
    there = {m: sum(decades(r["steps"][m]["d"])[2] is not None for r in rows) for m in WALKS}
    verdict = (
        f"Local imitation's growth is {span(grown)}, below {LIKE_A_LOGARITHM:.2f} and so nearer to a logarithm "
        f"than to 1/n² in {count(like, len(grown), 'layers')}: its n "
        f"{'grows' if like == len(grown) else 'does not always grow'} like log 1/ε. "
        if grown
        else ""
    )
    units = (
        f"But at ε = 0.01 it holds {span([100 * h / n for h, n in found])} % of the units: what is logarithmic is the "
        "number of steps; the number of units, which a pruned network pays for, is near its end by then. "
        if found
        else ""
    )
    return (
        f"{verdict}{units}ε = 0.001 is reached within 3 N steps in {count(there['local'], len(rows), 'layers')} by "
        f"local imitation, in {count(there['local, no removal'], len(rows), 'layers')} by its steps with γ ≥ 0, and in "
        f"{count(there['gfs'], len(rows), 'layers')} by GFS, in its dips at multiples of N."
    )


def proof(records: Records) -> str:
    """Three lemmas, the constants of real layers, and both bounds of fixed steps."""
    return "\n\n".join(
        [
            "**Proof** (reviews 2b, 4). *Intuition*: seen from f_A, the target f is not on the hull's edge but inside, "
            "with room r behind it; so some unit lies not only in the direction of f but beyond it by r, and one step "
            "towards it takes off a fixed share of D, however small D is. Write e = f - f_A, D = ||e||², and R for the "
            "diameter of the hull of the s_i.",
            "- *Lemma 1, a step contracts.* Let f_A be in the hull. f + r e/||e|| is in it too, so some i has <e, s_i "
            "- f> ≥ r||e||, that is <e, s_i - f_A> ≥ ||e||² + r||e||. The best γ on that line leaves D - <e, s_i - "
            "f_A>²/||s_i - f_A||² ≤ q D with q = 1 - r²/R². It is at most 1, as D at γ = 1 would otherwise be below D "
            "- <e, s_i - f_A> < 0, and above 0; so it is in U_i, and the step that is taken leaves no more.\n"
            "- *Lemma 2, the start.* γ = 1 from nothing ends at a corner: D(1) ≤ R², as f is in the hull as well. It "
            "may be further from f than nothing is, so D(0) qⁿ with D(0) = ||f||² is no bound: sixteen orthonormal "
            "contributions have D(0) = 16 and D(1) = 240.\n"
            "- *Lemma 3, the rate.* From the second step on f_A is in the hull and stays there. Hence D(n) ≤ D(1) "
            "qⁿ⁻¹ ≤ R² qⁿ⁻¹: theorem 1 with c = -log q > 0.",
            "The negative end of U_i is not used: the bound holds for the steps with γ ≥ 0 too. It is of steps with "
            "Σ α = 1 (`--coefficients convex`); the default, `free`, rescales after every step, to a smaller D, and "
            "then walks on along other lines, which these lemmas do not cover. Lipschitz continuity "
            "plays no part either: it enters where the layer's discrepancy is carried to the outputs (lemma 4, section "
            "3). Where the target lies on the hull's boundary (r = 0) and nothing is taken back, 1/n is all that is "
            "left; outside of the hull D does not go to zero at all.",
            _constants(records),
            _fixed(records),
        ]
    )


def _constants(records: Records) -> str:
    rows = [(k, r) for k, r in records.rows("constants") if "least_ratio" in r]
    if not rows:
        return missing("constants")
    return "\n\n".join(
        [
            "**How tight is it?** For affinely independent corners r is known exactly: the least of each corner's "
            "height in the simplex times the weight of f at it, which is 1/N for a unit. Units that never fire have "
            "their corner at the origin together, with weight dead/N; the walk may use it as any other. *slack* is the "
            "least of D(1) qⁿ⁻¹ / D(n) over all steps: 1 at the first, and never below.",
            table(
                [
                    *("layer", "units", "dead", "r / R", "D(1) / D(0)", "R² / D(0)", "slack"),
                    *("c of the bound", "c measured", "measured / bound"),
                ],
                (
                    [
                        *(short(k), r["units"], r["dead"], r["ratio"], r["first"], r["diameter"], r["least_ratio"]),
                        *(r["bound"], r["measured"], r["measured"] / r["bound"] if r["bound"] else None),
                    ]
                    for k, r in rows
                ),
            ),
            "The bound is true and far from tight: the measured rate is larger by orders of magnitude. It proves "
            "that a constant c > 0 exists; it does not predict it. A ball as small as these cannot be seen within 3 "
            "N steps, which is why the steps with γ ≥ 0 look like a power of n although their bound is exponential "
            "too. What local imitation gains by negative steps, this proof does not show.",
        ]
    )


def _fixed(records: Records) -> str:
    rows = [(k, r) for k, r in records.rows("constants") if "fixed" in r]
    if not rows:
        return missing("constants")
    ratios = [r["fixed"]["d"][0] / d for _, r in rows for d in r["fixed"]["d"][1:]]
    square = [(at / r["fixed"]["n"][0]) ** 2 for _, r in rows for at in r["fixed"]["n"][1:]]
    off = [abs(a / b - 1) for a, b in zip(ratios, square, strict=True)]
    exact = sum(o < 0.01 for o in off)
    vacuous = sum(r["fixed"]["least"][0] == 0 for _, r in rows)
    loose = sum(r["fixed"]["most"][0] > 1 for _, r in rows)
    return "\n\n".join(
        [
            "**Can GFS have this bound, or is its own too loose?** (review 2j.) Neither: its steps allow no "
            "exponential, and 1/n² is what they do. With γ = 1/(k+1) A is a mean of k corners, repeats counted.",
            "- *From above.* Let h = k (f_A - f). A step makes it h + s_i - f, with the i for which that is shortest; "
            "by the ball some <h, s_i - f> ≤ -r||h||, so ||h||² grows to at most ||h||² - 2r||h|| + R², and stays at "
            "or below R⁴/4r² once it is there, as it is after the first step. So D(k) ≤ (R²/2r)² / k².\n"
            "- *From below.* The coefficients are n_i / k with integers n_i, the full layer's 1/N; their distance is "
            "at least √N δ/k, with δ that of k/N from the next integer. So D(k) ≥ λ N δ² / k², λ the least eigenvalue "
            "of the Gram matrix of the s_i: no exponential where λ > 0, though D may be 0 at multiples of N.",
            table(
                ["layer", "k", "least D / D(0)", "GFS", "most D / D(0)"],
                (
                    [short(k), *values]
                    for k, r in rows
                    for values in zip(*(r["fixed"][x] for x in ("n", "least", "d", "most")), strict=True)
                ),
            ),
            f"At N/2, 3N/2 and 5N/2 steps, where δ is the same, GFS's D falls by 9 and by 25 to within 1 % in {exact} "
            f"of {len(off)} comparisons: 1/k² as a law. As numbers both bounds are weak: that from above is above D(0) "
            f"in {count(loose, len(rows), 'layers')} at N/2 steps, and that from below is 0 in "
            f"{count(vacuous, len(rows), 'layers')}, those with units that never fire (λ = 0). What differs in the "
            "method is in section 9: the step is optimised, weight is taken back, and coefficients differ.",
        ]
    )
