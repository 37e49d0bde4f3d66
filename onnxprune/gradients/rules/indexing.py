"""Gradients of operators that pick or write by indices: what was picked twice adds up.

onnxruntime adds in ScatterND from several threads at once and loses terms, so that all sums are formed by
ScatterElements, which takes one thread. It adds from opset 16 on; before, a product with a 0/1 matrix does.
Oracle: central differences (tests).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnxprune.gradients.build import Builder, Gradients, NoGradient, axis_of, given
from onnxprune.graph.view import Node

INT64 = int(onnx.TensorProto.INT64)
MOST_TURNS = 4  # constant indices that name no place more often are gathered back instead


def gather(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Gather along `axis`: each place gets the sum over the indices that name it."""
    (x, i), g = node.inputs, given(grads)
    rank, width = b.rank(x), b.rank(i)
    axis = axis_of(node, rank, 0)
    if width != 1:
        g = b.op("Reshape", g, b.with_entry(b.shape_of(x), axis, b.ints(-1), rank))
    written = b.graph.ints(i)
    if written:
        places = np.array(written)
        counts = np.bincount(places) if places.min() >= 0 else np.zeros(0, np.int64)
        if counts.size and counts.max() <= MOST_TURNS:
            return {0: _gathered(b, g, places, axis, x)}
    indices = b.op("Reshape", b.op("Cast", i, to=INT64), b.ints(-1))
    return {0: _added(b, g, indices, axis, b.shape_of(x), x, rank)}


def _gathered(b: Builder, g: str, places: np.ndarray, axis: int, like: str) -> str:
    """The sum over the indices by Gather: the k-th time that each place is named, or else a row of zeros."""
    rank, count = b.rank(like), places.size
    order = np.argsort(places, kind="stable")
    turn = np.empty(count, np.int64)
    turn[order] = np.arange(count) - np.searchsorted(places[order], places[order])
    tables = np.full((int(turn.max()) + 1, int(places.max()) + 1), count)
    tables[turn, places] = np.arange(count)
    if (tables == count).any():
        row = b.zeros(b.with_entry(b.shape_of(like), axis, b.ints(1), rank), like)
        g = b.op("Concat", g, row, axis=axis)
    terms = [b.op("Gather", g, b.ints(*t.tolist()), axis=axis) for t in tables]
    total = b.op("Sum", *terms) if len(terms) > 1 else terms[0]
    return b.embed(total, {axis: b.ints(0)}, b.shape_of(like), like, rank)


def _added(b: Builder, g: str, indices: str, axis: int, shape: str, like: str, rank: int) -> str:
    """Zeros of `shape` to which the k-th place of `axis` of g is added at the k-th of the indices, a vector."""
    if b.graph.opset >= 16:
        spread = b.op("Expand", b.unsqueeze(indices, [a for a in range(rank) if a != axis]), b.shape_of(g))
        return b.op("ScatterElements", b.zeros(shape, like), spread, g, axis=axis, reduction="add")
    size = b.entry(shape, axis)
    hits = b.one_hot(b.counted(indices, size), size, like)  # (indices, places)
    perm = [a for a in range(rank) if a != axis] + [axis]
    last = b.op("MatMul", b.op("Transpose", g, perm=perm), hits)
    return b.op("Transpose", last, perm=[perm.index(a) for a in range(rank)])


