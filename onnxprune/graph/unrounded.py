"""A quantized model without the rounding of its activations: the same scales, zero points and saturation, no steps.

    QuantizeLinear    clip(x / s + z, least code, greatest code)      DequantizeLinear    (q - z) · s
    DynamicQuantizeLinear, whose scale leaves nothing out, and the DequantizeLinear behind it    x
    DynamicQuantizeLSTM    LSTM, with the weights that its codes stand for
    MatMulNBits, QMoE      the same with accuracy_level 0, at which its kernel does not round what it multiplies

Two models that sum the same terms in another order differ by 1e-7. Where an activation lies that close to the middle
between two codes, rounding makes a whole step of it, 1/255 of the range of the tensor, and what follows differs by far
more than any wrong channel need. Without the rounding both models are continuous, and equal where the surgery is
exact. Removing channels does not touch the rounding, which works on each element alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph import bodies, external, protobuf
from onnxprune.graph.operators import QUANTIZED_LSTM
from onnxprune.graph.packed_codes import MIXTURE, PRODUCT
from onnxprune.graph.protobuf import copied
from onnxprune.graph.quantized import DEQUANTIZE, DOMAINS, DYNAMIC, QUANTIZE, code_range
from onnxprune.numerics.arrays import Array

# The attribute by which a product with packed codes says to what it may round its operand; by default to nothing.
_LEVEL = "accuracy_level"
# Between QuantizeLinear and DequantizeLinear these only move codes, of whatever type.
_MOVES = (
    "DepthToSpace Expand Flatten Gather Identity MaxPool Reshape Slice SpaceToDepth Split Squeeze Tile Transpose "
    "Unsqueeze"
).split()


def is_quantized(proto: onnx.ModelProto) -> bool:
    """Whether a model quantizes activations or stores quantized weights in a way that is known here."""
    return any(n.op_type in (QUANTIZE, DEQUANTIZE, DYNAMIC, QUANTIZED_LSTM) for n in proto.graph.node)


def without_rounding(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a normalised (or cut) model whose activations are not rounded.

    Weights stay as they are stored. So does a QuantizeLinear with a scale for each block, or with one that is
    computed, or whose codes reach anything but DequantizeLinear.
    """
    reader = _Reader(proto)
    free = {
        n.output[0]
        for n in proto.graph.node
        if n.op_type == QUANTIZE and n.domain in DOMAINS and reader.is_activation(n) and reader.may_be_real(n.output[0])
    }
    plain = {
        n.output[0]: n.output
        for n in proto.graph.node
        if n.op_type == DYNAMIC and reader.may_be_real(n.output[0], list(n.output[1:]))
    }
    free.update(plain)
    result = copied(proto)
    del result.graph.node[:]
    del result.graph.value_info[:]
    for n in proto.graph.node:
        if n.op_type == QUANTIZE and n.output[0] in free:
            result.graph.node.extend(reader.quantize(n, result.graph))
        elif n.op_type == DYNAMIC and n.output[0] in free:
            result.graph.node.extend(reader.passed(n, n.output[0]))
        elif n.op_type == DEQUANTIZE and n.input[0] in plain:
            result.graph.node.append(helper.make_node("Identity", [n.input[0]], [n.output[0]]))
        elif n.op_type == QUANTIZED_LSTM:
            result.graph.node.extend(_lstm(n, result.graph))
        elif n.op_type == DEQUANTIZE and n.input[0] in free:
            result.graph.node.extend(reader.dequantize(n, result.graph))
        else:
            result.graph.node.add().CopyFrom(n)
            if n.op_type in _MOVES and n.input[0] in free:
                free.update(n.output)
                if n.input[0] in plain:
                    plain.update(dict.fromkeys(n.output, plain[n.input[0]]))
    _give_full_accuracy(result)
    return result


