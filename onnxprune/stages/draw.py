"""The network from input to output, with the width of each layer before and after: rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from onnxprune.channels import ChannelGraph
from onnxprune.channels.groups import weight_axes
from onnxprune.channels.labels import Labels
from onnxprune.channels.outline import LAYER, Place, outline
from onnxprune.cost import Term, macs_by_node
from onnxprune.graph.view import depth_first
from onnxprune.numerics.arrays import Mask, Masks
from onnxprune.report.groups import NOT_CUT
from onnxprune.report.summary import LayerRow
from onnxprune.stages.couple import Coupled


def layer_rows(coupled: Coupled, masks: Masks, kept: Sequence[int]) -> tuple[LayerRow, ...]:
    """A row for each place of the network in outline. kept: units of each group, with what goes with a branch at 0."""
    channels = coupled.channels
    keep = channels.keep_classes(masks)
    keep[[u for g, n in zip(channels.groups, kept, strict=True) if n == 0 for u in g.units.tolist()]] = False
    terms = macs_by_node(channels, coupled.drops, coupled.layers_whole)
    return tuple(_row(p, coupled, keep, terms, kept) for p in outline(channels))


def _row(
    place: Place, coupled: Coupled, keep: Mask, terms: Mapping[int, Sequence[Term]], kept: Sequence[int]
) -> LayerRow:
    channels = coupled.channels
    full = channels.sizes
    own = [t for node in depth_first(place.nodes) for t in terms.get(node.index, ())]
    batch = channels.graph.batch
    before, after = (round(sum(t.at(n) for t in own) / batch) for n in (full, kept))
    operators = tuple(node.op for node in place.nodes)
    row = LayerRow(place.kind, place.name, operators, place.sources, macs=(before, after))
    if place.kind != LAYER or place.linear is None:
        return row
    linear = place.linear
    reads, writes = weight_axes(linear)
    inputs = _width(linear.inputs, keep, linear.weight, reads, channels)
    outputs = _width(linear.outputs, keep, linear.weight, writes, channels)
    group = _group_of(linear.outputs, channels)
    stays = ""
    if outputs is not None and outputs[0] == outputs[1]:
        stays = _why_whole(linear.weight, writes, group, coupled)
    return LayerRow(place.kind, place.name, operators, place.sources, inputs, outputs, (before, after), group, stays)


def _width(factor: Labels | None, keep: Mask, weight: str, axis: int, channels: ChannelGraph) -> tuple[int, int] | None:
    """Channels of an axis before and after; those of the weight where the axis is not tracked."""
    if factor is not None:
        return int(factor.size), int(keep[factor].sum())
    shape = channels.graph.shape(weight)
    if shape is None or len(shape) <= axis or not prod(shape):
        return None
    return shape[axis], shape[axis]


def _group_of(factor: Labels | None, channels: ChannelGraph) -> int | None:
    """The group of the first channel of an axis that is in one."""
    if factor is None:
        return None
    groups = channels.group_of[factor].ravel()
    inside = groups[groups >= 0]
    return int(inside[0]) if inside.size else None


def _why_whole(weight: str, axis: int, group: int | None, coupled: Coupled) -> str:
    """Why the outputs of a layer kept their width: they are pinned, their group stays whole, or others cost less."""
    pinned = [p for p in coupled.channels.pinned if p.tensor == weight]
    pinned = [p for p in pinned if p.axis == axis] or pinned
    if group is None:
        return pinned[0].why.reason if pinned else "its outputs are no channels that can be told apart"
    return coupled.widths.whole[group] or NOT_CUT
