"""Sections 1 and 3: discrepancy against units, layer by layer, for every method and for steps that mix two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

from benchmarks.fits import fitted
from experiments.paper.hull import hull_of, least_of_fixed_steps, most_of_fixed_steps
from experiments.paper.networks import Alone, Kit, Network, Prepared
from experiments.paper.records import Records, Row
from experiments.paper.scope import Place
from onnxprune.calibration import regressions
from onnxprune.selection import Path, baselines, gfs, imitation, obs
from onnxprune.selection.exact import ExactWalk
from onnxprune.selection.imitation import SLACK, QuadraticWalk
from onnxprune.selection.quadratic import Quadratic
from onnxprune.selection.steps import Step, settle

Floats = NDArray[np.float64]
SECTION, CONSTANTS, COMBINED = "convergence", "constants", "combining"
# Points of a curve at which the network itself is run.
_POINTS = 14
# Relative to the empty layer: between two discrepancies of a network in float32 this close neither is better.
_ROUNDING = 1e-7


def widths(units: int, points: int = _POINTS) -> list[int]:
    """Numbers of kept units from 1 to all, evenly in the logarithm and dense at the wide end too."""
    low = np.geomspace(1, units, points // 2)
    high = np.linspace(units / 2, units, points - points // 2)
    return sorted({round(float(n)) for n in (*low, *high)})


def paths_of(prepared: Prepared, group: int, local: Quadratic, output: Quadratic, seed: int) -> dict[str, Path]:
    """The path of every method on its own discrepancy."""
    g = prepared.coupled.taken.channels.groups[group]
    moments = prepared.calibrated.moments
    readers = [x for x in prepared.consumers[group] if x.weight in moments]
    found = regressions.regressions_of(g, readers, prepared.coupled.taken.channels, moments, {})
    rng = np.random.default_rng(seed)
    return {
        "gfs": gfs.select(local),
        "local": imitation.imitate(local),
        "global": imitation.imitate(output),
        "obs": obs.eliminate(found, g.size),
        "random": baselines.random(g.size, local, rng),
    }


def coefficients(path: Path, n: int) -> list[Floats]:
    """Of n units; 1 for those that stay where the method gives none."""
    found = path.coefficients_of(n)
    return [path.kept(n).astype(float) if found is None else found]


def mixed(
    local: Quadratic, output: Quadratic, at: Callable[[Floats], float], taken: list[str] | None = None
) -> Iterator[Step]:
    """Greedy steps, each the better of a local and a global one by the true discrepancy, which is their `loss`.

    The better may still be worse than none: it is taken nevertheless, as we read algorithm 1 of the paper, and ends
    where neither finds a step that improves its own discrepancy. taken: which one it was, step by step.
    """
    walks = {"local": QuadraticWalk(local), "global": QuadraticWalk(output)}
    everything = np.ones(local.units, bool)
    while True:
        tried: list[tuple[float, str, Step]] = []
        for name, walk in walks.items():
            step = walk.advance(everything)
            if step is not None:
                tried.append((at(step.coefficients), name, step))
        if not tried:
            return
        value, name, step = min(tried, key=lambda t: t[0])
        for walk in walks.values():
            walk.jump(step.coefficients)
        if taken is not None:
            taken.append(name)
        yield Step(step.unit, step.gamma, value, step.coefficients)


def visited(steps: Sequence[Step], local: Quadratic, output: Quadratic) -> Callable[[int], list[Floats]]:
    """By a number of units: the coefficients of the best step that held no more, settled as those of every path are,
    on the layer's discrepancy and on that of the outputs."""
    held = np.array([np.count_nonzero(s.coefficients) for s in steps])
    losses = np.array([s.loss for s in steps])

    def of(n: int) -> list[Floats]:
        a = steps[int(np.argmin(np.where(held <= n, losses, np.inf)))].coefficients
        found = [a]
        for q in (local, output):
            walk = QuadraticWalk(q)
            walk.jump(a)
            settle(walk, a != 0)
            found.append(walk.a)
        return found

    return of


