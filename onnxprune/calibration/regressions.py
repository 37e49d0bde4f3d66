"""The regressions of every group: which layers read it, with what moments, and how large its weights are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.calibration.input_moments import InputMoments
from onnxprune.calibration.layers import Layer
from onnxprune.channels import AxisRef, ChannelGraph, Group
from onnxprune.graph.quantized import real_values
from onnxprune.numerics.arrays import Array, Doubles, Ints, is_float
from onnxprune.numerics.lapack import add_products, cholesky
from onnxprune.numerics.ridge import OF_SELECTION
from onnxprune.selection import Regression
from onnxprune.selection.path import Regressions

# Consumers of which a group's columns are one in so many.
_SHARED = 4
# Weights of so many bytes are worth the product that makes them fewer.
_LARGE_BYTES = 32 << 20


def consumers_of(channels: ChannelGraph, layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers that combine the channels of each group, by group index.

    A layer whose own groups are the units passes them on; it consumes nothing.
    """
    consumers: list[list[Layer]] = [[] for _ in channels.groups]
    for layer in layers:
        reads = layer.inputs[layer.inputs >= 0]
        if not reads.size or layer.groups_are_units:
            continue
        for index in np.unique(channels.group_of[reads]).tolist():
            if index >= 0:
                consumers[index].append(layer)
    return consumers


def regressions_of(
    g: Group,
    layers: Sequence[Layer],
    channels: ChannelGraph,
    moments: Mapping[str, InputMoments],
    powers: dict[str, list[float]],
    *,
    inverses: bool = False,
) -> Regressions:
    """One regression per consumer and group of its convolution, each counting its error relative to its output.

    Of a consumer that many groups share only the columns of this one are there; inverses: with their part of the
    inverse, which `obs` then need not compute once per group.
    """
    unit = np.full(channels.classes.pinned.size + 1, -1, np.int64)
    unit[g.units] = np.arange(g.size)
    alike: dict[int, list[Layer]] = {}
    for layer in layers:
        alike.setdefault(id(moments[layer.weight].moments), []).append(layer)

    def parts() -> Iterator[Regression]:  # one after the other, as the weights of all of them may be most of the model
        for sharing in alike.values():
            read = [
                r
                for layer in sharing
                for r in _read_by(layer, moments[layer.weight], unit, channels, powers, inverses=inverses)
            ]
            yield from read if len(sharing) == 1 or not read else [_together(read)]

    return Regressions(parts())


def _read_by(
    layer: Layer,
    moments: InputMoments,
    unit: Ints,
    channels: ChannelGraph,
    powers: dict[str, list[float]],
    *,
    inverses: bool,
) -> list[Regression]:
    """The regressions of one layer. powers: of layers that were asked for before; the layer's are put there."""
    own = np.flatnonzero(unit[layer.columns(0)] >= 0)
    by_many = moments.classes is None and layer.groups == 1 and own.size * _SHARED <= len(layer.columns(0))
    whole = _whole(layer, moments, unit, channels) if layer.weight not in powers or not by_many else []
    if layer.weight not in powers:
        powers[layer.weight] = [p.power() for p in whole]
    weight = 1.0 / max(sum(powers[layer.weight]), 1e-30)
    if not by_many:
        return [narrowed(replace(p, weight=weight)) for p in whole if (p.unit >= 0).any()]
    w = layer.matrix(channels.graph.constants)[0]
    inverse = moments.inverse(own, OF_SELECTION)[:, own] if inverses else None
    units = unit[layer.columns(0)[own]]
    return [Regression(moments.block(own), w[own], units, weight, False, inverse=inverse)]


def narrowed(r: Regression) -> Regression:
    """The same regression with at most as many outputs as columns, where that saves much memory.

    Selection asks for inner products of rows of W alone, and the rows of a triangle L with L Lᵀ = W Wᵀ have the same.
    They are stored in the precision of the moments.
    """
    columns, outputs = r.w.shape
    if outputs <= columns or r.w.nbytes < _LARGE_BYTES:
        return r
    products = np.zeros((columns, columns))
    add_products(r.w.T, products)
    factor = np.asfortranarray(products)
    if cholesky(factor):
        return replace(r, w=np.tril(factor).astype(r.p.dtype))
    triangle: Doubles = np.linalg.qr(r.w.T, mode="r")  # type: ignore[assignment]  # this mode gives R alone
    return replace(r, w=triangle.T.astype(r.p.dtype))


def _together(parts: Sequence[Regression]) -> Regression:
    """One regression for layers that read the same in the same way: the error of all of their outputs."""
    if len(parts) == 1:
        return parts[0]
    w = np.concatenate([p.w.astype(np.float64) * np.sqrt(p.weight) for p in parts], axis=1)
    return narrowed(replace(parts[0], w=w, weight=1.0))


def _whole(layer: Layer, moments: InputMoments, unit: Ints, channels: ChannelGraph) -> list[Regression]:
    """A regression per group of a layer's convolution, with all of its columns. unit: of every class, -1 for others."""
    p = moments.p
    if moments.classes is not None:
        ones = np.ones((moments.classes.size, 1))
        return [Regression(p[0], ones, unit[moments.classes], centred=False)]
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
    unit = place[classes.ravel()]
    norms = np.sqrt(np.bincount(unit[unit >= 0], power[unit >= 0], minlength=g.size))
    mean = float(norms.mean())
    return norms / mean if mean > 0 else norms
