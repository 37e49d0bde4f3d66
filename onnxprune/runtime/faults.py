"""Faults of onnxruntime, most of them of older releases, and what keeps models from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from onnxprune.graph import bodies
from onnxprune.graph.protobuf import copied, int_attribute
from onnxprune.graph.quantized import DEQUANTIZE

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
# It fuses DequantizeLinear with what reads it, and looks for the weight in the same graph only (1.31).
_FUSES_PAIRS = "QDQSelectorActionTransformer"
_GROUPED = "GroupQueryAttention"


def optimizers_left_out(model: onnx.ModelProto, release: tuple[int, ...]) -> list[str]:
    """The optimizers that a session of the model has to do without in this release of onnxruntime (major, minor)."""
    left_out = [_FUSES_PAIRS] if any(_blocks_from_outside(g) for g in bodies.every_body(model.graph)) else []
    if release >= _KNOWS_CONSTANTS:
        return left_out
    half = {i.name for i in model.graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    return [*left_out, *([_FUSES_HALF] if any(t.name in half for t in model.graph.initializer) else [])]


def _blocks_from_outside(body: onnx.GraphProto) -> bool:
    """Whether a body dequantizes blocks of codes that it does not hold: what fuses that with a product fails then."""
    own = {t.name for t in body.initializer} | {o for n in body.node for o in n.output}
    return any(
        n.op_type == DEQUANTIZE and n.input[0] not in own and int_attribute(n, "block_size", 0) for n in body.node
    )


def with_zero_points(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the slots of zero points named, if as left out; itself where they all are."""
    if not any(True for _ in _short(model)):
        return model
    mended = copied(model)
    for node in _short(mended):
        node.input.extend([""] * (_ZERO_POINT[node.op_type] + 1 - len(node.input)))
    return mended


def without_sizes_of_pasts(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with nameless sizes of past keys and values, where the present ones are more than outputs; else itself.

    onnxruntime takes the keys and values that GroupQueryAttention gives for as long as those of the past, by the name
    of that size, and puts what is computed of them where only that has room (such a run fails, up to 1.31 at least).
    """
    grouped = [n for n in model.graph.node if n.op_type == _GROUPED]
    given = {o for n in grouped for o in n.output[1:3] if o}
    if given <= {v.name for v in model.graph.output} and not any(given.intersection(n.input) for n in model.graph.node):
        return model
    producer = {o: n for n in model.graph.node for o in n.output}
    pasts = {_source(i, producer) for n in grouped for i in n.input[3:5] if i}
    mended = copied(model)
    for v in mended.graph.input:
        for d in v.type.tensor_type.shape.dim[1:] if v.name in pasts else ():
            if not d.HasField("dim_value"):
                d.Clear()
    named = [v for v in mended.graph.value_info if _source(v.name, producer) not in pasts]
    del mended.graph.value_info[:]
    mended.graph.value_info.extend(named)
    return mended


def _source(name: str, producer: Mapping[str, onnx.NodeProto]) -> str:
    """What a row of Gathers picks from."""
    while name in producer and producer[name].op_type == "Gather":
        name = producer[name].input[0]
    return name


def _short(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    nodes = (*bodies.every_node(model.graph), *(n for f in model.functions for n in f.node))
    return (n for n in nodes if len(n.input) <= _ZERO_POINT.get(n.op_type, -1))
