"""Layout operators, as each operator set writes them, over channels and over everything else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import numpy_helper

from tests.random_graphs.build import Build, Dim, Dims, Live
from tests.random_graphs.maker import Maker

_END = 2**31 - 1


def transpose(b: Build, t: Live, order: list[int]) -> Live:
    """Transpose."""
    return b.node("Transpose", [t], tuple(t.dims[a] for a in order), t.kind, perm=order)


def _transpose(b: Build, op: str) -> None:
    x = b.any()
    transpose(b, x, b.choice(([*range(x.rank)][::-1], b.permutation(x.rank))))


def _reshape(b: Build, op: str) -> None:
    x = b.any()
    divided = [a for a in x.fixed if any(int(x.dims[a]) % d == 0 for d in range(2, int(x.dims[a])))]
    joined = [a for a in range(1, x.rank) if _product(x.dims[a - 1], x.dims[a]) is not None]
    if x.rank < 5 and divided and (b.chance(50) or not joined):
        divide(b, x, b.choice(divided))
    elif joined and x.rank > 2:
        join(b, x, b.choice(joined[::-1]))
    else:
        b.reshape(x, x.dims)


def divide(b: Build, x: Live, axis: int, rows: int = 0) -> Live:
    """An axis as rows and columns."""
    width = x.dims[axis]
    assert isinstance(width, int)
    rows = rows or b.factor(width)
    return b.reshape(x, (*x.dims[:axis], rows, width // rows, *x.dims[axis + 1 :]))


def join(b: Build, x: Live, axis: int) -> Live:
    """An axis and the one before it as one."""
    merged = _product(x.dims[axis - 1], x.dims[axis])
    assert merged is not None
    return b.reshape(x, (*x.dims[: axis - 1], merged, *x.dims[axis + 1 :]))


def _product(a: Dim, c: Dim) -> Dim | None:
    """The size of two axes joined, None where it would be a symbol times a number."""
    if isinstance(a, int) and isinstance(c, int):
        return a * c
    if isinstance(a, str) and isinstance(c, str):
        return f"{a}*{c}"
    return c if a == 1 else a if c == 1 else None


def _flatten(b: Build, op: str) -> None:
    x = b.image()
    total = int(np.prod([d for d in x.dims[1:] if isinstance(d, int)]))
    if total > 200:
        x = b.node("GlobalAveragePool", [x], (*x.dims[:2], *[1] * (x.rank - 2)))
        total = int(x.dims[1])
    attrs = {"axis": 1 - x.rank if b.opset >= 11 and b.chance(50) else 1} if b.chance(30) else {}
    b.node(op, [x], (x.dims[0], total), **attrs)


def _squeeze(b: Build, op: str) -> None:
    x = b.any()
    ones = [a for a, d in enumerate(x.dims) if d == 1]
    if not ones:
        axis = b.below(x.rank + 1)
        x = b.axes_node("Unsqueeze", x, [axis], (*x.dims[:axis], 1, *x.dims[axis:]), hidden=True, peak=x.peak)
        ones = [axis]
    gone = b.subset(ones)
    left = tuple(d for a, d in enumerate(x.dims) if a not in gone)
    axes = [a - x.rank for a in gone] if b.opset >= 11 and b.chance(30) else gone
    b.axes_node(op, x, axes, left, peak=x.peak)


def _unsqueeze(b: Build, op: str) -> None:
    x = b.any()
    if x.rank > 4:
        _squeeze(b, "Squeeze")
        x = b.live[-1]
    axis = b.below(x.rank + 1)
    b.axes_node(op, x, [axis], (*x.dims[:axis], 1, *x.dims[axis:]), peak=x.peak)


def _concat(b: Build, op: str) -> None:
    x = b.any()
    axis = b.channel_axis(x)
    if not isinstance(x.dims[axis], int):
        return

    def fits(t: Live) -> bool:
        if t.rank != x.rank or not isinstance(t.dims[axis], int):
            return False
        return all(a == axis or t.dims[a] == x.dims[a] for a in range(x.rank))

    parts: list[Live | str] = [x]
    widths = [int(x.dims[axis])]
    for _ in range(1 + b.below(3)):
        other = b.pick(fits) if b.chance(60) else None
        if other is None and all(isinstance(d, int) for d in x.dims) and b.chance(20):
            parts.append(b.weight(*(int(d) for d in x.dims)))
            widths.append(int(x.dims[axis]))
            continue
        other = other or (b.linear(x, axis, b.width()) if b.chance(80) else x)
        parts.append(other)
        widths.append(int(other.dims[axis]))
    dims = (*x.dims[:axis], sum(widths), *x.dims[axis + 1 :])
    if b.chance(30):
        parts, widths = parts[::-1], widths[::-1]
    if b.small(dims) and sum(widths) < 64:
        sign = x.rank if b.opset >= 11 and b.chance(30) else 0
        size = max(p.peak for p in parts if isinstance(p, Live))
        b.node(op, parts, dims, peak=size, axis=axis - sign)


def split(b: Build, x: Live, axis: int, sizes: list[int]) -> list[Live]:
    """Split, written as the operator set asks for."""
    outs = [b.out("part", (*x.dims[:axis], s, *x.dims[axis + 1 :]), peak=x.peak) for s in sizes]
    even = len(set(sizes)) == 1
    if even and b.opset < 18 and b.chance(50):
        b.nodes_of("Split", [x], outs, axis=axis)
    elif even and b.opset >= 18 and b.chance(50):
        b.nodes_of("Split", [x], outs, axis=axis, num_outputs=len(outs))
    elif b.opset < 13:
        b.nodes_of("Split", [x], outs, axis=axis, split=sizes)
    else:
        b.nodes_of("Split", [x, b.ints(sizes)], outs, axis=axis)
    b.live += outs
    return outs


def _split(b: Build, op: str) -> None:
    x = b.any()
    axis = b.channel_axis(x)
    width = x.dims[axis]
    if not isinstance(width, int) or width < 2:
        return
    count = b.choice([c for c in (2, 3, 4) if width % c == 0] or [0])
    sizes = [width // count] * count if count and b.chance(50) else b.parts(width)
    parts = split(b, x, axis, sizes)
    if b.chance(40) and len(set(sizes)) == 1:
        gate = b.node(b.choice(("Sigmoid", "Tanh")), [parts[1]], parts[1].dims, peak=1.0)
        b.node("Mul", [parts[0], gate], gate.dims, peak=x.peak)
    elif b.chance(60):
        order = b.permutation(len(parts))
        changed = [b.node("Relu", [p], p.dims) if b.chance(50) else p for p in parts]
        b.node("Concat", [changed[i] for i in order], x.dims, peak=x.peak, axis=axis)


def cut(b: Build, x: Live, bounds: Mapping[int, tuple[int, int, int]]) -> Live:
    """Slice by axis → (start, end, step)."""
    dims = list(x.dims)
    for a, (start, end, step) in bounds.items():
        if isinstance(x.dims[a], int):  # of another axis all is kept
            dims[a] = len(range(int(x.dims[a]))[slice(start, None if end in (_END, -_END) else end, step)])
    starts, ends, steps = (list(v) for v in zip(*bounds.values(), strict=True))
    if b.opset < 10:
        return b.node("Slice", [x], tuple(dims), axes=list(bounds), starts=starts, ends=ends)
    operands = [b.ints(starts), b.ints(ends), b.ints(list(bounds))]
    if any(s != 1 for s in steps):
        operands.append(b.ints(steps))
    return b.node("Slice", [x, *operands], tuple(dims))


def _slice(b: Build, op: str) -> None:
    x = b.any()
    bounds: dict[int, tuple[int, int, int]] = {}
    axes = {b.channel_axis(x)} if b.chance(80) else set(b.subset(x.fixed))
    for a in sorted(axes):
        size = x.dims[a]
        if not isinstance(size, int):
            continue
        way = b.below(8)
        if way < 5 or b.opset < 10:
            first = b.below(size)
            last = first + 1 + b.below(size - first)
            start = first - size if b.chance(25) else first
            bounds[a] = (start, _END if last == size and b.chance(50) else last, 1)
        elif way < 7:
            bounds[a] = (b.below(min(2, size)), size, 2)
        else:
            bounds[a] = (size - 1, -_END, -1 - b.below(2))
    for a, d in enumerate(x.dims):
        if isinstance(d, str) and bounds and b.chance(30):
            # To the end, or turned around, at whatever size there is.
            bounds[a] = (-1, -_END, -1) if b.opset >= 10 and b.chance(30) else (0, b.choice((_END, 10**9)), 1)
    if bounds:
        cut(b, x, bounds)


def _gather(b: Build, op: str) -> None:
    x = b.any()
    axis = b.channel_axis(x)
    size = x.dims[axis]
    if not isinstance(size, int):
        return
    way = b.below(10)
    if way == 9 and x.rank > 2:
        indices: str = b.ints(b.below(size))
        new: Dims = ()
    elif way == 8 and x.rank < 5:
        new = (2, 2)
        indices = b.ints([b.below(size) for _ in range(4)])
        b.weights[indices] = b.weights[indices].reshape(2, 2)
    elif way >= 5:
        order = b.permutation(size)
        indices, new = b.ints(order), (size,)
    else:
        picked = [b.below(size) for _ in range(1 + b.below(size + 2))]
        if b.chance(30):
            picked = [p - size for p in picked] if b.opset >= 11 else picked
        indices, new = b.ints(picked), (len(picked),)
    b.node(op, [x, indices], (*x.dims[:axis], *new, *x.dims[axis + 1 :]), axis=axis)


def _expand(b: Build, op: str) -> None:
    x = b.any()
    if b.chance(50):
        # A gate of size 1 along some axes, widened to the size of what it meets.
        axes = b.subset(range(1, x.rank))
        narrow = tuple(1 if a in axes else d for a, d in enumerate(x.dims))
        gate = b.reduced("ReduceMean", x, axes, narrow, keepdims=1)
        if all(isinstance(x.dims[a], int) for a in axes) and b.chance(50):
            sizes: Live | str = b.ints([int(d) if a in axes else 1 for a, d in enumerate(x.dims)])  # type: ignore[arg-type]
        else:
            sizes = b.run_time(x, x.dims)
        wide = b.node(op, [gate, sizes], x.dims)
        b.node("Add", [x, wide], x.dims, peak=2 * x.peak)
        return
    # A learned row for every sample.
    axis = b.channel_axis(x)
    width = x.dims[axis]
    shape = [width if a == axis and isinstance(width, int) else 1 for a in range(x.rank)]
    row = b.weight(*shape)
    _put_beside(b, x, b.node(op, [row, b.run_time(x, x.dims)], x.dims), axis)


def _put_beside(b: Build, x: Live, y: Live, axis: int) -> None:
    """Added to `x`, or joined to it."""
    if b.chance(50):
        b.node("Add", [x, y], x.dims, peak=x.peak + y.peak)
        return
    if x.fixed:
        a = b.choice(x.fixed)
        dims = (*x.dims[:a], int(x.dims[a]) + int(y.dims[a]), *x.dims[a + 1 :])
        b.node("Concat", [x, y], dims, peak=max(x.peak, y.peak), axis=a)


def _tile(b: Build, op: str) -> None:
    x = b.any()
    axis = b.channel_axis(x)
    if b.chance(50):
        a = b.choice(x.fixed or (axis,))
        size = x.dims[a]
        if isinstance(size, int) and size < 20:
            repeats = [2 if i == a else 1 for i in range(x.rank)]
            b.node(op, [x, b.ints(repeats)], (*x.dims[:a], 2 * size, *x.dims[a + 1 :]))
        return
    width = x.dims[axis]
    own = b.chance(30)
    shape = [width if a == axis and isinstance(width, int) and not own else 1 for a in range(x.rank)]
    row = b.weight(*shape)
    target = tuple(1 if shape[a] == d and d != 1 else d for a, d in enumerate(x.dims))
    _put_beside(b, x, b.node(op, [row, b.run_time(x, target)], x.dims), axis)


def _constant_of_shape(b: Build, op: str) -> None:
    x = b.any()
    axis = b.channel_axis(x)
    width = b.width() if b.chance(60) and isinstance(x.dims[axis], int) else x.dims[axis]
    dims = (*x.dims[:axis], width, *x.dims[axis + 1 :])
    value = numpy_helper.from_array(np.array([0.5], np.float32))
    y = b.node(op, [b.run_time(x, dims)], dims, value=value)
    if width == x.dims[axis] and b.chance(50):
        b.node("Mul", [x, y], dims)
    elif isinstance(width, int) and isinstance(x.dims[axis], int):
        total = int(x.dims[axis]) + width
        b.node("Concat", b.choice(([x, y], [y, x])), (*x.dims[:axis], total, *x.dims[axis + 1 :]), axis=axis)


def _pad(b: Build, op: str) -> None:
    x = b.any()
    mode = b.choice(("constant", "constant", "constant", "edge", "reflect"))
    axes = {b.channel_axis(x)} if b.chance(60) else set(x.fixed) - {b.channel_axis(x)} or set(x.fixed)
    before, after = [0] * x.rank, [0] * x.rank
    dims = list(x.dims)
    for a in axes:
        size = x.dims[a]
        if isinstance(size, int):
            most = min(3, size - 1) if mode == "reflect" else 3
            before[a], after[a] = b.below(most + 1), b.below(most + 1)
            dims[a] = size + before[a] + after[a]
    if not b.small(tuple(dims)):
        return
    if b.opset < 11:
        b.node(op, [x], tuple(dims), pads=[*before, *after], mode=mode)
    elif b.opset >= 18 and b.chance(30):
        some = sorted(axes)
        pads = b.ints([*(before[a] for a in some), *(after[a] for a in some)])
        b.node(op, [x, pads, "", b.ints([a - x.rank for a in some])], tuple(dims), mode=mode)
    else:
        value = [b.floats(0.25)] if mode == "constant" and b.chance(40) else []
        b.node(op, [x, b.ints([*before, *after]), *value], tuple(dims), mode=mode)


def _depth_to_space(b: Build, op: str) -> None:
    x = b.image((4,))
    if int(x.dims[1]) % 4 or int(x.dims[2]) * int(x.dims[3]) > 40:
        x = b.linear(x, 1, 4 * b.choice((2, 1, 3)))
    c, h, w = (int(d) for d in x.dims[1:])
    if not b.small((x.dims[0], c, 2 * h, 2 * w)):
        return
    mode = {"mode": b.choice(("DCR", "CRD"))} if b.opset >= 11 and b.chance(70) else {}
    b.node(op, [x], (x.dims[0], c // 4, 2 * h, 2 * w), blocksize=2, **mode)


def _space_to_depth(b: Build, op: str) -> None:
    x = b.image((4,), least=2)
    c, h, w = (int(d) for d in x.dims[1:])
    if h % 2 or w % 2:
        x = cut(b, x, {2: (0, h - h % 2, 1), 3: (0, w - w % 2, 1)})
    b.node(op, [x], (x.dims[0], 4 * c, h // 2, w // 2), blocksize=2)


def _resize(b: Build, op: str) -> None:
    x = b.image((4, 4, 3, 5))
    if not b.small((*x.dims[:2], *(2 * int(d) for d in x.dims[2:]))):
        x = b.linear(b.source("N", 3, 4, 4), 1, b.width())
    spatial = [int(d) for d in x.dims[2:]]
    if b.opset >= 11 and b.chance(50):
        after = [s + b.below(3) for s in spatial]
        dims: Dims = (*x.dims[:2], *after)
        operands: list[Live | str] = ["", "", b.run_time(x, dims)]
        if b.opset < 13:
            operands[:2] = [b.floats([]), b.floats([])]
    else:
        after = [2 * s for s in spatial]
        dims = (*x.dims[:2], *after)
        scales = b.floats([1.0, 1.0, *[2.0] * len(after)])
        operands = [scales] if b.opset == 10 else [b.floats([]) if b.opset < 13 else "", scales]
    linear = x.rank < 5 and b.chance(30)
    b.node(op, [x, *operands], dims, mode="linear" if linear else "nearest")


def _upsample(b: Build, op: str) -> None:
    x = b.image((4,))
    if not b.small((*x.dims[:2], *(2 * int(d) for d in x.dims[2:]))):
        x = b.linear(b.source("N", 3, 4, 4), 1, b.width())
    dims = (*x.dims[:2], *(2 * int(d) for d in x.dims[2:]))
    scales = b.floats([1.0, 1.0, 2.0, 2.0])
    b.node(op, [x, scales], dims, mode=b.choice(("nearest", "linear")))


def _shape(b: Build, op: str) -> None:
    """A number computed from a size, as attention scales its products."""
    x = b.any()
    bounded = {"start": -2, "end": x.rank} if b.opset >= 15 and b.chance(30) else {}
    count = 2 if bounded else x.rank
    shape = b.node(op, [x], (count,), "long", hidden=True, **bounded)
    at = b.channel_axis(x) if not bounded else b.below(count)
    one = b.node("Gather", [shape, b.ints(at)], (), "long", hidden=True, axis=0)
    number = b.node("Cast", [one], (), hidden=True, to=1)
    root = b.node("Sqrt", [number], (), hidden=True, peak=1.0)
    b.node("Div", [x, root], x.dims)


def _size(b: Build, op: str) -> None:
    x = b.any()
    number = b.node(op, [x], (), "long", hidden=True)
    root = b.node("Sqrt", [b.node("Cast", [number], (), hidden=True, to=1)], (), hidden=True, peak=1.0)
    b.node("Div", [x, root], x.dims)


MAKERS: Mapping[str, Maker] = {
    "Transpose": Maker(_transpose, weight=4),
    "Reshape": Maker(_reshape, weight=8),
    "Flatten": Maker(_flatten, weight=2),
    "Squeeze": Maker(_squeeze),
    "Unsqueeze": Maker(_unsqueeze),
    "Concat": Maker(_concat, weight=6),
    "Split": Maker(_split, weight=6),
    "Slice": Maker(_slice, weight=6),
    "Gather": Maker(_gather, weight=4),
    "Expand": Maker(_expand, weight=2),
    "Tile": Maker(_tile, weight=2),
    "ConstantOfShape": Maker(_constant_of_shape),
    "Pad": Maker(_pad, weight=2),
    "DepthToSpace": Maker(_depth_to_space, weight=2),
    "SpaceToDepth": Maker(_space_to_depth),
    "Resize": Maker(_resize),
    "Upsample": Maker(_upsample, last=9),
    "Shape": Maker(_shape),
    "Size": Maker(_size),
}
