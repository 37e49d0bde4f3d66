"""Streams that may be turned: every reader and every writer of their channels is linear.

A stream is all that carries the same channels: what layers write, sums of that, what other layers read. Let
x (..., C, ...) be any of its tensors and Q (C, C) orthogonal. Where each node on the way treats all channels alike and
linearly, Q x in the place of x changes nothing, as long as Q is applied to the outputs of the layers that write it
(W → Q W, b → Q b), to the constants that are added to it, and to the inputs of the layers that read it (W → W Qᵀ):
(W Qᵀ) (Q x) = W x. Sums, poolings, zeros around an image, positions that move and factors that all channels share are
such nodes. Activations, normalizations, depthwise convolutions and gates are none, and what they touch is no such
stream; nor is one that an input, an output or a body of the model shares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.channels.groups import ChannelGraph, weight_axes
from onnxprune.channels.labels import Labels, tracked_axes
from onnxprune.channels.trace import Linear
from onnxprune.graph.view import Node

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SUMS = ("Add", "Sub", "Sum", "Mean")
# What reads its first input alone, and gives sums of its positions with factors that do not depend on the channel.
_ALIKE = frozenset(
    "AveragePool Dropout Expand Flatten Gather GlobalAveragePool Identity Neg Pad ReduceMean ReduceSum Reshape Resize "
    "Slice Split Squeeze Tile Transpose Unsqueeze Upsample".split()
)
_TYPES = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True, eq=False)
class Folded:
    """A BatchNormalization right behind a layer that writes a stream, and nothing else reads what is between them."""

    layer: Node
    normalization: Node


@dataclass(frozen=True, eq=False)
class LinearStream:
    """A stream whose channels may be replaced by any orthogonal combinations of them.

    units: the class of each channel, (C,). groups: those that these are in. axes: (constant, axis) of all that has to
    be turned with it. readers: weights of the layers that read it. folded: the normalizations that have to go into the
    layers in front of them first; of their own constants none is among `axes`.
    """

    units: Labels
    groups: frozenset[int]
    axes: tuple[tuple[str, int], ...]
    readers: tuple[str, ...]
    folded: tuple[Folded, ...] = ()


def linear_streams(channels: ChannelGraph, stays: Collection[int], fixed: Collection[str]) -> list[LinearStream]:
    """The streams that may be turned, in the order of the layers that write them first.

    stays: groups that no channel goes from. fixed: names of tensors that have to keep their values.
    """
    carriers: dict[int, list[str]] = {}
    for name in channels.factors:
        for g in channels.groups_in(name):
            carriers.setdefault(g, []).append(name)
    layers = {x.node.index: x for x in channels.linears}
    found: dict[bytes, LinearStream | None] = {}
    for layer in channels.linears:
        units = layer.outputs
        if units is None or layer.node.op not in _LAYERS or units.tobytes() in found:
            continue
        groups = frozenset(channels.group_of[units].tolist())
        if -1 in groups or groups & set(stays) or np.unique(units).size < max(units.size, 2):
            continue
        tensors = dict.fromkeys(name for g in sorted(groups) for name in carriers[g])
        search = _Search(channels, units, groups, layers, fixed)
        found[units.tobytes()] = search.stream() if search.follows(tensors) else None
    return [s for s in found.values() if s is not None]


@dataclass(eq=False)
class _Search:
    """One stream being looked at. where: the axis of its channels in each activation; held: (constant, axis) that hold
    them, and which of these a node accounts for."""

    channels: ChannelGraph
    units: Labels
    groups: frozenset[int]
    layers: Mapping[int, Linear]
    fixed: Collection[str]
    where: dict[str, int] = field(default_factory=dict)
    held: dict[tuple[str, int], bool] = field(default_factory=dict)
    readers: list[str] = field(default_factory=list)
    folded: list[Folded] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)

    def stream(self) -> LinearStream:
        axes = tuple(sorted(k for k in self.held if k[0] not in self.gone))
        return LinearStream(self.units, self.groups, axes, tuple(dict.fromkeys(self.readers)), tuple(self.folded))

    def follows(self, tensors: Collection[str]) -> bool:
        """Whether all that carries the channels does so on an axis of its own in their order, and every node fits."""
        if not all(self._placed(name) for name in tensors):
            return False
        nodes = {n.index: n for n in self._nodes()}
        return all(self._fits(n) for n in nodes.values()) and all(self.held.values()) and bool(self.readers)

    def _placed(self, name: str) -> bool:
        graph = self.channels.graph
        if name in self.fixed or name in graph.outputs or name in graph.inputs:
            return False
        own = [f for f in self.channels.factors[name] if not self.groups.isdisjoint(self.channels.group_of[f].flat)]
        if not all(len(tracked_axes(f)) == 1 and np.array_equal(f.ravel(), self.units) for f in own):
            return False
        axes = [tracked_axes(f)[0] for f in own]
        constant = graph.constants.get(name)
        if constant is not None:
            self.held.update({(name, a): False for a in axes})
            return constant.dtype in _TYPES
        self.where[name] = axes[0]
        return len(axes) == 1 and name in graph.producer

    def _nodes(self) -> Iterator[Node]:
        graph = self.channels.graph
        yield from (graph.producer[name] for name in self.where)
        for name in (*self.where, *(constant for constant, _ in self.held)):
            yield from (n for n, _ in graph.readers.get(name, ()))

    def _fits(self, node: Node) -> bool:
        """Whether a node treats the channels alike, or is a layer that reads or writes them."""
        if node.index in self.channels.graph.inside or node.domain not in ("", "ai.onnx"):
            return False
        if node.op in _LAYERS:
            return self._layer(node)
        if node.op == "BatchNormalization":
            return self._folds(node)
        outputs = [o for o in node.outputs if o]
        if not all(o in self.where for o in outputs):
            return False
        if node.op in _SUMS:
            return all(self._same_axis(i, outputs[0]) for i in node.inputs if i)
        if node.op in ("Mul", "Div"):
            return self._shared_factor(node)
        if node.op == "Concat":
            return all(i in self.where and self.where[i] == self.where[outputs[0]] for i in node.inputs)
        return self._alike(node)

    def _alike(self, node: Node) -> bool:
        if node.op not in _ALIKE or node.input(0) not in self.where or any(i in self.where for i in node.inputs[1:]):
            return False
        if node.op == "Pad":
            value = self.channels.graph.constants.get(node.input(2))
            padded = float(node.attrs.get("value", 0.0)) if not node.input(2) else None if value is None else value
            return node.attrs.get("mode", "constant") != "constant" or (padded is not None and not np.any(padded))
        return str(node.attrs.get("coordinate_transformation_mode", "")) != "tf_crop_and_resize"

    def _layer(self, node: Node) -> bool:
        layer = self.layers.get(node.index)
        if layer is None or layer.groups != 1 or layer.weight not in self.channels.graph.constants:
            return False
        if any(i in self.where for i in node.inputs if i != layer.data):
            return False
        reads, writes = weight_axes(layer)
        if (layer.data in self.where) != ((layer.weight, reads) in self.held):
            return False
        if layer.data in self.where:
            if layer.inputs is None or not np.array_equal(layer.inputs, self.units):
                return False
            self.readers.append(layer.weight)
            if not self._takes(layer.weight, reads):
                return False
        if node.outputs[0] not in self.where:
            return True
        if layer.outputs is None or not np.array_equal(layer.outputs, self.units):
            return False
        return self._takes(layer.weight, writes) and (not layer.bias or self._takes_last(layer.bias))

    def _folds(self, node: Node) -> bool:
        """A BatchNormalization with stored statistics is a factor and a summand for each channel of the layer."""
        x, outputs, graph = node.input(0), [o for o in node.outputs if o], self.channels.graph
        if x not in self.where or len(outputs) != 1 or node.attrs.get("training_mode", 0):
            return False
        layer = graph.producer[x]
        plain = layer.op in ("Conv", "ConvTranspose") or (
            layer.op == "Gemm" and all(float(layer.attrs.get(k, 1.0)) == 1.0 for k in ("alpha", "beta"))
        )
        if not plain or not layer.input(2) or len(graph.readers[x]) != 1 or outputs[0] not in self.where:
            return False
        self.folded.append(Folded(layer, node))
        self.gone.update(node.inputs[1:])
        return all(self._takes(i, 0) for i in node.inputs[1:])

    def _takes(self, constant: str, axis: int) -> bool:
        if (constant, axis) not in self.held:
            return False
        self.held[constant, axis] = True
        return True

    def _takes_last(self, constant: str) -> bool:
        return self._takes(constant, len(self.channels.graph.shape(constant) or ()) - 1)

    def _same_axis(self, operand: str, output: str) -> bool:
        """Whether an operand of a sum has the channels where the sum has them, counted from the last axis."""
        wanted = self.where[output] - self._rank(output)
        if operand in self.where:
            return self.where[operand] - self._rank(operand) == wanted
        rank = len(self.channels.graph.shape(operand) or ())
        return operand in self.channels.graph.constants and rank + wanted >= 0 and self._takes(operand, rank + wanted)

    def _shared_factor(self, node: Node) -> bool:
        """Whether one operand is the stream and the other has one number for all of its channels."""
        own = [slot for slot, i in enumerate(node.inputs) if i in self.where]
        if len(own) != 1 or (node.op == "Div" and own != [0]):
            return False
        graph, x, factor = self.channels.graph, node.inputs[own[0]], node.inputs[1 - own[0]]
        shape, output = graph.shape(factor), node.outputs[0]
        if shape is None or not self._same_axis(x, output):
            return False
        axis = len(shape) + self.where[x] - self._rank(x)
        return axis < 0 or (shape[axis] == 1 and not graph.is_free(factor, axis))

    def _rank(self, name: str) -> int:
        return len(self.channels.graph.shape(name) or ())
