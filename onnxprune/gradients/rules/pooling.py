"""Gradients of pooling. Each entry of dy goes back over its window; `windows.spread` does that with a constant kernel.

Oracle: central differences (tests).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.gradients.build import Builder, Gradients, given
from onnxprune.gradients.measured import outcome
from onnxprune.gradients.windows import Geometry, geometry, spread
from onnxprune.graph.view import Node
from onnxprune.numerics.arrays import Array


def average_pool(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Each window divides by what onnxruntime divides by: the rules for pads and ceil_mode differ between opsets."""
    x = node.inputs[0]
    geo = _geometry(b, node)
    inside = _entries_inside(geo)
    shares = outcome(b, node, np.ones((1, 1, *geo.inputs)))[0, 0] / np.maximum(inside, 1)
    g = given(grads)
    if np.ptp(shares) == 0:
        return {0: _spread(b, g, geo, float(shares.flat[0]), x)}
    return {0: _spread(b, b.op("Mul", g, b.number(shares, x)), geo, 1.0, x)}


def _geometry(b: Builder, node: Node) -> Geometry:
    return geometry(b, node, [int(k) for k in node.attrs["kernel_shape"]])


def _entries_inside(geo: Geometry) -> Array:
    """How many entries of each window lie inside the input, (*outputs)."""
    counts = np.ones((1,) * len(geo.kernel))
    for axis, (k, s, d, p, i, o) in enumerate(
        zip(geo.kernel, geo.strides, geo.dilations, geo.before, geo.inputs, geo.outputs, strict=True)
    ):
        places = s * np.arange(o)[:, None] + d * np.arange(k)[None] - p
        own = ((places >= 0) & (places < i)).sum(1)
        counts = counts * own.reshape([-1 if a == axis else 1 for a in range(len(geo.kernel))])
    return counts


def _spread(b: Builder, g: str, geo: Geometry, value: float, like: str) -> str:
    """The sum of `g` over the windows that each entry of the input is in, times `value`."""
    channels = b.shape(like)[1]
    return spread(b, g, np.full((channels, 1, *geo.kernel), value, b.dtype(like)), geo, channels, like)


def global_average_pool(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """The mean over all spatial axes."""
    x = node.inputs[0]
    return {0: b.expand_as(b.op("Mul", given(grads), b.number(1 / np.prod(b.shape(x)[2:]), x)), x)}


def max_pool(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Each entry goes to the place that MaxPool's Indices name: one, also where several entries are the largest.

    Where windows overlap, a place is named more than once. As Scatter adds nothing up before opset 16, the windows are
    sorted into sets without overlap, each of which has a copy of the input to itself; the sum of the copies is dx.
    """
    x = node.inputs[0]
    geo = _geometry(b, node)
    sets = [-(-(r + 1) // s) if o > 1 else 1 for r, s, o in zip(geo.reach, geo.strides, geo.outputs, strict=True)]
    attrs = {k: v for k, v in node.attrs.items() if k != "storage_order"}
    _, places = b.ops("MaxPool", [x], 2, **attrs)
    size = b.op("Reshape", b.op("Size", x), b.ints(1))
    copies, total = int(np.prod(sets)), size
    if copies > 1:
        grid = np.meshgrid(*(np.arange(o) % n for n, o in zip(sets, geo.outputs, strict=True)), indexing="ij")
        own = np.ravel_multi_index(grid, sets)
        places = b.op("Add", places, b.op("Mul", size, b.constant(own, np.int64)))
        total = b.op("Mul", size, b.ints(copies))
    kind = "ScatterElements" if b.graph.opset >= 11 else "Scatter"
    flat = b.op(kind, b.zeros(total, x), _flat(b, places), _flat(b, given(grads)), axis=0)
    if copies > 1:
        flat = b.total(b.op("Reshape", flat, b.ints(copies, -1)), [0], keepdims=False)
    return {0: b.reshape_as(flat, x)}


def _flat(b: Builder, x: str) -> str:
    return b.op("Reshape", x, b.ints(-1))


def global_max_pool(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """The first of the largest entries gets the gradient."""
    x = node.inputs[0]
    rows = b.op("Reshape", x, b.ints(0, 0, -1))
    largest = b.op("ArgMax", rows, axis=2, keepdims=1)
    places = b.constant(np.arange(np.prod(b.shape(x)[2:])), np.int64)
    g = b.op("Reshape", given(grads), b.ints(0, 0, 1))
    return {0: b.reshape_as(b.masked(g, b.op("Equal", places, largest), x), x)}


def lp_pool(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """y = (Σ |x|^p)^(1/p): dx = |x|^(p - 1) sign(x) ⊙ the sum over windows of y^(1 - p) dy."""
    geo = _geometry(b, node)
    return _norm(b, node, grads, lambda g: _spread(b, g, geo, 1.0, node.inputs[0]))


def global_lp_pool(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """GlobalLpPool: `lp_pool` with one window over all positions."""
    return _norm(b, node, grads, lambda g: g)


def _norm(b: Builder, node: Node, grads: Sequence[str | None], back: Callable[[str], str]) -> Gradients:
    x, y, p = node.inputs[0], node.outputs[0], int(node.attrs.get("p", 2))
    g = given(grads)
    if p == 1:
        return {0: b.op("Mul", b.op("Sign", x), back(g))}
    power = y if p == 2 else b.op("Pow", y, b.number(p - 1, x))
    # The subgradient at 0, where all of a window is, is 0.
    g = b.masked(b.op("Div", g, power), b.op("Greater", power, b.number(0.0, x)), x)
    factor = x if p == 2 else b.op("Mul", b.op("Sign", x), b.op("Pow", b.op("Abs", x), b.number(p - 1, x)))
    return {0: b.op("Mul", factor, back(g))}


TABLE = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
