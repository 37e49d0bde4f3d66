"""Gradients of operators that pick or write by indices, with indices that repeat and that count from the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.numerics.arrays import Array
from tests.gradients.differences import compare, one_node, reverse_of

SHAPE = (3, 4, 5)


def _x(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _ordered(*shape: int) -> Array:
    """Distinct numbers, far apart, in shuffled order."""
    count = int(np.prod(shape))
    return np.random.default_rng(0).permutation(np.arange(count) / 4).reshape(shape).astype(np.float32)


INDICES = [
    np.array(1),
    np.array(-1),
    np.array([2]),
    np.array([2, 0, 1, 3]),
    np.array([0, 2]),
    np.array([1, 1, 0, 2, 1]),
    np.array([1, -1, 3]),
    np.array([[0, 3, 1], [3, 3, -4]]),
    np.array([0] * 9 + [2]),
]


@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("opset", [9, 11, 13, 18])
@pytest.mark.parametrize("computed", [False, True])
def test_gather(indices: Array, opset: int, computed: bool):
    """Fails where a place that is named twice does not get both gradients."""
    if opset < 11 and indices.min() < 0:
        pytest.skip("indices count from the end from opset 11 on")
    values = {"x": _x(*SHAPE), "i": indices}
    compare(*one_node("Gather", values, opset=opset, constant=[] if computed else ["i"], axis=1))
    if indices.max() < 3 and indices.min() >= -3:
        compare(*one_node("Gather", values, opset=opset, constant=[] if computed else ["i"]))
        compare(*one_node("Gather", values | {"i": indices.astype(np.int32)}, opset=opset, axis=-1))


@pytest.mark.parametrize("shape", [SHAPE, (3, 7, 5), (2, 3, 4)])
@pytest.mark.parametrize("axis", [1, -2])
@pytest.mark.parametrize("opset", [11, 13, 18])
def test_gather_elements(shape: tuple[int, ...], axis: int, opset: int):
    """Fails where the indices of another line are used, or the data beyond the indices get a gradient."""
    i = np.random.default_rng(1).integers(-4, 4, shape)
    compare(*one_node("GatherElements", {"x": _x(*SHAPE), "i": i}, opset=opset, constant=["i"], axis=axis))
    compare(*one_node("GatherElements", {"x": _x(*SHAPE), "i": i}, opset=opset, axis=axis))


@pytest.mark.parametrize(
    ("indices", "batch_dims"),
    [
        (np.array([[0, 1], [2, -1], [0, 1]]), 0),
        (np.array([[1]]), 0),
        (np.array([[[0, 1, 2], [2, 3, -5]], [[0, 1, 2], [0, 1, 2]]]), 0),
        (np.array([[1], [1], [-1]]), 1),
        (np.array([[[1, 1], [1, 1]], [[0, 0], [3, 4]], [[2, -1], [2, 0]]]), 1),
        (np.arange(12).reshape(3, 4, 1) % 5, 2),
        (np.arange(24).reshape(3, 4, 2, 1) % 5 - 5, 2),
    ],
)
@pytest.mark.parametrize("opset", [12, 18])
def test_gather_nd(indices: Array, batch_dims: int, opset: int):
    """Fails where a tuple of indices is counted through in another order."""
    attrs = {"batch_dims": batch_dims} if batch_dims else {}
    compare(*one_node("GatherND", {"x": _x(*SHAPE), "i": indices}, opset=opset, **attrs))
    if not batch_dims:
        compare(*one_node("GatherND", {"x": _x(*SHAPE), "i": indices}, opset=11, constant=["i"]))


def test_sums_over_many_repeats_are_whole():
    """Fails where terms are lost to a race between threads."""
    i = np.random.default_rng(0).integers(0, 3, (200_000, 1))
    for op, indices in (("GatherND", i), ("Gather", i[:, 0])):
        proto, feeds = one_node(op, {"x": _x(3), "i": indices})
        compare(proto, feeds, tensors=["x"])


@pytest.mark.parametrize("opset", [9, 11, 18])
@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter_elements(opset: int, reduction: str):
    """Fails where data that were overwritten still have a gradient."""
    i = np.array([[[0, 3, 1, 2, 0]], [[3, 3, 3, 3, 3]]])
    if reduction == "add":
        if opset < 16:
            pytest.skip("reductions came with opset 16")
        i = np.concatenate([i, i], axis=1)
    values = {"x": _x(*SHAPE), "i": i, "u": _x(*i.shape, seed=1)}
    attrs = {} if reduction == "none" else {"reduction": reduction}
    op = "Scatter" if opset < 11 else "ScatterElements"
    compare(*one_node(op, values, opset=opset, axis=1, **attrs))


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter_nd(opset: int, reduction: str):
    """Fails where data that were overwritten still have a gradient."""
    i = np.array([[0, 1], [2, 3], [1, 1]])
    if reduction == "add" and opset < 16:
        pytest.skip("reductions came with opset 16")
    values = {"x": _x(*SHAPE), "i": i, "u": _x(3, 5, seed=1)}
    attrs = {} if reduction == "none" else {"reduction": reduction}
    compare(*one_node("ScatterND", values, opset=opset, **attrs))


@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
def test_other_reductions_are_refused(op: str):
    """Fails where a product is differentiated as a sum."""
    values = {"x": _x(4), "i": np.array([1] if op == "ScatterElements" else [[1]]), "u": _x(1)}
    back = reverse_of(*one_node(op, values, reduction="mul"), ["x"])
    assert "mul" in back.missing["x"]


@pytest.mark.parametrize("attrs", [{}, {"axis": 1}, {"axis": 0, "largest": 0}])
@pytest.mark.parametrize("opset", [9, 10, 11, 18])
def test_top_k(attrs: dict[str, Any], opset: int):
    """Fails where a value's gradient goes to another place than it came from."""
    if opset < 11 and "largest" in attrs:
        pytest.skip("the smallest came with opset 11")
    values: dict[str, Array | None] = {"x": _ordered(*SHAPE)}
    if opset == 9:
        attrs = attrs | {"k": 2}
    else:
        values["k"] = np.array([2])
    proto, feeds = one_node("TopK", values, opset=opset, constant=list(values)[1:], outputs=("y", "i"), **attrs)
    compare(proto, feeds)
    del proto.graph.output[1]
    compare(proto, feeds)


