"""From calibration to paths: which regressions each group has, and the chosen method run on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibrate.layers import Layer
from onnxprune.calibrate.statistics import InputMoments
from onnxprune.channels import AxisRef, ChannelGraph, Group
from onnxprune.graph import Array, is_float
from onnxprune.quantized import real_values
from onnxprune.select import Path, Quadratic, Regression, baselines, imitation, obs


def paths(
    channels: ChannelGraph,
    layers: Sequence[Layer],
    moments: Mapping[str, InputMoments],
    method: str,
    seed: int,
) -> list[Path]:
    """The path of every group, in the order of `channels.groups`."""
    consumers = consumers_of(channels, layers)
    powers: dict[str, list[float]] = {}
    rng = np.random.default_rng(seed)
    found: list[Path] = []
    for g in channels.groups:
        regressions = regressions_of(
            g, [x for x in consumers[g.index] if x.weight in moments], channels, moments, powers
        )
        found.append(_path(g, regressions, channels, method, rng))
    return found


def _path(
    g: Group, regressions: Sequence[Regression], channels: ChannelGraph, method: str, rng: np.random.Generator
) -> Path:
    if method == "random":
        return baselines.random(g.size, regressions, rng, g.rows)
    if method == "magnitude" or not regressions:
        return baselines.by_score(magnitude(g, channels), regressions, g.rows)
    if method == "local":
        total: NDArray[np.float64] = np.zeros((g.size, g.size))
        for r in regressions:
            total += r.contributions(g.size)
        return imitation.imitate(Quadratic.of_gram(total), rows=g.rows)
    return obs.eliminate(regressions, g.size, rows=g.rows)


def consumers_of(channels: ChannelGraph, layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers that combine the channels of each group, by group index.

    A layer whose own groups are the units passes them through; it consumes nothing.
    """
    found: list[list[Layer]] = [[] for _ in channels.groups]
    for layer in layers:
        reads = layer.inputs[layer.inputs >= 0]
        if not reads.size or passes_through(layer):
            continue
        for index in np.unique(channels.group_of[reads]).tolist():
            if index >= 0:
                found[index].append(layer)
    return found


def passes_through(layer: Layer) -> bool:
    """A grouped convolution whose units are whole groups (depthwise: single channels)."""
    if layer.groups == 1:
        return False
    rows = layer.inputs.reshape(layer.groups, -1)
    return bool((rows == rows[:, :1]).all()) and np.unique(rows[:, 0]).size > 1


def regressions_of(
    g: Group,
    layers: Sequence[Layer],
    channels: ChannelGraph,
    moments: Mapping[str, InputMoments],
    powers: dict[str, list[float]],
) -> list[Regression]:
    """One regression per consumer and group of its convolution, each counting its error relative to its output."""
    unit = np.full(channels.classes.pinned.size + 1, -1, np.int64)
    unit[g.units] = np.arange(g.size)
    found: list[Regression] = []
    for layer in layers:
        known = moments[layer.weight]
        if known.classes is not None:
            ones = np.ones((known.classes.size, 1))
            parts = [Regression(known.p[0], ones, unit[known.classes], centred=False)]
        else:
            w = layer.matrix(channels.graph.constants)
            parts = [
                Regression(known.p[i], w[i], unit[layer.columns(i)], centred=bool(layer.bias))
                for i in range(layer.groups)
            ]
        if layer.weight not in powers:
            powers[layer.weight] = [p.power() for p in parts]
        total = max(sum(powers[layer.weight]), 1e-30)
        found += [Regression(p.p, p.w, p.unit, 1.0 / total, p.centred, p.ridge) for p in parts if (p.unit >= 0).any()]
    return found


def magnitude(g: Group, channels: ChannelGraph) -> NDArray[np.float64]:
    """Mean relative L2 norm of each unit's weights over the layers that produce it, (units,)."""
    score = np.zeros(g.size)
    for ref in g.producers or g.parameters or g.consumers:
        score += _norms(g, ref, real_values(channels.graph, ref.tensor), channels)
    return score


def _norms(g: Group, ref: AxisRef, values: Array, channels: ChannelGraph) -> NDArray[np.float64]:
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
