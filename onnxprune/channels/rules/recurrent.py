"""Recurrent nets: LSTM, GRU and RNN. A hidden unit of one direction is one label.

A unit owns its rows of W, R and the bias, one for each gate, its peepholes, its place in the state and the outputs,
and the column of R that reads it: that contraction takes place inside the operator. Rows are labelled over (direction,
gate, unit), so that each direction has units of its own; equally many of both directions stay. Activations, `clip` and
`input_forget` work on each unit alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.channels.labels import Factor, Labels, along
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.trace import Linear, Rule, Trace
from onnxprune.graph.operators import GATE_COUNT
from onnxprune.graph.view import Node

_DIRECTION = Reason("a direction of a recurrent net is not a channel", Remedy.NO_CHANNELS)
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


def _read_inputs(columns: Labels, node: Node, t: Trace) -> bool:
    """Couple the columns of W with the last axis of X; whether that carries channels."""
    x = node.input(0)
    channels = t.on_axis(x, t.untrack(x, t.of(x), (0, 1), node, _STEPS), 2, node)
    if channels is None:
        t.pin(node.input(1), [along(columns, 2, 3)], node, t.untracked_reason(x, 2), axis=2)
        return False
    t.labels.unify(channels, columns)
    t.read(node, 0, "contraction", (2,))
    return True


TABLE: dict[str, Rule] = dict.fromkeys(GATE_COUNT, recurrent)
