"""Gradients of operators of onnxruntime's own that carry a state from position to position.

CausalConvWithState: with p = the state and x behind it, z[t] = Σ over j of w[j] p[t + d j] + b and y = z or z s(z), s
the sigmoid, one convolution without padding whose transpose is another. The state after it is the end of p.

LinearAttention, for each head of keys and values, with the state S (d, e), rows k, v and q of one position, the decay
a = exp(g) and the rate β, both 1 where a rule has none:

    S' = a ⊙ S,  u = v, or by the delta rules β (v - k S'),  S'' = S' + kᵀ u,  y = c q S''.

From D, the gradient of S'', to which c qᵀ dy is added first,

    dq = c dy S''ᵀ,  du = k D,  dk = u Dᵀ,  dv = du,  dS' = D,  dg = Σ dS' ⊙ S',  dS = a ⊙ dS',

and by the delta rules dv = β du, dβ = Σ du ⊙ (v - k S'), dk less dv S'ᵀ and dS' less kᵀ dv. No state but the last is an
output of the node, so one Scan goes through the steps again and keeps those before each, and another goes back.
Oracle: central differences (tests).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.gradients.build import Builder, Gradients, Names, NoGradient
from onnxprune.gradients.windows import Geometry, spread
from onnxprune.graph.view import Node

_DOMAIN = "com.microsoft"


def convolution(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """CausalConvWithState over channels (B, C, L): data, kernel (C, 1, k), bias (C) and the state."""
    attrs = node.attrs
    if attrs.get("state_window", 0) or attrs.get("channels_last", 0) or int(attrs.get("ndim", 1)) != 1:
        raise NoGradient("states of several steps, channels behind the positions and images have no rule")
    x, w, bias, past = (node.input(i) for i in range(4))
    of_y, of_present = [*grads, None][:2]
    channels, _, kernel = b.shape(w)
    dilation = int(attrs.get("dilation", 1))
    held = dilation * (kernel - 1)
    whole = b.op("Concat", past, x, axis=2) if past else b.pad(x, [0, 0, held, 0, 0, 0], x)
    length = b.size(x, 2)
    terms: list[str] = []
    found: dict[int, str] = {}
    if of_y is not None:
        of_z = _before_activation(b, node, of_y)
        # Of all sizes of a Geometry, the transpose at stride 1 takes the difference alone.
        size = b.shape(x)[2]
        geo = Geometry((kernel,), (1,), (dilation,), (0,), (size + held,), (size,))
        weight = b.array(w)
        terms.append(spread(b, of_z, w if weight is None else weight, geo, channels, x))
        if 1 in slots:
            places = [b.part(whole, 2, b.ints(j * dilation), length) for j in range(kernel)]
            sums = [b.total(b.op("Mul", of_z, p), [0, 2], keepdims=True) for p in places]
            found[1] = b.op("Transpose", b.op("Concat", *sums, axis=2), perm=[1, 0, 2])
        if 2 in slots and bias:
            found[2] = b.total(of_z, [0, 2], keepdims=False)
    if of_present is not None and held:
        terms.append(b.embed(of_present, {2: length}, b.shape_of(whole), x, 3))
    if terms:
        of_whole = b.op("Sum", *terms) if len(terms) > 1 else terms[0]
        found[0] = b.part(of_whole, 2, b.ints(held), length)
        if past:
            found[3] = b.part(of_whole, 2, b.ints(0), b.ints(held))
    return found


def _before_activation(b: Builder, node: Node, of_y: str) -> str:
    """The gradient of z from that of y: z s(z) has the slope s(z) + y (1 - s(z))."""
    if str(node.attrs.get("activation", "none")) == "none":
        return of_y
    attrs = {**node.attrs, "activation": "none"}
    z, _ = b.ops("CausalConvWithState", node.inputs, 2, domain=_DOMAIN, **attrs)
    s = b.op("Sigmoid", b.typed_as(z, node.inputs[0]))
    rest = b.op("Sub", b.number(1.0, node.inputs[0]), s)
    return b.op("Mul", of_y, b.op("Add", s, b.op("Mul", node.outputs[0], rest)))


@dataclass(frozen=True)
class _Step:
    """One position, or all of them in front: k (B, G, d, 1), v (B, G, 1, e), a (B, G, d or 1, 1), β (B, G or 1, 1, 1).

    decay, rate: "" where the rule has none.
    """

    key: str
    value: str
    decay: str
    rate: str

    @property
    def names(self) -> Names:
        """Those that there are."""
        return tuple(n for n in (self.key, self.value, self.decay, self.rate) if n)

    def of(self, names: Names) -> _Step:
        """The same of other tensors, in the order of `names`."""
        rest = iter(names)
        return _Step(*(next(rest) if n else "" for n in (self.key, self.value, self.decay, self.rate)))


@dataclass(frozen=True)
class _Update:
    """What a step makes of a state: S', v - k S' ("" where not asked for), u, and S''."""

    decayed: str
    error: str
    written: str
    after: str


def _swapped(b: Builder, x: str) -> str:
    return b.op("Transpose", x, perm=[0, 1, 3, 2])


def _updated(b: Builder, state: str, s: _Step) -> _Update:
    decayed = b.op("Mul", s.decay, state) if s.decay else state
    error, written = "", s.value
    if s.rate:
        error = b.op("Sub", s.value, b.op("MatMul", _swapped(b, s.key), decayed))
        written = b.op("Mul", s.rate, error)
    return _Update(decayed, error, written, b.op("Add", decayed, b.op("MatMul", s.key, written)))


def _back(b: Builder, of_after: str, state: str, query: str, of_y: str, s: _Step) -> tuple[str, Names]:
    """(the gradient of the state before a step, those of q / c, k, v, and of g and β where there are any).

    query: c q, (B, G, h / G, d); of_y: (B, G, h / G, e).
    """
    u = _updated(b, state, s)
    of_after = b.op("Add", of_after, b.op("MatMul", _swapped(b, query), of_y))
    of_query = b.op("MatMul", of_y, _swapped(b, u.after))
    of_value = b.op("MatMul", _swapped(b, s.key), of_after)
    of_key = b.op("MatMul", of_after, _swapped(b, u.written))
    of_decayed, rest = of_after, []
    if s.rate:
        of_rate = b.total(b.op("Mul", of_value, u.error), [3], keepdims=True)
        of_value = b.op("Mul", of_value, s.rate)
        of_key = b.op("Sub", of_key, b.op("MatMul", u.decayed, _swapped(b, of_value)))
        of_decayed = b.op("Sub", of_decayed, b.op("MatMul", s.key, of_value))
        rest = [of_rate]
    before = b.op("Identity", of_decayed)
    if s.decay:
        before = b.op("Mul", s.decay, of_decayed)
        rest = [b.total(b.op("Mul", of_decayed, u.decayed), [3], keepdims=True), *rest]
    return before, (of_query, of_key, of_value, *rest)


def attention(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """LinearAttention by all its rules: queries, keys, values, the state, decay and rate."""
    heads, groups = int(node.attrs["q_num_heads"]), int(node.attrs["kv_num_heads"])
    if node.attrs.get("state_window", 0) or heads < groups:
        raise NoGradient("states of several steps, or several of one query head, have no rule")
    if b.graph.opset < 13:
        raise NoGradient("operators that it needs came with opset 13")
    query, key, value, past, decay, rate = (node.input(i) for i in range(6))
    rule = str(node.attrs.get("update_rule", "gated_delta"))
    decay, rate = decay if rule.startswith("gated") else "", rate if rule.endswith("delta") else ""
    d, e = b.shape(query)[2] // heads, b.shape(value)[2] // groups
    scale = b.number(float(node.attrs.get("scale", 0.0)) or float(1 / np.sqrt(d)), query)
    whole = _Step(
        _steps(b, key, groups, d, 1),
        _steps(b, value, groups, 1, e),
        b.op("Exp", _steps(b, decay, groups, -1, 1)) if decay else "",
        _steps(b, rate, -1, 1, 1) if rate else "",
    )
    state = b.zeros(b.joined([b.size(query, 0), b.ints(groups, d, e)]), query)
    of_y, of_last = [*grads, None][:2]
    last = b.cast(of_last, query) if of_last is not None else state
    if of_y is None:
        of_steps = b.zeros(b.joined([b.size(query, 1), b.size(query, 0), b.ints(groups, heads // groups, e)]), query)
    else:
        of_steps = _steps(b, of_y, groups, heads // groups, e)
    if past:
        state = b.cast(past, query)

    def forward(inner: Builder, before: Names, given: Names) -> tuple[Names, Names]:
        return (_updated(inner, before[0], whole.of(given)).after,), (inner.op("Identity", before[0]),)

    def backward(inner: Builder, after: Names, given: Names) -> tuple[Names, Names]:
        before_step, scaled_query, of_output, *rest = given
        before, found = _back(inner, after[0], before_step, scaled_query, of_output, whole.of(tuple(rest)))
        return (before,), found

    scaled = b.op("Mul", _steps(b, query, groups, heads // groups, d), scale)
    _, (states,) = b.scan(forward, (state,), whole.names, query, reverse=False, rank=4)
    given = (states, scaled, of_steps, *whole.names)
    (of_state,), steps = b.scan(backward, (last,), given, query, reverse=True, rank=4)
    of_query, of_key, of_value, *rest = steps
    found = {0: _packed(b, b.op("Mul", of_query, scale), query)}
    found |= {1: _packed(b, of_key, key), 2: _packed(b, of_value, value)}
    if past:
        found[3] = b.cast(of_state, past)
    if decay:
        one = b.shape(decay)[2] == groups
        found[4] = _packed(b, b.total(rest[0], [3] if one else [], keepdims=True), decay)
    if rate:
        shared = b.shape(rate)[2] == 1
        found[5] = _packed(b, b.total(rest[-1], [2] if shared else [], keepdims=True), rate)
    return found


def _steps(b: Builder, x: str, *sizes: int) -> str:
    """(B, L, packed) as (L, B, *sizes)."""
    return b.op("Transpose", b.op("Reshape", x, b.ints(0, 0, *sizes)), perm=[1, 0, 2, 3, 4])


def _packed(b: Builder, x: str, like: str) -> str:
    """(L, B, …) in the shape of `like`, (B, L, packed)."""
    return b.reshape_as(b.op("Transpose", x, perm=[1, 0, 2, 3, 4]), like)


TABLE = {f"{_DOMAIN}.CausalConvWithState": convolution, f"{_DOMAIN}.LinearAttention": attention}