@pytest.mark.parametrize("attrs", [{}, {"axis": 1}, {"axis": -3}])
@pytest.mark.parametrize("opset", [9, 11, 18])
def test_compress(attrs: dict[str, int], opset: int):
    """Fails where the gradient lands at places that the condition dropped."""
    if opset < 11 and attrs.get("axis", 0) < 0:
        pytest.skip("axes count from the end from opset 11 on")
    values = {"x": _x(*SHAPE), "c": np.array([True, False, True])}
    compare(*one_node("Compress", values, opset=opset, **attrs))
    compare(*one_node("Compress", values, opset=opset, constant=["c"], **attrs))


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative_sums(exclusive: int, reverse: int):
    """Fails where the sums run on in the same direction."""
    values = {"x": _x(*SHAPE), "axis": np.array(1)}
    attrs = {"exclusive": exclusive, "reverse": reverse}
    compare(*one_node("CumSum", values, opset=11, constant=["axis"], **attrs))


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -1, 2])
def test_triangles(upper: int, k: int | None):
    """Fails where the other triangle has the gradient."""
    values = {"x": _x(*SHAPE), "k": None if k is None else np.array(k)}
    compare(*one_node("Trilu", values, opset=14, constant=[] if k is None else ["k"], upper=upper))


@pytest.mark.parametrize("attrs", [{}, {"batch_axis": 0, "time_axis": 1}])
def test_reversed_sequences(attrs: dict[str, int]):
    """Fails where a sequence comes back reversed."""
    lengths = np.array([1, 2, 3, 2]) if not attrs else np.array([4, 2, 3])
    compare(*one_node("ReverseSequence", {"x": _x(*SHAPE), "n": lengths}, opset=10, **attrs))
