"""Batch normalisation that an exporter folded into the layer in front of it, taken out again.

With running mean m, running variance v, scale γ and shift β, a layer W x + b and what follows it compute

    γ (W x + b - m) / √(v + ε) + β = W' x + b',   W' = s W,   b' = s (b - m) + β,   s = γ / √(v + ε),

for each channel. The file holds W' and b'. W and s follow from the trained weights, and with s the ε:
ε = γ² / s² - v, equal for all channels, tells which of the network's normalisations it was. Of the pruned layer, whose
W' and b' are fitted ones, W = W' / s and β = b' - s (b - m); γ, m and v stay as they were trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from onnxprune.numerics.arrays import Array, Doubles, Mask

# How far sums of a whole row of weights may be off, relative, and the largest ε that a network is trained with.
_TOLERANCE, _MOST_EPSILON = 1e-4, 0.1
# Below this a channel's scale is nothing that weights could be divided by.
_LEAST_SCALE = 1e-6


@dataclass(frozen=True, eq=False)
class Folded:
    """A normalisation inside a layer: the name of its module, s (channels,), and its ε."""

    module: str
    scale: Doubles
    epsilon: float


@dataclass(frozen=True, eq=False)
class Unfolded:
    """The pruned layer's weight, and the normalisation's parameters by their names in its module."""

    weight: Array
    normalisation: Mapping[str, Array]


def scales_between(folded: Array, trained: Array, axis: int) -> Doubles | None:
    """s (channels,) such that `folded` is `trained` times s along `axis`; None where there is none. 0 tells nothing."""
    a, b = (np.moveaxis(np.asarray(w, np.float64), axis, 0).reshape(w.shape[axis], -1) for w in (folded, trained))
    power = (b * b).sum(axis=1)
    scale: Doubles = np.divide((a * b).sum(axis=1), power, out=np.zeros(len(b)), where=power > 0)
    off = np.sqrt(((a - scale[:, None] * b) ** 2).sum(axis=1))
    whole = np.sqrt((a * a).sum(axis=1))
    return scale if (off <= _TOLERANCE * whole + 1e-12).all() and (scale != 0).any() else None


def folded_into(
    layer: str, scale: Doubles, bias: Array, trained_bias: Array | float, state: Mapping[str, Array]
) -> Folded | None:
    """The normalisation of `state` that gives a layer these scales and this bias; None where none does.

    Where several do, which an untrained network has, the one whose name is nearest to the layer's.
    """
    fitting = []
    for module in (k.removesuffix(".running_var") for k in state if k.endswith(".running_var")):
        parts = _parts(module, state)
        if parts is None or parts[0].shape != scale.shape:
            continue
        gamma, beta, mean, variance = parts
        told = np.abs(scale) > _LEAST_SCALE
        epsilon = gamma[told] ** 2 / scale[told] ** 2 - variance[told]
        # What s says of ε is no better than s itself, so large variances say little.
        weight = 1 / (variance[told] + _MOST_EPSILON)
        common = float(np.clip((epsilon * weight).sum() / weight.sum(), 0, _MOST_EPSILON))
        s = gamma / np.sqrt(variance + common)
        size = np.abs(gamma) * np.abs(mean - trained_bias) / np.sqrt(variance + common) + np.abs(beta) + 1e-6
        shift = s * (trained_bias - mean) + beta
        if (np.abs(s - scale)[told] <= _TOLERANCE * np.abs(s[told])).all() and (
            np.abs(shift - bias) <= 10 * _TOLERANCE * size
        ).all():
            fitting.append(Folded(module, s, common))
    return min(fitting, key=lambda f: _distance(layer, f.module), default=None)


def unfolded(
    weight: Array, bias: Array, trained_bias: Array | float, found: Folded, state: Mapping[str, Array], kept: Mask
) -> Unfolded:
    """The layer without the normalisation, and the normalisation, of the channels that stay.

    weight, bias: W' with the channels first, and b', pruned and fitted. trained_bias: b of the channels that stay.
    """
    parts = _parts(found.module, state)
    if parts is None:
        raise ValueError(f"{found.module} is no normalisation")
    gamma, _, mean, variance = (p[kept] for p in parts)
    scale = found.scale[kept]
    spread = np.sqrt(variance + found.epsilon)
    faint = np.abs(scale) <= _LEAST_SCALE  # what such a channel gives is fitted, and no multiple of W x
    gamma, scale = np.where(faint, spread, gamma), np.where(faint, 1.0, scale)
    column = scale.reshape(-1, *[1] * (weight.ndim - 1))
    beta = np.asarray(bias, np.float64) - scale * (trained_bias - mean)
    values = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}
    return Unfolded(
        np.asarray(weight / column).astype(weight.dtype),
        {k: v.astype(weight.dtype) for k, v in values.items()},
    )


def _parts(module: str, state: Mapping[str, Array]) -> tuple[Doubles, Doubles, Doubles, Doubles] | None:
    """(γ, β, m, v) of a normalisation, γ and β of one without them being 1 and 0."""
    mean, variance = state.get(f"{module}.running_mean"), state.get(f"{module}.running_var")
    if mean is None or variance is None or mean.shape != variance.shape or variance.ndim != 1:
        return None
    gamma, beta = state.get(f"{module}.weight", np.ones(mean.shape)), state.get(f"{module}.bias", np.zeros(mean.shape))
    if gamma.shape != mean.shape or beta.shape != mean.shape:
        return None
    return tuple(np.asarray(v, np.float64) for v in (gamma, beta, mean, variance))  # type: ignore[return-value]


def _distance(layer: str, module: str) -> tuple[int, int, int, str]:
    """How far apart two modules are by name: near are those in one parent, with the same number or the next."""
    a, b = layer.split("."), module.split(".")
    common = sum(1 for _ in takewhile(lambda p: p[0] == p[1], zip(a, b, strict=False)))
    numbers = [int(n.group()) if (n := re.search(r"\d+$", name)) else -1 for name in (layer, module)]
    step = numbers[1] - numbers[0]
    return len(a) + len(b) - 2 * common, 0 if step in (0, 1) else 1, abs(step), module
