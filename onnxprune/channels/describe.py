"""A channel graph in words and numbers: what can be removed together, what it touches, and why the rest stays."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction

import numpy as np

from onnxprune.channels.groups import AxisRef, ChannelGraph, Group, first_readers
from onnxprune.channels.names import called
from onnxprune.graph.view import is_parameter
from onnxprune.numerics.arrays import Mask


@dataclass(frozen=True)
class AxisUse:
    """An axis of a weight, what the first node that reads it is called ("" where none does), and the channels of a
    group on it."""

    weight: str
    axis: int
    channels: int
    node: str
    operator: str


@dataclass(frozen=True)
class GroupDescription:
    """Units that compete with each other.

    producers: weights whose output axis carries the channels; consumers: weights that combine them; parameters: what
    belongs to each channel, such as a bias. mixing: a normalization reads all channels at once. head: positions of a
    head where each unit is a head of attention, else 0. elements: entries of
    weights that go when the whole group goes.
    """

    name: str
    units: int
    channels_per_unit: int
    producers: tuple[AxisUse, ...]
    consumers: tuple[AxisUse, ...]
    parameters: tuple[AxisUse, ...]
    mixing: bool
    elements: int
    head: int = 0


@dataclass(frozen=True)
class PinnedDescription:
    """An axis of a weight that stays, how many of its channels, why (at which node), and what would free it."""

    tensor: str
    axis: int
    channels: int
    node: str
    operator: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class LayerDescription:
    """A layer of a transformer that could go as a whole.

    name: the scope of its weights, "" where they share none. branches: "attention" and "feed-forward"; groups: the
    names of their groups. elements: entries of weights that go with it.
    """

    number: int
    name: str
    branches: tuple[str, ...]
    groups: tuple[str, ...]
    elements: int


@dataclass(frozen=True, repr=False)
class Description:
    """What of a model can be pruned, and why the rest cannot.

    parameters: entries of all weights; prunable: those that some removable channel carries. macs: multiply-accumulates
    of all contractions, per sample; prunable_macs: those of which some removable channel is part. layers: those of a
    transformer that could go as a whole.
    """

    model: str
    model_sha256: str
    parameters: int
    prunable: int
    macs: float
    prunable_macs: float
    groups: tuple[GroupDescription, ...]
    pinned: tuple[PinnedDescription, ...]
    notes: tuple[str, ...] = ()
    layers: tuple[LayerDescription, ...] = ()

    @property
    def share(self) -> float:
        """Share of the parameters that can be pruned; 0 for a model without weights."""
        return self.prunable / self.parameters if self.parameters else 0.0

    @property
    def share_of_macs(self) -> float:
        """Share of the multiply-accumulates that can be pruned; 0 for a model without any."""
        return self.prunable_macs / self.macs if self.macs else 0.0

    def __repr__(self) -> str:
        """In a line: all axes of a model fill screens."""
        groups = "1 group" if len(self.groups) == 1 else f"{len(self.groups)} groups"
        return (
            f"<description of {self.model!r}: {self.prunable:,} of {self.parameters:,} parameters and "
            f"{self.prunable_macs:,.0f} of {self.macs:,.0f} MACs can be pruned, in {groups}>"
        )

    def to_json(self) -> str:
        """The description as JSON text."""
        return json.dumps(asdict(self) | {"share": self.share, "share_of_macs": self.share_of_macs}, indent=1) + "\n"


def describe(
    channels: ChannelGraph,
    model: str,
    sha256: str,
    notes: Sequence[str] = (),
    *,
    parameters: int | None = None,
    macs: tuple[float, float],
    added: Collection[str] = (),
    clones: Collection[str] = (),
    layers: Sequence[LayerDescription] = (),
) -> Description:
    """Describe a channel graph.

    parameters: those that the model stores, None for those of the graph. macs: those of the model, and of what is left
    without any channel that can go. added: weights that only the normalised form has: they are not shown. clones:
    copies of shared weights: they are not counted. A group with a single unit is left out, as it cannot lose one; its
    weights count as not prunable. layers: those that could go as a whole.
    """
    readers = {weight: (called(n, weight), n.op) for weight, n in first_readers(channels.graph).items()}
    groups = [g for g in channels.groups if g.size > 1]
    removable = np.zeros(len(channels.groups) + 1, bool)  # the last stands for -1, no group
    removable[[g.index for g in groups]] = True
    reading = channels.graph.readers
    own = {
        k
        for k, v in channels.graph.constants.items()
        if k not in added and is_parameter(v.dtype, (n.op for n, _ in reading.get(k, ())))
    }
    counted = own - set(clones)
    return Description(
        model,
        sha256,
        sum(channels.graph.constants[k].size for k in counted) if parameters is None else parameters,
        sum(_removable_elements(channels, k, removable) for k in counted),
        macs[0],
        macs[0] - macs[1],
        tuple(_describe_group(g, channels, own, counted, readers) for g in groups),
        tuple(
            PinnedDescription(p.tensor, p.axis, p.positions, p.why.node, p.why.op, p.why.reason, p.why.remedy)
            for p in channels.pinned
            if p.tensor not in added
        ),
        tuple(notes),
        tuple(layers),
    )


def _describe_group(
    g: Group,
    channels: ChannelGraph,
    own: Collection[str],
    counted: Collection[str],
    readers: Mapping[str, tuple[str, str]],
) -> GroupDescription:
    def places(refs: Sequence[AxisRef]) -> tuple[AxisUse, ...]:
        return tuple(
            AxisUse(r.tensor, r.axis, r.positions * r.units // r.rows, *readers.get(r.tensor, ("", "")))
            for r in refs
            if r.tensor in own
        )

    only = np.zeros(len(channels.groups) + 1, bool)
    only[g.index] = True
    touched = {r.tensor for r in (*g.producers, *g.consumers, *g.parameters)} & set(counted)
    return GroupDescription(
        g.name,
        g.size,
        g.channels_per_unit,
        places(g.producers),
        places(g.consumers),
        places(g.parameters),
        g.mixing,
        sum(_removable_elements(channels, t, only) for t in touched),
        g.head,
    )


def _removable_elements(channels: ChannelGraph, tensor: str, groups: Mask) -> int:
    """Entries of a weight of which at least one axis carries a channel of a group that `groups` marks."""
    size = channels.graph.constants[tensor].size
    stays = Fraction(size)
    for f in channels.factors.get(tensor, ()):
        free = int(groups[channels.group_of[f]].sum())
        stays *= Fraction(f.size - free, f.size)
    return size - int(stays)
