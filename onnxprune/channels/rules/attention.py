"""Attention as one operator. Heads are the units, or the same positions of every head (`Trace.attention`).

A key/value head and all the query heads that share it form one unit. Where a single key/value head serves every query
head, each query head is one of its own. Inside a single head there are no heads to remove: its positions are the units.
"""

from __future__ import annotations

import numpy as np

from onnxprune.channels.labels import Factor, Factors, Labels, along
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.trace import Rule, Trace, split_rows
from onnxprune.graph.view import Node

POSITIONS = Reason("attention needs every position and sample", Remedy.POSITIONS)
WHOLE = Reason("whole heads are the units here", Remedy.HEAD_DIM)
SAME = Reason("the same positions of every head are the units here", Remedy.HEADS)
SHARED = Reason("the only key/value head serves every query head", Remedy.HEAD_DIM)


def head_count(node: Node, slot: int, rank: int, size: int) -> int:
    """Heads of the input at `slot`, of the given rank; `size` is that of axis 1, where a tensor of rank 4 has them."""
    if rank == 4:
        return size
    if node.op == "RotaryEmbedding":
        return int(node.attrs["num_heads"])
    return int(node.attrs["q_num_heads" if slot == 0 else "kv_num_heads"])


def rotated(node: Node, size: int) -> int:
    """How many positions of a head RotaryEmbedding rotates: the first ones."""
    return int(node.attrs.get("rotary_embedding_dim", 0)) or size


