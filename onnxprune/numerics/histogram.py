"""A histogram of numbers that come in parts, of which nobody knows the range beforehand.

It has an even number of bins of equal width over [-T, T]. Where a number lies outside, T doubles and every two
neighbouring bins become one, so that counts stay exact and there are never more bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from onnxprune.numerics.arrays import Array, Doubles, Ints

BINS = 2048


@dataclass(eq=False)
class Histogram:
    """Counts of the finite numbers seen so far, their least and greatest, and how many were not finite.

    edge: T, 0 before a number other than 0 was seen. counts: (bins,).
    """

    bins: int = BINS
    edge: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    infinite: int = 0
    counts: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.bins, np.int64)

    def add(self, values: Array) -> None:
        """Count these numbers, of any shape."""
        flat = values.ravel()
        finite = np.isfinite(flat)
        if not finite.all():
            self.infinite += int(flat.size - np.count_nonzero(finite))
            flat = flat[finite]
        if not flat.size:
            return
        self.least, self.most = min(self.least, float(flat.min())), max(self.most, float(flat.max()))
        self._widen(max(abs(self.least), abs(self.most)))
        if self.edge == 0.0:
            self.counts[self.bins // 2] += flat.size
            return
        self.counts += np.histogram(flat.astype(np.float64), self.bins, (-self.edge, self.edge))[0]

    def _widen(self, reach: float) -> None:
        """Let the bins reach so far on both sides."""
        if self.edge == 0.0 and reach > 0.0:
            # A power of two, so that the order of the parts leaves no trace.
            self.edge = 2.0 ** math.ceil(math.log2(reach))
        while self.edge < reach:
            self.edge *= 2.0
            half, quarter = self.counts.reshape(-1, 2).sum(axis=1), self.bins // 4
            self.counts = np.pad(half, (quarter, quarter))

    @property
    def seen(self) -> bool:
        """Whether there was any number."""
        return bool(self.infinite) or self.most >= self.least

    @property
    def reach(self) -> float:
        """The largest size of a number: infinite where one was not finite, 0 where none was seen."""
        if self.infinite:
            return math.inf
        return max(abs(self.least), abs(self.most)) if self.seen else 0.0

    @property
    def edges(self) -> Doubles:
        """The edges of the bins, (bins + 1,)."""
        return np.linspace(-self.edge, self.edge, self.bins + 1)

    @property
    def square(self) -> float:
        """The mean square, as the middles of the bins tell it; 0 where nothing was counted."""
        total = int(self.counts.sum())
        middles = (self.edges[1:] + self.edges[:-1]) / 2.0
        return float((self.counts * middles**2).sum() / total) if total else 0.0
