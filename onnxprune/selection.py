"""From calibration to paths: which regressions each group has, and the chosen method run on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.calibrate.layers import Layer
from onnxprune.calibrate.outputs import OutputMoments
from onnxprune.calibrate.statistics import InputMoments
from onnxprune.channels import AxisRef, ChannelGraph, Group
from onnxprune.config import PruneConfig
from onnxprune.gates import units_of
from onnxprune.jobs.work import Here, Scheduler, Work
from onnxprune.methods import METHODS, Looks, tried
from onnxprune.numerics.arrays import Array, Doubles, Ints, is_float
from onnxprune.numerics.ridge import OF_SELECTION
from onnxprune.quantized import real_values
from onnxprune.select import Path, Regression
from onnxprune.select.known import Choice, Known, function_of
from onnxprune.select.quadratic import Quadratic

# Arrays as large as its moments that the selection of a group holds at a time.
_COPIES = 3
# Consumers of which a group's columns are one in so many.
_SHARED = 4


def candidates(
    channels: ChannelGraph,
    layers: Sequence[Layer],
    moments: Mapping[str, InputMoments],
    outputs: OutputMoments,
    settings: PruneConfig,
    scheduler: Scheduler | None = None,
) -> dict[str, list[Path]]:
    """By the method that is run, the paths of all groups; several where the chosen one takes the better of them."""
    choice = Choice(settings.seed, settings.coefficients == "free")
    return {
        name: paths(channels, layers, moments, name, choice, outputs, settings.metric, scheduler)
        for name in tried(settings.method)
    }


def paths(
    channels: ChannelGraph,
    layers: Sequence[Layer],
    moments: Mapping[str, InputMoments],
    method: str,
    choice: Choice,
    outputs: OutputMoments | None = None,
    metric: str = "gates",
    scheduler: Scheduler | None = None,
) -> list[Path]:
    """The path of every group, in the order of `channels.groups`.

    metric: how "global" measures the outputs; "exact" is "gates" here. Where a group has no gradients, or no layer
    reads it, the method's stand-in is run.
    """
    outputs = outputs or OutputMoments()
    consumers = consumers_of(channels, layers)
    powers: dict[str, list[float]] = {}

    def known(g: Group) -> Known:
        readers = [x for x in consumers[g.index] if x.weight in moments]
        regressions = regressions_of(g, readers, channels, moments, powers, inverses=METHODS[method].inverses)
        globally = _global(g, readers, channels, moments, outputs, metric) if METHODS[method].gradients else None
        run = stood_in(method, outputs=globally is not None, layers=bool(regressions))
        scores = outputs.gates[g.index].square if METHODS[run].gradients else None
        if METHODS[run].looks is Looks.WEIGHTS:
            scores = magnitude(g, channels)
        return Known(run, g.index, g.size, g.rows, tuple(regressions), globally, scores)

    # One by one, so that not all of them are in memory at once.
    return list((scheduler or Here()).map(Selection(choice), map(known, channels.groups), len(channels.groups)))


def stood_in(method: str, *, outputs: bool, layers: bool) -> str:
    """The method that is run on a group. outputs, layers: whether what these say of it is known."""
    while True:
        looks = METHODS[method].looks
        if (looks is not Looks.OUTPUTS or outputs) and (looks is not Looks.LAYERS or layers):
            return method
        method = METHODS[method].stand_in


@dataclass(frozen=True, eq=False)
class Selection(Work[Known, Path]):
    """The methods, run on one group after the other."""

    choice: Choice
    side_by_side = True

    def size(self, item: Known) -> int:
        """The moments, their inverse and a copy of it."""
        return sum(_COPIES * r.p.nbytes for r in item.regressions)

    def __call__(self, item: Known) -> Path:
        """The path of a group; what is random in it depends on the seed and the group."""
        return function_of(item.method)(item, self.choice)


def _global(
    g: Group,
    readers: Sequence[Layer],
    channels: ChannelGraph,
    moments: Mapping[str, InputMoments],
    outputs: OutputMoments,
    metric: str,
) -> Quadratic | None:
    """The discrepancy of the network's outputs, to second order; None where there are no gradients."""
    known = outputs.gates.get(g.index)
    if known is None:
        return None
    factored = all(x.weight in outputs.metrics and moments[x.weight].classes is None for x in readers)
    if metric != "kronecker" or not factored:
        return Quadratic.around(known.gram, known.slope, 0.0)
    unit = units_of(channels, g.index)
    total: Doubles = np.zeros((g.size, g.size))
    for x in readers:
        w, h, p = x.matrix(channels.graph.constants), outputs.metrics[x.weight], moments[x.weight].p
        for i in range(x.groups):
            total += Regression(p[i], w[i] @ square_root(h[i]), unit[x.columns(i)]).contributions(g.size)
    return Quadratic.around(total, known.slope, 0.0)


