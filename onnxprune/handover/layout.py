"""How the axes of a stored weight lie in its parameter: exporters turn some, and add axes of one position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.numerics.arrays import Array

# For each axis of a parameter the axis of the stored weight; None for one of a single position that this lacks.
Axes = tuple[int | None, ...]


def same(rank: int) -> Axes:
    """The layout of a weight that is stored as the parameter is."""
    return tuple(range(rank))


def turned(axes: Axes, order: Sequence[int]) -> Axes:
    """The layout behind a Transpose whose output has axis `order[i]` of its input as axis i."""
    return tuple(None if a is None else list(order).index(a) for a in axes)


def reshaped(axes: Axes, before: Sequence[int], after: Sequence[int]) -> Axes | None:
    """The layout behind a Reshape that only adds or removes axes of one position; None where it does more."""
    old, new = ([a for a, s in enumerate(shape) if s != 1] for shape in (before, after))
    if [before[a] for a in old] != [after[a] for a in new]:
        return None
    place = dict(zip(old, new, strict=True))
    return tuple(None if a is None else place.get(a) for a in axes)


def in_layout(values: Array, axes: Axes) -> Array | None:
    """A stored weight in the axes of its parameter; None where it has an axis that the parameter lacks."""
    used = [a for a in axes if a is not None]
    rest = [a for a in range(values.ndim) if a not in used]
    if any(a >= values.ndim for a in used) or any(values.shape[a] != 1 for a in rest):
        return None
    moved = np.transpose(values, [*used, *rest]).reshape([values.shape[a] for a in used])
    return np.expand_dims(moved, tuple(i for i, a in enumerate(axes) if a is None))
