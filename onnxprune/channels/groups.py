"""From labels to units and groups: the channel graph that the later stages read.

A *unit* is a class of labels that is removed together. A *group* is a set of units that appear on the same axes of
the same weights: they compete with each other, and removing any of them changes the same shapes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxprune.channels.labels import Classes, Factor, Factors, Labels, Pinned, tracked_axes
from onnxprune.channels.names import called
from onnxprune.channels.rectangular import Settled, settle, signatures, weight_axes_of
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.rules import TABLE
from onnxprune.channels.trace import TOO_MANY, AttentionUnits, Linear, Read, Trace, walk
from onnxprune.graph.operators import GATE_COUNT, QUANTIZED_LSTM
from onnxprune.graph.quantized import is_dequantize, is_quantize, stored
from onnxprune.graph.view import Graph, Node
from onnxprune.numerics.arrays import Mask

# Constants of these types are sizes, indices and masks, no weights.
INDEX_TYPES = (np.dtype(np.int64), np.dtype(np.bool_))


@dataclass(frozen=True)
class AxisRef:
    """An axis of a weight, and how many of its positions each unit of a group occupies, over all `rows` together.

    units: how many units of the group are on it. rows: above 1 where each row of the weight (the groups of a
    convolution, say) carries channels of its own.
    gates: positions that a single channel takes: on the rows of a recurrent net's weights one for each gate.
    """

    tensor: str
    axis: int
    positions: int
    units: int
    rows: int = 1
    gates: int = 1


@dataclass(frozen=True, eq=False)
class Group:
    """Units that compete: the same axes of the same weights carry them.

    units: class of each unit, (n,), ordered by their place on the first axis that produces them.
    rows: the balanced set of each unit, (n,), numbered from 0, where equally many must stay of each; else None.
    head: the positions of a head where each unit is a head of attention, or those that share keys; else 0.
    older: its name in plans up to 0.4.0, that of the node that reads its first weight, whatever that says.
    """

    index: int
    name: str
    units: Labels
    producers: tuple[AxisRef, ...]
    consumers: tuple[AxisRef, ...]
    parameters: tuple[AxisRef, ...]
    mixing: bool
    rows: Labels | None = None
    head: int = 0
    older: str = ""

    @property
    def step(self) -> int:
        """The number of kept units is a multiple of this: 1, or the number of balanced sets."""
        return 1 if self.rows is None else int(self.rows.max()) + 1

    @property
    def size(self) -> int:
        """How many units the group has."""
        return int(self.units.size)

    @property
    def channels_per_unit(self) -> int:
        """Channels that one unit takes on the first axis that produces it."""
        first = next(iter((*self.producers, *self.consumers, *self.parameters)), None)
        if first is None:
            return 1
        # Where rows have channels of their own, the units of one balanced set are in a share of the rows only.
        sets = self.step if first.rows > 1 else 1
        return max(first.positions * sets // (first.rows * first.gates), 1)


@dataclass(frozen=True, eq=False)
class PinnedAxis:
    """An axis of a weight that stays, how many of its positions, and why."""

    tensor: str
    axis: int
    positions: int
    why: Pinned


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """What can be removed from a graph.

    factors: per tensor, arrays of classes instead of labels; a class that is in no group is never removed.
    """

    graph: Graph
    classes: Classes
    factors: Mapping[str, Factors]
    groups: tuple[Group, ...]
    pinned: tuple[PinnedAxis, ...]
    linears: tuple[Linear, ...]
    reads: tuple[Read, ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The units of every group, none of them cut."""
        return tuple(g.size for g in self.groups)

    @cached_property
    def group_of(self) -> Labels:
        """Group index of each class, -1 where it is in none."""
        indices = np.full(self.classes.pinned.size, -1, np.int64)
        for g in self.groups:
            indices[g.units] = g.index
        return indices

    def groups_in(self, tensor: str) -> set[int]:
        """The groups that a tensor carries."""
        indices = {g for f in self.factors.get(tensor, ()) for g in np.unique(self.group_of[f]).tolist()}
        return indices - {-1}

    def keep_classes(self, kept: Mapping[int, Mask]) -> Mask:
        """Which classes stay, given a mask over the units of some groups (by group index)."""
        keep = np.ones(self.classes.pinned.size, bool)
        for index, mask in kept.items():
            keep[self.groups[index].units] = mask
        return keep

    @cached_property
    def least_units(self) -> tuple[int, ...]:
        """How many units of each group must stay at least: one of every part that shares no unit with another."""
        least = np.zeros(len(self.groups), np.int64)
        taken = np.zeros(self.classes.pinned.size, bool)
        for units in self.needed:
            g = self.group_of[units]
            if not taken[units].any() and (g == g[0]).all():
                taken[units] = True
                least[g[0]] += 1
        return tuple(max(int(n), 1) for n in least)

    @cached_property
    def needed(self) -> tuple[Labels, ...]:
        """Sets of units that make up a whole axis of some tensor: of each set at least one must stay.

        Sorted classes, (n,) each; a set that contains another one is left out, as the smaller one is the stricter. A
        group is one such set unless some of what carries it is pinned; where a Split or Slice takes part of a group
        aside, that part is one too.
        """
        whole: dict[bytes, Labels] = {}
        for _, f in self.tracked():
            if (self.group_of[f] >= 0).all():
                units = np.unique(f)
                whole.setdefault(units.tobytes(), units)
        smallest: list[Labels] = []
        by_first: dict[int, list[frozenset[int]]] = {}  # only a set whose first unit it has can be part of another
        for units in sorted(whole.values(), key=lambda u: (u.size, u.tolist())):
            members = frozenset(units.tolist())
            if not any(s <= members for u in units.tolist() for s in by_first.get(u, ())):
                by_first.setdefault(int(units[0]), []).append(members)
                smallest.append(units)
        return tuple(smallest)

    def emptied(self, keep: Mask) -> tuple[tuple[str, int], ...]:
        """(tensor, axis) of every axis that would be left without a single position, given which classes stay."""
        return tuple(place for place, f in self.tracked() if not keep[f].any())

    def emptied_without(self, groups: Collection[int]) -> set[str]:
        """The tensors of which some axis would be left without a single position if no unit of these groups stayed."""
        gone = set(groups)
        return {t for g in (*gone, -1) for t, owners in self._owned_by.get(g, ()) if owners <= gone}

    @cached_property
    def _owned_by(self) -> Mapping[int, tuple[tuple[str, frozenset[int]], ...]]:
        """By group, the tensors with an axis that has its units, each with all groups whose units are there (-1 for
        classes in none); under -1 the tensors with an axis without any position."""
        found: dict[int, list[tuple[str, frozenset[int]]]] = {}
        for (tensor, _), f in self.tracked():
            owners = frozenset(np.unique(self.group_of[f]).tolist())
            for g in owners - {-1} if -1 not in owners else ():
                found.setdefault(g, []).append((tensor, owners))
            if not owners:
                found.setdefault(-1, []).append((tensor, owners))
        return {g: tuple(own) for g, own in found.items()}

    @cached_property
    def linears_at(self) -> Mapping[int, tuple[Linear, ...]]:
        """The layers by the index of their node."""
        found: dict[int, list[Linear]] = {}
        for x in self.linears:
            found.setdefault(x.node.index, []).append(x)
        return {i: tuple(own) for i, own in found.items()}

    @cached_property
    def weights_of(self) -> tuple[frozenset[str], ...]:
        """The weights that each group has an axis of."""
        return tuple(frozenset(r.tensor for r in (*g.producers, *g.consumers, *g.parameters)) for g in self.groups)

    @cached_property
    def groups_on(self) -> Mapping[str, tuple[int, ...]]:
        """The groups that have an axis of a weight."""
        found: dict[str, list[int]] = {}
        for g, weights in enumerate(self.weights_of):
            for w in weights:
                found.setdefault(w, []).append(g)
        return {w: tuple(own) for w, own in found.items()}

    @cached_property
    def unread_groups(self) -> frozenset[int]:
        """The groups of whose weights no node reads any."""
        return frozenset(g for g, own in enumerate(self.weights_of) if own.isdisjoint(self.graph.readers))

    def tracked(self) -> Iterator[tuple[tuple[str, int], Factor]]:
        """Every factor, with the tensor and the axis whose positions it numbers."""
        for name, factors in self.factors.items():
            for f in factors:
                yield (name, tracked_axes(f)[-1]), f

    def axis_factor(self, tensor: str, axis: int) -> Factor | None:
        """The factor whose channels lie on this axis, one row of them or several; None where none does."""
        return next((f for f in self.factors.get(tensor, ()) if tracked_axes(f)[-1] == axis), None)


