"""Slice every weight along its labelled axes, then repair what names a size (`repair`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx

from onnxprune.channels import ChannelGraph
from onnxprune.channels.branches import left_of
from onnxprune.channels.labels import rows_of, tracked_axes
from onnxprune.graph import bodies, external, surgeon, tensor_files
from onnxprune.graph.protobuf import copied
from onnxprune.graph.view import Node
from onnxprune.numerics.arrays import Array, Mask, cast
from onnxprune.surgery.branches import broadcastable, take_out
from onnxprune.surgery.editing import Cut
from onnxprune.surgery.repair import REPAIRS


def cut(proto: onnx.ModelProto, channels: ChannelGraph, keep: Mask) -> onnx.ModelProto:
    """A copy of the normalised model `proto` without the classes that `keep` (classes,) marks False.

    Weights of the result have the shapes that the kept labels give; input and output declarations do not change. All
    weights lie in the main graph, those of bodies too (see `bodies.return_to_bodies`).
    A branch of which no channel stays disappears (see `channels.branches`). Raises ValueError where an axis would lose
    all its positions and is no such branch (see `ChannelGraph.needed`).
    """
    left = left_of(channels, keep)
    if left is None:
        emptied = channels.emptied(keep)
        tensor, axis = emptied[0]
        raise ValueError(f"axis {axis} of {tensor!r} would keep no channel ({len(emptied)} such axes)")
    whole = copied(proto)
    names = {*channels.graph.shapes, *channels.graph.constants}
    names.update(o for n in channels.graph.every_node for o in n.outputs)
    nodes = take_out(whole, channels, left, keep, names) if left.gone else channels.graph.nodes
    _cut_weights(whole, channels, keep)
    broadcastable(whole, channels, left)
    whole = _repaired(whole, nodes, channels, keep, names)
    _declare_sizes(whole, channels, keep)
    return _with_inferred_types(whole)


def _cut_weights(proto: onnx.ModelProto, channels: ChannelGraph, keep: Mask) -> None:
    """Take from every weight, in place, the positions that do not stay."""
    for t in proto.graph.initializer:
        shrinking = [mask for mask in (keep[f] for f in channels.factors.get(t.name, ())) if not mask.all()]
        if not shrinking:
            continue
        values = external.array_of(t)
        # Rows with channels of their own first: they are as long as before.
        for mask in sorted(shrinking, key=lambda mask: mask.shape.count(1)):
            values = _without(values, mask)
        t.CopyFrom(tensor_files.tensor_of(np.ascontiguousarray(values), t.name, outside=external.is_external(t)))


def _repaired(
    proto: onnx.ModelProto,
    nodes: Sequence[Node | None],
    channels: ChannelGraph,
    keep: Mask,
    names: set[str],
) -> onnx.ModelProto:
    """A graph, whose weights are cut already, with its sizes repaired, those of its bodies first.

    nodes: those of the original, None for what names no size. names: all names of the model, which new tensors keep
    clear of.
    """
    stored = bodies.weights_of(proto)
    for node, view in zip(proto.graph.node, nodes, strict=True):
        for (_, body), inside in zip(bodies.bodies_of(node), view.bodies if view is not None else (), strict=True):
            edited = _repaired(bodies.as_model(proto, body, stored), inside.nodes, channels, keep, names)
            bodies.put_back(proto, body, edited, stored)
    graph = surgeon.to_gs(proto)
    names.update(graph.tensors())
    context = Cut(channels, keep, graph, names)
    for node, view in zip(list(graph.nodes), nodes, strict=True):
        repair = None if view is None else REPAIRS.get(f"{view.domain}.{view.op}" if view.domain else view.op)
        if view is not None and repair is not None:
            repair(node, view, context)
    surgeon.remove_unused(graph).toposort()
    return surgeon.from_gs(graph, proto)


def _without(values: Array, keep: Mask) -> Array:
    """`values` where `keep` (its shape, 1 on axes that it does not track) is True.

    Over several axes, every row keeps equally many positions of the last one.
    """
    *rows, column = (a for a, s in enumerate(keep.shape) if s > 1)
    if not rows:
        return np.compress(keep.ravel(), values, axis=column)
    moved = np.moveaxis(values, (*rows, column), range(len(rows) + 1))
    mask = np.moveaxis(keep, (*rows, column), range(len(rows) + 1)).reshape(moved.shape[: len(rows) + 1])
    per_row = mask.sum(axis=-1)
    if (per_row != per_row.flat[0]).any():
        raise ValueError("rows of a balanced set would keep different numbers of channels")
    kept = moved[mask].reshape(*moved.shape[: len(rows)], -1, *moved.shape[len(rows) + 1 :])
    return np.moveaxis(kept, range(len(rows) + 1), (*rows, column))


def _declare_sizes(proto: onnx.ModelProto, channels: ChannelGraph, keep: Mask) -> None:
    """Write the new sizes, in place, where bodies declare the shapes of their inputs and outputs."""
    for body in bodies.every_body(proto.graph):
        del body.value_info[:]
        for v in (*body.input, *body.output):
            dims = v.type.tensor_type.shape.dim
            for f in channels.factors.get(v.name, ()):
                axis, kept = tracked_axes(f)[-1], keep[rows_of(f)[0]]
                if not keep[f].all() and axis < len(dims):
                    dims[axis].dim_value = int(kept.sum())


def _with_inferred_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except Exception:  # noqa: BLE001  only annotations are missing then; `verify` runs the strict inference
        return proto
    # The inference also writes sizes into the outputs' declarations, which are not ours to change.
    del inferred.graph.output[:]
    inferred.graph.output.extend(proto.graph.output)
    return inferred


def set_initializers(proto: onnx.ModelProto, values: Mapping[str, Array]) -> None:
    """Replace initializers in place by arrays of the same size, stored in the model's own type and way."""
    for t in proto.graph.initializer:
        if t.name in values:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(t.data_type)
            array = cast(np.asarray(values[t.name]).reshape(tuple(t.dims)), dtype)
            t.CopyFrom(tensor_files.tensor_of(array, t.name, outside=external.is_external(t)))


