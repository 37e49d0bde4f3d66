"""A histogram of numbers that come in parts, of which nobody knows the range beforehand.

It has an even number B of bins of equal width over [-T, T]. Where a number lies outside, T doubles and every two
neighbouring bins become one, so that counts stay exact and there are never more bins. The bin of x is

    ⌊x B / 2T⌋ + B / 2,

and the last one for x = T. T and B are powers of two, so that the product is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from onnxprune.numerics.arrays import Array, Doubles, Ints

BINS = 2048
# Numbers that are counted at a time, so that what is computed of them stays in the processor's cache.
_AT_ONCE = 1 << 15
# Between these B / 2T is a number of single precision.
_LEAST_EDGE, _MOST_EDGE = 2.0**-100, 2.0**100


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
        flat = self.reach_to(values)
        if self.edge == 0.0:
            self.counts[self.bins // 2] += flat.size
            return
        narrow = flat.dtype.itemsize <= 4 and _LEAST_EDGE < self.edge < _MOST_EDGE
        scale = np.array(self.bins / 2.0 / self.edge, np.float32 if narrow else np.float64)
        middle, counts = self.bins // 2, np.zeros(self.bins + 1, np.int64)
        for start in range(0, flat.size, _AT_ONCE):
            places = np.floor(flat[start : start + _AT_ONCE].astype(scale.dtype) * scale).astype(np.intp)
            counts += np.bincount(places + middle, minlength=self.bins + 1)
        self.counts += counts[:-1]
        self.counts[-1] += counts[-1]  # T itself

    def reach_to(self, values: Array) -> Array:
        """Let the range hold these numbers, and count those that are not finite; the others, flat."""
        flat = values.ravel()
        if not flat.size:
            return flat
        least, most = flat.min(), flat.max()  # NaN where there is one
        if not (np.isfinite(least) and np.isfinite(most)):
            finite = flat[np.isfinite(flat)]
            self.infinite += int(flat.size - finite.size)
            return self.reach_to(finite)
        self.least, self.most = min(self.least, float(least)), max(self.most, float(most))
        self._widen(max(abs(self.least), abs(self.most)))
        return flat

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
