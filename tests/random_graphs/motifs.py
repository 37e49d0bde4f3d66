"""What networks are made of: several operators that only together make a case."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.random_graphs.build import Build, Live
from tests.random_graphs.contraction import convolve
from tests.random_graphs.layout import cut, divide, join, split, transpose
from tests.random_graphs.maker import Maker
from tests.random_graphs.normalization import instance_norm
from tests.random_graphs.reduction import reduce

_BLOCKS = ((2, 6), (2, 4), (3, 4), (2, 8), (4, 4), (4, 3), (6, 2), (3, 6))  # (groups, channels in each)


def _act(b: Build, x: Live) -> Live:
    return b.node(b.choice(("Relu", "Tanh", "Sigmoid", "LeakyRelu")), [x], x.dims)


def _blocks(b: Build, x: Live) -> tuple[Live, int]:
    """A layer whose channels fall into groups, and how many."""
    groups, inside = b.choice(_BLOCKS)
    return b.linear(x, 1, groups * inside), groups


def _residual(b: Build, op: str) -> None:
    x = b.any()
    axis = b.channel_axis(x)
    if not isinstance(x.dims[axis], int):
        return
    inner = _act(b, b.linear(x, axis, b.width()))
    y = b.linear(inner, axis, int(x.dims[axis]))
    b.node("Add", b.choice(([x, y], [y, x])), x.dims, peak=x.peak + y.peak)


def _gate(b: Build, op: str) -> None:
    """Squeeze and excite."""
    x = b.image(known=False)
    pooled = b.node("GlobalAveragePool", [x], (*x.dims[:2], *[1] * (x.rank - 2)))
    squeezed = b.linear(pooled, 1, b.width())
    inner = b.node("Relu", [squeezed], squeezed.dims)
    outer = b.linear(inner, 1, int(x.dims[1]))
    gate = b.node("Sigmoid", [outer], outer.dims, peak=1.0)
    b.node("Mul", [x, gate], x.dims)


def _attention(b: Build, op: str) -> None:
    x = b.sequence()
    heads, inside = b.choice(((2, 4), (2, 3), (3, 2), (4, 2)))
    shared = b.chance(30)
    n, length = x.dims[0], x.dims[1]
    if not b.small((n, heads, length, length)) or "*" in f"{n}{length}":
        return
    if shared:
        joint = b.linear(x, 2, 3 * heads * inside)
        q, k, v = split(b, joint, 2, [heads * inside] * 3)
    else:
        q, k, v = (b.linear(x, 2, heads * inside) for _ in range(3))
    dims = (n, length, heads, inside)
    q, k, v = (b.reshape(t, dims, hidden=True) for t in (q, k, v))
    q, k = b.tame(q, "bounded"), b.tame(k, "bounded")
    if b.chance(30):
        q, k = _rotated(b, q), _rotated(b, k)
    q, v = transpose(b, q, [0, 2, 1, 3]), transpose(b, v, [0, 2, 1, 3])
    k = transpose(b, k, [0, 2, 3, 1])
    scores = b.node("MatMul", [q, k], (n, heads, length, length), peak=3.0)
    weights = b.node("Softmax", [scores], scores.dims, peak=1.0, axis=3 if b.opset < 13 else -1)
    mixed = b.node("MatMul", [weights, v], v.dims)
    back = transpose(b, mixed, [0, 2, 1, 3])
    b.linear(b.reshape(back, (n, length, heads * inside)), 2, b.choice((int(x.dims[2]), b.width())))


def _rotated(b: Build, x: Live) -> Live:
    """Rotary embedding: both halves of every head, turned."""
    width = int(x.dims[3])
    if width % 2:
        return x
    halves = [cut(b, x, {3: (lo, lo + width // 2, 1)}) for lo in (0, width // 2)]
    minus = b.node("Neg", [halves[1]], halves[1].dims, hidden=True)
    turned = b.node("Concat", [minus, halves[0]], x.dims, hidden=True, axis=3)
    a = b.node("Mul", [x, b.weight(width)], x.dims, hidden=True)
    c = b.node("Mul", [turned, b.weight(width)], x.dims, hidden=True)
    return b.node("Add", [a, c], x.dims, peak=2.0, hidden=True)


def _shuffle(b: Build, op: str) -> None:
    x, groups = _blocks(b, b.image((4, 4, 3), known=False))
    shuffled(b, x, groups)


def shuffled(b: Build, x: Live, groups: int) -> Live:
    """The channels of every group dealt out to all groups."""
    rows = divide(b, x, 1, groups)
    moved = transpose(b, rows, [0, 2, 1, *range(3, rows.rank)])
    if b.chance(15):
        moved = _act(b, moved)
    return b.reshape(moved, x.dims)


def _grouped_pair(b: Build, op: str) -> None:
    """Grouped convolutions with something that moves channels between them."""
    x, groups = _blocks(b, b.image((4, 3), known=False))
    y = convolve(b, x, groups)
    if b.chance(60):
        y = _act(b, y)
    way = b.below(5)
    width = int(y.dims[1])
    if way < 2:
        y = shuffled(b, y, b.choice((groups, b.factor(width))))
    elif way == 2:
        y = _group_norm_by_parts(b, y, groups)
    elif way == 3 and y.dims == x.dims:
        y = b.node("Add", [x, y], x.dims, peak=x.peak + y.peak)
    again = b.choice((groups, b.factor(width), width))
    convolve(b, y, again)


def _group_norm_motif(b: Build, op: str) -> None:
    x = b.image(least=2)
    c = int(x.dims[1])
    if c < 4:
        x, groups = _blocks(b, x)
    else:
        groups = b.factor(c)
    _group_norm_by_parts(b, x, groups)


def _group_norm_by_parts(b: Build, x: Live, groups: int) -> Live:
    """GroupNorm as exporters write it before opset 18."""
    fixed = all(isinstance(d, int) for d in x.dims[2:])
    inside = int(np.prod([int(x.dims[1]) // groups, *(d for d in x.dims[2:] if isinstance(d, int))]))
    if inside < 2:
        return x
    # How many positions there are in a row is known, or left to the operator.
    rows = Live("", (x.dims[0], groups, inside if fixed else "?"))
    target = b.ints([0, groups, inside if fixed and b.chance(30) else -1])
    rows = b.node("Reshape", [x, target], rows.dims, peak=x.peak, hidden=True)
    normal = instance_norm(b, rows)
    back = b.reshape(normal, x.dims) if fixed else b.node("Reshape", [normal, b.run_time(x, x.dims)], x.dims)
    shape = (int(x.dims[1]), *[1] * (x.rank - 2))
    scaled = b.node("Mul", [back, b.weight(*shape)], x.dims, hidden=True)
    return b.node("Add", [scaled, b.weight(*shape)], x.dims, peak=x.peak + 2.0)


def _rows_and_columns(b: Build, op: str) -> None:
    """Channels as a matrix, of which rows or columns are cut, joined, moved, scaled or summed, then flattened."""
    x = b.any()
    axis = b.channel_axis(x)
    if x.rank > 4 or not isinstance(x.dims[axis], int):
        x, axis = b.matrix(), 1
    rows, columns = b.choice(_BLOCKS)
    x = b.linear(x, axis, rows * columns)
    t = divide(b, x, axis, rows)
    if b.chance(50):
        # Read whole as well: what is cut off below is then alike on both sides of the cut.
        b.linear(join(b, _act(b, t), axis + 1), axis, b.width())
    for _ in range(1 + b.below(4)):
        t = _changed(b, t, axis)
    if t.rank > x.rank:
        t = join(b, t, axis + 1)
    if isinstance(t.dims[axis], int):
        b.linear(t, axis, b.width())


def _changed(b: Build, t: Live, axis: int) -> Live:
    """One change to the rows (along `axis`) or columns (behind it) of `t`."""
    if t.rank <= axis + 1:
        return _act(b, t)
    side = axis + b.below(2)
    width = t.dims[side]
    way = b.below(12)
    if not isinstance(width, int) or width < 2:
        return _act(b, t)
    if way < 2:
        first = b.below(width)
        return cut(b, t, {side: (first, first + 1 + b.below(width - first), 1)})
    if way < 4:
        parts = split(b, t, side, b.parts(width))
        parts = [_act(b, p) if b.chance(40) else p for p in parts]
        if b.chance(30):
            return b.choice(parts)
        order = b.permutation(len(parts))
        return b.node("Concat", [parts[i] for i in order], t.dims, axis=side)
    if way == 4:
        other = b.choice((t, b.tame(b.like(t), "bounded")))
        dims = (*t.dims[:side], 2 * width, *t.dims[side + 1 :])
        return b.node("Concat", [t, other], dims, axis=side) if b.small(dims) else t
    if way == 5:
        order = [*range(t.rank)]
        order[axis], order[axis + 1] = order[axis + 1], order[axis]
        return transpose(b, t, order)
    if way == 6:
        op = b.choice(("ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"))
        return reduce(b, op, b.bounded(t), [side], keep=b.chance(50))
    if way == 7:
        shape = [d if a == side and isinstance(d, int) else 1 for a, d in enumerate(t.dims)]
        return b.node("Mul", [t, b.weight(*shape)], t.dims, peak=2.0 * t.peak)
    if way == 8:
        both = [d if a in (axis, axis + 1) and isinstance(d, int) else 1 for a, d in enumerate(t.dims)]
        return b.node("Add", [t, b.weight(*both)], t.dims, peak=t.peak + 2.0)
    if way == 9:
        return b.node("Gather", [t, b.ints(b.permutation(width))], t.dims, axis=side)
    if way == 10:
        return b.linear(t, side, b.choice((width, 2, 4)))
    return _act(b, t)


def _gated_linear(b: Build, op: str) -> None:
    x = b.any()
    axis = b.channel_axis(x)
    if not isinstance(x.dims[axis], int):
        return
    half = b.width()
    wide = b.linear(x, axis, 2 * half)
    if b.chance(50):
        u, v = split(b, wide, axis, [half, half])
    else:
        u, v = (cut(b, wide, {axis: (lo, lo + half, 1)}) for lo in (0, half))
    gate = b.node("Sigmoid", [v], v.dims, peak=1.0)
    b.node("Mul", [u, gate], u.dims)


def _dense(b: Build, op: str) -> None:
    """Every layer reads the concatenation of all before it."""
    x = b.image((4, 3), known=False)
    for _ in range(2):
        y = b.linear(_act(b, x), 1, b.choice((4, 2, 3)))
        dims = (x.dims[0], int(x.dims[1]) + int(y.dims[1]), *x.dims[2:])
        x = b.node("Concat", [x, y], dims, axis=1)


def _shortcut(b: Build, op: str) -> None:
    """Option A of ResNet: every second position, and fresh channels of zeros."""
    x = b.image((4,), least=2)
    c, h, w = (int(d) for d in x.dims[1:])
    before, after = b.below(3), b.below(3)
    s = cut(b, x, {2: (0, h, 2), 3: (0, w, 2)}) if b.opset >= 10 else x
    dims = (x.dims[0], c + before + after, *s.dims[2:])
    pads = [0, before, 0, 0, 0, after, 0, 0]
    p = b.node("Pad", [s], dims, pads=pads) if b.opset < 11 else b.node("Pad", [s, b.ints(pads)], dims)
    y = b.linear(s, 1, c + before + after)
    b.node("Add", [p, y], dims, peak=p.peak + y.peak)


def _shared_layer(b: Build, op: str) -> None:
    """One matrix for two tensors."""
    x = b.any()
    axis = x.rank - 1
    if not isinstance(x.dims[axis], int):
        x, axis = b.matrix(), 1
    y = b.like(x)
    x, y = b.bounded(x), b.bounded(y)
    k, n = int(x.dims[axis]), b.width()
    w = b.weight(k, n, fan=k)
    u, v = (b.node("MatMul", [t, w], (*x.dims[:-1], n), peak=2.0 * t.peak) for t in (x, y))
    if b.chance(50):
        b.node("Sub", [u, v], u.dims, peak=u.peak + v.peak)


def _pixel_shuffle(b: Build, op: str) -> None:
    """Positions out of channels, by hand."""
    x = b.image((4,))
    k = b.choice((2, 3, 1))
    n, _, h, w = x.dims
    if not b.small((n, k, 2 * int(h), 2 * int(w))):
        return
    x = b.linear(x, 1, 4 * k)
    order, dims = b.choice((([0, 1, 4, 2, 5, 3], (n, k, 2, 2, h, w)), ([0, 3, 4, 1, 5, 2], (n, 2, 2, k, h, w))))
    t = transpose(b, b.reshape(x, dims), order)
    b.reshape(t, (n, k, 2 * int(h), 2 * int(w)))


def _patch_merging(b: Build, op: str) -> None:
    """Swin: four neighbours side by side along the channels."""
    x = b.image((4,), least=2)
    c, h, w = (int(d) for d in x.dims[1:])
    if c > 8 or b.opset < 10:
        return
    if h % 2 or w % 2:
        x = cut(b, x, {2: (0, h - h % 2, 1), 3: (0, w - w % 2, 1)})
        h, w = h - h % 2, w - w % 2
    last = transpose(b, x, [0, 2, 3, 1])
    corners = [cut(b, last, {1: (i, h, 2), 2: (j, w, 2)}) for j in (0, 1) for i in (0, 1)]
    t = b.node("Concat", corners, (x.dims[0], h // 2, w // 2, 4 * c), axis=3)
    if b.opset >= 17:
        t = b.node("LayerNormalization", [t, b.weight(4 * c)], t.dims, peak=3.0, epsilon=0.05)
    b.linear(t, 3, b.choice((2 * c, b.width())))


def _spatial_attention(b: Build, op: str) -> None:
    x = b.image((4,), known=False)
    dims = (x.dims[0], 1, *x.dims[2:])
    maps = [b.reduced(o, x, [1], dims, keepdims=1) for o in ("ReduceMean", "ReduceMax")]
    both = b.node("Concat", maps, (x.dims[0], 2, *x.dims[2:]), axis=1)
    gate = b.linear(both, 1, 1)
    b.node("Mul", [x, b.node("Sigmoid", [gate], gate.dims, peak=1.0)], x.dims)


def _unknown(b: Build, op: str) -> None:
    """An operator that has no rule."""
    x = b.bounded(b.any())
    y = b.node("SampleOp", [x], x.dims, domain="com.microsoft")
    axis = b.channel_axis(y)
    if isinstance(y.dims[axis], int):
        b.linear(y, axis, b.width())


def _token(b: Build, op: str) -> None:
    """A learned row in front of the positions of every sample, whose number is fixed."""
    x = b.image((4,))
    n, c, h, w = x.dims
    length = int(h) * int(w)
    t = transpose(b, b.reshape(x, (n, c, length)), [0, 2, 1])
    sizes = b.run_time(t, (n, 1, 1))
    token = b.node("Expand", [b.weight(1, 1, int(c)), sizes], (n, 1, c))
    joined = b.node("Concat", [token, t], (n, length + 1, c), axis=1)
    if b.chance(50):
        b.node("Add", [joined, b.weight(1, length + 1, int(c))], joined.dims, peak=joined.peak + 2.0)
    if b.chance(50):
        first = b.node("Gather", [b.live[-1], b.ints(0)], (n, c), axis=1)
        b.linear(first, 1, b.width())


MAKERS: Mapping[str, Maker] = {
    "residual": Maker(_residual, weight=3),
    "squeeze-excite gate": Maker(_gate),
    "attention": Maker(_attention, weight=2),
    "channel shuffle": Maker(_shuffle, weight=2),
    "grouped convolutions": Maker(_grouped_pair, weight=4),
    "group normalization by parts": Maker(_group_norm_motif, weight=2),
    "rows and columns": Maker(_rows_and_columns, weight=6),
    "gated linear unit": Maker(_gated_linear),
    "dense concatenation": Maker(_dense),
    "option-A shortcut": Maker(_shortcut),
    "shared layer": Maker(_shared_layer),
    "pixel shuffle": Maker(_pixel_shuffle),
    "patch merging": Maker(_patch_merging),
    "spatial attention": Maker(_spatial_attention),
    "unknown operator": Maker(_unknown),
    "learned token": Maker(_token),
}
