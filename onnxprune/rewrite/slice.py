"""Slice every weight along its labelled axes, then repair what names a size (`repair`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune import model as m
from onnxprune import storage
from onnxprune.channels import ChannelGraph
from onnxprune.channels.labels import tracked_axes
from onnxprune.graph import Array, cast
from onnxprune.rewrite.repair import REPAIRS, Cut


def cut(proto: onnx.ModelProto, channels: ChannelGraph, keep: NDArray[np.bool_]) -> onnx.ModelProto:
    """A copy of the normalised model `proto` without the classes that `keep` (classes,) marks False.

    Weights of the result have the shapes that the kept labels give; input and output declarations do not change.
    Raises ValueError where an axis would lose all its positions (see `ChannelGraph.needed`).
    """
    emptied = channels.emptied(keep)
    if emptied:
        tensor, axis = emptied[0]
        raise ValueError(f"axis {axis} of {tensor!r} would keep no channel ({len(emptied)} such axes)")
    graph = m.to_gs(proto)
    tensors = graph.tensors()
    for name, factors in channels.factors.items():
        if name not in channels.graph.constants:
            continue
        masks = [(tracked_axes(f)[0], keep[f.ravel()]) for f in factors]
        shrinking = [(axis, mask) for axis, mask in masks if not mask.all()]
        if not shrinking:
            continue  # also what only the bodies of an If, Loop or Scan read, which `tensors` does not list
        values = m.values_of(tensors[name])
        for axis, mask in shrinking:
            values = np.compress(mask, values, axis=axis)
        m.set_values(tensors[name], values)
    context = Cut(channels, keep, graph, tensors)
    for node, view in zip(list(graph.nodes), channels.graph.nodes, strict=True):
        repair = REPAIRS.get(view.op) if view.domain == "" else None
        if repair is not None:
            repair(node, view, context)
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    return _with_inferred_types(m.from_gs(graph, proto))


def _with_inferred_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto)
    except Exception:  # noqa: BLE001  only annotations are missing then; `verify` runs the strict inference
        return proto


def set_initializers(proto: onnx.ModelProto, values: Mapping[str, Array]) -> None:
    """Replace initializers in place by arrays of the same size, stored in the model's own type and way."""
    for t in proto.graph.initializer:
        if t.name in values:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(t.data_type)
            array = cast(np.asarray(values[t.name]).reshape(tuple(t.dims)), dtype)
            t.CopyFrom(storage.tensor_of(array, t.name, outside=storage.is_external(t)))


def replace_initializers(proto: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """As `set_initializers`, on a copy."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    set_initializers(result, values)
    return result


def drop_zero_biases(proto: onnx.ModelProto, added: Collection[str]) -> None:
    """Take back, in place, the biases that normalisation added and that are still zero."""
    zero = {t.name for t in proto.graph.initializer if t.name in added and not storage.array_of(t).any()}
    for n in proto.graph.node:
        if len(n.input) == 3 and n.input[2] in zero:
            del n.input[2:]
    kept = [t for t in proto.graph.initializer if t.name not in zero]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def merge_equal_clones(proto: onnx.ModelProto, clones: Mapping[str, str]) -> None:
    """Share again, in place, the copies that normalisation made and that ended equal to their original."""
    stored = {t.name: t for t in proto.graph.initializer}
    outer = {c for n in proto.graph.node for c in m.captured_names(n)} | {o.name for o in proto.graph.output}
    alias: dict[str, str] = {}
    for copy, origin in clones.items():
        if copy in stored and origin in stored and copy not in outer:
            a, b = stored[copy], stored[origin]
            if a.dims == b.dims and storage.array_of(a).tobytes() == storage.array_of(b).tobytes():
                alias[copy] = origin
    for n in proto.graph.node:
        for i, name in enumerate(n.input):
            n.input[i] = alias.get(name, name)
    kept = [t for t in proto.graph.initializer if t.name not in alias]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
