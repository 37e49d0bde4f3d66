"""Parts that must not vanish: where a Split or Slice takes some of a group aside, each part keeps a unit.

Selection ranks the units of a group by what they are worth, whatever part they are in. Here kept units are exchanged
until every axis of every tensor keeps one (`ChannelGraph.needed`); the number of kept units does not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.channels import ChannelGraph
from onnxprune.channels.branches import together
from onnxprune.numerics.arrays import Doubles, Mask
from onnxprune.selection import Path


def with_every_part(channels: ChannelGraph, masks: Mapping[int, Mask], paths: Sequence[Path]) -> dict[int, Mask] | None:
    """`masks` (over the units of a group, by group index) with units exchanged; None where that is impossible.

    Groups of which nothing stays are left so; None where the graph needs some of it.
    """
    kept = {g: mask.copy() for g, mask in masks.items()}
    empty = [g for g, mask in kept.items() if not mask.any()]
    if empty and len(together(channels, empty)) < len(empty):
        return None
    for units in channels.needed:
        if channels.keep_classes(kept)[units].any() or np.isin(channels.group_of[units], empty).all():
            continue
        g, unit = _most_valued(channels, [u for u in units.tolist() if channels.group_of[u] not in empty], paths)
        kept[g][unit] = True
        given = _spare(channels, kept, g, unit, paths[g])
        if given is None:
            return None
        kept[g][given] = False
    return kept


def _most_valued(channels: ChannelGraph, units: Sequence[int], paths: Sequence[Path]) -> tuple[int, int]:
    """(group, unit within it) of the class that its path removes last, relative to the length of the path."""

    def place(c: int) -> tuple[float, int, int]:
        g = int(channels.group_of[c])
        unit = int(np.flatnonzero(channels.groups[g].units == c)[0])
        return float(np.flatnonzero(paths[g].order == unit)[0]) / paths[g].order.size, g, unit

    _, g, unit = max(place(c) for c in units)
    return g, unit


def _spare(channels: ChannelGraph, kept: Mapping[int, Mask], g: int, new: int, path: Path) -> int | None:
    """The kept unit of a group, not `new`, that its path removes first and no part depends on.

    Of a balanced group, one of the same set.
    """
    keep = channels.keep_classes(kept)
    rows = channels.groups[g].rows
    for unit in path.order.tolist():
        if unit == new or not kept[g][unit] or (rows is not None and rows[unit] != rows[new]):
            continue
        without = keep.copy()
        without[channels.groups[g].units[unit]] = False
        if all(without[units].any() for units in channels.needed if keep[units].any()):
            return int(unit)
    return None


def exchanged(coefficients: Doubles | None, wanted: Mask, kept: Mask) -> Doubles | None:
    """Coefficients (units,) for what is kept in place of what was wanted: a unit that came in stays as it is."""
    return None if coefficients is None else np.where(kept, np.where(wanted, coefficients, 1.0), 0.0)
