"""From labels to units and groups: the channel graph that the later stages read.

A *unit* is a class of labels that is removed together. A *group* is a set of units that appear on the same axes of
the same weights: they compete with each other, and removing any of them changes the same shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.channels.labels import Classes, Factor, Factors, Labels, Pinned, tracked_axes
from onnxprune.channels.rules import TABLE
from onnxprune.channels.trace import Linear, Read, Trace, walk
from onnxprune.graph import Graph

# Constants of these types are sizes, indices and masks, no weights.
INDEX_TYPES = (np.dtype(np.int64), np.dtype(np.bool_))


@dataclass(frozen=True)
class AxisRef:
    """An axis of a weight, and how many of its positions each unit of a group occupies."""

    tensor: str
    axis: int
    positions: int


@dataclass(frozen=True, eq=False)
class Group:
    """Units that compete: the same axes of the same weights carry them.

    units: class of each unit, (n,), ordered by their place on the first axis that produces them.
    """

    index: int
    name: str
    units: Labels
    producers: tuple[AxisRef, ...]
    consumers: tuple[AxisRef, ...]
    parameters: tuple[AxisRef, ...]
    mixing: bool

    @property
    def size(self) -> int:
        """Number of units."""
        return int(self.units.size)

    @property
    def channels_per_unit(self) -> int:
        """Positions that one unit takes on the first axis that produces it."""
        return next((p.positions for p in (*self.producers, *self.consumers, *self.parameters)), 1)


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
    def group_of(self) -> Labels:
        """Group index of each class, -1 where it is in none."""
        found = np.full(self.classes.pinned.size, -1, np.int64)
        for g in self.groups:
            found[g.units] = g.index
        return found

    def keep_classes(self, kept: Mapping[int, NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Which classes stay, given a mask over the units of some groups (by group index)."""
        keep = np.ones(self.classes.pinned.size, bool)
        for index, mask in kept.items():
            keep[self.groups[index].units] = mask
        return keep

    @cached_property
    def needed(self) -> tuple[Labels, ...]:
        """Sets of units that make up a whole axis of some tensor: of each set at least one must stay.

        Sorted classes, (n,) each; a set that contains another one is left out, as the smaller one is the stricter. A
        group is one such set unless some of what carries it is pinned; where a Split or Slice takes part of a group
        aside, that part is one too.
        """
        whole: dict[bytes, Labels] = {}
        for _, f in self._single_axes():
            if (self.group_of[f] >= 0).all():
                units = np.unique(f)
                whole.setdefault(units.tobytes(), units)
        smallest: list[tuple[frozenset[int], Labels]] = []
        for units in sorted(whole.values(), key=lambda u: (u.size, u.tolist())):
            members = frozenset(units.tolist())
            if not any(s <= members for s, _ in smallest):
                smallest.append((members, units))
        return tuple(u for _, u in smallest)

    def emptied(self, keep: NDArray[np.bool_]) -> tuple[tuple[str, int], ...]:
        """(tensor, axis) of every axis that would be left without a single position, given which classes stay."""
        return tuple(place for place, f in self._single_axes() if not keep[f].any())

    def _single_axes(self) -> Iterator[tuple[tuple[str, int], Factor]]:
        for name, factors in self.factors.items():
            for f in factors:
                yield (name, tracked_axes(f)[0]), f

    def axis_classes(self, tensor: str, axis: int) -> Labels | None:
        """Classes along one axis of a tensor, (n,); None where no factor tracks it."""
        return next((f.ravel() for f in self.factors.get(tensor, ()) if tracked_axes(f) == (axis,)), None)


def build(graph: Graph) -> ChannelGraph:
    """Trace `graph`, make every factor rectangular, and collect units into groups."""
    trace = walk(graph, TABLE)
    classes = _rectangular(trace)
    factors = {name: classes.resolve(f) for name, f in trace.factors.items()}
    linears = tuple(_resolved(linear, classes) for linear in trace.linears)
    axes = [
        (name, tracked_axes(f)[0], f.ravel()) for name, fs in factors.items() if name in graph.constants for f in fs
    ]
    groups = _groups(graph, classes, axes, linears, trace.reads, factors)
    pinned = _pinned_axes(trace, classes)
    return ChannelGraph(graph, classes, factors, groups, pinned, linears, tuple(trace.reads))


