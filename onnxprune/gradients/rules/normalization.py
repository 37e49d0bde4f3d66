"""Gradients of normalizations.

With x̂ = (x - μ) r, r = (σ² + ε)^(-1/2), μ and σ² taken over some axes, y = x̂ ⊙ scale + bias and g = dy ⊙ scale:

    dx = r (g - mean(g) - x̂ mean(g ⊙ x̂)),

without mean(g) where no mean is taken off (RMSNormalization). Statistics are computed anew: the operators need not
give them. Ioffe & Szegedy 2015 (arXiv 1502.03167), section 3. Oracle: central differences (tests).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.gradients.build import Builder, Gradients, NoGradient, axis_of, given
from onnxprune.graph.view import Node


def batch_norm(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """BatchNormalization with fixed statistics: data, scale and bias."""
    x, scale, _, mean, variance = node.inputs
    if int(node.attrs.get("training_mode", 0)) or any(grads[1:]):
        raise NoGradient("its statistics are those of the batch")
    if any(s > 2 for s in slots):
        raise NoGradient("the gradient of its statistics is not implemented")
    g = given(grads)
    rank, epsilon = b.rank(x), float(node.attrs.get("epsilon", 1e-5))
    rest = [a for a in range(rank) if a != 1]
    input_grads = {}
    if 0 in slots:
        gamma, var = b.array(scale), b.array(variance)
        if gamma is None or var is None:
            factor = b.op("Mul", scale, _inverse_root(b, variance, epsilon))
        else:
            factor = b.number(gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + epsilon), x)
        input_grads[0] = b.op("Mul", g, _along_channels(b, factor, rank))
    if 1 in slots:
        centred = b.op("Sub", x, _along_channels(b, mean, rank))
        total = b.total(b.op("Mul", g, centred), rest, keepdims=False)
        input_grads[1] = b.op("Mul", total, _inverse_root(b, variance, epsilon))
    if 2 in slots:
        input_grads[2] = b.total(g, rest, keepdims=False)
    return input_grads


def _inverse_root(b: Builder, variance: str, epsilon: float) -> str:
    return b.op("Reciprocal", b.op("Sqrt", b.op("Add", variance, b.number(epsilon, variance))))


def _along_channels(b: Builder, vector: str, rank: int) -> str:
    """(C,) as (C, 1, …), which broadcasts against axis 1 of `rank` axes."""
    return b.unsqueeze(vector, range(1, rank - 1))


class _Standard:
    """x̂ and the way back through it, over constant axes."""

    def __init__(self, b: Builder, x: str, axes: Sequence[int], epsilon: float, like: str, *, centre: bool) -> None:
        self.b, self.axes, self.centre = b, axes, centre
        if centre:
            x = b.op("Sub", x, self._mean(x))
        variance = self._mean(b.op("Mul", x, x))
        self.root = b.op("Sqrt", b.op("Add", variance, b.number(epsilon, like)))
        self.values = b.op("Div", x, self.root)

    def _mean(self, x: str) -> str:
        return self.b.reduce("ReduceMean", x, self.axes, keepdims=True)

    def back(self, g: str) -> str:
        """dx, given the gradient of x̂."""
        b = self.b
        along = b.op("Mul", self.values, self._mean(b.op("Mul", g, self.values)))
        centred = b.op("Sub", g, self._mean(g)) if self.centre else g
        return b.op("Div", b.op("Sub", centred, along), self.root)


def last_axes_norm(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """LayerNormalization and RMSNormalization: statistics over the axes from `axis` on; data, scale and bias."""
    if any(grads[1:]):
        raise NoGradient("its mean or deviation is used")
    x, scale = node.inputs[:2]
    y, g = node.outputs[0], given(grads)
    rank = b.rank(x)
    axes = range(axis_of(node, rank, -1), rank)
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    standard = _Standard(b, x, axes, epsilon, x, centre=node.op == "LayerNormalization")
    input_grads = {}
    if 0 in slots:
        input_grads[0] = standard.back(b.op("Mul", g, scale))
    if 1 in slots:
        input_grads[1] = b.sum_to(b.op("Mul", g, standard.values), y, scale)
    if 2 in slots:
        input_grads[2] = b.sum_to(g, y, node.inputs[2])
    return input_grads


def instance_norm(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """InstanceNormalization: statistics over the axes from 2 on; data, scale and bias."""
    x, scale = node.inputs[:2]
    g, rank = given(grads), b.rank(x)
    rest = [a for a in range(rank) if a != 1]
    standard = _Standard(b, x, range(2, rank), float(node.attrs.get("epsilon", 1e-5)), x, centre=True)
    input_grads = {}
    if 0 in slots:
        input_grads[0] = standard.back(b.op("Mul", g, _along_channels(b, scale, rank)))
    if 1 in slots:
        input_grads[1] = b.total(b.op("Mul", g, standard.values), rest, keepdims=False)
    if 2 in slots:
        input_grads[2] = b.total(g, rest, keepdims=False)
    return input_grads


def group_norm(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """GroupNormalization: statistics over groups of channels; scale and bias per group before opset 21."""
    x, scale = node.inputs[:2]
    g, groups = given(grads), int(node.attrs["num_groups"])
    # (N, groups, channels inside · positions), or (N, C, positions): what the parameters are along.
    parted = b.ints(0, groups, -1)
    rows = b.op("Reshape", x, parted)
    standard = _Standard(b, rows, [2], float(node.attrs.get("epsilon", 1e-5)), x, centre=True)
    per_group = b.graph.opset < 21
    own = parted if per_group else b.ints(0, b.shape(x)[1], -1)
    g = b.op("Reshape", g, own)
    input_grads = {}
    if 0 in slots:
        scaled = b.op("Mul", g, _along_channels(b, scale, 3))
        input_grads[0] = b.reshape_as(standard.back(scaled if per_group else b.op("Reshape", scaled, parted)), x)
    if 1 in slots:
        values = standard.values if per_group else b.op("Reshape", standard.values, own)
        input_grads[1] = b.total(b.op("Mul", g, values), [0, 2], keepdims=False)
    if 2 in slots:
        input_grads[2] = b.total(g, [0, 2], keepdims=False)
    return input_grads


def mean_variance_norm(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """MeanVarianceNormalization over `axes`, (0, 2, 3) by default."""
    x = node.inputs[0]
    axes = [int(a) % b.rank(x) for a in node.attrs.get("axes", (0, 2, 3))]
    return {0: _Standard(b, x, axes, 1e-9, x, centre=True).back(given(grads))}


def lp_norm(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """y = x / n with n the norm over one axis: dx = (dy - n' Σ dy ⊙ y) / n, n' = y for p = 2, sign(x) for p = 1."""
    x, y, g = node.inputs[0], node.outputs[0], given(grads)
    p = int(node.attrs.get("p", 2))
    axes = [axis_of(node, b.rank(x), -1)]
    norm = b.reduce(f"ReduceL{p}", x, axes, keepdims=True)
    along = b.total(b.op("Mul", g, y), axes, keepdims=True)
    slope = y if p == 2 else b.op("Sign", x)
    dx = b.op("Div", b.op("Sub", g, b.op("Mul", slope, along)), norm)
    return {0: b.masked(dx, b.op("Greater", norm, b.number(0.0, x)), x)}  # 0 where onnxruntime gives 0


def lrn(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """y = x d^-beta with d = bias + alpha / size Σ x² over neighbouring channels: B x², B a band matrix. Hence

    dx = dy d^-beta - 2 alpha beta / size x ⊙ Bᵀ (dy y / d).
    """
    x, y, g = node.inputs[0], node.outputs[0], given(grads)
    size = int(node.attrs["size"])
    alpha, beta = float(node.attrs.get("alpha", 1e-4)), float(node.attrs.get("beta", 0.75))
    channels = np.arange(b.shape(x)[1])
    offset = channels[None] - channels[:, None]
    band = ((offset >= -((size - 1) // 2)) & (offset <= size // 2)).astype(np.float64)
    kernel = (*band.shape, *(1,) * (b.rank(x) - 2))
    total = b.op("Conv", b.op("Mul", x, x), b.number((alpha / size * band).reshape(kernel), x))
    d = b.op("Add", total, b.number(float(node.attrs.get("bias", 1.0)), x))
    ratio = b.op("Div", b.op("Mul", g, y), d)
    back = b.op("Conv", ratio, b.number((2 * alpha * beta / size * band.T).reshape(kernel), x))
    direct = b.op("Mul", g, b.op("Pow", d, b.number(-beta, x)))
    return {0: b.op("Sub", direct, b.op("Mul", x, back))}


TABLE = {
    "BatchNormalization": batch_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": lrn,
    "LayerNormalization": last_axes_norm,
    "LpNormalization": lp_norm,
    "MeanVarianceNormalization": mean_variance_norm,
    "RMSNormalization": last_axes_norm,
}
