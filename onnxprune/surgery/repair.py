"""Repair what names a size: one function per operator that writes channel counts or positions into the graph.

Every count comes from the labels that are kept, never from arithmetic on the old value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxprune.channels.rules.attention import head_count, pairs, rotated
from onnxprune.channels.rules.layout import pad_amounts, padded_axes
from onnxprune.channels.rules.sampling import resized_axes
from onnxprune.graph.operators import GATE_COUNT, OWN_ATTENTION, QUANTIZED_LSTM
from onnxprune.graph.view import Node
from onnxprune.numerics.arrays import Mask
from onnxprune.surgery import states
from onnxprune.surgery.bounds import slice_positions
from onnxprune.surgery.editing import Cut


def convolution(node: Any, view: Node, cut: Cut) -> None:
    """The group attribute follows the channels that are left."""
    groups = int(view.attrs.get("group", 1))
    if groups == 1:
        return
    weight = view.inputs[1]
    per_group = cut.sizes(weight).get(1, (cut.channels.graph.shape(weight) or ())[1])
    if view.op != "ConvTranspose":
        channels = cut.mask(view.inputs[0], 1)
        old = (cut.channels.graph.shape(view.inputs[0]) or ())[1]
    else:
        channels = cut.mask(view.outputs[0], 1)
        old = (cut.channels.graph.shape(view.outputs[0]) or ())[1]
    kept = old if channels is None else int(channels.sum())
    node.attrs["group"] = kept // per_group


def group_norm(node: Any, view: Node, cut: Cut) -> None:
    """Whole groups that are gone no longer count."""
    mask = cut.mask(view.inputs[0], 1)
    if mask is None:
        return
    rows = mask.reshape(int(view.attrs["num_groups"]), -1)
    if not rows.any(axis=1).all():
        node.attrs["num_groups"] = int(rows.any(axis=1).sum())


def hidden_size(node: Any, view: Node, cut: Cut) -> None:
    """Recurrent nets: as many hidden units as the recurrent weights have columns left."""
    kept = cut.sizes(view.inputs[2]).get(1 if view.op == QUANTIZED_LSTM else 2)
    if kept is not None:
        node.attrs["hidden_size"] = kept


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


def named_sizes(slot: int) -> Callable[[Any, Node, Cut], None]:
    """Repair of operators whose input at `slot` lists sizes of the axes in their attribute `axes`, else of all."""

    def repair(node: Any, view: Node, cut: Cut) -> None:
        owner = view.input(slot)
        axes = resized_axes(view, len(cut.channels.graph.shape(view.outputs[0]) or ()))
        new = {axes.index(a): s for a, s in cut.sizes(view.outputs[0]).items() if a in axes}
        if owner and new:
            cut.set_sizes(node, slot, owner, new)

    return repair


def squeeze_axes(node: Any, view: Node, cut: Cut) -> None:
    """Squeeze without axes: it must not take one on which a single channel is left, and takes others as before.

    Where one of those changes with the inputs, which ones go is known at run time only.
    """
    graph, x = cut.channels.graph, view.inputs[0]
    shape = graph.shape(x) or ()
    single = [a for a, s in cut.sizes(x).items() if s == 1]
    if "axes" in view.attrs or view.input(1) or not single:
        return
    if any(graph.is_free(x, a) for a in range(len(shape)) if a not in single):
        _reshape_by_sizes(node, view, cut, len(shape), single)
        return
    axes = [a for a, s in enumerate(shape) if s == 1]
    if graph.opset < 13:
        node.attrs["axes"] = axes
    else:
        node.inputs = [node.inputs[0], cut.constant(f"{view.outputs[0]}__axes", np.array(axes, np.int64))]


def _reshape_by_sizes(node: Any, view: Node, cut: Cut, rank: int, kept: Sequence[int]) -> None:
    """Make a Reshape of a Squeeze: to the sizes that are not 1, and those of the axes `kept`."""
    x, name = node.inputs[0], f"{view.outputs[0]}__left"
    above = np.full(rank, -1, np.int64)
    above[list(kept)] = 0
    sizes = cut.added("Shape", f"{name}_sizes", [x])
    beyond = cut.added("Add", f"{name}_beyond", [sizes, cut.constant(f"{name}_above", above)])
    places = cut.added("NonZero", f"{name}_places", [beyond])
    flat = cut.added("Reshape", f"{name}_flat", [places, cut.constant(f"{name}_all", np.array([-1], np.int64))])
    node.op = "Reshape"
    node.inputs = [x, cut.added("Gather", name, [sizes, flat], axis=0)]
    if cut.channels.graph.opset >= 14:
        node.attrs["allowzero"] = 1


def heads(node: Any, view: Node, cut: Cut) -> None:
    """Attention and LinearAttention: the heads that are left; the scale stays that of the original head size."""
    q = view.inputs[0]
    shape = cut.channels.graph.shape(q) or ()
    h = head_count(view, 0, len(shape), shape[1])
    size = shape[-1] // (h if len(shape) == 3 else 1)
    kept = _kept_by_head(cut, q, h)
    if kept.any(axis=0).sum() < size and not view.attrs.get("scale", 0.0):
        node.attrs["scale"] = float(size**-0.5)
    if len(shape) == 4:
        return
    node.attrs["q_num_heads"] = int(kept.any(axis=1).sum())
    keys = _kept_by_head(cut, view.inputs[1], int(view.attrs["kv_num_heads"]))
    node.attrs["kv_num_heads"] = int(keys.any(axis=1).sum())


def own_heads(node: Any, view: Node, cut: Cut) -> None:
    """Attention of onnxruntime's own domain: as many heads as are left in what it gives, (B, S, h d)."""
    out, count = view.outputs[0], int(view.attrs["num_heads"])
    kept = _kept_by_head(cut, out, count).any(axis=1)
    node.attrs["num_heads"] = int(kept.sum())
    if "kv_num_heads" in view.attrs:
        node.attrs["kv_num_heads"] = int(kept.reshape(int(view.attrs["kv_num_heads"]), -1).any(axis=1).sum())
        return
    query = view.inputs[0]
    size = (cut.channels.graph.shape(query) or ())[-1] // count
    if view.input(1) and _kept_by_head(cut, query, count).any(axis=0).sum() < size:
        node.attrs["scale"] = float(view.attrs.get("scale", 0.0)) or float(size**-0.5)


