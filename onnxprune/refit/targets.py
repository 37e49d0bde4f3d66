"""What a layer of the pruned network is fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.calibration.layers import Layer
from onnxprune.channels import ChannelGraph
from onnxprune.graph.quantized import behind_quantization
from onnxprune.graph.view import Graph, Node, depth_first
from onnxprune.numerics.arrays import Doubles, Mask
from onnxprune.verification.oracle import mask_of


@dataclass(frozen=True, eq=False)
class Target:
    """Where a layer's target is read: y = (original[source] - pruned[other] - shift) / gain.

    source: the layer's input where the operator keeps its output to itself; it is computed from that.
    other: "" where the target is the layer's own output.
    """

    source: str
    other: str = ""
    gain: Doubles | None = None
    shift: Doubles | None = None


def target_of(layer: Layer, graph: Graph, latest: Mapping[str, int]) -> Target:
    """The residual target where the output goes only into an Add, possibly through a BatchNormalization.

    latest: tensor → index of the last linear layer that it depends on: the other branch must be finished by then.
    """
    if not layer.output:
        return Target(layer.data)
    plain = Target(layer.output)
    name, gain, shift = layer.output, None, None
    norm = _only_reader(graph, name, "BatchNormalization")
    if norm is not None:
        # It works on axis 1, which is the axis of this layer's outputs unless a product has further axes between.
        on_outputs = layer.window is not None or len(graph.shape(name) or ()) == 2
        if not on_outputs or any(i not in graph.constants for i in norm.inputs[1:5]):
            return plain
        s, b, mean, var = (graph.constants[i].astype(np.float64) for i in norm.inputs[1:5])
        gain = s / np.sqrt(var + float(norm.attrs.get("epsilon", 1e-5)))
        shift = b - mean * gain
        name = norm.outputs[0]
    name = behind_quantization(graph, name)
    add = _only_reader(graph, name, "Add")
    if add is None:
        return plain
    other = add.inputs[1] if add.inputs[0] == name else add.inputs[0]
    same = graph.shape(other) == graph.shape(name) == graph.shape(add.outputs[0])
    if not same or other in graph.constants or other == name or latest.get(other, -1) >= layer.node.index:
        return plain
    return Target(add.outputs[0], other, gain, shift)


def _only_reader(graph: Graph, name: str, op: str) -> Node | None:
    readers = graph.readers.get(name, ())
    if len(readers) != 1 or name in graph.outputs or name in graph.captured:
        return None
    return readers[0][0] if readers[0][0].op == op else None


def latest_layers(graph: Graph, layers: Sequence[Layer]) -> dict[str, int]:
    """Tensor → index of the last linear layer that it depends on, -1 for none."""
    own = {layer.node.index for layer in layers}
    latest: dict[str, int] = {}
    for n in graph.nodes:
        last = max((latest.get(i, -1) for i in (*n.inputs, *n.captures) if i), default=-1)
        last = n.index if n.index in own else last
        latest.update((o, last) for o in n.outputs if o)
    return latest


def changed_tensors(channels: ChannelGraph, keep: Mask) -> set[str]:
    """Tensors whose values change when the classes outside `keep` are removed."""
    cut = {r.node.index for r in channels.reads if mask_of(channels, r.node.inputs[r.slot], keep) is not None}
    changed: set[str] = set()
    for n in channels.graph.nodes:
        own = {i.index for i in depth_first([n])}
        if own & cut or any(i in changed for i in (*n.inputs, *n.captures)):
            changed.update(n.outputs)
    return changed
