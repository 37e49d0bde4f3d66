"""Section 2: the same layers, cut alone by local or by global imitation, in every measure there is.

Global imitation is walked twice: on the gates, a quadratic that is right to second order at the full layer, and on the
network itself, every step evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.fits import fitted
from experiments.paper.convergence import widths
from experiments.paper.networks import Alone, Kit, Network, Prepared, scores
from experiments.paper.records import Records, Row
from experiments.paper.scope import Place
from onnxprune.refit import layerwise
from onnxprune.selection import Path, exact, imitation

Array = NDArray[np.float64]
SECTION = "alone"
SHARES = (0.25, 0.5, 0.75)
REFITS = ("none", "greedy", "least-squares")
# As the program walks on the network itself: units searched per step, and the gain that float32 hides.
_CANDIDATES, _ROUNDING = 4, 1e-6


def weights_of(prepared: Prepared, group: int, path: Path, n: int, level: str) -> Mapping[str, Array]:
    """The consumers' weights with n units kept, at full size, refitted as the pipeline does it."""
    channels = prepared.coupled.taken.channels
    keep = channels.keep_classes({group: path.kept(n)})
    readers, constants = prepared.consumers[group], channels.graph.constants
    if level != "greedy":
        return layerwise.in_place(readers, prepared.calibrated.moments, constants, keep, level)
    factors = np.ones(keep.size)
    factors[channels.groups[group].units] = path.coefficients_of(n)
    return layerwise.scaled(readers, constants, keep, factors)


def walked(prepared: Prepared, group: int, samples: int) -> tuple[Path, Row]:
    """Global imitation by the network itself, on the first samples alone, as the program does; and what it cost."""
    fit, units = prepared.loaded.fit, prepared.coupled.taken.channels.groups[group].size
    few = fit.take(range(min(samples, len(fit))))
    walk = exact.ExactWalk(Alone(prepared, group, few).gated(), units, candidates=_CANDIDATES, rounding=_ROUNDING)
    path = exact.imitate(walk)
    return path, {"samples": len(few), "evaluations": walk.evaluations, "gradients": walk.gradients}


def measure(network: Network, name: str, samples: int, seed: int = 0, *, by_network: int = 128) -> Row:
    """One group, three widths, two or three walks, three refits: every discrepancy, and the answers on the test split.

    by_network: on how many samples global imitation is also walked on the network itself; 0 for not at all.
    """
    prepared = Prepared.of(network, samples, seed)
    group = prepared.named(name)
    local, output = prepared.local(group), prepared.gauss_newton(group)
    gated = Alone(prepared, group, prepared.loaded.fit).gated()
    test = Alone(prepared, group, prepared.test)
    before = test.answers({})
    paths = {"local": imitation.imitate(local), "global": imitation.imitate(output)}
    cost: Row = {}
    sizes = [n for n in widths(local.units) if n < local.units]
    kept = [max(1, round((1 - share) * local.units)) for share in SHARES]
    if by_network:
        paths["exact"], cost = walked(prepared, group, by_network)
    cuts = []
    for share, n in zip(SHARES, kept, strict=True):
        for method, path in paths.items():
            a = path.coefficients_of(n)
            if a is None:
                continue
            row: Row = {
                "method": method,
                "removed": share,
                "kept": n,
                "local": local.at(a) / local.c,
                "gauss_newton": output.at(a),
                "output": gated.at(a),
            }
            for level in REFITS:
                after = test.answers(weights_of(prepared, group, path, n, level))
                row[level] = scores(before, after, network.labels)
            row["shared"] = int((paths["local"].kept(n) & path.kept(n)).sum())
            cuts.append(row)
    whole = gated.at(np.zeros(local.units))
    curves = {}
    for method, path in paths.items():
        found = [path.coefficients_of(n) for n in sizes]
        curves[method] = _curve(sizes, [gated.at(a) / whole for a in found if a is not None])
    return {
        "units": local.units,
        "samples": len(prepared.loaded.fit),
        "seed": seed,
        "cuts": cuts,
        "curves": curves,
        "exact": cost,
    }


def _curve(n: Sequence[int], d: Sequence[float]) -> Row:
    return {"n": list(n), "d": list(d), "fit": fitted(n, d)}


def measure_all(kit: Kit, records: Records, quick: bool) -> None:
    """Layers of section 1, and small ones, on which steps on the network itself are cheap."""
    for p in kit.scope(quick).alone:
        records.add(SECTION, p.key, partial(_of, kit, p))


def _of(kit: Kit, p: Place) -> Row:
    return measure(kit.network(p.network), p.group, p.samples, by_network=p.by_network)