def gather_elements(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """GatherElements: as Gather, with indices of their own for every other axis."""
    (x, i), g = node.inputs, given(grads)
    rank = b.rank(x)
    axis, shape = axis_of(node, rank, 0), b.shape_of(x)
    if b.graph.opset >= 16:
        return {0: b.op("ScatterElements", b.zeros(shape, x), i, g, axis=axis, reduction="add")}
    size = b.entry(shape, axis)
    hits = b.one_hot(b.counted(b.op("Cast", i, to=INT64), size), size, x)  # a further axis at the end: the places
    perm = [*range(axis), rank, *range(axis + 1, rank), axis]
    apart = b.op("Transpose", b.product(b.unsqueeze(g, [rank]), hits), perm=perm)
    return {0: b.embed(b.total(apart, [rank], keepdims=False), {a: b.ints(0) for a in range(rank)}, shape, x, rank)}


def gather_nd(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """GatherND: x (*B, *I, *D) read as (B · I, D), by indices (*B, *Q, |I|) that are counted through."""
    (x, i), g = node.inputs, given(grads)
    batch, depth = int(node.attrs.get("batch_dims", 0)), b.shape(i)[-1]
    rows, shape = b.rank(i) - 1, b.shape_of(x)
    lead = b.op("Gather", shape, b.ints(*range(batch + depth)))
    place = ""
    for a in range(batch + depth):
        size = b.entry(shape, a)
        if a < batch:
            own = b.unsqueeze(b.range(size), [k for k in range(rows) if k != a])
        else:
            own = b.squeeze(b.part(b.op("Cast", i, to=INT64), rows, b.ints(a - batch), b.ints(1)), [rows])
            own = b.counted(own, size)
        place = b.op("Add", b.op("Mul", place, size), own) if place else own
    flat = b.joined([b.op("ReduceProd", b.op("Cast", lead, to=INT64), keepdims=1), b.ints(-1)])
    wide = b.op("Reshape", x, flat)
    vector = b.op("Reshape", place, b.ints(-1))
    lines = b.op("Reshape", g, b.joined([b.shape_of(vector), b.ints(-1)]))
    return {0: b.reshape_as(_added(b, lines, vector, 0, b.shape_of(wide), x, 2), x)}


def scatter_elements(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """ScatterElements and Scatter: the updates take the places of the data, or with `add` are added to them."""
    x, i, u = node.inputs
    g, axis = given(grads), axis_of(node, b.rank(x), 0)
    added = _is_added(node)
    input_grads: dict[int, str] = {}
    if 0 in slots:
        input_grads[0] = g if added else b.op(node.op, g, i, b.zeros(b.shape_of(u), u), axis=axis)
    if 2 in slots:
        input_grads[2] = _picked(b, g, i, axis, x, u)
    return input_grads


def _picked(b: Builder, g: str, i: str, axis: int, x: str, u: str) -> str:
    """GatherElements, which came with opset 11: before, by a sum over the places of a 0/1 tensor."""
    if b.graph.opset >= 11:
        return b.op("GatherElements", g, i, axis=axis)
    rank, written = b.rank(x), b.shape_of(u)
    others = [a for a in range(rank) if a != axis]
    for a in others:
        g = b.part(g, a, b.ints(0), b.entry(written, a))
    hits = b.one_hot(b.op("Cast", i, to=INT64), b.size(x, axis), x)
    lines = b.unsqueeze(b.op("Transpose", g, perm=[*others, axis]), [axis])
    return b.total(b.product(lines, hits), [rank], keepdims=False)


def scatter_nd(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """ScatterND: updates and data share the gradient as in ScatterElements."""
    _, i, u = node.inputs
    g = given(grads)
    input_grads: dict[int, str] = {}
    if 0 in slots:
        input_grads[0] = g if _is_added(node) else b.op("ScatterND", g, i, b.zeros(b.shape_of(u), u))
    if 2 in slots:
        input_grads[2] = b.op("GatherND", g, i)
    return input_grads


def _is_added(node: Node) -> bool:
    reduction = str(node.attrs.get("reduction", "none"))
    if reduction not in ("none", "add"):
        raise NoGradient(f"{node.op} with reduction {reduction} has no rule")
    return reduction == "add"


def top_k(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """The values of TopK are picked by its indices, each once."""
    x = node.inputs[0]
    if len(node.outputs) < 2 or not node.outputs[1]:
        raise NoGradient("the indices of TopK have no name")
    kind = "ScatterElements" if b.graph.opset >= 11 else "Scatter"
    zeros = b.zeros(b.shape_of(x), x)
    return {0: b.op(kind, zeros, node.outputs[1], given(grads), axis=axis_of(node, b.rank(x), -1))}


def compress(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Compress: the places that the condition keeps, each once; without `axis` those of the flattened tensor."""
    (x, condition), g = node.inputs, given(grads)
    if "axis" in node.attrs:
        rank, shape = b.rank(x), b.shape_of(x)
        axis = axis_of(node, rank, 0)
    else:
        rank, axis, shape = 1, 0, b.op("Reshape", b.op("Size", x), b.ints(-1))
    places = b.op("Compress", b.range(b.entry(shape, axis)), condition, axis=0)
    return {0: b.reshape_as(_added(b, g, places, axis, shape, x, rank), x)}


def cum_sum(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """CumSum: the gradient is summed up from the other end."""
    exclusive, reverse = int(node.attrs.get("exclusive", 0)), int(node.attrs.get("reverse", 0))
    return {0: b.op("CumSum", given(grads), node.inputs[1], exclusive=exclusive, reverse=1 - reverse)}


def trilu(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Trilu: the gradient keeps the same triangle."""
    k = [node.inputs[1]] if node.input(1) else []
    return {0: b.op("Trilu", given(grads), *k, upper=int(node.attrs.get("upper", 1)))}


def reverse_sequence(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """ReverseSequence is its own inverse."""
    return {0: b.op("ReverseSequence", given(grads), node.inputs[1], **node.attrs)}


TABLE = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TopK": top_k,
    "Compress": compress,
    "CumSum": cum_sum,
    "Trilu": trilu,
    "ReverseSequence": reverse_sequence,
}
