"""Faults of older onnxruntime releases that end the process as a session starts, and what keeps models from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from onnxprune.graph import bodies
from onnxprune.graph.protobuf import copied

# Before this release it takes an input in float16 that has a value of its own for a constant, and crashes.
_KNOWS_CONSTANTS = (1, 29)
_FUSES_HALF = "FuseFp16InitializerToFp32NodeTransformer"
# Before 1.30, where `Kernels.exact` is asked for, it reads the zero point of int8 weights from this slot of these
# operators, though the list of their inputs may end before.
_ZERO_POINT: Mapping[str, int] = {
    "DynamicQuantizeMatMul": 3,
    "MatMulInteger": 3,
    "MatMulIntegerToFloat": 5,
    "QAttention": 7,
}


def optimizers_left_out(model: onnx.ModelProto, release: tuple[int, ...]) -> list[str]:
    """The optimizers that a session of the model has to do without in this release of onnxruntime (major, minor)."""
    if release >= _KNOWS_CONSTANTS:
        return []
    half = {i.name for i in model.graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    return [_FUSES_HALF] if any(t.name in half for t in model.graph.initializer) else []


def with_zero_points(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the slots of zero points named, if as left out; itself where they all are."""
    if not any(True for _ in _short(model)):
        return model
    mended = copied(model)
    for node in _short(mended):
        node.input.extend([""] * (_ZERO_POINT[node.op_type] + 1 - len(node.input)))
    return mended


def _short(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    nodes = (*bodies.every_node(model.graph), *(n for f in model.functions for n in f.node))
    return (n for n in nodes if len(n.input) <= _ZERO_POINT.get(n.op_type, -1))
