"""What a model stores, as its nodes read it: through Identity, Transpose and reshaping, back to the initializer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxprune.graph import bodies, external
from onnxprune.handover.layout import Axes, reshaped, same, turned
from onnxprune.numerics.arrays import Array

# How many nodes may lie between a weight and what reads it: one that is deeper is computed, not handed on.
_MOST_STEPS = 16
_RESHAPING = ("Reshape", "Unsqueeze", "Squeeze", "Flatten")


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight where it is read.

    names: the initializer's, and those that Identity gave it. values: as they are read. axes: for each axis of the
    initializer the axis of `values`; None where that cannot be said.
    """

    names: tuple[str, ...]
    values: Array
    axes: Axes | None

    @property
    def root(self) -> str:
        """The initializer."""
        return self.names[0]


class Weights:
    """The weights of a model by the tensors that nodes read, those inside bodies included."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = {o: n for n in bodies.every_node(model.graph) for o in n.output if o}
        tensors = {t.name: t for g in (model.graph, *bodies.every_body(model.graph)) for t in g.initializer}
        constants = {n.output[0]: c for n in self._nodes.values() if (c := _constant(n)) is not None}
        self._tensors = constants | tensors

    def node(self, output: str) -> onnx.NodeProto | None:
        """The node that gives a tensor."""
        return self._nodes.get(output)

    def read(self, tensor: str, steps: int = _MOST_STEPS) -> Stored | None:
        """What is stored under a tensor's name, or is a stored weight turned; None where it is computed."""
        if tensor in self._tensors:
            values = external.array_of(self._tensors[tensor])
            return Stored((tensor,), values, same(values.ndim))
        node = self._nodes.get(tensor)
        if node is None or not steps or node.domain not in ("", "ai.onnx") or not node.input:
            return None
        if node.op_type not in ("Identity", "Transpose", *_RESHAPING):
            return None
        source = self.read(node.input[0], steps - 1)
        if source is None:
            return None
        if node.op_type == "Identity":
            plain = source.axes == same(source.values.ndim)
            return replace(source, names=(*source.names, tensor)) if plain else source
        if node.op_type == "Transpose":
            order = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), None)
            order = tuple(reversed(range(source.values.ndim))) if order is None else order
            if sorted(order) != list(range(source.values.ndim)):
                return None
            axes = None if source.axes is None else turned(source.axes, order)
            return Stored(source.names, np.transpose(source.values, order), axes)
        after = self._reshaped(node, source.values, steps)
        if after is None:
            return None
        axes = None if source.axes is None else reshaped(source.axes, source.values.shape, after.shape)
        return Stored(source.names, after, axes)

    def _reshaped(self, node: onnx.NodeProto, values: Array, steps: int) -> Array | None:
        """What a node that only reshapes makes of stored values; None where its sizes are computed."""
        numbers = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
        if numbers is None and len(node.input) > 1:
            given = self.read(node.input[1], steps - 1)
            if given is None:
                return None
            numbers = [int(v) for v in given.values.ravel()]
        try:
            if node.op_type == "Unsqueeze":
                return np.expand_dims(values, tuple(numbers or ()))
            if node.op_type == "Squeeze":
                return np.squeeze(values, None if numbers is None else tuple(numbers))
            if node.op_type == "Flatten":
                at = next((a.i for a in node.attribute if a.name == "axis"), 1) % (values.ndim + 1)
                return values.reshape(int(np.prod(values.shape[:at])), -1)
            sizes = [values.shape[i] if n == 0 and i < values.ndim else n for i, n in enumerate(numbers or ())]
            return values.reshape(sizes)
        except ValueError:
            return None


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)
