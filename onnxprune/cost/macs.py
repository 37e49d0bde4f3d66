"""Multiply-accumulates of a model: the table of `operators`, and the layers whose channels can go.

Layers that the trace has recorded are counted by their own channels: a grouped convolution by what is left of each of
its groups, a product whose weight several positions share by the weight's axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from onnxprune.channels import ChannelGraph
from onnxprune.channels.branches import Drop
from onnxprune.channels.groups import is_recurrent, weight_axes
from onnxprune.channels.trace import Linear
from onnxprune.channels.whole_layers import WholeLayer, vanishing
from onnxprune.cost.operators import terms_of
from onnxprune.cost.terms import Cost, Length, Term, length_of, length_of_axis
from onnxprune.graph.quantized import stored
from onnxprune.graph.view import Node

_CONVOLUTIONS = ("Conv", "ConvTranspose", "DeformConv")


def macs(channels: ChannelGraph, drops: Mapping[int, Drop] | None = None, layers: Sequence[WholeLayer] = ()) -> Cost:
    """Multiply-accumulates of all contractions, at the batch and sizes that the shapes are bound to.

    An expert of a mixture counts at the share of positions that goes to each on average: k of all experts.

    Of an If both branches count, of a Loop or Scan one iteration. Those of `operators.uncounted` are missing. drops:
    what disappears with a group, as `channels.branches` finds it; layers: what with all of several.
    """
    terms = macs_by_node(channels, drops, layers)
    return Cost.of((t for of_node in terms.values() for t in of_node), len(channels.groups))


def macs_by_node(
    channels: ChannelGraph, drops: Mapping[int, Drop] | None = None, layers: Sequence[WholeLayer] = ()
) -> dict[int, tuple[Term, ...]]:
    """The terms of `macs` by the index of the node that multiplies; nodes that do not are missing."""
    found: dict[int, tuple[Term, ...]] = {}
    gone = vanishing(drops or {}, layers)
    by_node = {linear.node.index: linear for linear in channels.linears if not is_recurrent(linear.node)}
    for node in channels.graph.every_node:
        linear = by_node.get(node.index)
        layer = None if linear is None else _layer(node, linear, channels)
        products = layer if layer is not None else terms_of(node, channels) or ()
        needs = tuple(groups for groups, nodes in gone if node.index in nodes)
        if products:
            weight = "" if linear is None else stored(channels.graph, linear.weight)
            share = channels.graph.computed.get(weight, 1.0)
            found[node.index] = tuple(replace(t, needs=needs, coefficient=share * t.coefficient) for t in products)
    return found


def _layer(node: Node, linear: Linear, channels: ChannelGraph) -> list[Term] | None:
    """The products of a layer that the trace has recorded; None where its output's shape is not known."""
    graph = channels.graph
    out = graph.shape(node.outputs[0])
    if out is None:
        return None
    weight = graph.constants.get(linear.weight)
    wshape = weight.shape if weight is not None else graph.shape(linear.weight) or ()
    x = graph.shape(linear.data) or ()
    convolution = node.op in _CONVOLUTIONS
    reads, _ = weight_axes(linear)
    inputs = length_of(channels, linear.inputs, x[1] if convolution else wshape[reads])
    outputs = length_of(channels, linear.outputs, out[1] if convolution else out[-1])
    if not convolution:
        rows = [length_of_axis(channels, node.outputs[0], i, s) for i, s in enumerate(out[:-1])]
        return [Term(1.0, (inputs, outputs, *rows))]
    if node.op == "ConvTranspose":
        inputs, outputs, out = outputs, inputs, x
    return [_convolution(prod(wshape[2:]) * out[0] * prod(out[2:]), inputs, outputs, linear, wshape[1])]


def _convolution(positions: int, inside: Length, outside: Length, linear: Linear, per_group: int) -> Term:
    """positions · outside · inside / groups; where whole groups are the units, channels per group stay."""
    if linear.groups == 1:
        return Term(float(positions), (inside, outside))
    if linear.groups_are_units:
        return Term(float(positions * per_group), (outside,))
    return Term(positions / linear.groups, (inside, outside))