def replace_initializers(proto: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of the model with initializers replaced as `set_initializers` does."""
    result = copied(proto)
    set_initializers(result, values)
    return result


def take_initializers(proto: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Replace initializers in place by those of the same names in another model, be they in files: nothing is read."""
    stored = {t.name: t for t in other.graph.initializer}
    for t in proto.graph.initializer:
        if t.name in stored:
            t.CopyFrom(stored[t.name])


def drop_zero_biases(proto: onnx.ModelProto, added: Collection[str]) -> None:
    """Take back, in place, the biases that normalisation added and that are still zero."""
    zero = {t.name for t in proto.graph.initializer if t.name in added and not external.array_of(t).any()}
    for n in proto.graph.node:
        if len(n.input) == 3 and n.input[2] in zero:
            del n.input[2:]
    read = {i for n in bodies.every_node(proto.graph) for i in n.input}
    kept = [t for t in proto.graph.initializer if t.name not in zero or t.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def merge_equal_clones(proto: onnx.ModelProto, clones: Mapping[str, str]) -> None:
    """Share again, in place, the copies that normalisation made and that ended equal to their original."""
    stored = {t.name: t for t in proto.graph.initializer}
    returned = {o.name for g in (proto.graph, *bodies.every_body(proto.graph)) for o in g.output}
    alias: dict[str, str] = {}
    for copy, origin in clones.items():
        if copy in stored and origin in stored and copy not in returned:
            a, b = stored[copy], stored[origin]
            if a.dims == b.dims and external.array_of(a).tobytes() == external.array_of(b).tobytes():
                alias[copy] = origin
    for n in bodies.every_node(proto.graph):
        for i, name in enumerate(n.input):
            n.input[i] = alias.get(name, name)
    kept = [t for t in proto.graph.initializer if t.name not in alias]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
