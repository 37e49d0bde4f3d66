"""Which weights of the normal form the result stores as the original does, for whoever counts parameters."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from onnxprune.channels import ChannelGraph
from onnxprune.channels.labels import Factor, tracked_axes
from onnxprune.normalise import Normalised
from onnxprune.normalise.tables import Table
from onnxprune.surgery import experts, packed_codes


@dataclass(frozen=True)
class Stored:
    """whole: constants that are made of as many numbers whatever is cut, or share those of another with which they are
    cut alike. parted: those that share them, and are cut otherwise, so that the result has them twice.
    """

    whole: frozenset[str]
    parted: frozenset[str]


def stored_of(normalised: Normalised, channels: ChannelGraph) -> Stored:
    """Of the constants that the original makes of others, and of zero points that it leaves out."""
    whole: set[str] = set()
    parted: set[str] = set()
    cuts: dict[str, list[object]] = {}
    for name, table in normalised.tables.items():
        if table.generated or table.carried.lost & _free_axes(channels, name):
            whole.add(name)
        elif table.packed:
            leaf, cut = _codes(table, channels)
            others = cuts.setdefault(leaf, [])
            if others:
                (whole if cut in others else parted).add(name)
            others.append(cut)
    whole.update(packed_codes.implied(normalised.packed) | experts.implied(normalised.experts))
    return Stored(frozenset(whole), frozenset(parted))


def _free_axes(channels: ChannelGraph, name: str) -> frozenset[int]:
    """The axes of a weight that may lose channels."""
    return frozenset(a for f in _free(channels, name) for a in tracked_axes(f))


def _free(channels: ChannelGraph, name: str) -> list[Factor]:
    return [f for f in channels.factors.get(name, ()) if not channels.classes.pinned[f].all()]


def _codes(table: Table, channels: ChannelGraph) -> tuple[str, object]:
    """(the largest constant of a table, which of its axes loses which classes)."""
    leaf = max(table.leaves, key=lambda t: prod(t.dims)).name
    lost = []
    for f in _free(channels, table.name):
        axes = tracked_axes(f)
        places = (table.carried.axes[axes[0]] or {}) if len(axes) == 1 else {}
        lost.append((places.get(leaf), f.ravel().tobytes()))
    return leaf, frozenset(lost)
