"""Which nodes compute in integers: layers with weights, and what lies between two of them.

A node between layers is worth a pair of QuantizeLinear and DequantizeLinear only where it gets codes anyway and hands
them on: where all that it reads comes from quantized layers, and something that it gives goes to one. An activation
right behind a layer is part of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.graph import bodies
from onnxprune.graph.protobuf import int_attribute
from onnxprune.quantization.preparation import constants_of
from onnxprune.targets.precision import Placement

_STANDARD = ("", "ai.onnx")
_ACTIVATIONS = frozenset({"Relu", "Clip"})


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that can compute in integers. name: of its node. weight: its initializer. output: what it gives.

    share: the multiplications that one entry of its output takes.
    """

    name: str
    operator: str
    data: str
    weight: str
    output: str
    share: int


@dataclass(frozen=True, eq=False)
class Places:
    """The layers of a model, and what may lie between them."""

    model: onnx.ModelProto
    placement: Placement
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, model: onnx.ModelProto, placement: Placement) -> Places:
        """Look for them. model: as `preparation.prepared` gives it."""
        constants = constants_of(model)
        outer = bodies.captured(model.graph.node)
        found = []
        for n in model.graph.node:
            if n.op_type not in placement.layers or n.domain not in _STANDARD or len(n.input) < 2:
                continue
            weight = constants.get(n.input[1])
            if weight is None or weight.data_type != TensorProto.FLOAT or not 2 <= len(weight.dims) <= 5:
                continue
            if n.input[0] in constants or n.input[1] in outer or (n.op_type == "MatMul" and len(weight.dims) != 2):
                continue
            if len(n.input) > 2 and n.input[2] and n.input[2] not in constants:  # a bias that is computed
                continue
            share = _multiplications(n, tuple(weight.dims))
            found.append(
                Layer(
                    name=n.name,
                    operator=n.op_type,
                    data=n.input[0],
                    weight=n.input[1],
                    output=n.output[0],
                    share=share,
                )
            )
        return cls(model, placement, tuple(found))

    def tensors(self) -> set[str]:
        """All activations that any choice of layers could quantize."""
        constants = constants_of(self.model)
        chosen = {x.name for x in self.layers}
        nodes = [n for n in self.model.graph.node if n.name in chosen or self._may_lie_between(n)]
        return {t for n in nodes for t in (*n.input, *n.output) if t and t not in constants}

    def nodes(self, known: Collection[str], floating: Collection[str] = ()) -> list[str]:
        """The nodes to quantize, in the order of the model.

        known: activations with a range. floating: names of layers that stay in float.
        """
        layers = {x.name for x in self.layers if x.name not in floating and x.data in known and x.output in known}
        constants = constants_of(self.model)
        coming = self._coming(layers, known, constants)
        going = self._going(layers, coming)
        behind = {n.output[0] for n in self.model.graph.node if n.name in layers}
        outer = bodies.captured(self.model.graph.node)
        chosen = []
        for n in self.model.graph.node:
            # A pair of codes may stand for an activation, which goes then: a body would read what is in front of it.
            if n.op_type in _ACTIVATIONS and outer.intersection((n.input[0], n.output[0])):
                continue
            between = n.name in coming and any(o in going for o in n.output)
            part = n.op_type in _ACTIVATIONS and n.name in coming and n.input[0] in behind
            if n.name in layers or ((between or part) and n.op_type in self.placement.between):
                chosen.append(n.name)
        return chosen

    def _may_lie_between(self, n: onnx.NodeProto) -> bool:
        p = self.placement
        return (n.op_type in p.between or n.op_type in p.through) and n.domain in _STANDARD

    def _read(self, n: onnx.NodeProto) -> list[str]:
        slots = self.placement.between.get(n.op_type, (0,))
        return [n.input[s] for s in slots] if slots else [i for i in n.input if i]

    def _coming(self, layers: set[str], known: Collection[str], constants: Mapping[str, TensorProto]) -> set[str]:
        """The nodes that only read what comes from these layers."""
        codes = {n.output[0] for n in self.model.graph.node if n.name in layers}
        found = set()
        for n in self.model.graph.node:
            if n.name in layers or not self._may_lie_between(n):
                continue
            read = self._read(n)
            moving = [i for i in read if i not in constants]
            floats = all(constants[i].data_type == TensorProto.FLOAT for i in read if i in constants)
            if moving and floats and all(i in codes for i in moving) and all(o in known for o in n.output if o):
                found.add(n.name)
                codes.update(n.output)
        return found

    def _going(self, layers: set[str], coming: set[str]) -> set[str]:
        """The tensors that go to these layers, at least by one way through nodes of `coming`."""
        data = {x.name: x.data for x in self.layers}
        found = set()
        for n in reversed(self.model.graph.node):
            if n.name in layers:
                found.add(data[n.name])
            elif n.name in coming and any(o in found for o in n.output):
                found.update(self._read(n))
        return found


def _multiplications(n: onnx.NodeProto, dims: tuple[int, ...]) -> int:
    """Of one entry of the output, given the sizes of the weight."""
    if n.op_type == "Conv":
        return int(np.prod(dims[1:]))
    if n.op_type == "ConvTranspose":  # of each entry of the input as many as the weight has for its channel
        return int(np.prod(dims)) // max(dims[1] * int_attribute(n, "group", 1), 1)
    return dims[1] if n.op_type == "Gemm" and int_attribute(n, "transB", 0) else dims[0]