def _rectangular(trace: Trace) -> Classes:
    """Tie factors that span several axes until none is left, along the axes that leave more units.

    A tensor may only lose whole slices. One factor per set of coupled classes is tied at a time, as that may settle
    the others.
    """
    while True:
        classes = trace.labels.classes()
        touched = np.zeros(classes.pinned.size, bool)
        found = False
        for factors in trace.factors.values():
            for raw in factors:
                if len(tracked_axes(raw)) < 2:
                    continue
                resolved = classes.resolve((raw,))
                axes = tracked_axes(resolved[0]) if resolved else ()
                if len(axes) < 2:
                    continue
                found = True
                involved = np.unique(resolved[0])
                if touched[involved].any():
                    continue
                touched[involved] = True
                _tie_to_one_axis(trace, raw, resolved[0], axes)
        if not found:
            return trace.labels.classes() if _pin_whole_axes(trace, classes) else classes


def _pin_whole_axes(trace: Trace, classes: Classes) -> bool:
    """Pin a class that is all there is of some tensor's axis; whether there is any."""
    found = False
    for name, factors in trace.factors.items():
        for f in factors:
            members = classes.of_label[f]
            if classes.pinned[members.flat[0]] or (members != members.flat[0]).any():
                continue
            by = trace.graph.producer.get(name)
            reason = f"all channels of {name!r} are coupled, so none of them can go alone"
            node, op = (by.name, by.op) if by is not None else ("", "")
            trace.labels.pin(f, Pinned(name, tracked_axes(f)[0], node, op, reason))
            found = True
    return found


def _tie_to_one_axis(trace: Trace, raw: Factor, resolved: Factor, axes: Sequence[int]) -> None:
    keep = max(axes, key=lambda a: (_units_left(resolved, a), -a))
    for a in tracked_axes(raw):
        if a != keep:
            raw = trace.labels.tie(raw, a)


def _units_left(resolved: Factor, keep: int) -> int:
    """How many classes are left of a factor's when it is tied along every axis but `keep`."""
    classes, places = np.unique(resolved, return_inverse=True)
    rows = np.moveaxis(places.reshape(resolved.shape), keep, 0).reshape(resolved.shape[keep], -1)
    left, right = rows.ravel(), np.repeat(rows[:, 0], rows.shape[1])
    links = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(classes.size, classes.size))
    return int(connected_components(links, directed=False)[0])


def _resolved(linear: Linear, classes: Classes) -> Linear:
    inputs = None if linear.inputs is None else classes.of_label[linear.inputs]
    outputs = None if linear.outputs is None else classes.of_label[linear.outputs]
    return Linear(linear.node, linear.data, linear.weight, linear.bias, inputs, outputs, linear.groups)


