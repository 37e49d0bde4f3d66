"""Integer kernels that saturate: how a processor is asked for them, what takes their place, and what is said of it.

Without VNNI, an x86 processor multiplies uint8 by int8 and adds the products two by two in 16 bits: of 2 · 255 · 127 =
64,770 there remain 32,767 (onnxruntime's quantization guide, `reduce_range`). Other processors compute the same model
exactly, so what such a kernel gives says nothing of the model. Where they are found, pairs of QuantizeLinear and
DequantizeLinear are computed node by node, in floating point, and operators on integers as uint8 by uint8, in 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph import bodies, external, protobuf
from onnxprune.graph.quantized import DEQUANTIZE, QUANTIZE
from onnxprune.numerics.arrays import Array

PRODUCTS: Mapping[str, tuple[int, int]] = {
    "ConvInteger": (0, 1),
    "DynamicQuantizeLSTM": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "QAttention": (0, 1),
    "QGemm": (0, 3),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
}
"""Operators that multiply integers: the slots of activation and weight."""
# Those whose activations have a given scale.
_STATIC = ("QLinearConv", "QLinearMatMul")
# From this version of the format on, an input with a value of its own is no constant.
_OVERRIDABLE = 4
# A dot product of so many pairs fills every vector register; so many columns and rows meet every kernel.
_DEPTH, _COLUMNS, _ROWS = 64, 32, 4

_Stored = Mapping[str, Array | np.generic]
Run = Callable[[onnx.ModelProto, Mapping[str, Array]], Array]


@dataclass(frozen=True)
class Kernels:
    """How onnxruntime computes what is quantized.

    fused: operators between DequantizeLinear and QuantizeLinear become operators on integers, with other rounding.
    exact: operators on integers with constant weights take kernels that do not saturate, where onnxruntime has such.
    rounds: what multiplies weights in blocks of codes by numbers rounds these to codes too, where the nodes do not say.
    """

    fused: bool
    exact: bool
    rounds: bool = False

    @property
    def entries(self) -> Mapping[str, str]:
        """The entries of onnxruntime's session configuration that choose these kernels."""
        entries = {} if self.fused else {"session.disable_quant_qdq": "1"}
        entries |= {} if self.rounds else {"session.qdq_matmulnbits_accuracy_level": "0"}
        return entries | ({"session.x64quantprecision": "1"} if self.exact else {})


DEPLOYED = Kernels(fused=True, exact=False, rounds=True)
"""onnxruntime's own choice."""
JUDGED = Kernels(fused=True, exact=False)
"""The same, with weights in blocks of codes multiplied as the nodes are written."""
EXACT = Kernels(fused=True, exact=True)
AS_WRITTEN = Kernels(fused=False, exact=True)


def saturate(run: Run) -> bool:
    """Whether `run` gets sums of products of integers wrong; it may raise where it has no kernel for one of them."""
    return any(not np.array_equal(run(model, {"x": x}), expected) for model, x, expected in _probes())


def _probes() -> Iterator[tuple[onnx.ModelProto, Array, Array]]:
    """(model, input x, right output) of products whose pairs do not fit into 16 bits."""
    for kind in (np.uint8, np.int8):
        info, least, most = np.iinfo(kind), np.iinfo(np.int8).min, np.iinfo(np.int8).max
        x = np.full((_ROWS, _DEPTH), info.max, kind)
        if info.min:
            x[::2] = info.min
        w = np.full((_DEPTH, _COLUMNS), most, np.int8)
        w[:, ::2] = least
        y = x.astype(np.int32) @ w.astype(np.int32)
        yield _model([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], x, {"w": w}, y), x, y
        # The scale brings the greatest sum to the greatest code.
        scale = np.float32(np.abs(y).max() / info.max)
        codes = np.clip(np.rint(y / scale), info.min, info.max).astype(kind)
        one, zero = np.float32(1), np.zeros((), kind)
        stored: _Stored = {"w": w.T[:, :, None, None].copy(), "one": one, "wz": np.int8(0), "s": scale, "z": zero}
        image, answer = x[:, :, None, None].copy(), codes[:, :, None, None]
        node = helper.make_node("QLinearConv", ["x", "one", "z", "w", "one", "wz", "s", "z"], ["y"])
        yield _model([node], image, stored, answer), image, answer


def _model(nodes: list[onnx.NodeProto], x: Array, stored: _Stored, y: Array) -> onnx.ModelProto:
    x_port, y_port = (
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in (("x", x), ("y", y))
    )
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in stored.items()]
    graph = helper.make_graph(nodes, "probe", [x_port], [y_port], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def notes_on(proto: onnx.ModelProto, *, remedied: bool = True) -> tuple[str, ...]:
    """What to say of a model on a processor whose kernels saturate; nothing where it is not quantized.

    remedied: whether `Kernels.exact` is of use on this processor.
    """
    nodes = [*bodies.every_node(proto.graph), *(n for f in proto.functions for n in f.node)]
    if not any(n.op_type in (QUANTIZE, DEQUANTIZE, *PRODUCTS) for n in nodes):
        return ()
    text = (
        "this processor adds products of 8-bit integers in 16 bits, which overflow: what is quantized was computed by "
        "its nodes as written, as other processors do; to deploy it on such a one, set onnxruntime's "
        "session.x64quantprecision, or quantize with reduce_range"
    )
    left = _saturating(proto, nodes, remedied)
    return (f"{text}; not exact here for want of another kernel: {', '.join(left)}" if left else text,)


def _saturating(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], remedied: bool) -> list[str]:
    """The kinds of operators that `Kernels.exact` leaves as they are: it stores constant int8 weights as uint8.

    A model with static int8 activations onnxruntime refuses then, as no kernel takes uint8 weights for those.
    """
    products = [n for n in nodes if n.op_type in PRODUCTS]
    if not products:
        return []
    stored = list(external.stored_tensors(proto))
    types = protobuf.inferred_shapes(proto)[1] | {t.name: t.data_type for t in stored}
    given = {i.name for i in proto.graph.input} if proto.ir_version >= _OVERRIDABLE else set()
    constants = {t.name for t in stored} - given | {n.output[0] for n in nodes if n.op_type == "Constant"}
    signed, unsigned = onnx.TensorProto.INT8, onnx.TensorProto.UINT8
    all_constant: dict[str, bool] = {}
    for n in products:
        x, w = (n.input[slot] for slot in PRODUCTS[n.op_type])
        if types.get(x) == signed:
            remedied = remedied and n.op_type not in _STATIC
        elif types.get(w) != unsigned:
            all_constant[n.op_type] = all_constant.get(n.op_type, True) and w in constants
    return sorted(op for op, stays in all_constant.items() if not (stays and remedied))