def _kept_by_head(cut: Cut, name: str, count: int) -> Mask:
    """Which positions of which heads stay, (heads, positions), of a tensor (B, h, S, d) or (B, S, h d)."""
    shape = cut.channels.graph.shape(name) or ()
    masks = [cut.mask(name, a) for a in range(len(shape))]
    whole: list[Mask] = [np.ones(s, bool) if k is None else k for k, s in zip(masks, shape, strict=True)]
    kept: Mask = whole[2].reshape(count, -1) if len(shape) == 3 else np.logical_and.outer(whole[1], whole[3])
    return kept


def rotary(node: Any, view: Node, cut: Cut) -> None:
    """RotaryEmbedding: the heads, and the rotated positions of each, that are left."""
    x = view.inputs[0]
    shape = cut.channels.graph.shape(x) or ()
    kept = _kept_by_head(cut, x, head_count(view, 0, len(shape), shape[1]))
    if len(shape) == 3:
        node.attrs["num_heads"] = int(kept.any(axis=1).sum())
    if view.attrs.get("rotary_embedding_dim", 0):
        turned = pairs(view, kept.shape[1])[: rotated(view, kept.shape[1]) // 2]
        node.attrs["rotary_embedding_dim"] = int(np.isin(turned, np.flatnonzero(kept.any(axis=0))).sum())


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


def gather_indices(node: Any, view: Node, cut: Cut) -> None:
    """Gather: constant indices in the numbering of what is left."""
    graph = cut.channels.graph
    state = graph.states.get(view.outputs[0])
    if state is not None:
        states.repair(node, state, cut)
        return
    indices = graph.constants.get(view.inputs[1])
    shape = graph.shape(view.inputs[0]) or ()
    axis = int(view.attrs.get("axis", 0)) % len(shape)
    mask = cut.mask(view.inputs[0], axis)
    if indices is None or mask is None:
        return
    flat = np.where(indices < 0, indices + shape[axis], indices)
    number = np.cumsum(mask) - 1
    if flat.ndim and sum(s > 1 for s in flat.shape) <= 1:
        new = number[flat[mask[flat]]].reshape([-1 if s > 1 or flat.ndim == 1 else 1 for s in flat.shape])
    else:
        new = number[flat]  # all that a scalar or a matrix of indices picks is kept
    node.inputs[1] = cut.constant(f"{view.outputs[0]}__indices", np.asarray(new).astype(indices.dtype))


def pad_counts(node: Any, view: Node, cut: Cut) -> None:
    """Pad: as many padded channels as are left; all other amounts stay as they are written."""
    graph = cut.channels.graph
    shape, axes = graph.shape(view.inputs[0]) or (), padded_axes(view, graph) or ()
    new: dict[int, int] = {}
    for place, (axis, (before, behind)) in enumerate((pad_amounts(view, graph) or {}).items()):
        mask = cut.mask(view.outputs[0], axis)
        if mask is None or before is None or behind is None or not (before or behind):
            continue
        new[place] = int(mask[:before].sum())
        new[place + len(axes)] = int(mask[before + shape[axis] :].sum())
    if not new:
        return
    if "pads" in view.attrs:
        node.attrs["pads"] = [new.get(p, v) for p, v in enumerate(view.attrs["pads"])]
        return
    cut.set_entries(node, 1, view.inputs[1], new, 2 * len(axes))


REPAIRS: dict[str, Callable[[Any, Node, Cut], None]] = {
    "Conv": convolution,
    "ConvTranspose": convolution,
    "GroupNormalization": group_norm,
    **dict.fromkeys((*GATE_COUNT, f"com.microsoft.{QUANTIZED_LSTM}"), hidden_size),
    "Reshape": reshape_target,
    "Expand": sizes_at(1),
    "Tile": sizes_at(1),
    "ConstantOfShape": sizes_at(0),
    "Resize": named_sizes(3),
    "CenterCropPad": named_sizes(1),
    "Squeeze": squeeze_axes,
    "Attention": heads,
    **dict.fromkeys(("LinearAttention", "com.microsoft.LinearAttention"), heads),
    **dict.fromkeys((f"com.microsoft.{op}" for op in OWN_ATTENTION), own_heads),
    "RotaryEmbedding": rotary,
    "DeformConv": convolution,
    "Split": split_sizes,
    "Slice": slice_positions,
    "Gather": gather_indices,
    "Pad": pad_counts,
}
