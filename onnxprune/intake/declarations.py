"""What a model declares of its inputs and outputs: sizes that are none are free, false ones of outputs are left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx

from onnxprune.graph.bodies import every_body
from onnxprune.graph.protobuf import copied
from onnxprune.graph.view import Shape

# Exporters write these for "any size"; they name no size that two axes could share.
_NO_NAMES = {"?", "-1", "None", "*"}


def with_free_dimensions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every declared size below 0, and every "?", unset: a free dimension of its own, as onnxruntime
    takes it. A copy where there are any."""
    if not any(_is_free(d) for d in _dimensions(proto)):
        return proto
    result = copied(proto)
    for d in _dimensions(result):
        if _is_free(d):
            d.Clear()
    return result


def _is_free(dimension: Any) -> bool:
    return bool(dimension.dim_value < 0 or dimension.dim_param in _NO_NAMES)


def _dimensions(proto: onnx.ModelProto) -> Iterator[Any]:
    for graph in (proto.graph, *every_body(proto.graph)):
        for v in (*graph.input, *graph.output, *graph.value_info):
            yield from _dimensions_of(v.type)


def _dimensions_of(declared: onnx.TypeProto) -> Iterator[Any]:
    kind = declared.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        yield from getattr(declared, kind).shape.dim
    elif kind in ("sequence_type", "optional_type"):
        yield from _dimensions_of(getattr(declared, kind).elem_type)


def false_outputs(proto: onnx.ModelProto, shapes: Mapping[str, Shape]) -> list[str]:
    """What is declared of the outputs and is not so with these shapes, in words, one for each."""
    faults: list[str] = []
    for v in proto.graph.output:
        real = shapes.get(v.name)
        if v.type.HasField("tensor_type") and v.type.tensor_type.HasField("shape") and real is not None:
            declared = v.type.tensor_type.shape
            if len(declared.dim) != len(real) or any(map(_differs, declared.dim, real)):
                names = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in declared.dim]
                faults.append(
                    f"output {v.name!r} is declared as {'×'.join(names) or 'a scalar'} and is "
                    f"{'×'.join(map(str, real)) or 'a scalar'}: what is wrong of the declaration was left out"
                )
    return faults


def with_true_outputs(proto: onnx.ModelProto, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
    """A copy that declares its outputs with as many axes as they have, and without sizes that are false."""
    result = copied(proto)
    for v in result.graph.output:
        real = shapes.get(v.name)
        if real is None or not v.type.HasField("tensor_type") or not v.type.tensor_type.HasField("shape"):
            continue
        declared = v.type.tensor_type.shape
        if len(declared.dim) != len(real):
            del declared.dim[:]
            for _ in real:
                declared.dim.add()
        for d, size in zip(declared.dim, real, strict=True):
            if _differs(d, size):
                d.Clear()
    return result


def _differs(dimension: Any, size: int) -> bool:
    return bool(dimension.HasField("dim_value") and dimension.dim_value != size)
