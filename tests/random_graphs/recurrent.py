"""LSTM, GRU and RNN in one direction and in both, with the states and outputs that exporters write around them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import numpy_helper

from tests.random_graphs.build import Build, Dims, Live
from tests.random_graphs.layout import transpose
from tests.random_graphs.maker import Maker

_GATES: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "RNN": 1}
_SIGMOID = ("Sigmoid", "HardSigmoid")
_TANH = ("Tanh", "Softsign", "ScaledTanh")
_WIDTHS = (4, 6, 3, 8, 2, 5)


def _recurrent(b: Build, op: str) -> None:
    x = b.bounded(b.sequence())
    if b.chance(75):
        x = b.node("Transpose", [x], (x.dims[1], x.dims[0], x.dims[2]), hidden=True, perm=[1, 0, 2])
    steps, batch, inputs = x.dims
    assert isinstance(inputs, int)
    gates, hidden = _GATES[op], b.choice(_WIDTHS)
    attrs, directions = _attributes(b, op)
    state: Dims = (directions, batch, hidden)
    w = b.weight(directions, gates * hidden, inputs, fan=inputs)
    r = b.weight(directions, gates * hidden, hidden, fan=hidden)
    bias = b.weight(directions, 2 * gates * hidden) if b.chance(70) else ""
    operands: list[Live | str] = [x, w, r, bias, ""]
    first = _state(b, x, state)
    operands.append(first)
    if op == "LSTM":
        operands.append(first if first and b.chance(30) else _state(b, x, state))
        operands.append(b.weight(directions, 3 * hidden, fan=4) if b.chance(30) else "")
    while operands[-1] == "":
        operands.pop()
    outs = [b.out("y", (steps, directions, batch, hidden)), b.out("h", state)]
    if op == "LSTM":
        outs.append(b.out("c", state, peak=3.0))
    used = set(b.subset(range(len(outs))))
    shown = [o if i in used else None for i, o in enumerate(outs)]
    b.nodes_of(op, operands, shown[: max(used) + 1], hidden_size=hidden, **attrs)
    for i in sorted(used, reverse=True):
        _joined(b, outs[i], turned=bool(i == 0 and b.chance(60)))


def _attributes(b: Build, op: str) -> tuple[dict[str, object], int]:
    """(attributes, directions)."""
    attrs: dict[str, object] = {}
    direction = b.choice(("forward", "bidirectional", "bidirectional", "reverse"))
    if direction != "forward":
        attrs["direction"] = direction
    directions = 2 if direction == "bidirectional" else 1
    if b.chance(20):
        kinds = {"LSTM": (_SIGMOID, _TANH, _TANH), "GRU": (_SIGMOID, _TANH), "RNN": (_TANH,)}[op]
        attrs["activations"] = [b.choice(k) for _ in range(directions) for k in kinds]
    if b.chance(15):
        attrs["clip"] = 0.8
    if op == "LSTM" and b.chance(15):
        attrs["input_forget"] = 1
    if op == "GRU" and b.chance(50):
        attrs["linear_before_reset"] = 1
    return attrs, directions


def _state(b: Build, x: Live, dims: Dims) -> Live | str:
    """What an initial state comes from: nothing, zeros, a weight, one for all of the batch, or a layer."""
    way = b.below(6)
    directions, batch, hidden = dims
    assert isinstance(directions, int) and isinstance(hidden, int)
    if way < 2:
        return ""
    if way == 2:
        zero = numpy_helper.from_array(np.zeros(1, np.float32))
        return b.node("ConstantOfShape", [b.run_time(x, dims)], dims, hidden=True, value=zero)
    if way == 3 and isinstance(batch, int):
        return b.weight(directions, batch, hidden)
    if way == 4 and directions == 1:
        mean = b.reduced("ReduceMean", x, [0], (1, *x.dims[1:]), keepdims=1)
        return b.tame(b.linear(mean, 2, hidden), "bounded")
    row = b.weight(directions, 1, hidden)
    return b.node("Expand", [row, b.run_time(x, dims)], dims, hidden=True, peak=2.0)


def _joined(b: Build, t: Live, *, turned: bool) -> None:
    """An output as a tensor with the hidden units of all directions along its last axis; or as it is."""
    if b.chance(15):
        b.live.append(t)
        return
    axis = t.rank - 3  # of the directions
    directions, batch, hidden = t.dims[axis:]
    assert isinstance(directions, int) and isinstance(hidden, int)
    if directions == 1 and b.chance(70):
        y = b.axes_node("Squeeze", t, [axis], (*t.dims[:axis], batch, hidden), peak=t.peak)
    elif directions == 2 and b.chance(20):
        one = b.choice((0, 1, -1)) if b.opset >= 11 else b.choice((0, 1))
        y = b.node("Gather", [t, b.ints(one)], (*t.dims[:axis], batch, hidden), axis=axis)
    else:
        order = [*range(axis), axis + 1, axis, axis + 2]
        moved = transpose(b, t, order)
        y = b.reshape(moved, (*t.dims[:axis], batch, directions * hidden))
    if turned:
        transpose(b, y, [1, 0, 2])


MAKERS: Mapping[str, Maker] = {op: Maker(_recurrent) for op in _GATES}