def square_root(h: Doubles) -> Doubles:
    """L with L Lᵀ = H for a symmetric positive semi-definite H (O, O)."""
    values, vectors = np.linalg.eigh(h)
    root: Doubles = vectors * np.sqrt(np.maximum(values, 0.0))
    return root


def consumers_of(channels: ChannelGraph, layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers that combine the channels of each group, by group index.

    A layer whose own groups are the units passes them on; it consumes nothing.
    """
    found: list[list[Layer]] = [[] for _ in channels.groups]
    for layer in layers:
        reads = layer.inputs[layer.inputs >= 0]
        if not reads.size or layer.groups_are_units:
            continue
        for index in np.unique(channels.group_of[reads]).tolist():
            if index >= 0:
                found[index].append(layer)
    return found


def regressions_of(
    g: Group,
    layers: Sequence[Layer],
    channels: ChannelGraph,
    moments: Mapping[str, InputMoments],
    powers: dict[str, list[float]],
    *,
    inverses: bool = False,
) -> list[Regression]:
    """One regression per consumer and group of its convolution, each counting its error relative to its output.

    Of a consumer that many groups share only the columns of this one are there; inverses: with their part of the
    inverse, which `obs` then need not compute once per group.
    """
    unit = np.full(channels.classes.pinned.size + 1, -1, np.int64)
    unit[g.units] = np.arange(g.size)
    found: list[Regression] = []
    for layer in layers:
        known = moments[layer.weight]
        if layer.weight not in powers:
            powers[layer.weight] = [p.power() for p in _whole(layer, known, unit, channels)]
        weight = 1.0 / max(sum(powers[layer.weight]), 1e-30)
        own = np.flatnonzero(unit[layer.columns(0)] >= 0)
        if known.classes is None and layer.groups == 1 and own.size * _SHARED <= len(layer.columns(0)):
            w = layer.matrix(channels.graph.constants)[0]
            inverse = known.inverse(own, OF_SELECTION)[:, own] if inverses else None
            found.append(
                Regression(known.block(own), w[own], unit[layer.columns(0)[own]], weight, False, inverse=inverse)
            )
            continue
        parts = _whole(layer, known, unit, channels)
        found += [replace(p, weight=weight) for p in parts if (p.unit >= 0).any()]
    return found


def _whole(layer: Layer, known: InputMoments, unit: Ints, channels: ChannelGraph) -> list[Regression]:
    """A regression per group of a layer's convolution, with all of its columns. unit: of every class, -1 for others."""
    p = known.p
    if known.classes is not None:
        ones = np.ones((known.classes.size, 1))
        return [Regression(p[0], ones, unit[known.classes], centred=False)]
    w = layer.matrix(channels.graph.constants)
    return [Regression(p[i], w[i], unit[layer.columns(i)], centred=bool(layer.bias)) for i in range(layer.groups)]


def magnitude(g: Group, channels: ChannelGraph) -> Doubles:
    """Mean relative L2 norm of each unit's weights over the layers that produce it, (units,)."""
    score = np.zeros(g.size)
    for ref in g.producers or g.parameters or g.consumers:
        score += _norms(g, ref, real_values(channels.graph, ref.tensor), channels)
    return score


def _norms(g: Group, ref: AxisRef, values: Array, channels: ChannelGraph) -> Doubles:
    classes = channels.axis_factor(ref.tensor, ref.axis)
    if classes is None or not is_float(values.dtype):
        return np.zeros(g.size)
    untracked = tuple(a for a, s in enumerate(classes.shape) if s == 1)
    power = (values.astype(np.float64) ** 2).sum(axis=untracked).ravel()
    place = np.full(channels.classes.pinned.size, -1, np.int64)
    place[g.units] = np.arange(g.size)
    at = place[classes.ravel()]
    norms = np.sqrt(np.bincount(at[at >= 0], power[at >= 0], minlength=g.size))
    mean = float(norms.mean())
    return norms / mean if mean > 0 else norms
