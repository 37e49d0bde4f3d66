"""Repair what names a size: one function per operator that writes channel counts or positions into the graph.

Every count comes from the labels that are kept, never from arithmetic on the old value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxprune.channels import ChannelGraph
from onnxprune.channels.labels import rows_of
from onnxprune.channels.rules.layout import pad_amounts, slice_bounds
from onnxprune.graph import Array, Node

Mask = NDArray[np.bool_]
_TO_THE_END = np.iinfo(np.int64).max


@dataclass(eq=False)
class Cut:
    """One rewriting: the channel graph, the kept classes, and the graph being edited."""

    channels: ChannelGraph
    keep: Mask
    editing: Any
    tensors: dict[str, Any]

    def mask(self, tensor: str, axis: int) -> Mask | None:
        """Which positions of an axis stay, (n,); None where the axis carries no labels or loses none.

        Where each row of the tensor has channels of its own, those of the first row: the others keep equally many,
        before and behind every place where the graph cuts the axis.
        """
        factor = self.channels.axis_factor(tensor, axis)
        if factor is None or bool(self.keep[factor].all()):
            return None
        kept: Mask = self.keep[rows_of(factor)[0]]
        return kept

    def sizes(self, tensor: str) -> dict[int, int]:
        """axis → new size, for every axis that shrinks."""
        rank = len(self.channels.graph.shape(tensor) or ())
        masks = {a: self.mask(tensor, a) for a in range(rank)}
        return {a: int(k.sum()) for a, k in masks.items() if k is not None}

    def constant(self, name: str, values: Array) -> Any:
        """A new initializer of the graph being edited."""
        # Not np.ascontiguousarray: that turns a scalar into a vector.
        return gs.Constant(_unused(name, self.tensors), np.array(values, order="C"))

    def set_sizes(self, node: Any, slot: int, owner: str, new: dict[int, int], offset: int = 0) -> None:
        """Write new sizes into the size tensor at `slot`, be it constant or computed at run time."""
        old = self.channels.graph.constants.get(owner)
        if old is not None:
            values = old.copy()
            for axis, size in new.items():
                if axis - offset >= 0 and values[axis - offset] >= 0:
                    values[axis - offset] = size
            node.inputs[slot] = self.constant(f"{owner}_kept", values)
            return
        known = self.channels.graph.known_values[owner]
        fixed = np.zeros(len(known), bool)
        sizes = np.zeros(len(known), np.int64)
        for axis, size in new.items():
            if axis - offset >= 0:
                fixed[axis - offset], sizes[axis - offset] = True, size
        out = gs.Variable(_unused(f"{node.outputs[0].name}__sizes_kept", self.tensors), dtype=np.int64)
        self.tensors[out.name] = out
        where = gs.Node(
            "Where",
            name=out.name,
            inputs=[
                self.constant(f"{out.name}_axes", fixed),
                self.constant(f"{out.name}_values", sizes),
                node.inputs[slot],
            ],
            outputs=[out],
        )
        self.editing.nodes.append(where)
        node.inputs[slot] = out


def _unused(name: str, taken: dict[str, Any]) -> str:
    candidate, n = name, 1
    while candidate in taken:
        candidate, n = f"{name}_{n}", n + 1
    taken[candidate] = None
    return candidate


def convolution(node: Any, view: Node, cut: Cut) -> None:
    """The group attribute follows the channels that are left."""
    groups = int(view.attrs.get("group", 1))
    if groups == 1:
        return
    weight = cut.tensors[view.inputs[1]].values
    if view.op == "Conv":
        channels = cut.mask(view.inputs[0], 1)
        old = (cut.channels.graph.shape(view.inputs[0]) or ())[1]
    else:
        channels = cut.mask(view.outputs[0], 1)
        old = (cut.channels.graph.shape(view.outputs[0]) or ())[1]
    kept = old if channels is None else int(channels.sum())
    node.attrs["group"] = kept // int(weight.shape[1])


def group_norm(node: Any, view: Node, cut: Cut) -> None:
    """Whole groups that are gone no longer count."""
    mask = cut.mask(view.inputs[0], 1)
    if mask is None:
        return
    rows = mask.reshape(int(view.attrs["num_groups"]), -1)
    if not rows.any(axis=1).all():
        node.attrs["num_groups"] = int(rows.any(axis=1).sum())


def reshape_target(node: Any, view: Node, cut: Cut) -> None:
    """Reshape: entries of the target on axes that shrink; a 0 copies the input's size, which may be another one now."""
    graph = cut.channels.graph
    owner, shape, after = view.inputs[1], graph.shape(view.inputs[0]) or (), graph.shape(view.outputs[0]) or ()
    new, before = cut.sizes(view.outputs[0]), cut.sizes(view.inputs[0])
    if not new and not before:
        return
    entries = graph.ints(owner) or graph.known_values.get(owner, ())
    for axis, entry in enumerate(entries):
        if entry == 0 and not view.attrs.get("allowzero", 0):
            wanted = new.pop(axis, after[axis])
            if before.get(axis, shape[axis]) != wanted:
                new[axis] = wanted
    if new:
        cut.set_sizes(node, 1, owner, new)


