"""The float32 twin of a model in another precision: the same graph with every type of that precision made float32.

onnxruntime has next to no bfloat16 kernels for the CPU: of the operators that networks are made of it runs Cast, and it
takes no bfloat16 array from numpy. So such models are run as their twin, which computes what the model means without
the rounding between its operators. It has no convolution in float64 either; those models that it refuses are run
likewise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph import external, tensor_files
from onnxprune.graph.protobuf import copied

BFLOAT16 = frozenset({onnx.TensorProto.BFLOAT16})
DOUBLE = frozenset({onnx.TensorProto.DOUBLE})
HALF = BFLOAT16 | {onnx.TensorProto.FLOAT16}
# Attributes that hold an element type.
_TYPES = {"to", "dtype", "output_dtype", "stash_type"}


def uses(proto: onnx.ModelProto, types: Collection[int] = BFLOAT16) -> bool:
    """Whether a weight, an input, an output or an attribute of a model has one of these element types."""
    if any(t.data_type in types for t in external.stored_tensors(proto)):
        return True
    declared = (*proto.graph.input, *proto.graph.output)
    return any(t.elem_type in types for v in declared for t in _tensor_types(v.type)) or any(
        a.name in _TYPES and a.i in types for a in _attributes(proto)
    )


def single_precision(proto: onnx.ModelProto, types: Collection[int] = BFLOAT16) -> onnx.ModelProto:
    """The twin: a copy with `types` replaced by float32 wherever a type is named, weights converted."""
    result = copied(proto)
    for tensor in external.stored_tensors(result):
        if tensor.data_type in types:
            values = external.array_of(tensor).astype(np.float32)
            tensor.CopyFrom(tensor_files.tensor_of(values, tensor.name, outside=external.is_external(tensor)))
    _declare(result, types, onnx.TensorProto.FLOAT)
    return result


def with_distinct_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that is typed consistently where `proto` is, for a runtime that knows float16 better than bfloat16.

    Values mean nothing in it. Operators took bfloat16 only late (a convolution from operator set 22 on), and exporters
    write it before. A model that has both types is left as it is.
    """
    result = copied(proto)
    if uses(proto, HALF - BFLOAT16):
        return result
    for tensor in external.stored_tensors(result):
        if tensor.data_type in BFLOAT16:
            tensor.data_type = onnx.TensorProto.FLOAT16
    _declare(result, BFLOAT16, onnx.TensorProto.FLOAT16)
    return result


def _declare(proto: onnx.ModelProto, types: Collection[int], new: int) -> None:
    """Replace, in place, element types wherever one is named, except in weights."""
    for a in _attributes(proto):
        if a.type == onnx.AttributeProto.INT and a.name in _TYPES and a.i in types:
            a.i = new
        elif a.type == onnx.AttributeProto.TYPE_PROTO:
            _retype(a.tp, types, new)
    for graph in _graphs(proto.graph):
        for v in (*graph.input, *graph.output, *graph.value_info):
            _retype(v.type, types, new)
    for function in proto.functions:
        del function.value_info[:]


def _retype(declared: onnx.TypeProto, types: Collection[int], new: int) -> None:
    for t in _tensor_types(declared):
        if t.elem_type in types:
            t.elem_type = new


def _tensor_types(declared: onnx.TypeProto) -> Iterator[Any]:
    kind = declared.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        yield getattr(declared, kind)
    elif kind in ("sequence_type", "optional_type"):
        yield from _tensor_types(getattr(declared, kind).elem_type)
    elif kind == "map_type":
        yield from _tensor_types(declared.map_type.value_type)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for a in node.attribute:
            for body in _bodies(a):
                yield from _graphs(body)


def _bodies(a: onnx.AttributeProto) -> Iterable[onnx.GraphProto]:
    return (a.g,) if a.type == onnx.AttributeProto.GRAPH else a.graphs


def _attributes(proto: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    nodes = [n for g in _graphs(proto.graph) for n in g.node]
    for f in proto.functions:
        nodes += list(f.node)
        nodes += [n for top in f.node for a in top.attribute for b in _bodies(a) for g in _graphs(b) for n in g.node]
    for n in nodes:
        yield from n.attribute


def declared_types(proto: onnx.ModelProto, types: Collection[int] = BFLOAT16) -> dict[str, np.dtype[Any]]:
    """The numpy type of each output that has one of `types`, declared or inferred."""
    with contextlib.suppress(Exception):  # what cannot be inferred keeps the twin's type
        proto = onnx.shape_inference.infer_shapes(proto)
    return {
        v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
        for v in proto.graph.output
        if v.type.HasField("tensor_type") and v.type.tensor_type.elem_type in types
    }
