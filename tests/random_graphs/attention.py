"""Attention as one operator: packed and with an axis for the heads, grouped queries, rotated positions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import numpy_helper

from tests.random_graphs.build import Build, Dims, Live
from tests.random_graphs.maker import Maker


def _heads(b: Build, t: Live, heads: int) -> Live:
    """(B, S, h d) as (B, h, S, d)."""
    width = int(t.dims[2])
    rows = b.reshape(t, (*t.dims[:2], heads, width // heads), hidden=True)
    dims: Dims = (t.dims[0], heads, t.dims[1], width // heads)
    return b.node("Transpose", [rows], dims, hidden=True, perm=[0, 2, 1, 3])


def _packed(b: Build, t: Live) -> Live:
    """(B, h, S, d) as (B, S, h d)."""
    batch, heads, rows, size = t.dims
    turned = b.node("Transpose", [t], (batch, rows, heads, size), hidden=True, perm=[0, 2, 1, 3])
    return b.reshape(turned, (batch, rows, int(heads) * int(size)))


def _attention(b: Build, op: str) -> None:
    x = b.bounded(b.sequence())
    groups, shared = b.choice((2, 1, 3)), b.choice((1, 2, 3))
    size, value = b.choice((4, 2, 3)), b.choice((4, 3, 2))
    heads = groups * shared
    other = x
    if b.chance(25):
        other = b.pick(lambda t: t.rank == 3 and t.dims[0] == x.dims[0] and isinstance(t.dims[2], int)) or x
    q = b.tame(b.linear(x, 2, heads * size, hidden=True), "bounded")
    k = b.tame(b.linear(other, 2, groups * size, hidden=True), "bounded")
    v = b.linear(other, 2, groups * value, hidden=True)
    if b.chance(30):
        q, k = (_turn(b, t, n) for t, n in ((q, heads), (k, groups))) if size % 2 == 0 else (q, k)
    attrs: dict[str, object] = {}
    for name, setting, percent in (("is_causal", 1, 25), ("softcap", 4.0, 20), ("scale", 0.4, 20)):
        if b.chance(percent):
            attrs[name] = setting
    mask: list[Live | str] = [bias_of_scores(b, x, other, heads)] if b.chance(30) else []
    apart = b.chance(50)
    dims: Dims = (*x.dims[:2], heads * value)
    if apart:
        q, k, v = _heads(b, q, heads), _heads(b, k, groups), _heads(b, v, groups)
        dims = (x.dims[0], heads, x.dims[1], value)
    else:
        attrs.update(q_num_heads=heads, kv_num_heads=groups)
    out = b.node(op, [q, k, v, *mask], dims, hidden=apart, peak=v.peak, **attrs)
    if apart:
        _packed(b, out)


def bias_of_scores(b: Build, x: Live, other: Live, heads: int) -> Live:
    """Added to the scores: (B, 1, S, T), or with an axis for the heads."""
    count = b.choice((1, heads))
    left, right = (_heads(b, b.linear(t, 2, 2 * count, hidden=True), count) for t in (x, other))
    turned = b.node("Transpose", [right], (*right.dims[:2], 2, right.dims[2]), hidden=True, perm=[0, 1, 3, 2])
    dims = (*left.dims[:3], right.dims[2])
    scores = b.node("MatMul", [left, turned], dims, hidden=True)
    return b.node("Tanh", [scores], dims, hidden=True, peak=1.0)


def _positions(b: Build, x: Live) -> Live:
    """0, 1, ... for each sample: (B, S)."""
    dims = x.dims[:2]
    one = numpy_helper.from_array(np.array([1], np.int64))
    ones = b.node("ConstantOfShape", [b.run_time(x, dims)], dims, "long", hidden=True, value=one)
    return b.node("CumSum", [ones, b.ints(1)], dims, "long", hidden=True, exclusive=1)


def _turn(b: Build, x: Live, heads: int, *, hidden: bool = True) -> Live:
    """RotaryEmbedding of (B, S, h d), in one of the ways to write it."""
    size = int(x.dims[2]) // heads
    turned = size
    attrs: dict[str, int] = {"num_heads": heads}
    if size > 2 and b.chance(30):
        turned = 2 * (1 + b.below(size // 2 - 1))
        attrs["rotary_embedding_dim"] = turned
    if b.chance(40):
        attrs["interleaved"] = 1
    if isinstance(x.dims[1], int) or b.chance(50):
        # Angles of its own for every position.
        angles = b.linear(x, 2, turned // 2, hidden=True)
        caches: list[Live | str] = [b.node(f, [angles], angles.dims, hidden=True, peak=1.0) for f in ("Cos", "Sin")]
    else:
        caches = [b.weight(12, turned // 2), b.weight(12, turned // 2), _positions(b, x)]
    if b.chance(40):
        if "rotary_embedding_dim" not in attrs:
            del attrs["num_heads"]
        apart = _heads(b, x, heads)
        out = b.node("RotaryEmbedding", [apart, *caches], apart.dims, hidden=True, peak=2.0 * x.peak, **attrs)
        packed = _packed(b, out)
        if hidden:
            b.live.remove(packed)
        return packed
    return b.node("RotaryEmbedding", [x, *caches], x.dims, hidden=hidden, peak=2.0 * x.peak, **attrs)


def _rotary(b: Build, op: str) -> None:
    x = b.bounded(b.sequence())
    heads, size = b.choice((2, 1, 3)), b.choice((4, 2, 6))
    _turn(b, b.linear(x, 2, heads * size, hidden=True), heads, hidden=False)


MAKERS: Mapping[str, Maker] = {
    "Attention": Maker(_attention, weight=2),
    "RotaryEmbedding": Maker(_rotary),
}
