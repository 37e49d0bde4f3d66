"""Sections 1 and 3: discrepancy against units, layer by layer, for every method and for steps that mix two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.fits import fitted
from benchmarks.paper.networks import MNIST_MLP, MNIST_VGG, MOBILENET, RESNET56, Alone, Kit, Network, Prepared
from benchmarks.paper.records import Records, Row
from onnxprune import selection
from onnxprune.select import Path, baselines, gfs, imitation, obs
from onnxprune.select.exact import ExactWalk
from onnxprune.select.imitation import SLACK, QuadraticWalk
from onnxprune.select.quadratic import Quadratic
from onnxprune.select.steps import Step, path_of

Floats = NDArray[np.float64]
SECTION, COMBINED = "convergence", "combining"
# Points of a curve at which the network itself is run.
_POINTS = 14
# Relative to the empty layer: between two discrepancies of a network in float32 this close neither is better.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class Place:
    """A group of a network, by a part of the name of the weight that reads it."""

    network: str
    weight: str
    samples: int


PLACES = (
    Place(RESNET56, "layer1.4.conv2", 256),
    Place(RESNET56, "layer2.4.conv2", 256),
    Place(RESNET56, "layer3.7.conv2", 256),
    Place(MOBILENET, "", 64),
    Place(MNIST_VGG, "", 256),
    Place(MNIST_MLP, "", 256),
)


def widths(units: int, points: int = _POINTS) -> list[int]:
    """Numbers of kept units from 1 to all, evenly in the logarithm and dense at the wide end too."""
    low = np.geomspace(1, units, points // 2)
    high = np.linspace(units / 2, units, points - points // 2)
    return sorted({int(round(n)) for n in (*low, *high)})


def paths_of(prepared: Prepared, group: int, local: Quadratic, output: Quadratic, seed: int) -> dict[str, Path]:
    """The path of every method on its own discrepancy."""
    g = prepared.coupled.taken.channels.groups[group]
    moments = prepared.calibrated.moments
    readers = [x for x in prepared.consumers[group] if x.weight in moments]
    regressions = selection.regressions_of(g, readers, prepared.coupled.taken.channels, moments, {})
    rng = np.random.default_rng(seed)
    return {
        "gfs": gfs.select(local),
        "local": imitation.imitate(local),
        "global": imitation.imitate(output),
        "obs": obs.eliminate(regressions, g.size),
        "random": baselines.random(g.size, local, rng),
    }


def coefficients(path: Path, n: int) -> Floats:
    """Of n units; 1 for those that stay where the method gives none."""
    found = path.coefficients_of(n)
    return path.kept(n).astype(float) if found is None else found


def mixed(
    local: Quadratic, output: Quadratic, at: Callable[[Floats], float], taken: list[str] | None = None
) -> Iterator[Step]:
    """Greedy steps, each the better of a local and a global one by the true discrepancy, which may then not grow.

    taken: which one it was, step by step.
    """
    walks = {"local": QuadraticWalk(local), "global": QuadraticWalk(output)}
    everything = np.ones(local.units, bool)
    whole = at(np.zeros(local.units))
    present = np.inf
    while True:
        tried: list[tuple[float, str, Step]] = []
        for name, walk in walks.items():
            step = walk.advance(everything)
            if step is not None:
                tried.append((at(step.coefficients), name, step))
        if not tried:
            return
        value, name, step = min(tried, key=lambda t: t[0])
        if not value < present - _ROUNDING * whole:
            return
        present = value
        for walk in walks.values():
            walk.jump(step.coefficients)
        if taken is not None:
            taken.append(name)
        yield Step(step.unit, step.gamma, value, step.coefficients)


def curve(path: Path, local: Quadratic, at: Callable[[Floats], float], sizes: Sequence[int]) -> Row:
    """Both discrepancies by units kept: the layer's everywhere, the network's at `sizes`; and the fits of both."""
    units = local.units
    own = [local.at(coefficients(path, n)) / local.c for n in range(1, units)]
    whole = at(np.zeros(units))
    true = [at(coefficients(path, n)) / whole for n in sizes if n < units]
    n_own, n_true = list(range(1, units)), [n for n in sizes if n < units]
    return {
        "local": {"n": n_own, "d": own, "fit": fitted(n_own, own)},
        "output": {"n": n_true, "d": true, "fit": fitted(n_true, true, 1e-7)},
    }


def by_steps(steps: Iterator[Step], local: Quadratic, limit: int) -> Row:
    """The discrepancy after every step, which the theory speaks of, and how many units are held then."""
    found = list(islice(steps, limit))
    n = list(range(1, len(found) + 1))
    d = [local.at(s.coefficients) / local.c for s in found]
    held = [int(np.count_nonzero(s.coefficients)) for s in found]
    return {"n": n, "d": d, "held": held, "removals": sum(s.gamma < 0 for s in found), "fit": fitted(n, d)}


def measure(network: Network, weight: str, samples: int, seed: int = 0, points: int = _POINTS) -> Row:
    """One group: a curve of every method, and the steps of gfs and local."""
    prepared = Prepared.of(network, samples, seed)
    group = group_of(prepared, weight)
    alone = Alone(prepared, group, prepared.loaded.fit)
    at = alone.gated().at
    local, output = prepared.local(group), prepared.gauss_newton(group)
    sizes = widths(local.units, points)
    curves = {k: curve(p, local, at, sizes) for k, p in paths_of(prepared, group, local, output, seed).items()}
    taken: list[str] = []
    steps = islice(mixed(local, output, at, taken), SLACK * local.units)
    curves["combined"] = curve(path_of(steps, QuadraticWalk(local)), local, at, sizes)
    limit = SLACK * local.units
    values = np.linalg.eigvalsh(local.k)
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
        "condition": float(values[-1] / max(values[0], 1e-30)),
        "inside": interior(local),
        "sensitivity": sensitivity(curves),
    }


def interior(q: Quadratic) -> dict[str, float]:
    """Where the target stands in the hull of the units N s_i, of which it is the mean.

    radius: the diameter's share that a ball around the target, inside the hull, has at most along single differences
    (the Theorem needs it above 0); flat: share of the hull's directions with next to no extent (below 1e-3 of the mean
    variance), where being inside means little.
    """
    n = q.units
    centred = n * (q.k - q.t[:, None] / n - q.t[None, :] / n + q.c / n**2) * n
    values = np.maximum(np.linalg.eigvalsh(0.5 * (centred + centred.T)), 0.0)[1:]
    return {"flat": float((values < 1e-3 * values.mean()).mean()), "condition": float(values[-1] / max(values[0], 1e-30))}


def sensitivity(curves: Mapping[str, Any]) -> Row:
    """Output discrepancy over local discrepancy along the path of each method: least, median and most."""
    found: Row = {}
    for name, c in curves.items():
        own = dict(zip(c["local"]["n"], c["local"]["d"], strict=True))
        pairs = zip(c["output"]["n"], c["output"]["d"], strict=True)
        ratios = [d / own[n] for n, d in pairs if own[n] > 1e-9]
        found[name] = {"least": min(ratios), "median": float(np.median(ratios)), "most": max(ratios)} if ratios else {}
    return found


def combining(network: Network, weight: str, samples: int, seed: int = 0) -> Row:
    """Section 3: the true discrepancy after every step of local, global, exact and mixed steps, on the same group."""
    prepared = Prepared.of(network, samples, seed)
    group = group_of(prepared, weight)
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
    for name, steps in kinds.items():
        walked = list(islice(steps, limit))
        n = list(range(1, len(walked) + 1))
        shown = [i for i in range(len(walked)) if name in ("combined", "exact") or i < 16 or i % 4 == 3]
        d = [(walked[i].loss if name in ("combined", "exact") else gated.at(walked[i].coefficients)) / whole for i in shown]
        own = [local.at(walked[i].coefficients) / local.c for i in shown]
        n = [i + 1 for i in shown]
        held = [int(np.count_nonzero(walked[i].coefficients)) for i in shown]
        grew = sum(b > a * (1 + 1e-6) for a, b in zip(d, d[1:], strict=False))
        found[name] = {"n": n, "output": d, "local": own, "held": held, "fit": fitted(n, d, 1e-7), "grew": grew}
    found["combined"]["taken"] = {k: taken.count(k) for k in ("local", "global")}
    switches = sum(a != b for a, b in zip(taken, taken[1:], strict=False))
    found["combined"]["switches"] = switches
    return {"units": local.units, "samples": len(prepared.loaded.fit), "seed": seed, "kinds": found}


def group_of(prepared: Prepared, weight: str) -> int:
    """By a part of a weight's name; "" is the widest group in the later half that layers alone read."""
    if weight:
        return prepared.named(weight)
    graph = prepared.coupled.taken.channels.graph
    known = prepared.calibrated.outputs.gates
    sized = [
        (prepared.coupled.taken.channels.groups[g].size, -g)
        for g, layers in enumerate(prepared.consumers)
        if layers and g in known and 2 * min(x.node.index for x in layers) > len(graph.nodes)
    ]
    limited = [s for s in sized if s[0] <= 192] or sized
    return -max(limited)[1]


def places(quick: bool) -> Sequence[Place]:
    """What is measured."""
    return (PLACES[1], PLACES[-1]) if quick else PLACES


def measure_all(kit: Kit, records: Records, quick: bool) -> None:
    """Section 1."""
    for p in places(quick):
        records.add(SECTION, f"{p.network} {p.weight}".strip(), lambda p=p: measure(kit.network(p.network), p.weight, p.samples))  # type: ignore[misc]


def combining_all(kit: Kit, records: Records, quick: bool) -> None:
    """Section 3."""
    for p in places(quick)[: 1 if quick else 6]:
        records.add(COMBINED, f"{p.network} {p.weight}".strip(), lambda p=p: combining(kit.network(p.network), p.weight, p.samples))  # type: ignore[misc]
