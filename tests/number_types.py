"""Models of float32 turned into another number type throughout, as an exporter would have written them.

Nothing here is shared with `onnxprune.runtime.single_precision`: this goes through the
operators' attributes by name, one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from ml_dtypes import bfloat16
from numpy.typing import NDArray

Array = NDArray[Any]

TYPES: Mapping[str, tuple[int, type]] = {
    "float16": (onnx.TensorProto.FLOAT16, np.float16),
    "bfloat16": (onnx.TensorProto.BFLOAT16, bfloat16),
    "float64": (onnx.TensorProto.DOUBLE, np.float64),
}
# How far outputs of a slice and of its oracle may be apart, relative to the largest.
TOLERANCE = {"float16": 1e-2, "bfloat16": 1e-2, "float64": 1e-6}


def converted(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy with every float32 tensor, declaration and Cast target in the type `name`."""
    element, dtype = TYPES[name]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _graph(result.graph, element, dtype)
    if name == "bfloat16" and result.opset_import[0].version >= 18:
        # Convolutions and normalizations take bfloat16 from operator set 22 on, which writes all else as 18 does.
        result.opset_import[0].version = 22
        result.ir_version = max(result.ir_version, 10)
    return result


def data_of(arrays: Mapping[str, Array], name: str) -> dict[str, Array]:
    """Arrays in float32 turned into the type `name`."""
    dtype = TYPES[name][1]
    return {k: v.astype(dtype) if v.dtype == np.float32 else v for k, v in arrays.items()}


def _graph(graph: onnx.GraphProto, element: int, dtype: type) -> None:
    for t in graph.initializer:
        _tensor(t, dtype)
    for v in (*graph.input, *graph.output, *graph.value_info):
        if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            v.type.tensor_type.elem_type = element
    for node in graph.node:
        for a in node.attribute:
            if node.op_type == "Cast" and a.name == "to" and a.i == onnx.TensorProto.FLOAT:
                a.i = element
            elif node.op_type in ("Constant", "ConstantOfShape") and a.name == "value":
                _tensor(a.t, dtype)
            elif a.type == onnx.AttributeProto.GRAPH:
                _graph(a.g, element, dtype)


def _tensor(t: onnx.TensorProto, dtype: type) -> None:
    if t.data_type == onnx.TensorProto.FLOAT:
        t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t).astype(dtype), t.name))
