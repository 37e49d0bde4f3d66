"""Gradients of LSTM, GRU and RNN with respect to the sequence and the initial states.

What happens inside is no output of the node, so one Scan computes the gates of every step again and another goes back
through the steps (backpropagation through time, Werbos 1990). Products with W stand outside of both: each is one
product over all steps. With s the sigmoid, z = x Wᵀ + h Rᵀ + b, and h, c the states before the step:

LSTM  i, o, f = s(z_i + P_i c), s(z_o + P_o c'), s(z_f + P_f c); g = tanh(z_g); c' = f c + i g; h' = o tanh(c')
GRU   u, r = s(z_u), s(z_r); h' = (1 - u) n + u h, with n = tanh(x W_nᵀ + b_n + (r h) R_nᵀ), or with
      linear_before_reset n = tanh(x W_nᵀ + b_n + r (h R_nᵀ + b'_n))
RNN   h' = tanh(z) or max(z, 0)

Oracle: central differences (tests).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxprune.gradients.build import Builder, Gradients, Names, NoGradient
from onnxprune.graph.operators import GATE_COUNT
from onnxprune.graph.view import Node

USUAL: Mapping[str, tuple[str, ...]] = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ()}
STATES: Mapping[str, tuple[int, ...]] = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}  # slots of the initial states
LENGTHS, PEEPHOLES = 4, 7


@dataclass(frozen=True)
class _Cell:
    """One direction. recurrence: R (G H, H); bias: that of GRU's inner product, or ""; like: for the type of numbers.

    other: `linear_before_reset` of GRU, a RNN with Relu.
    """

    recurrence: str
    bias: str
    peepholes: Names
    hidden: int
    other: bool
    like: str


# (builder, cell, states before, x Wᵀ + b) → (states after, what going back needs)
Step = Callable[[Builder, _Cell, Names, str], tuple[Names, Names]]
# (builder, cell, gradients of the states after, what the step kept) → (those of the states before, that of x Wᵀ + b)
Back = Callable[[Builder, _Cell, Names, Names], tuple[Names, str]]


def recurrent(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """LSTM, GRU and RNN: the sequence X (T, B, I) and the initial states (D, B, H)."""
    _refuse(node, slots)
    directions = [_direction(b, node, grads, d) for d in range(b.shape(node.inputs[2])[0])]
    of_x = [x for x, _ in directions]
    input_grads = {0: b.op("Sum", *of_x) if len(of_x) > 1 else of_x[0]}
    for k, slot in enumerate(STATES[node.op]):
        if slot in slots:
            input_grads[slot] = b.op("Concat", *(b.unsqueeze(states[k], [0]) for _, states in directions), axis=0)
    return input_grads


def _refuse(node: Node, slots: Sequence[int]) -> None:
    """Raise NoGradient for what has no rule."""
    names = [str(a).lower() for a in node.attrs.get("activations", ())]
    usual = USUAL[node.op]
    if any(n not in ("tanh", "relu") if not usual else n != usual[k % len(usual)] for k, n in enumerate(names)):
        raise NoGradient(f"the activations {', '.join(names)} have no rule")
    for name in ("clip", "input_forget", "layout"):
        if node.attrs.get(name):
            raise NoGradient(f"the attribute {name} has no rule")
    if node.input(LENGTHS):
        raise NoGradient("sequences of different lengths have no rule")
    if not {0, *STATES[node.op]}.issuperset(slots):
        raise NoGradient("computed weights have no rule")


def _direction(b: Builder, node: Node, grads: Sequence[str | None], d: int) -> tuple[str, Names]:
    """What direction `d` adds to the gradient of X, and the gradients of its initial states, (B, H) each."""
    x = node.inputs[0]
    backwards = d == 1 or node.attrs.get("direction", "forward") == "reverse"
    weights, (bias, cell) = _of(b, node.inputs[1], d), _cell(b, node, d)
    zeros = b.zeros(b.joined([b.size(x, 1), b.ints(cell.hidden)]), x)
    outside = b.op("MatMul", x, b.op("Transpose", weights, perm=[1, 0]))
    if bias:
        outside = b.op("Add", outside, bias)
    states = tuple(_of(b, node.input(s), d) if node.input(s) else zeros for s in STATES[node.op])
    g_steps, *g_lasts = (*grads, *[None] * 3)[: 1 + len(states)]
    if g_steps is None:
        of_steps = b.zeros(b.joined([b.size(x, 0), b.shape_of(zeros)]), x)
    else:
        of_steps = _of(b, g_steps, d, axis=1)
    of_lasts = tuple(zeros if g is None else _of(b, g, d) for g in g_lasts)
    step, back = CELLS[node.op]

    def forward(inner: Builder, before: Names, given: Names) -> tuple[Names, Names]:
        return step(inner, cell, before, given[0])

    def backward(inner: Builder, after: Names, given: Names) -> tuple[Names, Names]:
        before, of_outside = back(inner, cell, (inner.op("Add", after[0], given[0]), *after[1:]), given[1:])
        return before, (of_outside,)

    _, kept = b.scan(forward, states, (outside,), x, reverse=backwards)
    of_states, (of_outside,) = b.scan(backward, of_lasts, (of_steps, *kept), x, reverse=not backwards)
    return b.op("MatMul", of_outside, weights), of_states


def _of(b: Builder, stacked: str, d: int, axis: int = 0) -> str:
    """Pick the part of a stacked tensor that belongs to direction `d`."""
    return b.op("Gather", stacked, b.scalar(d), axis=axis)


def _cell(b: Builder, node: Node, d: int) -> tuple[str, _Cell]:
    """(the bias outside of the recurrence or "", the cell of direction `d`)."""
    x, hidden = node.inputs[0], b.shape(node.inputs[2])[2]
    rows = GATE_COUNT[node.op] * hidden
    names = [str(a).lower() for a in node.attrs.get("activations", ())]
    if node.op == "GRU":
        other = bool(node.attrs.get("linear_before_reset", 0))
    else:
        other = node.op == "RNN" and d < len(names) and names[d] == "relu"
    outer = inner = ""
    if node.input(3):
        both = _of(b, node.inputs[3], d)
        outer, inner = _piece(b, both, 0, 0, rows), _piece(b, both, 0, rows, rows)
        if node.op == "GRU" and other:
            gates, inner = _piece(b, inner, 0, 0, 2 * hidden), _piece(b, inner, 0, 2 * hidden, hidden)
            outer = b.op("Add", outer, b.joined([gates, b.zeros(b.ints(hidden), x)]))
        else:
            outer, inner = b.op("Add", outer, inner), ""
    peepholes: Names = ()
    if node.input(PEEPHOLES):
        peepholes = _parts(b, _of(b, node.inputs[PEEPHOLES], d), 0, hidden, 3)
    return outer, _Cell(_of(b, node.inputs[2], d), inner, peepholes, hidden, other, x)


def _piece(b: Builder, v: str, axis: int, start: int, size: int) -> str:
    return b.part(v, axis, b.ints(start), b.ints(size))


def _parts(b: Builder, v: str, axis: int, hidden: int, count: int) -> Names:
    return tuple(_piece(b, v, axis, k * hidden, hidden) for k in range(count))


def _sum(b: Builder, *terms: str) -> str:
    return b.op("Sum", *terms)


def _product(b: Builder, first: str, *rest: str) -> str:
    for factor in rest:
        first = b.op("Mul", first, factor)
    return first


def _times(b: Builder, h: str, matrix: str) -> str:
    """h · matrixᵀ."""
    return b.op("MatMul", h, b.op("Transpose", matrix, perm=[1, 0]))


def _one_minus(b: Builder, cell: _Cell, v: str) -> str:
    return b.op("Sub", b.number(1.0, cell.like), v)


def _sigmoid_slope(b: Builder, cell: _Cell, s: str) -> str:
    return _product(b, s, _one_minus(b, cell, s))


def _tanh_slope(b: Builder, cell: _Cell, t: str) -> str:
    return _one_minus(b, cell, _product(b, t, t))


def _lstm_step(b: Builder, cell: _Cell, states: Names, outside: str) -> tuple[Names, Names]:
    h, c = states
    i, o, f, g = _parts(b, b.op("Add", outside, _times(b, h, cell.recurrence)), 1, cell.hidden, 4)
    if cell.peepholes:
        i, f = (_sum(b, z, _product(b, cell.peepholes[k], c)) for z, k in ((i, 0), (f, 2)))
    i, f, g = b.op("Sigmoid", i), b.op("Sigmoid", f), b.op("Tanh", g)
    after = _sum(b, _product(b, f, c), _product(b, i, g))
    if cell.peepholes:
        o = _sum(b, o, _product(b, cell.peepholes[1], after))
    o, t = b.op("Sigmoid", o), b.op("Tanh", after)
    return (_product(b, o, t), after), (i, o, f, g, b.op("Identity", c), t)


def _lstm_back(b: Builder, cell: _Cell, of_states: Names, kept: Names) -> tuple[Names, str]:
    dh, dc = of_states
    i, o, f, g, c, t = kept
    do = _product(b, dh, t, _sigmoid_slope(b, cell, o))
    dc = _sum(b, dc, _product(b, dh, o, _tanh_slope(b, cell, t)))
    if cell.peepholes:
        dc = _sum(b, dc, _product(b, do, cell.peepholes[1]))
    di, df = _product(b, dc, g, _sigmoid_slope(b, cell, i)), _product(b, dc, c, _sigmoid_slope(b, cell, f))
    dz = b.op("Concat", di, do, df, _product(b, dc, i, _tanh_slope(b, cell, g)), axis=1)
    before = _product(b, dc, f)
    if cell.peepholes:
        before = _sum(b, before, _product(b, di, cell.peepholes[0]), _product(b, df, cell.peepholes[2]))
    return (b.op("MatMul", dz, cell.recurrence), before), dz


def _gru_weights(b: Builder, cell: _Cell) -> tuple[str, str]:
    """R of both gates, (2 H, H), and of the candidate, (H, H)."""
    n = cell.hidden
    return _piece(b, cell.recurrence, 0, 0, 2 * n), _piece(b, cell.recurrence, 0, 2 * n, n)


def _gru_step(b: Builder, cell: _Cell, states: Names, outside: str) -> tuple[Names, Names]:
    (h,), (gates, candidate) = states, _gru_weights(b, cell)
    inner = _parts(b, _times(b, h, gates), 1, cell.hidden, 2)
    *outer, n = _parts(b, outside, 1, cell.hidden, 3)
    u, r = (b.op("Sigmoid", b.op("Add", p, q)) for p, q in zip(outer, inner, strict=True))
    if cell.other:
        q = _times(b, h, candidate)
        q = b.op("Add", q, cell.bias) if cell.bias else q
        n = b.op("Tanh", b.op("Add", n, _product(b, r, q)))
    else:
        q = b.op("Identity", h)
        n = b.op("Tanh", b.op("Add", n, _times(b, _product(b, r, h), candidate)))
    after = _sum(b, _product(b, _one_minus(b, cell, u), n), _product(b, u, h))
    return (after,), (u, r, n, q, b.op("Identity", h))


def _gru_back(b: Builder, cell: _Cell, of_states: Names, kept: Names) -> tuple[Names, str]:
    """q, which r is multiplied with, is the state or the product h R_nᵀ + b'_n."""
    (dh,), (u, r, n, q, h), (gates, candidate) = of_states, kept, _gru_weights(b, cell)
    du = _product(b, dh, b.op("Sub", h, n), _sigmoid_slope(b, cell, u))
    dn = _product(b, dh, _one_minus(b, cell, u), _tanh_slope(b, cell, n))
    if cell.other:
        of_product = dn
        of_h = b.op("MatMul", _product(b, dn, r), candidate)
    else:
        of_product = b.op("MatMul", dn, candidate)
        of_h = _product(b, of_product, r)
    dr = _product(b, of_product, q, _sigmoid_slope(b, cell, r))
    of_gates = b.op("Concat", du, dr, axis=1)
    before = _sum(b, _product(b, dh, u), of_h, b.op("MatMul", of_gates, gates))
    return (before,), b.op("Concat", of_gates, dn, axis=1)


def _rnn_step(b: Builder, cell: _Cell, states: Names, outside: str) -> tuple[Names, Names]:
    after = b.op("Relu" if cell.other else "Tanh", b.op("Add", outside, _times(b, states[0], cell.recurrence)))
    return (after,), (b.op("Identity", after),)


def _rnn_back(b: Builder, cell: _Cell, of_states: Names, kept: Names) -> tuple[Names, str]:
    if cell.other:
        dz = b.masked(of_states[0], b.op("Greater", kept[0], b.number(0.0, cell.like)), cell.like)
    else:
        dz = _product(b, of_states[0], _tanh_slope(b, cell, kept[0]))
    return (b.op("MatMul", dz, cell.recurrence),), dz


CELLS: Mapping[str, tuple[Step, Back]] = {
    "LSTM": (_lstm_step, _lstm_back),
    "GRU": (_gru_step, _gru_back),
    "RNN": (_rnn_step, _rnn_back),
}
TABLE = dict.fromkeys(CELLS, recurrent)
