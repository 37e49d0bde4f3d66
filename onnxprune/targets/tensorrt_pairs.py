"""Where pairs of QuantizeLinear and DequantizeLinear have to stand for TensorRT to compute in integers.

By its developer guide ("Explicit Quantization", on the placement of Q/DQ):

- a layer with weights computes in integers where both its data and its weights come from DequantizeLinear;
- activations have one scale, weights one for each channel of the output;
- a pair between a layer and the BatchNormalization or activation behind it keeps the two from being fused;
- a layer whose output is added to a branch gives integers only where that branch comes from DequantizeLinear too.

None of it is an error: an engine is built, and what misses its place runs in float, or in kernels of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx

from onnxprune.graph.protobuf import int_attribute
from onnxprune.options import first_of

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FUSED = frozenset({"BatchNormalization", "Clip", "HardSwish", "LeakyRelu", "Relu", "Sigmoid"})
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class _Graph:
    """Who makes each tensor, who reads it, and the shapes of what is stored."""

    makers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[onnx.NodeProto]]
    stored: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Graph:
        readers: dict[str, list[onnx.NodeProto]] = {}
        for n in model.graph.node:
            for name in n.input:
                readers.setdefault(name, []).append(n)
        makers = {o: n for n in model.graph.node for o in n.output if o}
        return cls(makers, readers, {t.name: tuple(t.dims) for t in model.graph.initializer})

    def dequantized(self, tensor: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that gives a tensor, through what hands values on."""
        n = self.makers.get(tensor)
        while n is not None and n.op_type in ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            n = self.makers.get(n.input[0])
        return n if n is not None and n.op_type == _DEQUANTIZE else None

    def of_weights(self, n: onnx.NodeProto) -> bool:
        """Whether what a DequantizeLinear gives depends on nothing but what is stored."""
        first = n.input[0]
        before = self.makers.get(first)
        if before is not None and before.op_type == _QUANTIZE:
            first = before.input[0]
        return first in self.stored or (first in self.makers and self.makers[first].op_type == "Constant")

    def scales(self, n: onnx.NodeProto) -> int:
        """How many scales a pair has: 1, or one for each position of an axis."""
        shape = self.stored.get(n.input[1], ())
        return shape[0] if len(shape) == 1 else 1


def warnings(model: onnx.ModelProto) -> list[str]:
    """What of a model's pairs is not where TensorRT wants it, by kind; nothing of a model without any."""
    if not any(n.op_type == _DEQUANTIZE for n in model.graph.node):
        return []
    graph = _Graph.of(model)
    nodes_by_kind: dict[str, list[str]] = {}
    for n in model.graph.node:
        for kind in _wrong(n, graph):
            nodes_by_kind.setdefault(kind, []).append(n.name or n.output[0])
    return [f"TensorRT (by its documentation): {first_of(nodes, _SHOWN)}: {k}" for k, nodes in nodes_by_kind.items()]


def _wrong(n: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    axis_of = _CHANNELS.get(n.op_type)
    if axis_of is not None and len(n.input) > 1:
        yield from _wrong_layer(n, axis_of(n), graph)
    elif n.op_type == "Add":
        yield from _wrong_sum(n, graph)


def _wrong_layer(n: onnx.NodeProto, axis: int, graph: _Graph) -> Iterator[str]:
    data, weight = (graph.dequantized(n.input[i]) for i in (0, 1))
    if weight is not None and not graph.of_weights(weight):  # a product of two activations
        return
    if (data is None) != (weight is None):
        which = "data" if data is None else "weights"
        yield f"computes in float, as its {which} come from no DequantizeLinear"
        return
    if data is None or weight is None:
        return
    if graph.scales(data) > 1:
        yield "its data have a scale for each channel, where TensorRT wants one for all"
    rank = len(graph.stored.get(weight.input[0], ())) or _rank_before(weight, graph)
    own = int_attribute(weight, "axis", 1)
    if graph.scales(weight) > 1 and rank and own % rank != axis % rank:
        yield "the scales of its weights are not those of its output channels"
    for reader in graph.readers.get(n.output[0], ()):
        behind = graph.readers.get(reader.output[0], ()) if reader.op_type == _QUANTIZE else ()
        after = {r.op_type for pair in behind for r in graph.readers.get(pair.output[0], ())}
        if after & _FUSED:
            yield f"a pair between it and the {min(after & _FUSED)} behind it keeps them from being fused"


def _rank_before(weight: onnx.NodeProto, graph: _Graph) -> int:
    """The axes of a weight that is stored as float, in front of its pair."""
    before = graph.makers.get(weight.input[0])
    return len(graph.stored.get(before.input[0], ())) if before is not None else 0


def _wrong_sum(n: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    """A residual addition: a layer in front of it that computes in integers, and a branch in float."""
    layers = [_integers(graph.makers.get(i), graph) for i in n.input]
    branches = [graph.dequantized(i) is not None for i in n.input]
    if any(layers) and not any(branches) and all(i in graph.makers for i in n.input):
        yield "adds a branch in float to what a layer gives in integers: a pair on the branch lets them be fused"


def _integers(n: onnx.NodeProto | None, graph: _Graph) -> bool:
    return (
        n is not None
        and n.op_type in _CHANNELS
        and len(n.input) > 1
        and all(graph.dequantized(n.input[i]) is not None for i in (0, 1))
    )


def _gemm(n: onnx.NodeProto) -> int:
    return 0 if int_attribute(n, "transB", 0) else 1


# Layers with weights, and the axis of these that has the channels of the output.
_CHANNELS: Mapping[str, Callable[[onnx.NodeProto], int]] = {
    "Conv": lambda _: 0,
    "ConvTranspose": lambda _: 1,
    "Gemm": _gemm,
    "MatMul": lambda _: -1,
}
