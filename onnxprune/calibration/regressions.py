"""The regressions of every group: which layers read it, with what moments, and how large its weights are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.calibration.input_moments import InputMoments
from onnxprune.calibration.layers import Layer
from onnxprune.channels import AxisRef, ChannelGraph, Group
from onnxprune.graph.quantized import real_values
from onnxprune.numerics.arrays import Array, Doubles, Ints, is_float
from onnxprune.numerics.ridge import OF_SELECTION
from onnxprune.selection import Regression

# Consumers of which a group's columns are one in so many.
_SHARED = 4


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
) -> list[Regression]:
    """One regression per consumer and group of its convolution, each counting its error relative to its output.

    Of a consumer that many groups share only the columns of this one are there; inverses: with their part of the
    inverse, which `obs` then need not compute once per group.
    """
    unit = np.full(channels.classes.pinned.size + 1, -1, np.int64)
    unit[g.units] = np.arange(g.size)
    regressions: list[Regression] = []
    for layer in layers:
        layer_moments = moments[layer.weight]
        if layer.weight not in powers:
            powers[layer.weight] = [p.power() for p in _whole(layer, layer_moments, unit, channels)]
        weight = 1.0 / max(sum(powers[layer.weight]), 1e-30)
        own = np.flatnonzero(unit[layer.columns(0)] >= 0)
        if layer_moments.classes is None and layer.groups == 1 and own.size * _SHARED <= len(layer.columns(0)):
            w = layer.matrix(channels.graph.constants)[0]
            inverse = layer_moments.inverse(own, OF_SELECTION)[:, own] if inverses else None
            regressions.append(
                Regression(
                    layer_moments.block(own), w[own], unit[layer.columns(0)[own]], weight, False, inverse=inverse
                )
            )
            continue
        parts = _whole(layer, layer_moments, unit, channels)
        regressions += [replace(p, weight=weight) for p in parts if (p.unit >= 0).any()]
    return regressions


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
