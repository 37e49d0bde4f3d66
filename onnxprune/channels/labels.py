"""Labels: an integer per channel, and what is known of which labels stand or fall together.

A tensor carries *factors*: integer arrays that broadcast against its shape, with size 1 on every axis that the factor
does not track. An element of the tensor is removed when the label of any of its factors is removed.

Labels never change while a graph is traced. To unify is to append pairs, to pin is to remember a reason; the connected
components at the end are the classes, so the result does not depend on the order of the operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.channels.remedies import Reason
from onnxprune.numerics.arrays import Ints, Mask
from onnxprune.numerics.components import components

Labels = Ints
Factor = Labels
Factors = tuple[Factor, ...]
# An axis that a model makes longer than this is none of channels.
MOST_ON_AXIS = 1 << 22
# What the factors of all tensors may number together, and what may be coupled; more where more weights are stored. A
# position takes some tens of bytes, and a few bytes of a model can ask for any number of them.
MOST_POSITIONS = 1 << 26
_STORED_PER_POSITION = 64


class Misfit(Exception):
    """What a node says, and the shapes of what it reads, do not fit together."""


class TooMany(Exception):
    """A tensor has so many positions that they are not labelled."""


@dataclass(frozen=True)
class Pinned:
    """Why channels cannot be removed: which axis of which tensor, at which operator, and the reason with its remedy.

    structural: the axis never was one of channels (kernel positions, settings), so nobody needs to hear of it.
    """

    tensor: str
    axis: int
    node: str
    op: str
    why: Reason
    structural: bool = False

    @property
    def reason(self) -> str:
        """Why the channels stay, as a clause of a sentence."""
        return self.why.text

    @property
    def remedy(self) -> str:
        """What would free the axis, as a clause."""
        return self.why.remedy.value


@dataclass(frozen=True, eq=False)
class Balance:
    """Rows that must keep equally many channels, whichever: labels (rows, columns).

    unless: (rows, all columns) of which the labels are a part; there is no such demand while they go by whole rows.
    """

    labels: Labels
    unless: Labels | None = None


class LabelSpace:
    """Allocates labels and collects what is learned of them."""

    def __init__(self, stored: int = 0) -> None:
        """stored: how many elements the weights have."""
        self._next = 0
        self._coupled: list[tuple[Labels, Labels]] = []
        self._pins: dict[tuple[object, ...], tuple[Labels, Pinned]] = {}
        self.balances: list[Balance] = []
        self._left: int | None = MOST_POSITIONS + stored // _STORED_PER_POSITION

    def has_room(self, count: int) -> bool:
        """Whether so many positions can be kept, or coupled, on top of what there is."""
        return self._left is None or count <= self._left

    def take_room(self, count: int) -> None:
        """Count so many positions. Raises TooMany where there is no room for them."""
        if not self.has_room(count):
            raise TooMany
        if self._left is not None:
            self._left -= count

    def lift_limit(self) -> None:
        """What is coupled from now on is no larger than what has been made."""
        self._left = None

    def fresh(self, count: int) -> Labels:
        """`count` new labels, shape (count,). Raises TooMany."""
        self.take_room(count)
        start, self._next = self._next, self._next + count
        return np.arange(start, self._next, dtype=np.int64)

    def unify(self, a: Labels, b: Labels) -> None:
        """Labels at the same place, after broadcasting, are removed together.

        Raises Misfit where they do not fit, and TooMany.
        """
        if a is b:
            return
        try:
            a, b = np.broadcast_arrays(a, b)
        except ValueError as e:
            raise Misfit(f"{a.shape} and {b.shape} do not fit together") from e
        self.take_room(a.size)
        self._coupled.append((a, b))

    def tie(self, labels: Labels, axis: int) -> Labels:
        """Unify along `axis`; the labels with that axis reduced to size 1."""
        head = labels.take([0], axis=axis)
        self.unify(labels, head)
        return head

    def balance(self, rows: Labels, *, unless: Labels | None = None) -> None:
        """Every row of `rows` (rows, columns) keeps equally many channels, with a free choice inside each."""
        if rows.shape[0] > 1 and rows.shape[1] > 0:
            self.balances.append(Balance(rows, unless))

    def pin(self, labels: Labels, why: Pinned) -> None:
        """These labels are never removed; of the same array the first reason counts."""
        place = labels.__array_interface__["data"][0], labels.shape, labels.strides
        self._pins.setdefault(place, (labels, why))  # which keeps the array, and so its address

    def classes(self) -> Classes:
        """Solve: which labels form one class, and which classes are pinned by what."""
        n = max(self._next, 1)
        left, right = (
            np.concatenate([pair[k].ravel() for pair in self._coupled] or [np.zeros(0, np.int64)]) for k in (0, 1)
        )
        count, of_label = components(left, right, n)
        pins: dict[int, Pinned] = {}
        pinned = np.zeros(count, bool)
        for labels, why in self._pins.values():
            for c in np.unique(of_label[labels]).tolist():
                pins.setdefault(c, why)
            pinned[of_label[labels]] = True
        return Classes(of_label, pinned, pins)


@dataclass(frozen=True, eq=False)
class Classes:
    """`of_label[label]` is the class; `pinned[class]`; `reasons[class]` is the first reason met for a pinned class."""

    of_label: Labels
    pinned: Mask
    reasons: dict[int, Pinned]

    def resolve(self, factors: Factors) -> Factors:
        """Factors of classes instead of labels, compressed, duplicates dropped."""
        seen: list[Factor] = []
        for f in factors:
            g = compress(self.of_label[f])
            if g.size > 1 and not any(g.shape == s.shape and np.array_equal(g, s) for s in seen):
                seen.append(g)
        return tuple(seen)


def take(factors: Factors, axis: int, positions: range) -> Factors:
    """The labels at some positions of an axis; a factor that does not track it stays."""
    return tuple(f.take(as_array(positions), axis=axis) if f.shape[axis] > 1 else f for f in factors)


def as_array(positions: range) -> Labels:
    """List the positions of a range one by one, (n,)."""
    return np.arange(positions.start, positions.stop, positions.step, dtype=np.int64)


def check_size(positions: int) -> None:
    """Raises TooMany where a factor of so many positions is not to be made."""
    if positions > MOST_POSITIONS:
        raise TooMany


def compress(factor: Factor) -> Factor:
    """Reduce every axis along which the factor does not change to size 1."""
    for axis, size in enumerate(factor.shape):
        if size > 1:
            head = factor.take([0], axis=axis)
            if bool((factor == head).all()):
                factor = head
    return factor


def tracked_axes(factor: Factor) -> tuple[int, ...]:
    """The axes that a factor tracks."""
    return tuple(a for a, s in enumerate(factor.shape) if s > 1)


def rows_of(factor: Factor) -> Labels:
    """(rows, columns): the columns are the last axis that a factor tracks, the rows all others; one row if none."""
    column = tracked_axes(factor)[-1]
    return np.moveaxis(factor, column, -1).reshape(-1, factor.shape[column])


def along(labels: Labels, axis: int, ndim: int) -> Factor:
    """A factor of rank `ndim` that tracks one axis with the given labels, shape (n,)."""
    shape = [1] * ndim
    shape[axis] = labels.size
    return labels.reshape(shape)


def lift(factor: Factor, ndim: int) -> Factor:
    """Prepend axes of size 1, as broadcasting does."""
    return factor.reshape((1,) * (ndim - factor.ndim) + factor.shape)


def axis_in(value: Any, rank: int) -> int:
    """An axis of a tensor of that rank, counted from the front. Raises Misfit where it has none of that number."""
    axis = int(value)
    if not -rank <= axis < rank:
        raise Misfit(f"it names axis {axis} of a tensor with {rank}")
    return axis % rank


def as_ints(value: Any) -> tuple[int, ...]:
    """An attribute that holds integers, as a tuple."""
    return tuple(int(v) for v in np.atleast_1d(np.asarray(value)))
