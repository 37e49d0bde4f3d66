"""Slice every weight along its labelled axes, then repair what names a size (`repair`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune import model as m
from onnxprune.channels import ChannelGraph
from onnxprune.channels.labels import tracked_axes
from onnxprune.graph import Array
from onnxprune.rewrite.repair import REPAIRS, Cut


def cut(proto: onnx.ModelProto, channels: ChannelGraph, keep: NDArray[np.bool_]) -> onnx.ModelProto:
    """A copy of the normalised model `proto` without the classes that `keep` (classes,) marks False.

    Weights of the result have the shapes that the kept labels give; input and output declarations do not change.
    """
    graph = m.to_gs(proto)
    tensors = graph.tensors()
    for name, factors in channels.factors.items():
        if name not in channels.graph.constants:
            continue
        values = channels.graph.constants[name]
        changed = False
        for f in factors:
            (axis,) = tracked_axes(f)
            mask = keep[f.ravel()]
            if not mask.all():
                values = np.compress(mask, values, axis=axis)
                changed = True
        if changed:
            tensors[name].values = np.ascontiguousarray(values)
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


def replace_initializers(proto: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy with some initializers replaced by arrays of the same shape, stored in the model's own type."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for t in result.graph.initializer:
        if t.name in values:
            old = onnx.numpy_helper.to_array(t)
            t.CopyFrom(onnx.numpy_helper.from_array(np.asarray(values[t.name]).reshape(old.shape).astype(old.dtype), t.name))
    return result