def sizes_at(slot: int) -> Callable[[Any, Node, Cut], None]:
    """Repair of operators whose input at `slot` lists the output's sizes, aligned at the last axis."""

    def repair(node: Any, view: Node, cut: Cut) -> None:
        owner = view.input(slot)
        new = cut.sizes(view.outputs[0])
        if not owner or not new:
            return
        graph = cut.channels.graph
        entries = graph.ints(owner) or graph.known_values.get(owner, ())
        offset = len(graph.shape(view.outputs[0]) or ()) - len(entries)
        # An entry of 1 takes the size from the other input, and shrinks with it.
        new = {a: s for a, s in new.items() if a >= offset and (entries[a - offset] or 0) > 1}
        if new:
            cut.set_sizes(node, slot, owner, new, offset)

    return repair


def split_sizes(node: Any, view: Node, cut: Cut) -> None:
    """Split: each output keeps what is left of its share."""
    graph = cut.channels.graph
    shape = graph.shape(view.inputs[0]) or ()
    axis = int(view.attrs.get("axis", 0)) % len(shape)
    if cut.mask(view.inputs[0], axis) is None:
        return
    sizes = [cut.sizes(o).get(axis, (graph.shape(o) or ())[axis]) for o in view.outputs]
    node.attrs.pop("num_outputs", None)
    if graph.opset < 13:
        node.attrs["split"] = sizes
    else:
        node.inputs = [node.inputs[0], cut.constant(f"{view.outputs[0]}__split", np.array(sizes, np.int64))]


def slice_positions(node: Any, view: Node, cut: Cut) -> None:
    """Slice: bounds in the numbering of what is left; a Gather where they are no longer evenly spaced."""
    graph = cut.channels.graph
    shape = graph.shape(view.inputs[0]) or ()
    masks = {a: cut.mask(view.inputs[0], a) for a in range(len(shape))}
    if all(k is None for k in masks.values()):
        return
    kept = slice_bounds(view, shape, graph.ints)
    if kept is None:
        return
    starts, ends, axes, steps = [], [], [], []
    for axis, positions in kept.items():
        mask = masks[axis]
        remaining = positions if mask is None else (np.cumsum(mask) - 1)[positions[mask[positions]]]
        bounds = _progression(remaining)
        if bounds is None:
            _insert_gather(node, cut, axis, remaining)
            bounds = (0, _TO_THE_END, 1)
        starts.append(bounds[0])
        ends.append(bounds[1])
        steps.append(bounds[2])
        axes.append(axis)
    if graph.opset < 10:
        node.attrs.update(starts=starts, ends=ends, axes=axes)
        return
    out = view.outputs[0]
    named = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    node.inputs = [node.inputs[0], *(cut.constant(f"{out}__{k}", np.array(v, np.int64)) for k, v in named.items())]


def _progression(positions: Array) -> tuple[int, int, int] | None:
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
    out = gs.Variable(_unused(f"{node.outputs[0].name}__picked{axis}", cut.tensors))
    indices = cut.constant(f"{out.name}_indices", positions.astype(np.int64))
    gather = gs.Node("Gather", name=out.name, attrs={"axis": axis}, inputs=[node.inputs[0], indices], outputs=[out])
    cut.editing.nodes.append(gather)
    node.inputs[0] = out


def gather_indices(node: Any, view: Node, cut: Cut) -> None:
    """Gather: constant indices in the numbering of what is left."""
    graph = cut.channels.graph
    indices = graph.constants.get(view.inputs[1])
    shape = graph.shape(view.inputs[0]) or ()
    axis = int(view.attrs.get("axis", 0)) % len(shape)
    mask = cut.mask(view.inputs[0], axis)
    if indices is None or mask is None:
        return
    flat = np.where(indices < 0, indices + shape[axis], indices)
    number = np.cumsum(mask) - 1
    # All that a scalar or a matrix of indices picks is kept.
    new = number[flat[mask[flat]]] if flat.ndim == 1 else number[flat]
    node.inputs[1] = cut.constant(f"{view.outputs[0]}__indices", np.asarray(new).astype(indices.dtype))


def pad_counts(node: Any, view: Node, cut: Cut) -> None:
    """Pad: as many padded channels as are left."""
    graph = cut.channels.graph
    shape = graph.shape(view.inputs[0]) or ()
    amounts = pad_amounts(view, len(shape), graph.ints)
    if amounts is None:
        return
    before, after = amounts
    changed = False
    for axis in range(len(shape)):
        mask = cut.mask(view.outputs[0], axis)
        if mask is None or not (before[axis] or after[axis]):
            continue
        end = before[axis] + shape[axis]
        before[axis], after[axis] = mask[: before[axis]].sum(), mask[end:].sum()
        changed = True
    if not changed:
        return
    pads = np.concatenate([before, after])
    if "pads" in view.attrs:
        node.attrs["pads"] = [int(p) for p in pads]
        return
    node.inputs[1] = cut.constant(f"{view.outputs[0]}__pads", pads)
    if len(node.inputs) > 3:
        node.inputs = node.inputs[:3]


REPAIRS: dict[str, Callable[[Any, Node, Cut], None]] = {
    "Conv": convolution,
    "ConvTranspose": convolution,
    "GroupNormalization": group_norm,
    "Reshape": reshape_target,
    "Expand": sizes_at(1),
    "Tile": sizes_at(1),
    "ConstantOfShape": sizes_at(0),
    "Resize": sizes_at(3),
    "Split": split_sizes,
    "Slice": slice_positions,
    "Gather": gather_indices,
    "Pad": pad_counts,
}