def _groups(
    graph: Graph,
    classes: Classes,
    axes: Sequence[tuple[str, int, Labels]],
    linears: Sequence[Linear],
    reads: Sequence[Read],
    factors: Mapping[str, Factors],
) -> tuple[Group, ...]:
    if not axes:
        return ()
    count = classes.pinned.size
    columns = np.concatenate([np.full(a.size, i) for i, (_, _, a) in enumerate(axes)])
    rows = np.concatenate([a for _, _, a in axes])
    incidence = coo_array((np.ones(rows.size, np.int64), (rows, columns)), shape=(count, len(axes))).tocsr()
    incidence.sum_duplicates()
    incidence.sort_indices()
    roles = _roles(linears)
    mixing = _mixing_classes(count, reads, factors)
    by_signature: dict[bytes, list[int]] = {}
    for c in np.unique(rows).tolist():
        if classes.pinned[c]:
            continue
        lo, hi = incidence.indptr[c], incidence.indptr[c + 1]
        signature = incidence.indices[lo:hi].astype(np.int64).tobytes() + incidence.data[lo:hi].tobytes()
        by_signature.setdefault(signature, []).append(c)
    place = np.full(count, np.iinfo(np.int64).max)
    groups: list[Group] = []
    names = _producer_names(graph)
    for units in by_signature.values():
        lo, hi = incidence.indptr[units[0]], incidence.indptr[units[0] + 1]
        refs: dict[str, list[AxisRef]] = {"producer": [], "consumer": [], "parameter": []}
        for i, n in zip(incidence.indices[lo:hi].tolist(), incidence.data[lo:hi].tolist(), strict=True):
            tensor, axis, _ = axes[i]
            refs[roles.get((tensor, axis), "parameter")].append(AxisRef(tensor, axis, int(n)))
        first = (refs["producer"] or refs["consumer"] or refs["parameter"])[0]
        on_first = next(a for t, x, a in axes if (t, x) == (first.tensor, first.axis))
        place[on_first[::-1]] = np.arange(on_first.size)[::-1]
        ordered = np.array(sorted(units, key=lambda u: int(place[u])), np.int64)
        groups.append(
            Group(
                len(groups),
                names.get(first.tensor, first.tensor),
                ordered,
                tuple(refs["producer"]),
                tuple(refs["consumer"]),
                tuple(refs["parameter"]),
                bool(mixing[ordered].any()),
            )
        )
    return _uniquely_named(groups)


def _uniquely_named(groups: Sequence[Group]) -> tuple[Group, ...]:
    seen: dict[str, int] = {}
    result: list[Group] = []
    for g in groups:
        n = seen[g.name] = seen.get(g.name, 0) + 1
        name = g.name if n == 1 else f"{g.name}#{n}"
        result.append(Group(g.index, name, g.units, g.producers, g.consumers, g.parameters, g.mixing))
    return tuple(result)


def _producer_names(graph: Graph) -> dict[str, str]:
    """Weight → name of the node that reads it first."""
    found: dict[str, str] = {}
    for n in graph.every_node:
        for i in n.inputs:
            if i in graph.constants:
                found.setdefault(i, n.name)
    return found


def weight_axes(linear: Linear) -> tuple[int, int]:
    """(input axis, output axis) of a linear layer's weight tensor."""
    node = linear.node
    if node.op == "Conv":
        return 1, 0
    if node.op == "ConvTranspose":
        return 0, 1
    if node.op == "Gemm" and node.attrs.get("transB", 0):
        return 1, 0
    return 0, 1


def _roles(linears: Sequence[Linear]) -> dict[tuple[str, int], str]:
    roles: dict[tuple[str, int], str] = {}
    for linear in linears:
        reads, writes = weight_axes(linear)
        if linear.groups > 1 and linear.inputs is not None and linear.groups >= linear.inputs.size // linear.groups:
            # Whole groups pass through: the weight belongs to the units themselves.
            roles.setdefault((linear.weight, 0), "parameter")
            continue
        roles.setdefault((linear.weight, writes), "producer")
        roles.setdefault((linear.weight, reads), "consumer")
    return roles


def _mixing_classes(count: int, reads: Sequence[Read], factors: Mapping[str, Factors]) -> NDArray[np.bool_]:
    mixing = np.zeros(count, bool)
    for r in reads:
        if r.kind != "mixing":
            continue
        for f in factors.get(r.node.inputs[r.slot], ()):
            if any(a in r.axes for a in tracked_axes(f)):
                mixing[f.ravel()] = True
    return mixing


def _pinned_axes(trace: Trace, classes: Classes) -> tuple[PinnedAxis, ...]:
    found: list[PinnedAxis] = []
    weights = [(n, f) for n, fs in trace.factors.items() if n in trace.graph.constants for f in fs]
    for tensor, f in weights:
        if trace.graph.constants[tensor].dtype in INDEX_TYPES:
            continue
        axis, members = tracked_axes(f)[0], classes.of_label[f.ravel()]
        stuck = members[classes.pinned[members]]
        why = classes.reasons[int(stuck[0])] if stuck.size else None
        if why is not None and not why.structural:
            found.append(PinnedAxis(tensor, axis, int(stuck.size), why))
    return tuple(found)