def build(graph: Graph, attention: AttentionUnits = "heads") -> ChannelGraph:
    """Trace `graph`, make every factor rectangular, and collect units into groups.

    attention: the units of a product of two activations: whole "heads", or positions inside every head ("head-dim").
    """
    trace = walk(graph, TABLE, attention)
    settled = settle(trace)
    classes = settled.classes
    linears = tuple(_resolved(linear, classes) for linear in trace.linears)
    groups = _groups(graph, settled, linears, trace)
    pinned = _pinned_axes(trace, classes)
    return ChannelGraph(graph, classes, settled.factors, groups, pinned, linears, tuple(trace.reads))


def _resolved(linear: Linear, classes: Classes) -> Linear:
    inputs = None if linear.inputs is None else classes.of_label[linear.inputs]
    outputs = None if linear.outputs is None else classes.of_label[linear.outputs]
    return Linear(linear.node, linear.data, linear.weight, linear.bias, inputs, outputs, linear.groups)


def _groups(graph: Graph, settled: Settled, linears: Sequence[Linear], trace: Trace) -> tuple[Group, ...]:
    classes, axes = settled.classes, weight_axes_of(graph, settled.factors)
    incidence, signature = signatures(axes, classes.pinned.size)
    roles, gates = _roles(graph, linears), _gates(linears)
    mixing, heads = _mixing_classes(classes.pinned.size, trace.reads, settled.factors), _heads(classes, trace)
    alike: dict[tuple[int, int], list[int]] = {}
    for c in np.flatnonzero((signature >= 0) & ~classes.pinned).tolist():
        block = int(settled.block[c])
        alike.setdefault((-1, block) if block >= 0 else (int(signature[c]), -1), []).append(c)
    place = np.full(classes.pinned.size, np.iinfo(np.int64).max)
    groups: list[Group] = []
    readers = first_readers(graph)
    for units in alike.values():
        refs: dict[str, list[tuple[AxisRef, Labels]]] = {"producer": [], "consumer": [], "parameter": []}
        for i, (n, carried) in _carrying(incidence, signature, units).items():
            tensor, axis, rows, on_axis = axes[i]
            ref = AxisRef(tensor, axis, n, carried, rows, gates.get((tensor, axis), 1))
            refs[roles.get((tensor, axis), "parameter")].append((ref, on_axis))
        first, on_first = (refs["producer"] or refs["consumer"] or refs["parameter"])[0]
        place[on_first[::-1]] = np.arange(on_first.size)[::-1]
        ordered = np.array(sorted(units, key=lambda u: int(place[u])), np.int64)
        groups.append(
            Group(
                len(groups),
                called(readers[first.tensor], first.tensor) if first.tensor in readers else first.tensor,
                ordered,
                tuple(ref for ref, _ in refs["producer"]),
                tuple(ref for ref, _ in refs["consumer"]),
                tuple(ref for ref, _ in refs["parameter"]),
                bool(mixing[ordered].any()),
                _rows(settled.cell[ordered]),
                int(heads[ordered].min()),
                readers[first.tensor].name if first.tensor in readers else first.tensor,
            )
        )
    # A head takes as many channels as it has positions: fewer are no head.
    groups = [replace(g, head=g.head if 1 < g.head <= g.channels_per_unit else 0) for g in groups]
    return _uniquely_named(groups)


