"""The time of a layer against the lengths of its axes, from the widths at which it was measured.

    t(x) = Σ_S w_S Π_{i ∈ S} p(x_i) / p(x̂_i)        over all subsets S of the axes, w ≥ 0

x̂ are the lengths of the original, and p rounds up to a multiple of the vector width: kernels compute whole blocks of 8
or 16 channels, so time goes in steps. Of a convolution the terms are what it starts with, reads, writes and multiplies.
As w ≥ 0, a wider layer never takes less; a layer with an axis of length 0 takes nothing. Blocks are the ones that fit
the measurements best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import ceil

import numpy as np
from scipy.optimize import nnls

from onnxprune.numerics.arrays import Doubles

BLOCKS = (1, 4, 8, 16, 32)
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Sample:
    """The measured seconds of a layer at these lengths of its axes."""

    lengths: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class Table:
    """t above: `full` are the lengths x̂, `block` the multiple that p rounds up to, `weights` in seconds."""

    full: tuple[float, ...]
    block: int
    weights: Doubles
    _cached: dict[tuple[float, ...], float] = field(default_factory=dict, repr=False)

    def at(self, lengths: tuple[float, ...]) -> float:
        """The seconds of the layer at these lengths."""
        seconds = self._cached.get(lengths)
        if seconds is None:
            seconds = 0.0 if min(lengths) <= 0 else float(_terms(lengths, self.full, self.block) @ self.weights)
            self._cached[lengths] = seconds
        return seconds


def fit(samples: Sequence[Sample], full: tuple[float, ...], blocks: Sequence[int] = BLOCKS) -> Table:
    """The table that fits these measurements, at lengths above 0, best. Errors count relative to the longer times.

    blocks: what `block` is chosen from.
    """
    seconds = np.array([s.seconds for s in samples])
    scale = 1.0 / (seconds + max(float(seconds.mean()), _NEGLIGIBLE))
    best: tuple[float, Table] | None = None
    for block in blocks:
        terms = np.array([_terms(s.lengths, full, block) for s in samples])
        weights, error = nnls(terms * scale[:, None], seconds * scale)
        if best is None or error < best[0] * (1.0 - _NEGLIGIBLE):
            best = float(error), Table(full, block, weights)
    assert best is not None
    return best[1]


def _terms(lengths: Sequence[float], full: Sequence[float], block: int) -> Doubles:
    """The products over all subsets of the axes, (2 ** axes,)."""
    ratios = [ceil(x / block) / ceil(f / block) for x, f in zip(lengths, full, strict=True)]
    sets = (s for n in range(len(ratios) + 1) for s in combinations(ratios, n))
    return np.array([np.prod(s) for s in sets])
