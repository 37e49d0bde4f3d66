"""Which positions stay on the axes of a weight, and of those that are heads of attention how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import ChannelGraph
from onnxprune.channels.labels import tracked_axes
from onnxprune.handover.layout import Axes
from onnxprune.numerics.arrays import Mask

# The positions of an axis that stay, ascending; a list for each position of axis 0 that stays, where these differ.
Positions = list[int] | list[list[int]]


@dataclass(frozen=True)
class Heads:
    """Heads of attention that an axis of a weight holds: how many there were, and are, and the positions of each."""

    axis: int
    before: int
    after: int
    size: int


def masks_of(channels: ChannelGraph, tensor: str, keep: Mask) -> tuple[Mask, ...]:
    """What stays on the axes of a weight: arrays that broadcast against it, all of which have to be True."""
    return tuple(m for m in (keep[f] for f in channels.factors.get(tensor, ())) if not m.all())


def kept_shape(shape: tuple[int, ...], masks: tuple[Mask, ...]) -> tuple[int, ...]:
    """The shape of a weight of which these positions stay."""
    sizes = list(shape)
    for mask in masks:
        axis = tracked_axes(mask.astype(np.int64))[-1] if mask.size > 1 else 0
        rows = np.moveaxis(mask, axis, -1).reshape(-1, mask.shape[axis])
        sizes[axis] = int(rows[0].sum())
    return tuple(sizes)


def positions(masks: tuple[Mask, ...], axes: Axes) -> dict[int, Positions]:
    """By axis of the parameter, which positions stay; axes of which all do are left out."""
    found: dict[int, Positions] = {}
    parameter_axis = {a: i for i, a in enumerate(axes) if a is not None}
    whole = {tuple(a for a, s in enumerate(m.shape) if s > 1): m for m in masks}
    for tracked, mask in whole.items():
        if not tracked or tracked[-1] not in parameter_axis:
            continue
        *rows, column = tracked
        lines = np.moveaxis(mask, column, -1).reshape(-1, mask.shape[column])
        if not rows or (lines == lines[0]).all():
            found[parameter_axis[column]] = np.flatnonzero(lines[0]).tolist()
        elif len(rows) == 1 and parameter_axis.get(rows[0]) == 0:
            staying = whole.get((rows[0],))
            lines = lines if staying is None else lines[staying.ravel()]
            found[parameter_axis[column]] = [np.flatnonzero(line).tolist() for line in lines]
    return dict(sorted(found.items()))


def heads_of(channels: ChannelGraph, keep: Mask) -> Mapping[str, list[tuple[int, int, int, int]]]:
    """By weight, (axis, heads before, heads after, positions of each) where channels go by whole heads."""
    found: dict[str, list[tuple[int, int, int, int]]] = {}
    for g in channels.groups:
        if not g.head:
            continue
        for ref in (*g.producers, *g.consumers):
            factor = channels.axis_factor(ref.tensor, ref.axis)
            if factor is None or factor.size % g.head or ref.rows > 1:
                continue
            kept = int(keep[factor].sum())
            if kept % g.head == 0:
                found.setdefault(ref.tensor, []).append((ref.axis, factor.size // g.head, kept // g.head, g.head))
    return found
