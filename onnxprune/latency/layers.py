"""The layers that onnxruntime runs, and how long their axes are at any widths.

onnxruntime fuses nodes (Conv, BatchNormalization, Add and Relu become one kernel) and brings tensors into layouts of
its own, so what is timed is what its profiler shows of the whole model: a *layer* is one kernel of the original,
tied to the channel graph by the node that it computes. A kernel keeps the name of a node, or gets that of its output.
What has a name of its own (a Reorder between two layouts) counts with the layer beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import onnx

from onnxprune.channels import ChannelGraph
from onnxprune.cost import Length, length_of_axis
from onnxprune.graph import bodies
from onnxprune.graph.protobuf import copied
from onnxprune.graph.view import Node
from onnxprune.latency.kernels import Kernel

_MARK = re.compile(r"@(\d+)@")
_BLOCKED = "_nchwc"
_MOST_LENGTHS = 3
_BEFORE_ITS_READER = ("ReorderInput",)


@dataclass(frozen=True)
class TimedLayer:
    """A kernel of the original: the lengths of its axes that can change, and what else decides on its time.

    Layers with the same signature are the same work at the same lengths. node: the index of that which does the work.
    axes: of each length (tensor, axis).
    """

    lengths: tuple[Length, ...]
    signature: str
    node: int
    axes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Layers:
    """All layers with a length that can change. layer_of: node index → its place in `layers`, None for a fixed kernel.

    producers: the node index of every tensor, for kernels that are called like their output.
    """

    layers: tuple[TimedLayer, ...]
    layer_of: Mapping[int, int | None]
    producers: Mapping[str, int]

    def seconds(self, kernels: Sequence[Kernel]) -> list[float]:
        """What each layer took in a run of a cut model whose nodes are `marked`."""
        totals = [0.0] * len(self.layers)
        owners = owners_of(kernels, self.producers, self.layer_of)
        for kernel, owner in zip(kernels, owners, strict=True):
            layer = None if owner is None else self.layer_of[owner]
            if layer is not None:
                totals[layer] += kernel.seconds
        return totals

    def named(self, kernel: Kernel) -> int | None:
        """The index of the node that a kernel is called after; None where its name is its own."""
        return _named(kernel.name, self.producers)


def marked(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose nodes are called by their index (see `graph.view.Node`), which survives cutting and onnxruntime."""
    renamed = copied(proto)
    for i, node in enumerate(bodies.every_node(renamed.graph)):
        node.name = f"@{i}@"
    return renamed


def layers_of(channels: ChannelGraph, kernels: Sequence[Kernel], least: Sequence[int], alignment: int) -> Layers:
    """The layers behind the kernels of the original model, whose nodes are `marked`.

    least: units that each group keeps at least. alignment: of the widths, as kernels differ on odd ones.
    """
    graph = channels.graph
    nodes = {n.index: n for n in graph.every_node}
    producers = {o: n.index for n in graph.every_node for o in n.outputs if o}
    ran = list(dict.fromkeys(i for k in kernels if (i := _named(k.name, producers)) is not None))
    product_in, owner_of = _fused(channels, set(ran))
    layers: list[TimedLayer] = []
    layer_of: dict[int, int | None] = {}
    first = {i: k for k in reversed(kernels) if (i := _named(k.name, producers)) is not None}
    for i in ran:
        node = nodes[product_in.get(i, i)]
        axes = lengths_of(channels, node, least)
        lengths = tuple(axes)
        layer_of[i] = len(layers) if lengths else None
        if lengths:
            signature = _signature(first[i], node, _ranges(channels, lengths, least), alignment)
            layers.append(TimedLayer(lengths, signature, node.index, tuple(axes.values())))
    layer_of.update({inner: layer_of[outer] for inner, outer in owner_of.items()})
    return Layers(tuple(layers), layer_of, producers)


def owners_of(
    kernels: Sequence[Kernel], producers: Mapping[str, int], layer_of: Mapping[int, int | None]
) -> list[int | None]:
    """The node that each kernel belongs to; of one that no node gave its name, the node of the kernel beside it."""
    own = [i if i is not None and i in layer_of else None for i in (_named(k.name, producers) for k in kernels)]
    before: list[int | None] = []
    for i in own:
        before.append(i if i is not None else before[-1] if before else None)
    after: list[int | None] = []
    for i in reversed(own):
        after.append(i if i is not None else after[-1] if after else None)
    after.reverse()
    return [
        i if i is not None else (a if k.op in _BEFORE_ITS_READER or b is None else b)
        for k, i, b, a in zip(kernels, own, before, after, strict=True)
    ]