def curve(
    proposed: Callable[[int], list[Floats]],
    local: Quadratic,
    at: Callable[[Floats], float],
    sizes: Sequence[int],
    *,
    every: bool = True,
) -> Row:
    """Both discrepancies by units kept, over those of the empty layer, and the fits of both.

    proposed: coefficients of n units; of several the best by each discrepancy counts. every: the layer's at all sizes.
    """
    whole = at(np.zeros(local.units))
    n_true = [n for n in sizes if n < local.units]
    n_own = list(range(1, local.units)) if every else n_true
    own = [min(local.at(a) for a in proposed(n)) / local.c for n in n_own]
    true = [min(at(a) for a in proposed(n)) / whole for n in n_true]
    return {
        "local": {"n": n_own, "d": own, "fit": fitted(n_own, own)},
        "output": {"n": n_true, "d": true, "fit": fitted(n_true, true)},
    }


def by_steps(steps: Iterator[Step], local: Quadratic, limit: int) -> Row:
    """The discrepancy after every step, which the theory speaks of, and how many units are held then."""
    found = list(islice(steps, limit))
    n = list(range(1, len(found) + 1))
    d = [local.at(s.coefficients) / local.c for s in found]
    held = [int(np.count_nonzero(s.coefficients)) for s in found]
    return {"n": n, "d": d, "held": held, "removals": sum(s.gamma < 0 for s in found), "fit": fitted(n, d)}


def measure(
    network: Network, name: str, samples: int, seed: int = 0, points: int = _POINTS, *, by_network: bool = True
) -> Row:
    """One group: a curve of every method, and the steps of gfs and local. by_network: of `combined` as well."""
    prepared = Prepared.of(network, samples, seed)
    group = prepared.named(name)
    alone = Alone(prepared, group, prepared.loaded.fit)
    at = alone.gated().at
    local, output = prepared.local(group), prepared.gauss_newton(group)
    sizes = widths(local.units, points)
    limit = SLACK * local.units
    curves = {
        k: curve(partial(coefficients, p), local, at, sizes)
        for k, p in paths_of(prepared, group, local, output, seed).items()
    }
    taken: list[str] = []
    if by_network:
        steps = list(islice(mixed(local, output, at, taken), limit))
        curves["combined"] = curve(visited(steps, local, output), local, at, sizes, every=False)
    return {
        "group": prepared.coupled.taken.channels.groups[group].name,
        "units": local.units,
        "samples": len(prepared.loaded.fit),
        "seed": seed,
        "curves": curves,
        "steps": {
            "gfs": by_steps(gfs.forward(local), local, limit),
            "local": by_steps(imitation.greedy(local), local, limit),
            "local, no removal": by_steps(imitation.greedy(local, removal=False), local, limit),
        },
        "taken": {k: taken.count(k) for k in ("local", "global")},
        "spectrum": spectrum(local),
    }


def spectrum(q: Quadratic) -> Row:
    """Of the Gram matrix of the contributions: how many directions carry 99 % of it."""
    values = np.maximum(np.linalg.eigvalsh(q.k), 0.0)[::-1]
    return {"rank99": int(np.searchsorted(np.cumsum(values) / values.sum(), 0.99)) + 1}


