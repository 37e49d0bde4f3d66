"""Gates: where a channel is read for good, a factor on what that read sees.

A gate of 1 leaves the network as it is, a gate of 0 removes the channel; between them lies what greedy imitation
optimises. It stands at every contraction that sums over the channel (a depthwise convolution passes it on, and so does
the product of queries and keys that belongs to a head), in front of the operator, so that other readers of the same
tensor see nothing of it. Of a product of two activations one operand is gated.

What a normalization reads across channels has no gate: its statistics are those of all channels. Nor has what a
recurrent net reads of its own state, which is inside the operator, or what the body of a control-flow operator reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from onnxprune.channels import ChannelGraph
from onnxprune.channels.labels import Labels, tracked_axes
from onnxprune.graph.view import Node
from onnxprune.numerics.arrays import Doubles


@dataclass(frozen=True, eq=False)
class Gate:
    """Gates of the channels that input `slot` of `node`, the tensor `data`, carries along one factor.

    classes: the class of each position that the factor tracks, -1 where no gate stands; its shape broadcasts against
    that of the tensor. batch: the axis along which the samples lie, one after the other; None where it is not known.
    """

    node: Node
    slot: int
    data: str
    classes: Labels
    batch: int | None = None

    @property
    def summed(self) -> tuple[int, ...]:
        """The axes that are neither tracked nor that of the samples."""
        kept = {*tracked_axes(self.classes), self.batch}
        return tuple(a for a in range(self.classes.ndim) if a not in kept)


def gates_of(channels: ChannelGraph) -> tuple[Gate, ...]:
    """Every gate of the main graph, in topological order, without the axis of its samples."""
    graph = channels.graph
    gates: list[Gate] = []
    seen: dict[int, set[int]] = {}
    passing = {x.node.index for x in channels.linears if x.groups_are_units}
    reads = (r for r in channels.reads if r.kind == "contraction" and r.node.index not in graph.inside)
    for r in sorted(reads, key=lambda r: (r.node.index, r.slot)):
        data = r.node.inputs[r.slot]
        if data in graph.constants or graph.shape(data) is None or r.node.index in passing:
            continue
        carried = seen.setdefault(r.node.index, set())
        for f in channels.factors.get(data, ()):
            if all(f.shape[a] == 1 for a in r.axes):
                continue
            classes = np.where((channels.group_of[f] >= 0) & ~np.isin(f, sorted(carried)), f, -1)
            if (classes >= 0).any():
                gates.append(Gate(r.node, r.slot, data, classes))
        # The other operand of a product carries the same channels; one factor for each is enough.
        carried.update(int(c) for f in channels.factors.get(data, ()) for c in np.unique(f))
    return tuple(gates)


def by_group(channels: ChannelGraph, gates: Sequence[Gate]) -> dict[int, list[int]]:
    """Group index → places in `gates` of those that serve it; a gate may serve several groups."""
    places: dict[int, list[int]] = {}
    for i, gate in enumerate(gates):
        for g in np.unique(channels.group_of[gate.classes[gate.classes >= 0]]).tolist():
            places.setdefault(g, []).append(i)
    return places


def units_of(channels: ChannelGraph, group: int) -> Labels:
    """The unit of the group that each class is, (classes + 1,); -1 for all others, and at the end for no class."""
    unit = np.full(channels.classes.pinned.size + 1, -1, np.int64)
    units = channels.groups[group].units
    unit[units] = np.arange(units.size)
    return unit


def values_of(channels: ChannelGraph, group: int, gate: Gate, coefficients: Doubles) -> Doubles:
    """What to multiply the gated tensor with: `coefficients` (units,) in the shape of the factor, 1 elsewhere."""
    unit = units_of(channels, group)[gate.classes]
    values: Doubles = np.where(unit >= 0, coefficients[np.maximum(unit, 0)], 1.0)
    return values


def sums_of(channels: ChannelGraph, group: int, gate: Gate, values: Doubles) -> Doubles:
    """The transpose of `values_of`: values (rows, *positions of the factor) summed over the units, (rows, units)."""
    unit = units_of(channels, group)[gate.classes].ravel()
    inside = np.flatnonzero(unit >= 0)
    # Several positions may belong to one unit.
    owner = csr_array((np.ones(inside.size), (unit[inside], inside)), shape=(channels.groups[group].size, unit.size))
    sums: Doubles = (owner @ values.reshape(-1, unit.size).T).T
    return sums