def in_full_accuracy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with products with packed codes that do not round what they multiply: a copy, or itself."""
    if not any(_rounds(n) for n in bodies.every_node(proto.graph)):
        return proto
    result = copied(proto)
    _give_full_accuracy(result)
    return result


def _give_full_accuracy(proto: onnx.ModelProto) -> None:
    for n in bodies.every_node(proto.graph):
        if _rounds(n):
            kept = [a for a in n.attribute if a.name != _LEVEL]
            del n.attribute[:]
            n.attribute.extend(kept)


def _rounds(n: onnx.NodeProto) -> bool:
    return n.op_type in (PRODUCT, MIXTURE) and protobuf.int_attribute(n, _LEVEL, 0) != 0


def _lstm(n: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """An LSTM that reads the numbers that the codes W (D, I, G H) and R (D, H, G H) of a DynamicQuantizeLSTM stand for.

    Scales and zero points are (D) or (D, G H). The constants that it needs are added to `graph`.
    """
    given = [*n.input, *[""] * 12][:12]
    out = next(o for o in n.output if o)
    by_gate = f"{out}__by_gate"
    graph.initializer.append(numpy_helper.from_array(np.array([0, 1, -1], np.int64), by_gate))
    nodes: list[onnx.NodeProto] = []

    def op(kind: str, name: str, *inputs: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"{out}__{name}"], **attrs))
        return f"{out}__{name}"

    weights: list[str] = []
    for what, slot in (("w", 1), ("r", 2)):
        codes, scale, zero = given[slot], given[6 + 2 * slot], given[7 + 2 * slot]
        x = op("Cast", f"{what}_codes", codes, to=onnx.TensorProto.FLOAT)
        if zero:
            zero = op("Reshape", f"{what}_zero", op("Cast", f"{what}_z", zero, to=onnx.TensorProto.FLOAT), by_gate)
            x = op("Sub", f"{what}_centred", x, zero)
        x = op("Mul", f"{what}_real", x, op("Reshape", f"{what}_scale", scale, by_gate))
        weights.append(op("Transpose", what, x, perm=[0, 2, 1]))
    lstm = helper.make_node("LSTM", [given[0], *weights, *given[3:8]], list(n.output), n.name)
    lstm.attribute.extend(n.attribute)
    return [*nodes, lstm]


class _Reader:
    """The constants of a model, and who reads what."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.constants: Mapping[str, onnx.TensorProto] = {t.name: t for t in proto.graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.fixed = {o.name for o in proto.graph.output}
        self.ranks = protobuf.inferred_ranks(proto)
        for n in proto.graph.node:
            for name in dict.fromkeys(n.input):
                self.readers.setdefault(name, []).append(n)
            self.fixed.update(bodies.captured_names(n))

    def numbers(self, n: onnx.NodeProto, slot: int) -> Array | None:
        """What stands at an input, 0 where nothing does, to broadcast against the first one; None where unknown."""
        if slot >= len(n.input) or not n.input[slot]:
            return np.zeros((), np.float32)
        t = self.constants.get(n.input[slot])
        values = None if t is None else external.array_of(t).astype(np.float32)
        if values is None or values.ndim == 0:
            return values
        rank = self.ranks.get(n.input[0])
        if rank is None or values.ndim > 1:
            return None
        axis = protobuf.int_attribute(n, "axis", 1) % rank if values.size > 1 else 0
        return values.reshape([-1 if a == axis else 1 for a in range(rank)])

    def is_activation(self, n: onnx.NodeProto) -> bool:
        """Whether a QuantizeLinear reads no weight, and scale and zero point can be written out."""
        return n.input[0] not in self.constants and self.is_known(n)

    def is_known(self, n: onnx.NodeProto) -> bool:
        """Whether scale and zero point can be written out."""
        return self.numbers(n, 1) is not None and self.numbers(n, 2) is not None

    def may_be_real(self, name: str, by: list[str] | None = None) -> bool:
        """Whether all that reads these codes moves or dequantizes them.

        by: the scale and zero point that all have to use, where these are computed.
        """
        if name in self.fixed:
            return False
        for n in self.readers.get(name, ()):
            if n.input[0] != name or name in n.input[1:]:
                return False
            if n.op_type == DEQUANTIZE and n.domain in DOMAINS:
                if not (self.is_known(n) if by is None else list(n.input[1:]) == by):
                    return False
            elif n.op_type not in _MOVES or not all(self.may_be_real(o, by) for o in n.output if o):
                return False
        return True

    def passed(self, n: onnx.NodeProto, codes: str) -> list[onnx.NodeProto]:
        """Nodes that give what a DynamicQuantizeLinear reads as its codes; scale and zero point where they are read."""
        nodes = [helper.make_node("Identity", [n.input[0]], [codes])]
        read = {o for o in n.output[1:] for r in self.readers.get(o, ()) if r.op_type != DEQUANTIZE}
        if read or not self.fixed.isdisjoint(n.output[1:]):
            nodes.append(helper.make_node(DYNAMIC, [n.input[0]], [f"{codes}__rounded", *n.output[1:]], n.name))
        return nodes

    def quantize(self, n: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        """Nodes that compute x / s + z, saturated, in place of a QuantizeLinear."""
        kind = protobuf.int_attribute(n, "output_dtype", 0) or onnx.TensorProto.UINT8
        if len(n.input) > 2 and n.input[2]:
            kind = self.constants[n.input[2]].data_type
        least, most = code_range(np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name)
        out = n.output[0]
        values = {"scale": self.numbers(n, 1), "zero": self.numbers(n, 2), "least": least, "most": most}
        scale, zero, low, high = (self._constant(f"{out}__{k}", v, n, graph) for k, v in values.items())
        steps = [
            ("Div", [n.input[0], scale]),
            ("Add", [f"{out}__0", zero]),
            ("Max", [f"{out}__1", low]),
            ("Min", [f"{out}__2", high]),
        ]
        names = [f"{out}__{i}" for i in range(len(steps) - 1)]
        return [helper.make_node(op, i, [o]) for (op, i), o in zip(steps, [*names, out], strict=True)]

    def dequantize(self, n: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        """Nodes that compute (q - z) · s in place of a DequantizeLinear."""
        out = n.output[0]
        zero = self._constant(f"{out}__zero", self.numbers(n, 2), n, graph)
        scale = self._constant(f"{out}__scale", self.numbers(n, 1), n, graph)
        return [
            helper.make_node("Sub", [n.input[0], zero], [f"{out}__0"]),
            helper.make_node("Mul", [f"{out}__0", scale], [out]),
        ]

    def _constant(self, name: str, value: object, n: onnx.NodeProto, graph: onnx.GraphProto) -> str:
        kind = helper.tensor_dtype_to_np_dtype(self.constants[n.input[1]].data_type)
        graph.initializer.append(numpy_helper.from_array(np.asarray(value).astype(kind), name))
        return name
