"""Inputs and outputs in float8, int4 and their kin, for which numpy has no type of its own: a Cast stands at each.

onnxruntime takes and gives such values only as packed bytes, or not at all. So the session runs a copy of the model
whose ports have a type that numpy knows and that holds every value of the narrow one: nothing is rounded on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph.names import tensors_of
from onnxprune.graph.protobuf import copied

_FLOATS = ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0", "FLOAT4E2M1")
_SIGNED, _UNSIGNED = ("INT4", "INT2"), ("UINT4", "UINT2")
# The wider type by the narrow one; an older onnx lacks some of them.
_CARRIERS: dict[int, int] = {
    onnx.TensorProto.DataType.Value(name): wider
    for names, wider in (
        (_FLOATS, onnx.TensorProto.FLOAT),
        (_SIGNED, onnx.TensorProto.INT8),
        (_UNSIGNED, onnx.TensorProto.UINT8),
    )
    for name in names
    if name in onnx.TensorProto.DataType.keys()  # noqa: SIM118  it is no dictionary
}


@dataclass(frozen=True, eq=False)
class Carried:
    """A model whose ports numpy can hold.

    inputs, outputs: what stands for a port of the model, by the name of that, and the type to feed, or that the model
    gives.
    """

    proto: onnx.ModelProto
    inputs: Mapping[str, tuple[str, np.dtype[Any]]]
    outputs: Mapping[str, tuple[str, np.dtype[Any]]]


def carried(proto: onnx.ModelProto) -> Carried | None:
    """The model with a Cast at each port of a narrow type; None where there is none.

    An initializer that is also an input keeps its type: nothing is fed there unless a caller overrides it.
    """
    weights = {t.name for t in proto.graph.initializer}
    if not any(_narrow(v) and v.name not in weights for v in (*proto.graph.input, *proto.graph.output)):
        return None
    wide = copied(proto)
    taken = tensors_of(wide)
    inputs, outputs = {}, {}
    before, behind = [], []
    for v in wide.graph.input:
        if _narrow(v) and v.name not in weights:
            name, element = _renamed(v, taken)
            before.append(helper.make_node("Cast", [v.name], [name], to=element))
            inputs[name] = v.name, helper.tensor_dtype_to_np_dtype(_CARRIERS[element])
    for v in wide.graph.output:
        if _narrow(v):
            name, element = _renamed(v, taken)
            behind.append(helper.make_node("Cast", [name], [v.name], to=_CARRIERS[element]))
            outputs[name] = v.name, helper.tensor_dtype_to_np_dtype(element)
    nodes = [*before, *wide.graph.node, *behind]
    del wide.graph.node[:]
    wide.graph.node.extend(nodes)
    return Carried(wide, inputs, outputs)


def _renamed(v: onnx.ValueInfoProto, taken: set[str]) -> tuple[str, int]:
    """Give a port another name and the wider type, in place: (its name, its element type) before."""
    name, element = v.name, v.type.tensor_type.elem_type
    while v.name in taken or v.name == name:
        v.name += "_"
    taken.add(v.name)
    v.type.tensor_type.elem_type = _CARRIERS[element]
    return name, element


def _narrow(v: onnx.ValueInfoProto) -> bool:
    return bool(v.type.HasField("tensor_type")) and v.type.tensor_type.elem_type in _CARRIERS
