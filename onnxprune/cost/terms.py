"""What a model costs as a function of how many units of each group are kept.

Every cost is a sum of terms, coefficient · Π (axis length), and an axis length is linear in the numbers of kept units:
length = constant + Σ_g positions_g · n_g, with a fraction of a position where each row of a tensor has channels of its
own. MACs are in × out, so they are not additive over groups; the terms are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.channels import ChannelGraph
from onnxprune.channels.labels import Labels, rows_of
from onnxprune.numerics.arrays import Ints

Counts = Ints


@dataclass(frozen=True)
class Length:
    """constant + Σ positions · kept units, over (group index, positions)."""

    constant: float
    groups: tuple[tuple[int, float], ...] = ()

    def at(self, kept: Counts | Sequence[int]) -> float:
        """The length with `kept[g]` units of each group."""
        total: float = 0
        for g, positions in self.groups:
            total += positions * kept[g]
        return self.constant + total


@dataclass(frozen=True)
class Term:
    """coefficient · Π lengths, and 0 where of one of the sets of groups that it needs nothing is kept."""

    coefficient: float
    lengths: tuple[Length, ...]
    needs: tuple[tuple[int, ...], ...] = ()

    def at(self, kept: Counts | Sequence[int]) -> float:
        """The value with `kept[g]` units of each group."""
        for groups in self.needs:
            if not any(kept[g] for g in groups):
                return 0.0
        value = self.coefficient
        for length in self.lengths:  # as in `Length.at`: allocation asks this hundreds of thousands of times
            total: float = 0
            for g, positions in length.groups:
                total += positions * kept[g]
            value *= length.constant + total
        return value


@dataclass(frozen=True)
class Cost:
    """A sum of terms over `groups` groups."""

    terms: tuple[Term, ...]
    groups: int
    _touching: tuple[tuple[Term, ...], ...] = field(default=())

    @classmethod
    def of(cls, terms: Iterable[Term], groups: int) -> Cost:
        """Index the terms by the groups that they depend on."""
        kept = tuple(terms)
        touching: list[list[Term]] = [[] for _ in range(groups)]
        for t in kept:
            for g in sorted({g for length in t.lengths for g, _ in length.groups}.union(*t.needs)):
                touching[g].append(t)
        return cls(kept, groups, tuple(tuple(t) for t in touching))

    def at(self, kept: Counts | Sequence[int]) -> float:
        """The whole cost with `kept[g]` units of each group."""
        counts = _numbers(kept)
        return sum(t.at(counts) for t in self.terms)

    def part(self, kept: Counts | Sequence[int], group: int) -> float:
        """What of the cost the units of one group have a share in."""
        counts = _numbers(kept)
        return sum(t.at(counts) for t in self._touching[group])

    def saving(self, kept: Counts, group: int, fewer: int) -> float:
        """What keeping `fewer` units less of one group saves."""
        terms = self._touching[group]
        less = _numbers(kept)
        before = sum([t.at(less) for t in terms])
        less[group] -= fewer
        return before - sum([t.at(less) for t in terms])


def _numbers(kept: Counts | Sequence[int]) -> list[int]:
    """The counts as plain numbers, in a new list: an entry of an array takes several times as long to read."""
    return kept.tolist() if isinstance(kept, np.ndarray) else list(kept)


def length_of(channels: ChannelGraph, factor: Labels | None, size: int) -> Length:
    """The length of the axis that a factor tracks; with rows of channels of their own, that of each row."""
    if factor is None:
        return Length(size)
    groups = channels.group_of[factor]
    rows = 1 if factor.ndim == 1 else len(rows_of(factor))
    constant = int((groups < 0).sum()) / rows
    group_indices, counts = np.unique(groups[groups >= 0], return_counts=True)
    return Length(
        constant,
        tuple((int(g), int(c) / rows / channels.groups[g].size) for g, c in zip(group_indices, counts, strict=True)),
    )


def length_of_axis(channels: ChannelGraph, tensor: str, axis: int, size: int) -> Length:
    """The length of an axis of a tensor, which has `size` positions in the original."""
    return length_of(channels, channels.axis_factor(tensor, axis), size)