def _named(kernel: str, producers: Mapping[str, int]) -> int | None:
    """The node in a kernel's name: its mark, or the producer of the tensor that it is called by."""
    mark = _MARK.search(kernel)
    return int(mark.group(1)) if mark else producers.get(kernel.removesuffix(_BLOCKED))


_PRODUCTS = ("MatMul", "Gemm", "Einsum", "Attention")


def _fused(channels: ChannelGraph, ran: set[int]) -> tuple[dict[int, int], dict[int, int]]:
    """(kernel's node → the product inside, node without a kernel of its own → the node whose kernel has it).

    A kernel is called after the last node that it holds, or after the first.
    """
    linear = {x.node.index for x in channels.linears}
    products = {n.index for n in channels.graph.every_node if n.index in linear or n.op in _PRODUCTS}
    product_in: dict[int, int] = {}
    owner_of: dict[int, int] = {}
    for n in channels.graph.every_node:
        if n.index in ran:
            continue
        owner = _nearest(channels, n, ran, behind=n.index in products)
        if owner is not None:
            owner_of[n.index] = owner
            if n.index in products and owner not in products:
                product_in.setdefault(owner, n.index)
    return product_in, owner_of


def _nearest(channels: ChannelGraph, node: Node, ran: set[int], *, behind: bool) -> int | None:
    """The nearest node with a kernel of its own, behind or in front of `node`."""
    graph = channels.graph
    queue, seen = [node], {node.index}
    while queue:
        current = queue.pop(0)
        if behind:
            beside = [reader for name in current.outputs for reader, _ in graph.readers.get(name, ())]
        else:
            beside = [graph.producer[name] for name in current.inputs if name in graph.producer]
        for n in beside:
            if n.index in ran:
                return n.index
            if n.index not in seen:
                seen.add(n.index)
                queue.append(n)
    return None


def lengths_of(channels: ChannelGraph, node: Node, least: Sequence[int]) -> dict[Length, tuple[str, int]]:
    """The axes of a node that can change: of a product those of its operands and results, else of its results.

    Each with the (tensor, axis) that has it. What only moves or maps values takes time by what it writes; where that is
    fixed, by what it reads.
    """
    if any(x.node.index == node.index for x in channels.linears):
        lengths = _changing(channels, (node.inputs[0], node.outputs[0]), least)
    elif node.op in _PRODUCTS:
        lengths = _changing(channels, (*node.inputs, node.outputs[0]), least)
    else:
        lengths = _changing(channels, node.outputs, least) or _changing(channels, node.inputs, least)
    return dict(islice(lengths.items(), _MOST_LENGTHS))


def _changing(channels: ChannelGraph, names: Sequence[str], least: Sequence[int]) -> dict[Length, tuple[str, int]]:
    shapes = ((name, channels.graph.shape(name) or ()) for name in names if name)
    different: dict[Length, tuple[str, int]] = {}
    for name, shape in shapes:
        for axis, size in enumerate(shape):
            length = length_of_axis(channels, name, axis, size)
            if length.groups:
                different.setdefault(length, (name, axis))
    ranges = _ranges(channels, different, least)
    return {x: at for (x, at), (low, high) in zip(different.items(), ranges, strict=True) if low < high}


def _ranges(channels: ChannelGraph, lengths: Iterable[Length], least: Sequence[int]) -> list[tuple[float, float]]:
    """The lengths at the least widths, and at the full ones."""
    full = channels.sizes
    return [(length.at(least), length.at(full)) for length in lengths]


def _signature(kernel: Kernel, node: Node, ranges: Sequence[tuple[float, float]], alignment: int) -> str:
    """Everything besides the lengths that decides on the time of a kernel, as text."""
    attributes: dict[str, Any] = {k: v for k, v in sorted(node.attrs.items()) if isinstance(v, (int, float, str, list))}
    return json.dumps([kernel.op, node.domain, node.op, attributes, kernel.shapes, ranges, alignment], default=str)
