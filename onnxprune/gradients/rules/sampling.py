"""Gradients of operators that resample images, or move channels into space and back.

Resize is linear and separable: one matrix M (outputs, inputs) per axis, and dx = Mᵀ dy along each. What the matrices
are depends on modes, coordinate transformations and opsets; they are measured on unit vectors, and held against the
operator on random numbers before they are used. Oracle: central differences (tests).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.gradients.build import Builder, Gradients, NoGradient, given
from onnxprune.gradients.measured import outcome
from onnxprune.graph.view import Node, Shape
from onnxprune.numerics.arrays import Array

_TOLERANCE = 1e-4


def resize(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Resize and Upsample, in any mode but those that extrapolate."""
    if slots != [0]:
        raise NoGradient("scales have no gradient")
    x, g = node.inputs[0], given(grads)
    matrices = _matrices(b, node)
    factors = {axis: _repeats(m) for axis, m in matrices.items()}
    rank = b.rank(x)
    if matrices and all(factors.values()) and min(factors) >= 2 and 3 <= rank <= 5:
        kernel = [factors.get(a, 1) for a in range(2, rank)]
        mean = b.op("AveragePool", g, kernel_shape=kernel, strides=kernel)
        return {0: b.op("Mul", mean, b.number(float(np.prod(kernel)), x))}
    for axis, m in matrices.items():
        g = _applied(b, g, m, axis, rank, x)
    return {0: g}


def _matrices(b: Builder, node: Node) -> dict[int, Array]:
    """axis → M (outputs, inputs) of every axis that is resampled."""
    old, new = b.shape(node.inputs[0]), b.shape(node.outputs[0])
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise NoGradient("tf_crop_and_resize extrapolates")
    if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NoGradient("its scales follow from keep_aspect_ratio_policy")
    scales = _scales(b, node, len(old))
    changed = [a for a in range(len(old)) if (new[a] != old[a] if scales is None else scales[a] != 1)]
    if 0 in changed:
        raise NoGradient("it resamples the batch axis")
    matrices = {}
    for axis in changed:
        unit = np.eye(old[axis]).reshape([old[axis] if a in (0, axis) else 1 for a in range(len(old))])
        matrices[axis] = _result(b, node, unit, scales, {axis: new[axis]}).reshape(old[axis], new[axis]).T
    x = np.random.default_rng(0).standard_normal([n if a in changed else 1 for a, n in enumerate(old)])
    y = _result(b, node, x, scales, {a: new[a] for a in changed})
    for axis, m in matrices.items():
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ m.T.astype(np.float64), -1, axis)
    if x.shape != y.shape or np.abs(x - y).max(initial=0.0) > _TOLERANCE * np.abs(y).max(initial=0.0):
        raise NoGradient("it is no product of one matrix per axis")
    return matrices


def _scales(b: Builder, node: Node, rank: int) -> list[float] | None:
    """The factor of every axis; None where sizes are given instead."""
    name = node.input(1 if node.op == "Upsample" or b.graph.opset < 11 else 2)
    if not name or b.shape(name) == (0,):
        return None
    values = b.array(name)
    if values is None:
        raise NoGradient("its scales are computed")
    axes = node.attrs.get("axes") or range(rank)
    own = dict(zip((int(a) % rank for a in axes), values.tolist(), strict=True))
    return [float(own.get(a, 1.0)) for a in range(rank)]


def _result(b: Builder, node: Node, x: Array, scales: list[float] | None, sizes: Mapping[int, int]) -> Array:
    """What the operator makes of x when it resamples the axes of `sizes` alone."""
    if scales is not None:
        factors = np.array([s if a in sizes else 1.0 for a, s in enumerate(scales)], np.float32)
        rest: list[Array | None] = [factors] if len(node.inputs) == 2 and b.graph.opset < 11 else [None, factors]
    else:
        rest = [None, None, np.array([sizes.get(a, n) for a, n in enumerate(x.shape)], np.int64)]
        if b.graph.opset < 13:  # neither may be left out
            rest[:2] = [np.zeros(0, np.float32), np.zeros(0, np.float32)]
    if b.graph.opset < 13 and rest[0] is None:
        rest[0] = np.zeros(0, np.float32)
    return outcome(b, node, x, rest, axes=None)


def _repeats(m: Array) -> int:
    """k where the matrix repeats each entry k times, else 0."""
    outputs, inputs = m.shape
    k = outputs // inputs
    return k if k * inputs == outputs and np.array_equal(m, np.repeat(np.eye(inputs), k, axis=0)) else 0


def _applied(b: Builder, g: str, m: Array, axis: int, rank: int, like: str) -> str:
    """Mᵀ g along an axis."""
    if axis == rank - 2:
        return b.op("MatMul", b.number(m.T, like), g)
    if axis == rank - 1:
        return b.op("MatMul", g, b.number(m, like))
    swap = list(range(rank))
    swap[axis], swap[-1] = swap[-1], swap[axis]
    return b.op("Transpose", b.op("MatMul", b.op("Transpose", g, perm=swap), b.number(m, like)), perm=swap)


def depth_to_space(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """SpaceToDepth undoes mode DCR; for CRD the channels are moved to where its blocks come from."""
    x, n = node.inputs[0], int(node.attrs["blocksize"])
    g = given(grads)
    if node.attrs.get("mode", "DCR") == "DCR":
        return {0: b.op("SpaceToDepth", g, blocksize=n)}
    shape: Shape = b.shape(x)
    blocks = b.op("Reshape", g, b.ints(-1, shape[1] // n**2, shape[2], n, shape[3], n))
    return {0: b.reshape_as(b.op("Transpose", blocks, perm=[0, 1, 3, 5, 2, 4]), x)}


def space_to_depth(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """SpaceToDepth: DepthToSpace undoes it."""
    return {0: b.op("DepthToSpace", given(grads), blocksize=int(node.attrs["blocksize"]))}


TABLE = {
    "DepthToSpace": depth_to_space,
    "Resize": resize,
    "SpaceToDepth": space_to_depth,
    "Upsample": resize,
}