def pairs(node: Node, size: int) -> Labels:
    """(positions / 2, 2): the positions of a head that RotaryEmbedding combines.

    Those that it leaves alone are paired with their neighbour, as the operator wants an even number of them.
    """
    turned = rotated(node, size)
    first = np.arange(turned)
    combined = first.reshape(-1, 2) if node.attrs.get("interleaved", 0) else first.reshape(2, -1).T
    return np.concatenate([combined, np.arange(turned, size // 2 * 2).reshape(-1, 2)])


def by_head(name: str, heads: int, node: Node, t: Trace) -> Factors:
    """Factors over (heads, positions inside a head) of a tensor (B, h, S, d) or (B, S, h d)."""
    if len(t.shape(name)) == 4:
        return tuple(f.reshape(f.shape[1], f.shape[3]) for f in t.untrack(name, t.of(name), (0, 2), node, POSITIONS))
    return tuple(split_rows(f.ravel(), heads) for f in t.untrack(name, t.of(name), (0, 1), node, POSITIONS))


def heads_or_positions(name: str, factors: Factors, axis: int, node: Node, t: Trace) -> Labels | None:
    """Labels of the heads (axis 0) or of the positions in each (axis 1), (n,); None where untracked."""
    labels: Labels | None = None
    for f in factors:
        if f.shape[axis] == 1:
            t.pin(name, [f], node, SAME if axis else WHOLE)
            continue
        flat = t.labels.tie(f, 1 - axis).ravel()
        if labels is None:
            labels = flat
        t.labels.unify(labels, flat)
    return labels


def attention(node: Node, t: Trace) -> None:
    """Attention: q (B, h, S, d), k (B, g, T, d), v (B, g, T, e), or packed as (B, S, h d); mask, past k, past v."""
    shapes = [t.shape(node.inputs[i]) for i in range(3)]
    h, g = (head_count(node, i, len(shapes[i]), shapes[i][1]) for i in (0, 1))
    if t.attention == "heads" and h > 1:
        _whole_heads(node, t, h, g)
    else:
        _same_positions(node, t, h, g)


def _head_axis(name: str, t: Trace) -> int:
    return 1 if len(t.shape(name)) == 4 else 2


def _heads_of(name: str, count: int, node: Node, t: Trace) -> tuple[str, Labels | None, int]:
    return name, heads_or_positions(name, by_head(name, count, node, t), 0, node, t), _head_axis(name, t)


def _whole_heads(node: Node, t: Trace, h: int, g: int) -> None:
    q, k, v = node.inputs[:3]
    past = [node.input(i) for i in (4, 5) if node.input(i)]
    query = _heads_of(q, h, node, t)
    over_queries = [query, *mask_heads(node, t)]
    kv: Labels | None = None
    if g > 1:
        name, labels, axis = query
        shared = None if labels is None else t.labels.tie(split_rows(labels, g), 1).ravel()
        kv = t.agree([(name, shared, axis), *(_heads_of(n, g, node, t) for n in (k, v, *past))], node)
    else:
        for name in (k, v, *past):
            t.pin(name, by_head(name, g, node, t), node, SHARED)
    heads = t.agree(over_queries, node)
    if g > 1 and kv is None:
        heads = None
    if heads is not None:
        t.heads.append((heads, t.shape(q)[-1] // (1 if _head_axis(q, t) == 1 else h)))
    set_heads(node.outputs[0], heads, t)
    for out in node.outputs[1:3]:
        set_heads(out, kv, t)
    if len(node.outputs) > 3:
        set_heads(node.outputs[3], heads, t)


def set_heads(out: str, heads: Labels | None, t: Trace) -> None:
    """Let the output (B, h, …) or (B, S, h d) of this name, where there is one, carry labels of its heads, (h,)."""
    if not out:
        return
    if heads is None:
        t.set(out, ())
        return
    shape = t.shape(out)
    if len(shape) == 4:
        t.set(out, [along(heads, 1, 4)])
    else:
        t.set(out, [along(np.repeat(heads, shape[2] // heads.size), 2, 3)])


def mask_heads(node: Node, t: Trace, slot: int = 3) -> list[tuple[str, Labels | None, int]]:
    """The heads of a mask, or of what else is added to the scores, where it has an axis for them."""
    mask = node.input(slot)
    if not mask:
        return []
    shape = t.shape(mask)
    axis = len(shape) - 3
    factors = t.untrack(mask, t.of(mask), [a for a in range(len(shape)) if a != axis], node, POSITIONS)
    if axis < 0 or shape[axis] == 1:
        return []
    return [(mask, t.on_axis(mask, factors, axis, node), axis)]


def _positions_of(name: str, count: int, node: Node, t: Trace) -> tuple[str, Labels | None, int]:
    axis = len(t.shape(name)) - 1
    return name, heads_or_positions(name, by_head(name, count, node, t), 1, node, t), axis


def _same_positions(node: Node, t: Trace, h: int, g: int) -> None:
    q, k, v = node.inputs[:3]
    for name, labels, axis in mask_heads(node, t):
        if labels is not None:
            t.pin(name, [labels], node, SAME, axis)
    past_k, past_v = ([node.input(i)] if node.input(i) else [] for i in (4, 5))
    keys = [_positions_of(n, c, node, t) for n, c in ((q, h), (k, g), *((p, g) for p in past_k))]
    values = [_positions_of(n, g, node, t) for n in (v, *past_v)]
    for slot, (name, labels, axis) in enumerate(keys[:2]):
        if labels is not None and name == node.inputs[slot]:
            t.read(node, slot, "contraction", (axis,))
    inner, outer = t.agree(keys, node), t.agree(values, node)
    for out, labels, count in zip(node.outputs, (outer, inner, outer, None), (h, g, g, h), strict=False):
        if not out:
            continue
        rank = len(t.shape(out))
        factors: list[Factor] = []
        if labels is not None:
            factors = [along(labels if rank == 4 else np.tile(labels, count), rank - 1, rank)]
        t.set(out, factors)


def linear_attention(node: Node, t: Trace) -> None:
    """LinearAttention: packed heads; the state (B, heads, d, e) is read across both sizes, so heads are the units."""
    h, g = int(node.attrs["q_num_heads"]), int(node.attrs["kv_num_heads"])
    name, labels, axis = _heads_of(node.inputs[0], h, node, t)
    shared = None if labels is None else t.labels.tie(split_rows(labels, g), 1).ravel()
    others = [n for n in node.inputs[1:] if n and not (len(t.shape(n)) == 3 and t.shape(n)[2] == 1)]
    kv = t.agree([(name, shared, axis), *(_heads_of(n, g, node, t) for n in others)], node)
    set_heads(node.outputs[0], None if kv is None else labels, t)
    for out in node.outputs[1:]:
        set_heads(out, kv, t)


def rotary(node: Node, t: Trace) -> None:
    """RotaryEmbedding: x (B, h, S, d) or (B, S, h d), caches (positions, d / 2) or (B, S, d / 2)."""
    x, out = node.inputs[0], node.outputs[0]
    shape = t.shape(x)
    heads = head_count(node, 0, len(shape), shape[1])
    if t.attention == "heads" and heads > 1:
        set_heads(out, _heads_of(x, heads, node, t)[1], t)
        return
    _, labels, axis = _positions_of(x, heads, node, t)
    caches = [_cache(name, node, t) for name in node.inputs[1:3]]
    if labels is None:
        t.agree([(x, None, axis), *caches], node)
        t.set(out, ())
        return
    coupled = pairs(node, labels.size)
    units = t.labels.tie(labels[coupled], 1).ravel()
    turned = rotated(node, labels.size) // 2
    t.agree([(x, units[:turned], axis), *caches], node)
    if labels.size % 2:
        t.pin(x, [labels[-1:]], node, Reason("a head of RotaryEmbedding has an even size", Remedy.PAIR), axis)
    t.set(out, [along(labels if len(shape) == 4 else np.tile(labels, heads), axis, len(shape))])


def _cache(name: str, node: Node, t: Trace) -> tuple[str, Labels | None, int]:
    last = len(t.shape(name)) - 1
    inner = tuple(f for f in t.of(name) if f.shape[last] > 1)
    t.pin(name, [f for f in t.of(name) if f.shape[last] == 1], node, POSITIONS, structural=name in t.graph.constants)
    return name, t.on_axis(name, inner, last, node), last


TABLE: dict[str, Rule] = {
    "Attention": attention,
    "LinearAttention": linear_attention,
    "RotaryEmbedding": rotary,
}
