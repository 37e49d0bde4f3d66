"""Gradients of attention as onnxruntime's own operators: MultiHeadAttention and GroupQueryAttention.

The formulas are those of `attention.py`. P and the keys and values that were attended to, biased, turned and joined
with those of the past, come from the operator itself, as further outputs. So masks, windows, sinks and lengths need no
second model here. Oracle: central differences (tests).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.gradients.build import Builder, Gradients, NoGradient
from onnxprune.graph.view import Node

_DOMAIN = "com.microsoft"
_AFTER_SOFTMAX = 2


@dataclass(frozen=True)
class _Attended:
    """What is differentiated: queries (B, h, S, d), and keys, values and probabilities of the operator."""

    queries: str
    keys: str
    values: str
    probabilities: str


@dataclass(frozen=True)
class _Given:
    """Gradients of queries, of all keys and of all values; None where nothing depends on them."""

    queries: str | None
    keys: str | None
    values: str | None


def _swapped(b: Builder, x: str) -> str:
    return b.op("Transpose", x, perm=[0, 1, 3, 2])


def _apart(b: Builder, x: str, heads: int) -> str:
    """(B, S, h d) as (B, h, S, d)."""
    return b.op("Transpose", b.op("Reshape", x, b.ints(0, 0, heads, -1)), perm=[0, 2, 1, 3])


def _packed(b: Builder, x: str) -> str:
    """(B, h, S, d) as (B, S, h d)."""
    return b.op("Reshape", b.op("Transpose", x, perm=[0, 2, 1, 3]), b.ints(0, 0, -1))


def _stacked(b: Builder, x: str, groups: int) -> str:
    """(B, h, S, d) as (B, g, h / g · S, d): query heads behind one another that read the same head of keys."""
    shape = b.shape_of(x)
    return b.op("Reshape", x, b.joined([b.entry(shape, 0), b.ints(groups, -1), b.entry(shape, 3)]))


def _reverse(b: Builder, node: Node, grads: Sequence[str | None], a: _Attended, groups: int, scale: float) -> _Given:
    """From the gradients of the outputs to those of queries, keys and values."""
    like = node.inputs[0]
    of_keys, of_values = [*grads[1:3], None, None][:2]
    if grads[0] is None:
        return _Given(None, of_keys, of_values)
    heads = int(node.attrs["num_heads"])
    p, g, rows = (_stacked(b, x, groups) for x in (a.probabilities, _apart(b, grads[0], heads), a.queries))
    dp = b.op("MatMul", g, _swapped(b, a.values))
    along = b.total(b.op("Mul", p, dp), [3], keepdims=True)
    ds = b.op("Mul", b.op("Mul", p, b.op("Sub", dp, along)), b.number(scale, like))
    cap = float(node.attrs.get("softcap", 0.0))
    if cap:
        scores = b.op("Mul", b.op("MatMul", rows, _swapped(b, a.keys)), b.number(scale, like))
        t = b.op("Tanh", b.op("Div", scores, b.number(cap, like)))
        ds = b.op("Mul", ds, b.op("Sub", b.number(1.0, like), b.op("Mul", t, t)))
    queries = b.op("Reshape", b.op("MatMul", ds, a.keys), b.shape_of(a.queries))
    own = b.op("MatMul", _swapped(b, ds), rows), b.op("MatMul", _swapped(b, p), g)
    keys, values = (o if f is None else b.op("Add", o, f) for o, f in zip(own, (of_keys, of_values), strict=True))
    return _Given(queries, keys, values)


def _scale(node: Node, size: int) -> float:
    return float(node.attrs.get("scale", 0.0)) or float(1 / np.sqrt(size))


def _check(grads: Sequence[str | None], slots: Sequence[int], can: set[int]) -> None:
    if not set(slots) <= can:
        raise NoGradient("the gradient of its settings, of what is added to its scores, or of its sinks is not written")
    if any(grads[3:]):
        raise NoGradient("its scores are read")


# as many heads of everything


def multi_head(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """MultiHeadAttention: queries, keys, values, the biases of all three, and the past."""
    _check(grads, slots, {0, 1, 2, 3, 6, 7})
    query, key, value, bias = (node.input(i) for i in range(4))
    if not key or b.rank(key) == 5:
        raise NoGradient("its heads are packed")
    if b.graph.opset < 13:
        raise NoGradient("operators that it needs came with opset 13")
    heads, apart = int(node.attrs["num_heads"]), b.rank(key) == 4
    size, outer = b.shape(query)[2] // heads, b.shape(node.outputs[0])[2] // heads
    # What comes with an axis of its own for the heads is attended to as it is.
    # The scores are given out with all that is added to them, before softmax.
    _, k, v, scores = b.ops("MultiHeadAttention", node.inputs, 4, domain=_DOMAIN, **node.attrs)
    if apart:
        k, v = key, value
    biased = b.op("Add", query, b.part(bias, 0, b.ints(0), b.ints(heads * size))) if bias else query
    p = b.op("Softmax", b.typed_as(scores, query), axis=-1)
    attended = _Attended(_apart(b, biased, heads), k, v, p)
    got = _reverse(b, node, grads, attended, heads, _scale(node, size))
    found: dict[int, str] = {}
    own: dict[int, str] = {0: _packed(b, got.queries)} if got.queries is not None else {}
    for slot, past, whole in ((1, 6, got.keys), (2, 7, got.values)):
        if whole is None:
            continue
        if apart:
            found[slot] = whole
            continue
        before = b.ints(0)
        if node.input(past):
            before = b.size(node.inputs[past], 2)
            found[past] = b.part(whole, 2, b.ints(0), before)
            whole = b.part(whole, 2, before, b.size(node.inputs[slot], 1))
        own[slot] = _packed(b, whole)
    found.update(own)
    if 3 in slots and bias:
        sums = [
            b.total(own[k], [0, 1], keepdims=False) if k in own else b.zeros(b.ints(heads * s), query)
            for k, s in enumerate((size, size, outer))
        ]
        found[3] = b.joined(sums)
    return found


# grouped queries


class _Places:
    """Where the new positions of each sample stand among all, (B, S)."""

    def __init__(self, b: Builder, node: Node) -> None:
        self._b = b
        length = b.size(node.inputs[0], 1)
        self._steps = b.range(length)
        whole = b.op("Cast", node.inputs[6], to=TensorProto.INT64)
        self._first = b.op("Equal", b.op("Reshape", whole, b.ints(1)), length)
        last = b.op("Unsqueeze", b.op("Cast", node.inputs[5], to=TensorProto.INT64), b.ints(1))
        behind = b.op("Sub", b.op("Add", last, b.ints(1)), length)
        # A first run, of a prompt, starts at 0, whatever the lengths of the samples are.
        self.first_of_each = b.op("Where", self._first, b.op("Sub", behind, behind), behind)
        self.of_each = b.op("Add", self.first_of_each, self._steps)
        given = node.input(9)
        self.turned = self.of_each
        if given:  # of which a first run reads one entry
            start = b.op("Slice", given, b.ints(0, 0), b.ints(1, 1), b.ints(0, 1))
            counted = b.op("Add", b.op("Add", b.op("Sub", self.of_each, self.of_each), start), self._steps)
            self.turned = b.op("Where", self._first, counted, given)

    def picked(self, whole: str, groups: int) -> str:
        """Of (B, g, T, d) the new positions, (B, g, S, d)."""
        b = self._b
        shape = b.shape_of(whole)
        sizes = [b.entry(shape, 0), b.ints(groups), b.size(self._steps, 0), b.entry(shape, 3)]
        last = b.op("Sub", b.entry(shape, 2), b.ints(1))
        near = b.op("Where", b.op("Less", self.of_each, last), self.of_each, last)
        indices = b.op("Expand", b.unsqueeze(near, [1, 3]), b.joined(sizes))
        return b.op("GatherElements", whole, indices, axis=2)

    def before(self, whole: str, past: str) -> str:
        """Of (B, g, T, d) the positions of the past, zero where new ones stand."""
        b = self._b
        count = b.size(past, 2)
        old = b.op("Less", b.range(count), self.first_of_each)
        return b.masked(b.part(whole, 2, b.ints(0), count), b.unsqueeze(old, [1, 3]), past)


class _Windowed:
    """Caches of a window as those of all positions, and back.

    With T positions in a sample so far and C rows, rows 0 to L(T) hold the last L(T) positions in order, where
    L(T) = T for T ≤ C, else T - G ⌈(T - C) / G⌉ with G = C - W + 1 for a window W; the others are unspecified. What an
    operator attends to lies among them, so that with zeros for all earlier positions the one with caches of all
    positions gives the same.
    """

    def __init__(self, b: Builder, node: Node, places: _Places) -> None:
        self._b, self._groups, self._like = b, int(node.attrs["kv_num_heads"]), node.inputs[3]
        self._rows = b.size(node.inputs[3], 2)
        self._slack = b.op("Sub", self._rows, b.ints(int(node.attrs["local_window_size"]) - 1))
        self._whole = b.op("Reshape", b.op("Cast", node.inputs[6], to=TensorProto.INT64), b.ints(1))
        self._before = b.op("Sub", self._whole, b.size(node.inputs[0], 1))
        now = b.op("Cast", node.inputs[5], to=TensorProto.INT64)
        self._past = self._first_and_count(places.first_of_each)
        self._now = self._first_and_count(b.op("Add", b.unsqueeze(now, [1]), b.ints(1)))

    def past(self, x: str) -> str:
        """A cache of the past with its rows where their positions are among all of the past."""
        return self._unrolled(x, self._past, self._before)

    def present(self, grad: str) -> str:
        """The gradient of a cache that is given out, at all positions."""
        return self._unrolled(grad, self._now, self._whole)

    def of_past(self, whole: str) -> str:
        """Of a gradient at all positions that at the rows of the cache that was read."""
        first, count = self._past
        places = self._b.range(self._rows)
        return self._moved(whole, self._b.op("Add", places, first), self._b.op("Less", places, count))

    def _first_and_count(self, positions: str) -> tuple[str, str]:
        """Of so many positions, (B, 1), the first one that is held, and how many are."""
        b = self._b
        over = b.op("Sub", positions, self._rows)
        more = b.op("Sub", b.op("Add", over, self._slack), b.ints(1))
        gone = b.op("Mul", b.op("Div", more, self._slack), self._slack)
        first = b.op("Where", b.op("Less", b.ints(0), over), gone, b.op("Sub", gone, gone))
        return first, b.op("Sub", positions, first)

    def _unrolled(self, x: str, held: tuple[str, str], size: str) -> str:
        b, (first, count) = self._b, held
        rows = b.op("Sub", b.range(size), first)
        inside = b.op("And", b.op("Less", b.ints(-1), rows), b.op("Less", rows, count))
        return self._moved(x, rows, inside)

    def _moved(self, x: str, rows: str, inside: str) -> str:
        """Of x (B, g, ·, d) the rows (B, n), zero where these are not `inside`."""
        b, shape = self._b, self._b.shape_of(x)
        last = b.op("Sub", b.entry(shape, 2), b.ints(1))
        near = b.op("Where", b.op("Less", rows, last), rows, last)
        near = b.op("Where", b.op("Less", b.ints(0), near), near, b.op("Sub", near, near))
        sizes = b.joined([b.entry(shape, 0), b.ints(self._groups), b.size(near, 1), b.entry(shape, 3)])
        found = b.op("GatherElements", x, b.op("Expand", b.unsqueeze(near, [1, 3]), sizes), axis=2)
        return b.masked(found, b.unsqueeze(inside, [1, 3]), self._like)


def grouped(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """GroupQueryAttention: queries, keys and values, side by side in one input or apart, and the past.

    One with caches of a window gives out no scores, so that its place is taken by one with those of all positions.
    """
    _check(grads, slots, {0, 1, 2, 3, 4})
    if any(node.input(k) for k in (12, 13, 14, 15)):
        raise NoGradient("it quantizes its caches, or normalizes what it reads")
    if b.graph.opset < 13:
        raise NoGradient("operators that it needs came with opset 13")
    heads, groups = int(node.attrs["num_heads"]), int(node.attrs["kv_num_heads"])
    query, apart = node.inputs[0], bool(node.input(1))
    size = b.shape(query)[2] // (heads if apart else heads + 2 * groups)
    attrs = {**node.attrs, "qk_output": _AFTER_SOFTMAX}
    places, inputs = _Places(b, node), [*node.inputs]
    windowed = _Windowed(b, node, places) if node.attrs.get("sliding_window_cache", 0) else None
    if windowed is not None:
        attrs["sliding_window_cache"] = 0
        inputs[3:5] = map(windowed.past, inputs[3:5])
        grads = [g if g is None or not k else windowed.present(g) for k, g in enumerate(grads)]
    _, k, v, p = b.ops("GroupQueryAttention", inputs, 4, domain=_DOMAIN, **attrs)
    q = query if apart else b.part(query, 2, b.ints(0), b.ints(heads * size))
    attended = _Attended(_apart(b, _turned(b, node, q, places, heads, size), heads), k, v, p)
    got = _reverse(b, node, grads, attended, groups, _scale(node, size))
    found = {
        past: places.before(whole, node.inputs[past]) if windowed is None else windowed.of_past(whole)
        for past, whole in ((3, got.keys), (4, got.values))
        if whole is not None and node.input(past)
    }
    own: dict[int, str] = {}
    if got.queries is not None:
        own[0] = _turned(b, node, _packed(b, got.queries), places, heads, size, back=True)
    if got.keys is not None:
        new = _packed(b, places.picked(got.keys, groups))
        own[1] = _turned(b, node, new, places, groups, size, back=True)
    if got.values is not None:
        own[2] = _packed(b, places.picked(got.values, groups))
    if apart:
        return {**found, **own}
    if own:
        front = b.op("Slice", b.shape_of(query), b.ints(0), b.ints(2))
        parts = [
            own[k] if k in own else b.zeros(b.joined([front, b.ints(count * size)]), query)
            for k, count in enumerate((heads, groups, groups))
        ]
        found[0] = b.op("Concat", *parts, axis=2)
    return found


def _turned(b: Builder, node: Node, x: str, places: _Places, heads: int, size: int, *, back: bool = False) -> str:
    """(B, S, h d) with its heads turned by their places, or turned back."""
    if not node.attrs.get("do_rotary", 0):
        return x
    cosines, sines = node.inputs[7:9]
    turned = 2 * b.shape(cosines)[1]
    attrs: dict[str, Any] = {"interleaved": int(node.attrs.get("rotary_interleaved", 0))}
    if turned < size:
        attrs.update(rotary_embedding_dim=turned, num_heads=heads)
    angles = b.op("Neg", sines) if back else sines
    return b.op("RotaryEmbedding", x, places.turned, cosines, angles, domain=_DOMAIN, **attrs)


TABLE = {f"{_DOMAIN}.GroupQueryAttention": grouped, f"{_DOMAIN}.MultiHeadAttention": multi_head}