def constants(network: Network, name: str, samples: int, seed: int = 0) -> Row:
    """c of the bound D(n) ≤ D(1) exp(-c (n - 1)), c = -log(1 - r²/R²), and c of the steps as they are; what is proved
    of fixed steps, and theirs.

    All discrepancies over that of the empty layer. `fixed`: D after N/2, 3N/2 and 5N/2 steps, where no mean of corners
    is the full layer, and its bounds from below and above.
    """
    prepared = Prepared.of(network, samples, seed, method="local")
    q = prepared.local(prepared.named(name))
    hull = hull_of(q)
    walked = by_steps(imitation.greedy(q), q, SLACK * q.units)
    fixed = [s.loss / q.c for s in islice(gfs.forward(q), SLACK * q.units)]
    at = [q.units // 2 + k * q.units for k in range(SLACK)]
    return {
        "units": q.units,
        "diameter": hull.diameter**2 / q.c,
        "first": walked["d"][0],
        "least_ratio": least_ratio(walked["d"], hull.factor),
        "fixed": {
            "n": at,
            "d": [fixed[k - 1] for k in at],
            "least": [least_of_fixed_steps(q, k) / q.c for k in at],
            "most": [most_of_fixed_steps(hull, k) / q.c for k in at],
        },
        "dead": hull.dead,
        "ratio": hull.radius / hull.diameter,
        "bound": hull.rate,
        "measured": walked["fit"].get("exp(-cn)", {}).get("exponent"),
        "samples": len(prepared.loaded.fit),
        "seed": seed,
    }


def least_ratio(d: Sequence[float], factor: float) -> float:
    """The least of the bound D(1) qⁿ⁻¹ over D(n): at or above 1 where theorem 1 holds."""
    return min(d[0] * factor**k / max(v, 1e-300) for k, v in enumerate(d))


def combining(network: Network, name: str, samples: int, seed: int = 0) -> Row:
    """Section 3: the true discrepancy after every step of local, global, exact and mixed steps, on the same group."""
    prepared = Prepared.of(network, samples, seed)
    group = prepared.named(name)
    gated = Alone(prepared, group, prepared.loaded.fit).gated()
    local, output = prepared.local(group), prepared.gauss_newton(group)
    whole = gated.at(np.zeros(local.units))
    limit = min(2 * local.units, 96)
    taken: list[str] = []
    kinds = {
        "local": imitation.greedy(local),
        "global": imitation.greedy(output),
        "combined": mixed(local, output, gated.at, taken),
        "exact": ExactWalk(gated, local.units, candidates=2, rounding=_ROUNDING).steps(),
    }
    found: Row = {}
    for kind, steps in kinds.items():
        walked = list(islice(steps, limit))
        n = list(range(1, len(walked) + 1))
        shown = [i for i in range(len(walked)) if kind in ("combined", "exact") or i < 16 or i % 4 == 3]
        d = [
            (walked[i].loss if kind in ("combined", "exact") else gated.at(walked[i].coefficients)) / whole
            for i in shown
        ]
        own = [local.at(walked[i].coefficients) / local.c for i in shown]
        n = [i + 1 for i in shown]
        held = [int(np.count_nonzero(walked[i].coefficients)) for i in shown]
        grew = sum(b > a * (1 + 1e-6) for a, b in pairwise(d))
        found[kind] = {"n": n, "output": d, "local": own, "held": held, "fit": fitted(n, d), "grew": grew}
    found["combined"]["taken"] = {k: taken.count(k) for k in ("local", "global")}
    switches = sum(a != b for a, b in pairwise(taken))
    found["combined"]["switches"] = switches
    return {"units": local.units, "samples": len(prepared.loaded.fit), "seed": seed, "kinds": found}


def measure_all(kit: Kit, records: Records, quick: bool) -> None:
    """Section 1."""
    scope = kit.scope(quick)
    for p in scope.places:
        records.add(SECTION, p.key, partial(_of, partial(measure, by_network=p in scope.mixed), kit, p))


def constants_all(kit: Kit, records: Records, quick: bool) -> None:
    """The bound of section 1."""
    for p in kit.scope(quick).places:
        records.add(CONSTANTS, p.key, partial(_of, constants, kit, p))


def combining_all(kit: Kit, records: Records, quick: bool) -> None:
    """Section 3."""
    for p in kit.scope(quick).mixed:
        records.add(COMBINED, p.key, partial(_of, combining, kit, p))


def _of(measured: Callable[[Network, str, int], Row], kit: Kit, place: Place) -> Row:
    return measured(kit.network(place.network), place.group, place.samples)
