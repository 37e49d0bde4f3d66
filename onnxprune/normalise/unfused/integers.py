"""Sums of products of codes and the scales behind them, as a layer on numbers.

    Mul(Cast(MatMulInteger(q, w, z, v)), s · t)    MatMul(DequantizeLinear(q, s, z), DequantizeLinear(w, t, v))

with s the scale of q and t that of w, for all or for each output; ConvInteger likewise, also with one Mul for each of
the two scales. Σ (q - z)(w - v) · s t is Σ (q - z) s · (w - v) t but for the rounding of single precision. Where the
scales are not found behind it, they are taken for 1: that is the sum as it stands.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph import bodies, external
from onnxprune.graph.names import tensors_of, unused
from onnxprune.graph.protobuf import opset_of
from onnxprune.graph.quantized import DEQUANTIZE, DYNAMIC, QUANTIZE
from onnxprune.numerics.arrays import Array

LAYERS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
_STANDARD, _MICROSOFT = ("", "ai.onnx"), "com.microsoft"
# From this opset on the standard DequantizeLinear knows a scale for each position of an axis.
_PER_AXIS = 13


def real_products(proto: onnx.ModelProto, replaceable: Collection[str] = ()) -> tuple[str, ...]:
    """Write, in place and in bodies too, every sum of products of codes that becomes a float32 as a layer on numbers.

    Names are unique over all bodies. replaceable: weights that callers may override, whose values say nothing. Gives
    what is to be said of it.
    """
    graphs = [proto.graph, *bodies.every_body(proto.graph)]
    if not any(n.op_type in LAYERS for g in graphs for n in g.node):
        return ()
    stored = {k: t for k, t in bodies.weights_of(proto).items() if k not in replaceable}
    taken = tensors_of(proto)
    done: dict[str, int] = {}
    for graph in graphs:
        writer = _Writer(proto, graph, stored, taken)
        for n in [n for n in graph.node if n.op_type in LAYERS and n.domain in _STANDARD]:
            if writer.write(n):
                done[n.op_type] = done.get(n.op_type, 0) + 1
        writer.finish()
    what = ", ".join(f"{count} {name}" for name, count in sorted(done.items()))
    return (f"sums of products of codes are written as layers on numbers: {what}",) if done else ()


@dataclass
class _Behind:
    """What stands behind a sum: the tensor that it ends in, the nodes on the way, and the scales that were found.

    own: those of the operands, by name, as far as they are computed; numbers: constants that are multiplied with it.
    """

    end: str
    nodes: list[onnx.NodeProto]
    own: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)


class _Writer:
    """One graph, main or body, and the nodes that take the place of others in it."""

    def __init__(
        self, proto: onnx.ModelProto, graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto], taken: set[str]
    ) -> None:
        self._proto, self._graph, self._stored, self._taken = proto, graph, stored, taken
        self._producer = {o: n for n in graph.node for o in n.output if o}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._fixed = {o.name for o in graph.output}
        for n in graph.node:
            for name in n.input:
                self._readers.setdefault(name, []).append(n)
            self._fixed.update(bodies.captured_names(n))
        self._gone: set[str] = set()
        self._new: dict[str, list[onnx.NodeProto]] = {}

    def write(self, node: onnx.NodeProto) -> bool:
        """Whether a layer on numbers takes the place of this node and of what follows it."""
        a, b, a_zero, b_zero = ([*node.input, "", ""])[:4]
        weight = self._stored.get(b)
        scales = [self._scale_of(a), self._scale_of(b)]
        behind = self._behind(node, [s for s in scales if s])
        if behind is None or (weight is None and (behind.numbers or not scales[1])):
            return False
        conv = node.op_type == "ConvInteger"
        a_scale, factor = self._operand_scale(scales[0], behind)
        b_scale, axis = scales[1] if scales[1] in behind.own else "", None
        if weight is not None:
            width = weight.dims[0 if conv else -1] if weight.dims else 1
            found = self._weight_scale(node, behind, b_zero, int(width), factor)
            if found is None:
                return False
            b_scale, b_zero, several = found
            axis = (0 if conv else len(weight.dims) - 1) if several else None
        elif not b_scale:
            b_scale = self._constant(np.float32(1), f"{node.output[0]}__scale")
        nodes: list[onnx.NodeProto] = []
        operands = [
            self._dequantize(nodes, a, a_scale, a_zero, None),
            self._dequantize(nodes, b, b_scale, b_zero, axis),
        ]
        layer = helper.make_node(LAYERS[node.op_type], operands, [behind.end], node.name)
        layer.attribute.extend(node.attribute)
        self._new[node.output[0]] = [*nodes, layer]
        self._gone.update(n.output[0] for n in behind.nodes)
        return True

    def finish(self) -> None:
        """Put what was written into the graph."""
        if not self._new:
            return
        nodes: list[onnx.NodeProto] = []
        for n in self._graph.node:
            first = n.output[0] if n.output else ""
            if first in self._new:
                nodes += self._new[first]
            elif first not in self._gone:
                nodes.append(bodies.copy_node(n))
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        imported = {o.domain for o in self._proto.opset_import}
        for domain in {n.domain for n in nodes if n.domain == _MICROSOFT} - imported:
            self._proto.opset_import.add(domain=domain, version=1)

    def _scale_of(self, codes: str) -> str:
        """The scale of an operand that is quantized right before; "" where that is not so."""
        by = self._producer.get(codes)
        if by is not None and by.op_type == DYNAMIC:
            return str(by.output[1])
        known = by is not None and by.op_type == QUANTIZE and by.input[1] in self._stored
        return str(by.input[1]) if by is not None and known else ""

    def _behind(self, node: onnx.NodeProto, scales: list[str]) -> _Behind | None:
        """The Cast to single precision behind a sum, and the Muls by its scales behind that."""
        cast = self._only_reader(node.output[0])
        if cast is None or cast.op_type != "Cast" or helper.get_node_attr_value(cast, "to") != onnx.TensorProto.FLOAT:
            return None
        behind = _Behind(cast.output[0], [cast])
        while (by := self._only_reader(behind.end)) is not None and by.op_type == "Mul":
            factor = by.input[1] if by.input[0] == behind.end else by.input[0]
            parts = self._parts(factor)
            own = [p for p in parts if p in scales and p not in self._stored]
            numbers = [p for p in parts if p not in own]
            again = [p for p in own if p in behind.own]
            if factor == behind.end or again or len(set(own)) < len(own) or not all(p in self._stored for p in numbers):
                break
            if numbers and (behind.numbers or not all(self._fits(p, node) for p in numbers)):
                break
            behind.own += own
            behind.numbers += numbers
            behind.nodes.append(by)
            behind.end = by.output[0]
        return behind

    def _parts(self, name: str) -> list[str]:
        """The two factors of a product of scales, else the tensor itself."""
        by = self._producer.get(name)
        return list(by.input) if by is not None and by.op_type == "Mul" else [name]

    def _fits(self, name: str, node: onnx.NodeProto) -> bool:
        """Whether a constant is a scale for all that a layer computes, or one for each of its outputs.

        One that might give the result another axis is none: a product with a vector has fewer than its matrix.
        """
        weight, t = self._stored.get(node.input[1]), self._stored[name]
        if weight is None or t.data_type != onnx.TensorProto.FLOAT:
            return False
        v = external.array_of(t)
        if not (np.isfinite(v).all() and (v > 0).all()):
            return False
        rank = len(weight.dims)
        if v.size == 1:
            return v.ndim < min(rank, 2)
        if rank < 2 or (node.op_type != "ConvInteger" and v.ndim >= rank):
            return False
        shape = (1,) * (rank - v.ndim) + v.shape
        axis, width = (1, weight.dims[0]) if node.op_type == "ConvInteger" else (rank - 1, weight.dims[-1])
        return v.ndim <= rank and all(s == (width if a == axis else 1) for a, s in enumerate(shape))

    def _operand_scale(self, scale: str, behind: _Behind) -> tuple[str, float]:
        """The scale of the first operand, and what the constants behind the sum are too large by.

        A constant scale is a part of these constants, of which nothing says that it is; it is taken for one.
        """
        if scale in behind.own:
            return scale, 1.0
        known = self._stored.get(scale)
        if known is not None and behind.numbers:
            v = external.array_of(known)
            if v.size == 1 and float(v.ravel()[0]) > 0:
                return scale, float(v.ravel()[0])
        return self._constant(np.float32(1), f"{behind.end}__one"), 1.0

    def _weight_scale(
        self, node: onnx.NodeProto, behind: _Behind, zero: str, width: int, factor: float
    ) -> tuple[str, str, bool] | None:
        """Scale and zero point of the weight, and whether there is one for each output."""
        scales = [external.array_of(self._stored[n]).ravel() for n in behind.numbers]
        scale = np.ones(1, np.float32)
        for s in scales:
            scale = (scale * s).astype(np.float32)
        scale = (scale / np.float32(factor)).astype(np.float32)
        zeros = self._stored.get(zero)
        if zero and zeros is None:
            return None
        z = np.zeros(0) if zeros is None else external.array_of(zeros)
        if max(scale.size, z.size) == 1:
            if len(behind.numbers) == 1 and factor == 1.0:
                return behind.numbers[0], zero, False
            return self._constant(scale.reshape(()), f"{behind.end}__scale"), zero, False
        if scale.size not in (1, width) or z.size not in (0, 1, width) or len(self._stored[node.input[1]].dims) < 2:
            return None
        kept = behind.numbers[0] if len(behind.numbers) == 1 and factor == 1.0 else ""
        if not kept or self._stored[kept].dims != [width]:
            kept = self._constant(np.broadcast_to(scale, width).copy(), f"{behind.end}__scale")
        if zero and z.shape != (width,):
            zero = self._constant(np.broadcast_to(z.ravel(), width).copy(), f"{behind.end}__zero")
        return kept, zero, True

    def _dequantize(self, nodes: list[onnx.NodeProto], codes: str, scale: str, zero: str, axis: int | None) -> str:
        out = unused(f"{codes}__real", self._taken)
        attrs: dict[str, Any] = {} if axis is None else {"axis": axis}
        domain = "" if axis is None or opset_of(self._proto) >= _PER_AXIS else _MICROSOFT
        inputs = [codes, scale, zero] if zero else [codes, scale]
        name = unused(f"{out}__node", self._taken)
        nodes.append(helper.make_node(DEQUANTIZE, inputs, [out], name, domain=domain, **attrs))
        return out

    def _only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._fixed else None

    def _constant(self, values: Array | np.generic, wanted: str) -> str:
        name = unused(wanted, self._taken)
        self._proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name
