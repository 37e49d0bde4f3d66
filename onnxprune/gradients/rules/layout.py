"""Gradients of layout operators: each is linear, and its gradient is its adjoint, which moves elements back.

Sizes are read at run time, as any axis may depend on the batch.
Oracle: central differences (tests).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxprune.channels.rules.layout import pad_amounts
from onnxprune.gradients.build import Builder, Gradients, NoGradient, axis_of, given
from onnxprune.graph.view import Node

INT64 = int(onnx.TensorProto.INT64)


def reshape(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Reshape, Flatten, Squeeze and Unsqueeze: the same elements under another shape."""
    return {0: b.reshape_as(given(grads), node.inputs[0])}


def transpose(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Transpose: the inverse permutation."""
    rank = b.rank(node.inputs[0])
    perm = [int(a) for a in node.attrs.get("perm") or range(rank)[::-1]]
    return {0: b.op("Transpose", given(grads), perm=[perm.index(a) for a in range(rank)])}


def concat(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Concat: each operand takes its part."""
    g = given(grads)
    axis = axis_of(node, b.rank(node.outputs[0]), 0)
    sizes = [b.size(i, axis) for i in node.inputs]
    if b.graph.opset >= 13:
        parts = b.ops("Split", (g, b.joined(sizes)), len(sizes), axis=axis)
        return dict(enumerate(parts))
    input_grads: dict[int, str] = {}
    start = b.ints(0)
    for s, size in enumerate(sizes):
        if s in slots:
            input_grads[s] = b.part(g, axis, start, size)
        start = b.op("Add", start, size)
    return input_grads


def split(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Split: the parts side by side, zeros for one on which nothing depends."""
    if not all(node.outputs):
        raise NoGradient("an output of Split has no name")
    axis = axis_of(node, b.rank(node.inputs[0]), 0)
    parts = [b.zeros(b.shape_of(o), o) if g is None else g for g, o in zip(grads, node.outputs, strict=True)]
    return {0: b.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]}


def slice_(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Slice: zeros, and the gradient at the kept places. Steps must be constant, bounds need not be."""
    x, y, g = node.inputs[0], node.outputs[0], given(grads)
    rank = b.rank(x)
    before: dict[int, str] = {}
    for place, (axis, step) in enumerate(_steps(b, node, rank)):
        size, first = b.size(x, axis), _start(b, node, place)
        # Negative bounds count from the end; what lies outside is clamped.
        first = b.op("Where", b.op("Less", first, b.ints(0)), b.op("Add", first, size), first)
        last = size if step > 0 else b.op("Sub", size, b.ints(1))
        first = b.op("Where", b.op("Less", first, b.ints(0)), b.ints(0), first)
        first = b.op("Where", b.op("Greater", first, last), last, first)
        if step < 0:
            g = b.reversed(g, axis)
            way = b.op("Mul", b.op("Sub", b.size(y, axis), b.ints(1)), b.ints(-step))
            first = b.op("Sub", first, way)
        if abs(step) > 1:
            g = _spread(b, g, axis, abs(step), x, rank)
            # The zeros behind the last element may reach beyond the end.
            g = b.part(g, axis, b.ints(0), b.least(b.size(g, axis), b.op("Sub", size, first)))
        before[axis] = first
    return {0: b.embed(g, before, b.shape_of(x), x, rank)}


def _steps(b: Builder, node: Node, rank: int) -> list[tuple[int, int]]:
    """(axis, step) of each bound."""
    if "starts" in node.attrs:
        axes = node.attrs.get("axes", range(len(node.attrs["starts"])))
        return [(int(a) % rank, 1) for a in axes]
    count = b.shape(node.inputs[1])[0]
    named = [b.graph.ints(node.input(k)) if node.input(k) else None for k in (3, 4)]
    if any(entries is None and node.input(k) for k, entries in zip((3, 4), named, strict=True)):
        raise NoGradient("the axes or steps of Slice are computed at run time")
    axes, steps = named[0] or range(count), named[1] or (1,) * count
    return [(a % rank, s) for a, s in zip(axes, steps, strict=True)]


def _start(b: Builder, node: Node, place: int) -> str:
    """The bound at which a slice starts, [1] int64, as the model writes it."""
    if "starts" in node.attrs:
        return b.ints(int(node.attrs["starts"][place]))
    starts = node.inputs[1]
    written = b.graph.ints(starts)
    if written is not None:
        return b.ints(written[place])
    return b.op("Cast", b.op("Gather", starts, b.ints(place)), to=INT64)


def _spread(b: Builder, g: str, axis: int, step: int, like: str, rank: int) -> str:
    """`step` - 1 zeros behind every place of an axis."""
    shape, apart = b.shape_of(g), b.unsqueeze(g, [axis + 1])
    gaps = b.zeros(b.with_entry(b.shape_of(apart), axis + 1, b.ints(step - 1), rank + 1), like)
    long = b.op("Mul", b.entry(shape, axis), b.ints(step))
    return b.op("Reshape", b.op("Concat", apart, gaps, axis=axis + 1), b.with_entry(shape, axis, long, rank))


def pad(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Pad: zeros are cut off again and what was cut gets zeros; other modes add the copies to what they copied."""
    x, g, mode = node.inputs[0], given(grads), node.attrs.get("mode", "constant")
    if mode == "constant":
        input_grads = {0: _unpadded(b, node, g, x)}
        if 2 in slots:
            sums = [b.total(t, range(b.rank(x)), keepdims=False) for t in (g, input_grads[0])]
            input_grads[2] = b.reshape_as(b.op("Sub", *sums), node.inputs[2])
        return input_grads
    for axis, (before, after) in sorted((pad_amounts(node, b.graph) or {-1: (None, None)}).items()):
        if before is None or after is None:
            raise NoGradient(f"the amounts of Pad with mode {mode} are computed at run time")
        if min(before, after) < 0:
            raise NoGradient(f"Pad with mode {mode} cuts")
        g = _folded(b, g, axis, (before, after), mode, x)
    return {0: g}


def _unpadded(b: Builder, node: Node, g: str, like: str) -> str:
    """Pad by the opposite amounts."""
    if "pads" in node.attrs:
        return b.pad(g, [-int(p) for p in node.attrs["pads"]], like)
    written = b.graph.ints(node.inputs[1])
    amounts = b.op("Neg", node.inputs[1]) if written is None else b.ints(*(-p for p in written))
    axes = [node.inputs[3]] if node.input(3) else []
    return b.op("Pad", g, amounts, b.number(0.0, like), *axes)


def _folded(b: Builder, g: str, axis: int, amounts: tuple[int, int], mode: str, like: str) -> str:
    """The gradient along one axis: that of the middle, and that of both sides where they were copied from."""
    if not any(amounts):
        return g
    before, after = (b.ints(a) for a in amounts)
    rank = b.rank(like)
    size = b.op("Sub", b.op("Sub", b.size(g, axis), before), after)
    middle = b.part(g, axis, before, size)
    terms = [middle]
    for amount, start, left in ((before, b.ints(0), True), (after, b.op("Add", before, size), False)):
        if not amounts[0 if left else 1]:
            continue
        side = b.part(g, axis, start, amount)
        last = b.op("Sub", size, b.ints(1))
        if mode == "edge":
            side, place = b.total(side, [axis], keepdims=True), b.ints(0) if left else last
        elif mode == "reflect":
            side, place = b.reversed(side, axis), b.ints(1) if left else b.op("Sub", last, amount)
        elif mode == "wrap":
            place = b.op("Sub", size, amount) if left else b.ints(0)
        else:
            raise NoGradient(f"Pad has the unknown mode {mode}")
        terms.append(b.embed(side, {axis: place}, b.shape_of(middle), like, rank))
    return b.op("Sum", *terms)


def expand(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Expand: the sum over all copies."""
    return {0: b.sum_to(given(grads), node.outputs[0], node.inputs[0])}


def tile(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Tile: the sum over all copies, which take turns along each axis."""
    x, repeats = node.inputs[:2]
    rank = b.rank(x)
    turns = b.op("Concat", b.unsqueeze(repeats, [1]), b.unsqueeze(b.shape_of(x), [1]), axis=1)
    apart = b.op("Reshape", given(grads), b.op("Reshape", turns, b.ints(-1)))
    return {0: b.total(apart, range(0, 2 * rank, 2), keepdims=False)}


def center_crop_pad(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """CenterCropPad: back to the old sizes around the same middle."""
    axes = node.attrs.get("axes")
    sizes = b.shape_of(node.inputs[0])
    if axes is None:
        return {0: b.op("CenterCropPad", given(grads), sizes)}
    named = [int(a) % b.rank(node.inputs[0]) for a in axes]
    return {0: b.op("CenterCropPad", given(grads), b.op("Gather", sizes, b.ints(*named)), axes=named)}


TABLE = {
    **dict.fromkeys("Reshape Flatten Squeeze Unsqueeze".split(), reshape),
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Pad": pad,
    "CenterCropPad": center_crop_pad,
    "Expand": expand,
    "Tile": tile,
}
