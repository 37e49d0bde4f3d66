"""Gradients of softmax, and of attention as one operator.

Attention: S = scale Q Kᵀ, P = softmax(c tanh(S / c) + mask), Y = P V, with K and V behind those of the past. Hence

    dV = Pᵀ dY,  dP = dY Vᵀ,  dS = P ⊙ (dP - Σ P ⊙ dP) ⊙ (1 - tanh(S / c)²),  dQ = scale dS K,  dK = scale dSᵀ Q.

P is had from the operator itself, as its fourth output: masks, causality and lengths need no second model here. The
query heads that share a head of keys are laid one behind the other, so that the products sum over them.
Oracle: central differences (tests).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.gradients.build import Builder, Gradients, NoGradient, axis_of, given
from onnxprune.graph.view import Node


def softmax(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """dx = y ⊙ (dy - Σ dy ⊙ y)."""
    y, g = node.outputs[0], given(grads)
    along = b.total(b.op("Mul", g, y), _axes(b, node), keepdims=True)
    return {0: b.op("Mul", y, b.op("Sub", g, along))}


def log_softmax(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """dx = dy - exp(y) Σ dy."""
    y, g = node.outputs[0], given(grads)
    return {0: b.op("Sub", g, b.op("Mul", b.op("Exp", y), b.total(g, _axes(b, node), keepdims=True)))}


def _axes(b: Builder, node: Node) -> list[int]:
    """The axes that sum to one: before opset 13, all from `axis` on."""
    rank = b.rank(node.inputs[0])
    if b.graph.opset >= 13:
        return [axis_of(node, rank, -1)]
    return list(range(axis_of(node, rank, 1), rank))


class _Heads:
    """Tensors of an Attention node as (batch, heads, positions, size), and back."""

    def __init__(self, b: Builder, node: Node) -> None:
        self.b = b
        self.packed = b.rank(node.inputs[0]) == 3  # (batch, positions, heads · size)
        first, second = (b.shape(i) for i in node.inputs[:2])
        self.queries = int(node.attrs["q_num_heads"]) if self.packed else first[1]
        self.keys = int(node.attrs["kv_num_heads"]) if self.packed else second[1]
        self.size = first[2] // self.queries if self.packed else first[3]
        self.positions = 1 if self.packed else 2

    def apart(self, x: str) -> str:
        """Queries, or what has their layout, with an axis of heads."""
        if not self.packed:
            return x
        b = self.b
        return b.op("Transpose", b.op("Reshape", x, b.ints(0, 0, self.queries, -1)), perm=[0, 2, 1, 3])

    def stacked(self, x: str) -> str:
        """Query heads behind one another that read the same head of keys."""
        if self.queries == self.keys:
            return x
        b, shape = self.b, self.b.shape_of(x)
        return b.op("Reshape", x, b.joined([b.entry(shape, 0), b.ints(self.keys, -1), b.entry(shape, 3)]))

    def back(self, g: str, like: str) -> str:
        """Gradients with an axis of heads in the layout of the input `like`."""
        if self.packed:
            g = self.b.op("Transpose", g, perm=[0, 2, 1, 3])
        return self.b.reshape_as(g, like)


def attention(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Attention: queries, keys, values, and those of the past."""
    if not set(slots) <= {0, 1, 2, 4, 5}:
        raise NoGradient("the gradient of its mask is not implemented")
    if any(grads[3:]):
        raise NoGradient("its scores are read")
    q = node.inputs[0]
    heads = _Heads(b, node)
    _, k, v, p = b.ops("Attention", node.inputs, 4, **{**node.attrs, "qk_matmul_output_mode": 3})
    of_keys = [*grads[1:3], None, None][:2]
    if grads[0] is not None:
        p = heads.stacked(p)
        g = heads.stacked(heads.apart(grads[0]))
        query = heads.apart(q)
        rows = heads.stacked(query)
        scale = b.number(float(node.attrs.get("scale", 0.0)) or 1 / np.sqrt(heads.size), q)
        dp = b.op("MatMul", g, _swapped(b, v))
        along = b.total(b.op("Mul", p, dp), [3], keepdims=True)
        ds = b.op("Mul", b.op("Mul", p, b.op("Sub", dp, along)), scale)
        cap = float(node.attrs.get("softcap", 0.0))
        if cap:
            scores = b.op("Mul", b.op("MatMul", rows, _swapped(b, k)), scale)
            t = b.op("Tanh", b.op("Div", scores, b.number(cap, q)))
            ds = b.op("Mul", ds, b.op("Sub", b.number(1.0, q), b.op("Mul", t, t)))
        input_grads = {0: heads.back(b.op("Reshape", b.op("MatMul", ds, k), b.shape_of(query)), q)}
        own = b.op("MatMul", _swapped(b, ds), rows), b.op("MatMul", _swapped(b, p), g)
        of_keys = [o if f is None else b.op("Add", o, f) for o, f in zip(own, of_keys, strict=True)]
    else:
        input_grads = {}
    for slot, past, whole in zip((1, 2), (4, 5), of_keys, strict=True):
        if whole is None:
            continue
        name, before = node.inputs[slot], b.ints(0)
        if node.input(past):
            before = b.size(node.inputs[past], 2)
            input_grads[past] = b.part(whole, 2, b.ints(0), before)
            whole = b.part(whole, 2, before, b.size(name, heads.positions))
        input_grads[slot] = heads.back(whole, name)
    return input_grads


def _swapped(b: Builder, x: str) -> str:
    return b.op("Transpose", x, perm=[0, 1, 3, 2])


def rotary_embedding(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """RotaryEmbedding is a rotation: its transpose turns the other way."""
    if slots != [0]:
        raise NoGradient("the gradient of its angles is not implemented")
    cos, sin, *rest = node.inputs[1:]
    return {0: b.op("RotaryEmbedding", given(grads), cos, b.op("Neg", sin), *rest, **node.attrs)}


TABLE = {
    "Attention": attention,
    "LogSoftmax": log_softmax,
    "RotaryEmbedding": rotary_embedding,
    "Softmax": softmax,
}
