"""The range in which a distribution loses least when it is told in few steps.

For a range of n bins around 0, P are their counts, with what lies outside added to the ends, and Q the same counts told
in K equal steps, each spread evenly over those of its bins that are not empty. The range is the one with the least
Kullback-Leibler divergence Σ P log (P / Q) (Migacz, "8-bit Inference with TensorRT", 2017).
"""

from __future__ import annotations

import numpy as np

from onnxprune.numerics.arrays import Doubles, Ints

# Half of the 256 codes, as the source has it.
STEPS = 128
_TINY = 1e-9


def bins_kept(counts: Ints, steps: int = STEPS) -> int:
    """How many bins on either side of the middle the range has; counts: (bins,), an even number around 0."""
    half = len(counts) // 2
    total = counts.sum()
    if not total:
        return half
    below = np.concatenate([[0], np.cumsum(counts)])
    best, found = np.inf, half
    for k in range(steps // 2, half + 1):
        start, stop = half - k, half + k
        own = counts[start:stop].astype(np.float64)
        p = own.copy()
        p[0] += below[start]
        p[-1] += total - below[stop]
        divergence = _divergence(p, own, steps)
        if divergence < best:
            best, found = divergence, k
    return found


def _divergence(p: Doubles, own: Doubles, steps: int) -> float:
    """Of p from what it becomes in so many steps. own: p without what was added to its ends."""
    n = len(p)
    firsts = np.arange(steps) * n // steps
    filled = p > 0.0
    sums = np.add.reduceat(own, firsts)
    used = np.add.reduceat(filled.astype(np.float64), firsts)
    each = np.divide(sums, used, out=np.zeros_like(sums), where=used > 0.0)
    q = np.repeat(each, np.diff(np.append(firsts, n)))[filled]
    p = p[filled] / p.sum()
    q = np.maximum(q / max(q.sum(), _TINY), _TINY)
    return float((p * np.log(p / q)).sum())