def _carrying(incidence: Any, signature: Labels, units: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Axis → (positions of a unit on it, how many of the units are on it), in the order of the axes."""
    by_axis: dict[int, tuple[int, int]] = {}
    kinds, first, counts = np.unique(signature[units], return_index=True, return_counts=True)
    for _, index, carried in zip(kinds, first.tolist(), counts.tolist(), strict=True):
        lo, hi = incidence.indptr[units[index]], incidence.indptr[units[index] + 1]
        for i, n in zip(incidence.indices[lo:hi].tolist(), incidence.data[lo:hi].tolist(), strict=True):
            by_axis[i] = (int(n), by_axis.get(i, (0, 0))[1] + carried)
    return dict(sorted(by_axis.items()))


def _rows(cells: Labels) -> Labels | None:
    """The balanced set of each unit, numbered from 0 in the order of appearance."""
    if (cells < 0).any():
        return None
    _, first, inverse = np.unique(cells, return_index=True, return_inverse=True)
    rank = np.empty(first.size, np.int64)
    rank[np.argsort(first)] = np.arange(first.size)
    rows: Labels = rank[inverse.ravel()]
    return rows


def _heads(classes: Classes, trace: Trace) -> Labels:
    """The positions of a head for each class that is one, 0 for others."""
    sizes = np.zeros(classes.pinned.size, np.int64)
    for labels, size in (*reversed(trace.likely_heads), *trace.heads):  # queries meet keys first, and then values
        sizes[classes.of_label[labels]] = size
    return sizes


def _uniquely_named(groups: Sequence[Group]) -> tuple[Group, ...]:
    names, older = _unique([g.name for g in groups]), _unique([g.older for g in groups])
    return tuple(replace(g, name=n, older=o) for g, n, o in zip(groups, names, older, strict=True))


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with a number behind the second of a kind and those that follow."""
    seen: dict[str, int] = {}
    result: list[str] = []
    for name in names:
        n = seen[name] = seen.get(name, 0) + 1
        result.append(name if n == 1 else f"{name}#{n}")
    return result


def first_readers(graph: Graph) -> dict[str, Node]:
    """The first node that reads each constant; of a quantized weight, the first that reads it dequantized."""
    readers: dict[str, Node] = {}
    for n in sorted(graph.every_node, key=lambda n: is_quantize(n) or is_dequantize(n)):
        for i in n.inputs:
            weight = stored(graph, i)
            if weight in graph.constants:
                readers.setdefault(weight, n)
    return readers


def weight_axes(linear: Linear) -> tuple[int, int]:
    """(input axis, output axis) of a linear layer's weight tensor."""
    node = linear.node
    if node.op in ("Conv", "DeformConv"):
        return 1, 0
    if node.op == "ConvTranspose":
        return 0, 1
    if node.op == "Gemm" and node.attrs.get("transB", 0):
        return 1, 0
    if node.op == QUANTIZED_LSTM:
        return 1, 2
    return (2, 1) if node.op in GATE_COUNT else (0, 1)


def is_recurrent(node: Node) -> bool:
    """Whether a layer is a recurrent net, which has a second weight, that of its state, on the axes of the first."""
    return node.op in GATE_COUNT or node.op == QUANTIZED_LSTM


def _roles(graph: Graph, linears: Sequence[Linear]) -> dict[tuple[str, int], str]:
    roles: dict[tuple[str, int], str] = {}
    for linear in linears:
        reads, writes = weight_axes(linear)
        weight = stored(graph, linear.weight)
        if linear.groups_are_units:  # the weight belongs to the units themselves
            roles.setdefault((weight, 0), "parameter")
            continue
        roles.setdefault((weight, writes), "producer")
        roles.setdefault((weight, reads), "consumer")
        if is_recurrent(linear.node):
            # The recurrent weights: rows make the gates, columns read the state.
            roles.setdefault((linear.node.inputs[2], writes), "producer")
            roles.setdefault((linear.node.inputs[2], reads), "consumer")
    return roles


def _gates(linears: Sequence[Linear]) -> dict[tuple[str, int], int]:
    """Positions that a hidden unit takes on the rows of the weights of recurrent nets."""
    return {
        (name, weight_axes(x)[1]): GATE_COUNT.get(x.node.op, GATE_COUNT["LSTM"])
        for x in linears
        if is_recurrent(x.node)
        for name in x.node.inputs[1:3]
    }


def _mixing_classes(count: int, reads: Sequence[Read], factors: Mapping[str, Factors]) -> Mask:
    mixing = np.zeros(count, bool)
    for r in reads:
        if r.kind != "mixing":
            continue
        for f in factors.get(r.node.inputs[r.slot], ()):
            if any(a in r.axes for a in tracked_axes(f)):
                mixing[f.ravel()] = True
    return mixing


def _pinned_axes(trace: Trace, classes: Classes) -> tuple[PinnedAxis, ...]:
    pinned_axes: list[PinnedAxis] = []
    weights = [(n, f) for n, fs in trace.factors.items() if n in trace.graph.constants for f in fs]
    for tensor, f in weights:
        if trace.graph.constants[tensor].dtype in INDEX_TYPES:
            continue
        # A weight's factor over several axes belongs to the last of them; the others only set its parts apart.
        axis, members = tracked_axes(f)[-1], classes.of_label[f]
        stuck = members[classes.pinned[members]]
        why = classes.reasons[int(stuck[0])] if stuck.size else None
        if why is not None and not why.structural:
            rows = np.moveaxis(classes.pinned[members], axis, 0).reshape(f.shape[axis], -1)
            pinned_axes.append(PinnedAxis(tensor, axis, int(rows.any(axis=1).sum()), why))
    readers = first_readers(trace.graph) if trace.unlabelled else {}
    for tensor in sorted(trace.unlabelled):
        by = readers[tensor]
        why = Pinned(tensor, 0, by.name, by.op, Reason(f"{by.op} {TOO_MANY}", Remedy.TOO_MANY))
        pinned_axes += [
            PinnedAxis(tensor, a, s, why) for a, s in enumerate(trace.graph.constants[tensor].shape) if s > 1
        ]
    return tuple(pinned_axes)
