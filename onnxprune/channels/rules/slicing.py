"""Slice: the positions that stay on each axis, as far as its bounds are known.

Bounds may be constants, or vectors of which some entries are computed at run time: those of an axis without channels
are nobody's business here, and stay as they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.labels import as_ints, axis_in, take, tracked_axes
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.trace import Rule, Trace
from onnxprune.graph.view import Graph, Node


@dataclass(frozen=True)
class Bounds:
    """What a Slice writes for one axis; None for what is computed at run time."""

    axis: int
    start: int | None
    end: int | None
    step: int | None

    def positions(self, size: int) -> range | None:
        """Which of `size` positions stay: bounds count from the end where negative, then are clamped.

        None where they are not known.
        """
        if self.start is None or self.end is None or not self.step:
            return None
        first, last = (v + size if v < 0 else v for v in (self.start, self.end))
        low, high = (0, size) if self.step > 0 else (-1, size - 1)
        return range(min(max(first, 0), high), min(max(last, low), high), self.step)


def slice_bounds(node: Node, graph: Graph) -> tuple[Bounds, ...] | None:
    """The bounds of a Slice in the order in which it lists them; None where its axes are not known."""
    shape = graph.shape(node.inputs[0])
    if shape is None:
        return None
    starts: tuple[int | None, ...] | None
    ends: tuple[int | None, ...] | None
    steps: tuple[int | None, ...] | None = None
    axes: tuple[int, ...] | None = None
    if "starts" in node.attrs:
        starts, ends = as_ints(node.attrs["starts"]), as_ints(node.attrs["ends"])
        axes = as_ints(node.attrs["axes"]) if "axes" in node.attrs else None
    else:
        starts, ends = _entries(node.input(1), graph), _entries(node.input(2), graph)
        steps = _entries(node.input(4), graph) if node.input(4) else None
        if node.input(3):
            axes = graph.ints(node.input(3))
            if axes is None:
                return None
    listed = next((v for v in (axes, starts, ends, steps) if v is not None), None)
    if listed is None:
        return None
    count = len(listed)
    axes = tuple(range(count)) if axes is None else axes
    loose: tuple[int | None, ...] = (None,) * count
    if steps is None:
        steps = loose if node.input(4) else (1,) * count
    columns = (axes, starts or loose, ends or loose, steps)
    if any(len(c) != count for c in columns):
        return None
    rows = zip(*columns, strict=True)
    return tuple(Bounds(axis_in(a or 0, len(shape)), start, end, step) for a, start, end, step in rows)


def _entries(name: str, graph: Graph) -> tuple[int | None, ...] | None:
    """What is known of a vector of bounds; where only its length is, an entry None for each."""
    entries = graph.entries(name)
    shape = graph.shape(name)
    return (None,) * shape[0] if entries is None and shape else entries


def kept_positions(node: Node, graph: Graph) -> Mapping[int, range | None] | None:
    """axis → the positions that a Slice keeps, None where that axis is cut at run time; None where the axes are."""
    bounds, shape = slice_bounds(node, graph), graph.shape(node.inputs[0])
    return None if bounds is None or shape is None else {b.axis: b.positions(shape[b.axis]) for b in bounds}


def slice_(node: Node, t: Trace) -> None:
    """Slice: the labels at the kept positions; an axis that is cut at run time stays."""
    x, out = node.input(0), node.outputs[0]
    rank = len(t.shape(x))
    kept = kept_positions(node, t.graph)
    cut_at_run_time = range(rank) if kept is None else [a for a, positions in kept.items() if positions is None]
    why = Reason("the bounds of Slice are computed at run time", Remedy.RUN_TIME)
    factors = t.untrack_free(x, t.untrack(x, t.of(x), list(cut_at_run_time), node, why), list(kept or ()), node)
    for axis, positions in (kept or {}).items():
        if positions is None:
            continue
        for f in factors:
            first = min(positions[0], positions[-1]) if positions else 0
            if f.shape[axis] == 1 or len(tracked_axes(f)) == 1:
                continue
            if len(positions) == 1:
                # One of several rows (queries, keys and values, say), each with channels of its own: the rows stay.
                t.labels.balance(np.moveaxis(f, axis, 0).reshape(f.shape[axis], -1))
            elif first > 0:
                # Where each row keeps channels of its own, the bounds must fall on the same place in each.
                rows = np.moveaxis(f, axis, -1).reshape(-1, f.shape[axis])
                t.labels.balance(rows[:, :first], unless=rows)
        factors = take(factors, axis, positions)
    t.set(out, factors)


TABLE: dict[str, Rule] = {"Slice": slice_}
