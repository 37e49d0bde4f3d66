"""Repair of Slice: only the axes that were cut get new bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxprune.channels.labels import as_array
from onnxprune.channels.rules.slicing import slice_bounds
from onnxprune.graph import surgeon
from onnxprune.graph.names import unused
from onnxprune.graph.view import Node
from onnxprune.numerics.arrays import Array
from onnxprune.surgery.editing import Cut

_TO_THE_END = np.iinfo(np.int64).max
_NAMES = {1: "starts", 2: "ends", 3: "axes", 4: "steps"}  # by input slot
_Bounds = tuple[int, int, int]  # start, end, step


def slice_positions(node: Any, view: Node, cut: Cut) -> None:
    """Slice: the bounds of an axis that was cut, in the numbering of what is left; all others stay as they are written.

    A Gather picks the positions where they are no longer evenly spaced.
    """
    graph, x = cut.channels.graph, view.inputs[0]
    shape, bounds = graph.shape(x) or (), slice_bounds(view, graph) or ()
    new: dict[int, _Bounds] = {}
    for place, b in enumerate(bounds):
        mask, kept = cut.mask(x, b.axis), b.positions(shape[b.axis])
        if mask is None or kept is None or kept == range(shape[b.axis]):
            continue  # "all of it" says so of fewer as well
        positions = as_array(kept)
        remaining = (np.cumsum(mask) - 1)[positions[mask[positions]]]
        progression = _progression(remaining)
        if progression is None:
            _insert_gather(node, cut, b.axis, remaining)
        new[place] = progression or (0, _TO_THE_END, 1)
    if not new:
        return
    if "starts" in view.attrs:
        for k, name in enumerate(("starts", "ends")):
            node.attrs[name] = [new[p][k] if p in new else v for p, v in enumerate(view.attrs[name])]
        return
    _write(node, view, cut, new, len(bounds))


def _write(node: Any, view: Node, cut: Cut, new: Mapping[int, _Bounds], count: int) -> None:
    """Replace some of `count` bounds, by their place; starts, ends, axes and steps have one type."""
    graph, out = cut.channels.graph, view.outputs[0]
    stored = {k: graph.constants.get(view.input(k)) for k in _NAMES}
    if not view.input(4) and any(step != 1 for _, _, step in new.values()):
        stored[4] = np.ones(count, np.int64)
    computed = any(view.input(k) and stored[k] is None for k in _NAMES)
    kind = np.dtype(np.int64) if computed or stored[1] is None else stored[1].dtype
    limits = np.iinfo(kind)
    for k, name in _NAMES.items():
        values = stored[k]
        entries = {1: 0, 2: 1, 4: 2}.get(k)
        some = {} if entries is None else {p: b[entries] for p, b in new.items()}
        while len(node.inputs) <= k and (values is not None or view.input(k)):
            node.inputs.append(surgeon.Variable.empty())
        if values is not None:
            values = values.astype(kind)
            for p, v in some.items():
                values[p] = np.clip(v, limits.min, limits.max)
            node.inputs[k] = cut.constant(f"{out}__{name}", values)
        elif view.input(k):
            # Of whatever type the vector is: its entries are joined with new ones as int64.
            wide = cut.added("Cast", f"{out}__{name}_wide", [node.inputs[k]], to=kind.type)
            node.inputs[k] = cut.joined(f"{out}__{name}", wide, some, count) if some else wide


def _progression(positions: Array) -> _Bounds | None:
    """(start, end, step) of evenly spaced positions, None where they are not."""
    if positions.size == 0:
        return 0, 0, 1
    if positions.size == 1:
        return int(positions[0]), int(positions[0]) + 1, 1
    steps = np.diff(positions)
    step = int(steps[0])
    if step == 0 or bool((steps != step).any()):
        return None
    end = int(positions[-1]) + (1 if step > 0 else -1)
    return int(positions[0]), end if end >= 0 else int(np.iinfo(np.int64).min), step


def _insert_gather(node: Any, cut: Cut, axis: int, positions: Array) -> None:
    out = surgeon.Variable(unused(f"{node.outputs[0].name}__picked{axis}", cut.taken))
    indices = cut.constant(f"{out.name}_indices", positions.astype(np.int64))
    gather = surgeon.GraphNode(
        "Gather", name=out.name, attrs={"axis": axis}, inputs=[node.inputs[0], indices], outputs=[out]
    )
    cut.editing.nodes.append(gather)
    node.inputs[0] = out
