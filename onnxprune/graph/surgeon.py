"""The bridge between protobuf and onnx-graphsurgeon."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune.graph import bodies, external
from onnxprune.numerics.arrays import Array

# What surgery builds with.
Constant: Any = gs.Constant
Variable: Any = gs.Variable
GraphNode: Any = gs.Node
# It warns of every bfloat16 tensor that numpy has no type for it; the tensor stays as it is.
G_LOGGER.severity = G_LOGGER.ERROR

_TYPE_KINDS = (onnx.AttributeProto.TYPE_PROTO, onnx.AttributeProto.TYPE_PROTOS)


def to_gs(proto: onnx.ModelProto) -> Any:
    """onnx-graphsurgeon's editable graph of a model; what bodies capture shows as further inputs of their node.

    Bodies themselves are edited as models of their own (see `bodies.rewritten`).
    """
    flat = bodies.hollowed(proto)
    declared = (*flat.graph.input, *flat.graph.output, *flat.graph.value_info)
    if any(not v.type.HasField("tensor_type") for v in declared):
        # It cannot write optional values, and loses part of what sequences declare.
        proto, flat = flat, onnx.ModelProto()
        flat.CopyFrom(proto)
        for v in (*flat.graph.input, *flat.graph.output, *flat.graph.value_info):
            if not v.type.HasField("tensor_type"):
                v.ClearField("type")
    graph = gs.import_onnx(flat)
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant):
            _leave_in_file(tensor)
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Constant):
                _leave_in_file(value)
    return graph


def remove_unused(graph: Any) -> Any:
    """Remove, in place, nodes that no output needs; graph inputs stay. The graph itself.

    onnx-graphsurgeon looks for each input among all tensors, one after another, to see whether it is used: minutes for
    tens of thousands of inputs. They are set aside meanwhile.
    """
    inputs, graph.inputs = graph.inputs, []
    for tensor in inputs:
        tensor.inputs.clear()
    graph.cleanup(remove_unused_graph_inputs=False)
    graph.inputs = inputs
    return graph


class _Stored(LazyValues):  # type: ignore[misc]  # untyped
    """Values that onnx-graphsurgeon reads through `external`; unread, they go back as the tensor that they are."""

    def load(self) -> Array:
        return external.array_of(self.tensor)


def _leave_in_file(constant: Any) -> None:
    lazy = constant._values
    if isinstance(lazy, LazyValues) and not isinstance(lazy, SparseValues) and external.is_external(lazy.tensor):
        constant._values = _Stored(lazy.tensor)
        # Else new values, which are embedded, would be exported as external.
        constant.data_location = None


def _store_text(constant: Any) -> None:
    """onnx-graphsurgeon writes all that it has read or computed as raw bytes, which texts cannot be."""
    values = constant._values
    if isinstance(values, np.ndarray) and values.dtype.kind in "OSU":
        texts = helper.make_tensor(constant.name, onnx.TensorProto.STRING, values.shape, values.ravel().tolist())
        constant._values = LazyValues(texts)


def from_gs(graph: Any, like: onnx.ModelProto) -> onnx.ModelProto:
    """Back to protobuf, with everything that onnx-graphsurgeon drops restored from `like`.

    That is: weights as they are stored (nothing here changes one under its name; types below a byte would be packed
    wrongly), the exact input and output declarations, model metadata, and of each node whose first output still exists
    the bodies, attributes that hold types, documentation, metadata and overload.
    """
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant):
            _store_text(tensor)
    proto: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    bodies.refilled(proto, like)
    stored = {t.name: t for t in like.graph.initializer}
    for t in proto.graph.initializer:
        if t.name in stored:
            t.CopyFrom(stored[t.name])
    proto.ir_version = like.ir_version
    del proto.opset_import[:]
    proto.opset_import.extend(like.opset_import)
    proto.producer_name, proto.producer_version = like.producer_name, like.producer_version
    proto.domain, proto.model_version, proto.doc_string = like.domain, like.model_version, like.doc_string
    del proto.metadata_props[:]
    proto.metadata_props.extend(like.metadata_props)
    for side in ("input", "output"):
        fields = getattr(proto.graph, side)
        declared = {v.name: v for v in getattr(like.graph, side)}
        for v in fields:
            if v.name in declared:
                v.CopyFrom(declared[v.name])
    del proto.graph.value_info[:]
    old = {bodies.main_output(n): n for n in like.graph.node if n.output}
    for n in proto.graph.node:
        before = old.get(bodies.main_output(n))
        if before is not None and before.op_type == n.op_type:
            n.doc_string = before.doc_string
            n.overload = before.overload
            n.metadata_props.extend(before.metadata_props)
            n.attribute.extend(a for a in before.attribute if a.type in _TYPE_KINDS)
    proto.graph.doc_string = like.graph.doc_string
    return proto
