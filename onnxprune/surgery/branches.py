"""Take out branches of which no channel stays: what only they needed goes, and a bias stands where they joined."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.channels import ChannelGraph
from onnxprune.channels.branches import Remains, bias_of, channel_axis
from onnxprune.channels.labels import rows_of
from onnxprune.channels.trace import Linear
from onnxprune.graph.bodies import copy_node, every_node
from onnxprune.graph.external import array_of
from onnxprune.graph.names import unused
from onnxprune.graph.view import Node
from onnxprune.normalise.constants import fold_constants, returned, see_through_identities
from onnxprune.numerics.arrays import Mask
from onnxprune.surgery.unread import drop_unread


def take_out(
    proto: onnx.ModelProto,
    channels: ChannelGraph,
    left: Remains,
    keep: Mask,
    taken: set[str],
) -> Sequence[Node | None]:
    """Take, in place, from the uncut model all nodes and weights that disappear; the nodes that are left.

    A layer of which only its bias is left becomes an Identity of that, which None stands for here, as nothing in it
    names a size. Without a bias it is an Identity of zeros. A cache that goes is zeros of the size of another one.
    taken: names that are in use.
    """
    old = list(proto.graph.node)
    nodes: list[onnx.NodeProto] = []
    views: list[Node | None] = []
    for node, view in zip(old, channels.graph.nodes, strict=True):
        layer = left.alone.get(view.outputs[0])
        if view.index in left.gone:
            continue
        if layer is None:
            nodes.append(_with_sizes_of(node, left.sizes[view.index]) if view.index in left.sizes else node)
            views.append(view)
            continue
        source = bias_of(layer) or _zeros(proto, channels, layer, keep, taken)
        nodes.append(helper.make_node("Identity", [source], [view.outputs[0]], name=node.name))
        views.append(None)
    made = _empty_caches(proto, left, taken)
    nodes += made
    views += [None] * len(made)
    kept = [copy_node(n) for n in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    drop_unread(proto)
    return views


def _with_sizes_of(node: onnx.NodeProto, port: str) -> onnx.NodeProto:
    """A Shape of an input of the model."""
    copy = copy_node(node)
    copy.input[0] = port
    return copy


def _empty_caches(proto: onnx.ModelProto, left: Remains, taken: set[str]) -> list[onnx.NodeProto]:
    """Nodes that give zeros for the caches that go, each of the size of one that stays."""
    types = {v.name: v.type.tensor_type.elem_type for v in proto.graph.output}
    made: list[onnx.NodeProto] = []
    for cache, like in sorted(left.caches.items()):
        zero, size = (unused(f"{cache}__{what}", taken) for what in ("zero", "size"))
        values = np.zeros((), helper.tensor_dtype_to_np_dtype(types[cache]))
        proto.graph.initializer.append(numpy_helper.from_array(values, zero))
        made.append(helper.make_node("Shape", [like], [size], name=size))
        made.append(helper.make_node("Expand", [zero, size], [cache], name=f"{cache}__gone"))
    return made


def broadcastable(proto: onnx.ModelProto, channels: ChannelGraph, left: Remains) -> None:
    """Give, in place, the biases that stand alone the shape that broadcasts in the layer's place: (1, M, 1, 1) say."""
    stored = {t.name: t for t in proto.graph.initializer}
    for out, layer in left.alone.items():
        rank = len(channels.graph.shape(out) or ())
        if bias_of(layer) in stored:
            t = stored[bias_of(layer)]
            width = int(np.prod(t.dims))
            axis = channel_axis(layer, rank)
            del t.dims[:]
            t.dims.extend(width if a == axis else 1 for a in range(rank))


def _zeros(proto: onnx.ModelProto, channels: ChannelGraph, layer: Linear, keep: Mask, taken: Collection[str]) -> str:
    """The name of new zeros for the output of a layer that has no bias."""
    graph, out = channels.graph, layer.node.outputs[0]
    shape = graph.shape(out) or ()
    axis = channel_axis(layer, len(shape))
    factor = channels.axis_factor(out, axis)
    width = shape[axis] if factor is None else int(keep[rows_of(factor)[0]].sum())
    weight = graph.constants.get(layer.weight)
    if weight is None:  # it is quantized, and real numbers have the type of their scale
        weight = graph.constants[graph.producer[layer.weight].inputs[1]]
    name = f"{out}__zeros"
    while name in taken:
        name += "_"
    zeros = np.zeros([width if a == axis else 1 for a in range(len(shape))], weight.dtype)
    proto.graph.initializer.append(numpy_helper.from_array(zeros, name))
    return name


def settle(proto: onnx.ModelProto, channels: ChannelGraph, left: Remains) -> onnx.ModelProto:
    """The finished model, where what became constant is a constant, and nothing is summed with zeros for it."""
    settled = fold_constants(proto)
    see_through_identities(settled)
    own = {*left.constant, *(bias_of(x) for x in left.alone.values())}
    zeros = {t.name for t in settled.graph.initializer if t.name in own and not array_of(t).any()}
    shape, outputs = channels.graph.shape, returned(settled)
    alias: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for n in settled.graph.node:
        rest = [i for i in n.input if i not in zeros]
        out = n.output[0]
        if n.op_type == "Add" and len(rest) == 1 and out not in outputs and shape(rest[0]) == shape(out):
            alias[out] = alias.get(rest[0], rest[0])
        else:
            nodes.append(copy_node(n))
    del settled.graph.node[:]
    settled.graph.node.extend(nodes)
    for n in every_node(settled.graph):
        for i, name in enumerate(n.input):
            n.input[i] = alias.get(name, name)
    drop_unread(settled)
    return settled
