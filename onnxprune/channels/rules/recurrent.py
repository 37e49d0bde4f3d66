"""Recurrent nets: LSTM, GRU and RNN. A hidden unit of one direction is one label.

A unit owns its rows of W, R and the bias, one for each gate, its peepholes, its place in the state and the outputs,
and the column of R that reads it: that contraction takes place inside the operator. Rows are labelled over (direction,
gate, unit), so that each direction has units of its own; equally many of both directions stay. Activations, `clip` and
`input_forget` work on each unit alone.

The LSTM that quantizes what it reads at run time takes its scales from the least and the greatest number of the
sequence and of each state, between which it always puts 0. A unit whose weights are all zero keeps a state of 0 from
the first step to the last, so the scales are the same with that unit and without it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.channels.labels import Factor, Labels, along
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.trace import Linear, Rule, Trace
from onnxprune.graph.operators import GATE_COUNT, QUANTIZED_LSTM
from onnxprune.graph.view import Node

_DIRECTION = Reason("a direction of a recurrent net is not a channel", Remedy.NO_CHANNELS)
_NOT_ZERO = Reason(
    "its state is quantized over all units, and with an activation that is not 0 at 0 none goes without a trace",
    Remedy.QUANTIZE_LATER,
)
# Activations that are 0 at 0, whatever their parameters.
_THROUGH_ZERO = {"elu", "leakyrelu", "relu", "scaledtanh", "softsign", "tanh"}
_STEPS = Reason("a recurrent net needs every step of every sequence", Remedy.POSITIONS)


def recurrent(node: Node, t: Trace) -> None:
    """X (T, B, I), W (D, G H, I), R (D, G H, H), bias (D, 2 G H), initial states (D, B, H), peepholes (D, 3 H).

    Outputs Y (T, D, B, H), Y_h and Y_c (D, B, H). With layout 1 the batch axis leads in X, Y and the states.
    """
    w, r, bias = node.input(1), node.input(2), node.input(3)
    gates, batch_first = GATE_COUNT[node.op], bool(node.attrs.get("layout", 0))
    directions, _, hidden = t.shape(r)
    units = _units(node, t, directions, hidden)
    rows = np.tile(units, (1, gates))[:, :, None]
    columns = t.labels.fresh(t.shape(w)[2])
    _carry(w, {1: rows, 2: along(columns, 2, 3)}, node, t)
    _carry(r, {1: rows, 2: units[:, None, :]}, node, t)
    for name, repeats in ((bias, 2 * gates), (node.input(7), 3)):
        if name:
            _carry(name, {1: np.tile(units, (1, repeats))}, node, t)
    state = units[None, :, :] if batch_first else units[:, None, :]
    for name in (node.input(5), node.input(6)):
        if name:
            _carry(name, {2: state}, node, t, untracked=0 if batch_first else 1)
    tracked = _read_inputs(columns, node, t)
    t.read(node, 2, "inner", (2,))
    sequence = units[None, None, :, :] if batch_first else units[None, :, None, :]
    for name, place in zip(node.outputs, (sequence, state, state), strict=False):
        t.set(name, (place,))
    t.linears.append(Linear(node, node.input(0), w, bias, columns if tracked else None, rows.ravel()))


def quantized_lstm(node: Node, t: Trace) -> None:
    """DynamicQuantizeLSTM: as LSTM, with codes W (D, I, G H) and R (D, H, G H) and their scales in slots 8 to 11.

    A scale, as a zero point, is (D) or (D, G H).
    """
    w, r = node.input(1), node.input(2)
    directions, hidden, _ = t.shape(r)
    gates = GATE_COUNT["LSTM"]
    units = _units(node, t, directions, hidden)
    rows = np.tile(units, (1, gates))
    columns = t.labels.fresh(t.shape(w)[1])
    _carry(w, {2: rows[:, None, :], 1: along(columns, 1, 3)}, node, t)
    _carry(r, {2: rows[:, None, :], 1: units[:, :, None]}, node, t)
    for slot, repeats in ((3, 2 * gates), (7, 3)):
        if node.input(slot):
            _carry(node.input(slot), {1: np.tile(units, (1, repeats))}, node, t)
    for slot in range(8, 12):
        name = node.input(slot)
        if name and len(t.shape(name)) == 2 and t.shape(name)[1] > 1:
            _carry(name, {1: rows}, node, t)
    state = units[:, None, :]
    for slot in (5, 6):
        if node.input(slot):
            _carry(node.input(slot), {2: state}, node, t, untracked=1)
    names = [str(a).lower() for a in node.attrs.get("activations", ())]
    if any(k % 3 and n not in _THROUGH_ZERO for k, n in enumerate(names)):
        t.pin(r, [units[:, :, None]], node, _NOT_ZERO, axis=1)
    tracked = _read_inputs(columns, node, t, column_axis=1)
    for slot in (1, 2, 3, 5, 6, 7):
        if node.input(slot):
            t.read(node, slot, "state", range(len(t.shape(node.input(slot)))))
    for name, place in zip(node.outputs, (units[None, :, None, :], state, state), strict=False):
        t.set(name, (place,))
    t.linears.append(Linear(node, node.input(0), w, node.input(3), columns if tracked else None, rows.ravel()))


def _units(node: Node, t: Trace, directions: int, hidden: int) -> Labels:
    """Fresh labels of the hidden units, (D, H)."""
    units = t.labels.fresh(directions * hidden).reshape(directions, hidden)
    if hidden == 1:
        t.pin(node.input(2), [units[:, None, :]], node, Reason(f"{node.op} has no other hidden unit", Remedy.LAST))
    t.labels.balance(units)
    return units


def _carry(name: str, places: Mapping[int, Factor], node: Node, t: Trace, untracked: int | None = None) -> None:
    """Let an operand carry labels: axis → a factor that tracks it (and, for units, the directions on their axis).

    untracked: the batch axis.
    """
    if t.refine(name, tuple(places.values())):
        return
    shape, factors = t.shape(name), t.of(name)
    if untracked is not None:
        factors = t.untrack(name, factors, [untracked], node, _STEPS)
    for axis, place in places.items():
        carried = [f for f in factors if f.shape[axis] > 1]
        for f in carried:
            t.labels.unify(f, place)
        if not carried and shape[axis] > 1:
            t.pin(name, [place], node, t.untracked_reason(name, axis), axis)
    aside = [f for f in factors if all(f.shape[a] == 1 for a in places)]
    t.pin(name, aside, node, _DIRECTION, structural=True)


def _read_inputs(columns: Labels, node: Node, t: Trace, column_axis: int = 2) -> bool:
    """Couple the columns of W with the last axis of X; whether that carries channels."""
    x = node.input(0)
    channels = t.on_axis(x, t.untrack(x, t.of(x), (0, 1), node, _STEPS), 2, node)
    if channels is None:
        t.pin(node.input(1), [along(columns, column_axis, 3)], node, t.untracked_reason(x, 2), axis=column_axis)
        return False
    t.labels.unify(channels, columns)
    t.read(node, 0, "contraction", (2,))
    return True


TABLE: dict[str, Rule] = {**dict.fromkeys(GATE_COUNT, recurrent), f"com.microsoft.{QUANTIZED_LSTM}": quantized_lstm}
