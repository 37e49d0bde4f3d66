"""Attention as onnxruntime's own operators, with everything but the projections inside.

GroupQueryAttention: queries (B, S, h d), keys and values (B, S, g d), or all three side by side in the first input;
past keys and values (B, g, P, d). A key/value head and the query heads that read it are one unit. Where the caches keep
their heads, query heads go inside the groups instead, equally many of each; where a single key/value head serves all
queries, each query head is a unit. Its kernels take no heads of just any size, so positions inside heads stay.

MultiHeadAttention: as many heads of queries as of keys and values, and the biases of all three in one vector.
DecoderMaskedMultiHeadAttention is the same for one position at a time, with other slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.labels import Factors, Labels, along
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.rules.attention import (
    POSITIONS,
    SAME,
    SHARED,
    by_head,
    heads_or_positions,
    mask_heads,
    set_heads,
)
from onnxprune.channels.trace import Rule, Trace, split_rows
from onnxprune.graph.view import Node

_Operand = tuple[str, Labels | None, int]
_ONE = Reason("it has a single head, of a size that its kernels prescribe", Remedy.LAST)
_INSIDE = Reason("it parts what it reads into queries, keys and values itself, or adds to them", Remedy.HEADS)
_PACKED = Reason("it reads heads packed in five axes, for which onnxruntime has no kernel here", Remedy.NO_RULE)


@dataclass(frozen=True)
class _Slots:
    """Where the operators of one kind have their inputs."""

    bias: int
    mask: int
    past: tuple[int, int]


_MULTI_HEAD = _Slots(bias=3, mask=5, past=(6, 7))
_MASKED = _Slots(bias=10, mask=4, past=(5, 6))
_GROUPED_MASK, _GROUPED_SINK, _GROUPED_SCALES = 10, 11, (12, 13)


def _columns(name: str, node: Node, t: Trace) -> Factors:
    """The factors of (…, D) along its last axis, (D,) each."""
    rank = len(t.shape(name))
    return tuple(f.ravel() for f in t.untrack(name, t.of(name), range(rank - 1), node, POSITIONS))


def _parts(name: str, sizes: Sequence[tuple[int, int]], node: Node, t: Trace) -> list[Factors]:
    """Factors over (heads, positions) of what lies side by side on the last axis. sizes: (heads, positions) of each."""
    columns = _columns(name, node, t)
    parts: list[Factors] = []
    start = 0
    for heads, positions in sizes:
        end = start + heads * positions
        parts.append(tuple(f[start:end].reshape(heads, positions) for f in columns))
        start = end
    return parts


def _of_heads(name: str, factors: Factors, node: Node, t: Trace) -> _Operand:
    rank = len(t.shape(name))
    return name, heads_or_positions(name, factors, 0, node, t), 1 if rank == 4 else rank - 1


def _pin(operands: Iterable[tuple[str, Factors]], node: Node, t: Trace, why: Reason) -> None:
    for name, factors in operands:
        rank = len(t.shape(name))
        t.pin(name, factors, node, why, 1 if rank == 4 else rank - 1)


# grouped queries


def grouped(node: Node, t: Trace) -> None:
    """GroupQueryAttention."""
    h, g = int(node.attrs["num_heads"]), int(node.attrs["kv_num_heads"])
    query = node.inputs[0]
    past = [node.inputs[i] for i in (3, 4) if node.input(i)]
    if node.input(1):
        size = t.shape(query)[-1] // h
        q, (k, v) = by_head(query, h, node, t), (by_head(node.inputs[i], g, node, t) for i in (1, 2))
        names = query, node.inputs[1], node.inputs[2]
    else:
        size = t.shape(query)[-1] // (h + 2 * g)
        q, k, v = _parts(query, [(h, size), (g, size), (g, size)], node, t)
        names = query, query, query
    scales = [(i, by_head(i, g, node, t)) for i in map(node.input, _GROUPED_SCALES) if i and len(t.shape(i)) == 4]
    stored = [*zip(names[1:], (k, v), strict=True), *((i, by_head(i, g, node, t)) for i in past), *scales]
    if h == 1:
        _pin([(query, q), *stored], node, t, _ONE)
        _give(node, None, None, t)
        return
    _, queries, axis = first = _of_heads(query, q, node, t)
    over_queries = [first, *mask_heads(node, t, _GROUPED_MASK), *_sinks(node, t)]
    stays = _stays(node, t)
    if stays is not None and h == g:
        _pin([(query, q), *stored], node, t, stays)
        _give(node, None, None, t)
        return
    kv: Labels | None = None
    if g > 1 and stays is None:
        shared = None if queries is None else t.labels.tie(split_rows(queries, g), 1).ravel()
        kv = t.agree([(query, shared, axis), *(_of_heads(n, f, node, t) for n, f in stored)], node)
        if kv is None:
            queries = None
    else:
        _pin(stored, node, t, SHARED if stays is None or g == 1 else stays)
    queries = t.agree(over_queries, node) if queries is not None else None
    if queries is not None:
        t.heads.append((queries, size))
    if queries is not None and g > 1 and stays is not None:
        t.labels.balance(split_rows(queries, g))
    _give(node, queries, kv, t)


def _sinks(node: Node, t: Trace) -> list[_Operand]:
    """The number of each head that counts in the denominator of its softmax, (h,)."""
    sink = node.input(_GROUPED_SINK)
    return [(sink, t.on_axis(sink, t.of(sink), 0, node), 0)] if sink else []


def _stays(node: Node, t: Trace) -> Reason | None:
    """Why the heads of the caches stay, whatever keys and values carry; None where they may go."""
    for name in (i for i in map(node.input, (3, 4)) if i):
        if t.shape(name)[1] > 1 and not any(f.shape[1] > 1 for f in t.of(name)):
            return t.untracked_reason(name, 1)
    for name in node.outputs[1:3]:
        if name in t.graph.outputs:
            return Reason(f"the graph output {name!r} keeps its shape", Remedy.CACHE)
    return None


def _give(node: Node, queries: Labels | None, kv: Labels | None, t: Trace) -> None:
    """Set the outputs: what was attended to, the keys and values so far, and the scores."""
    for out, labels in zip(node.outputs, (queries, kv, kv, queries), strict=False):
        set_heads(out, labels, t)


# as many heads of everything


def multi_head(node: Node, t: Trace) -> None:
    """MultiHeadAttention."""
    _multi_head(node, t, _MULTI_HEAD)


def masked_multi_head(node: Node, t: Trace) -> None:
    """DecoderMaskedMultiHeadAttention."""
    _multi_head(node, t, _MASKED)


def _multi_head(node: Node, t: Trace, slots: _Slots) -> None:
    h = int(node.attrs["num_heads"])
    query, key, value = (node.input(i) for i in range(3))
    if any(i and len(t.shape(i)) == 5 for i in (query, key)):
        t.pin_all(node, _PACKED)
        return
    whole, bias = t.attention == "heads" and h > 1, node.input(slots.bias)
    if not whole and (bias or not key):
        t.pin_all(node, _INSIDE)
        return
    if key:
        names = [query, key, value]
        factors = [by_head(n, h, node, t) for n in names]
        sizes = [t.shape(n)[-1] // (h if len(t.shape(n)) == 3 else 1) for n in names]
    else:
        # The values are as wide as what comes out.
        outer = t.shape(node.outputs[0])[-1] // h
        inner = (t.shape(query)[-1] // h - outer) // 2
        names, sizes = [query] * 3, [inner, inner, outer]
        factors = _parts(query, [(h, s) for s in sizes], node, t)
    past = [node.input(i) for i in slots.past]
    if not whole:
        _positions(node, t, list(zip(names, factors, strict=True)), past, slots)
        return
    operands = list(zip(names, factors, strict=True))
    operands += [(bias, f) for f in _parts(bias, [(h, s) for s in sizes], node, t)] if bias else []
    operands += [(i, by_head(i, h, node, t)) for i in past if i]
    heads = t.agree([*(_of_heads(n, f, node, t) for n, f in operands), *mask_heads(node, t, slots.mask)], node)
    if heads is not None:
        t.heads.append((heads, sizes[0]))
    for out in node.outputs:
        set_heads(out, heads, t)


def _positions(
    node: Node, t: Trace, operands: Sequence[tuple[str, Factors]], past: Sequence[str], slots: _Slots
) -> None:
    """The same positions of every head: those of queries and keys, and those of values."""
    h = int(node.attrs["num_heads"])
    for name, labels, axis in mask_heads(node, t, slots.mask):
        if labels is not None:
            t.pin(name, [labels], node, SAME, axis)

    def of(name: str, factors: Factors) -> _Operand:
        return name, heads_or_positions(name, factors, 1, node, t), len(t.shape(name)) - 1

    q, k, v = (of(name, factors) for name, factors in operands)
    stored = [[of(i, by_head(i, h, node, t))] if i else [] for i in past]
    for slot, (_, labels, axis) in enumerate((q, k)):
        if labels is not None:
            t.read(node, slot, "contraction", (axis,))
    # Keys and values that come as (B, h, L, d), and caches, have one size.
    together = any(past) or len(t.shape(k[0])) == 4
    sets = [[q, k, *stored[0], v, *stored[1]]] if together else [[q, k], [v]]
    agreed = [t.agree(operands, node) for operands in sets]
    inner, outer = agreed[0], agreed[-1]
    for out, labels in zip(node.outputs, (outer, inner, outer, None), strict=False):
        if not out:
            continue
        rank = len(t.shape(out))
        if labels is None:
            t.set(out, ())
        else:
            t.set(out, [along(labels if rank == 4 else np.tile(labels, h), rank - 1, rank)])


TABLE: dict[str, Rule] = {
    "com.microsoft.GroupQueryAttention": grouped,
    "com.microsoft.MultiHeadAttention": multi_head,
    "com.microsoft.DecoderMaskedMultiHeadAttention": masked_multi_head,
}
