"""Baselines: random order, and weight magnitude."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.select.path import Array, Ints, Path, Regression, in_turns


def random(units: int, regressions: Sequence[Regression], rng: np.random.Generator, rows: Ints | None = None) -> Path:
    """Units in random order; one of each balanced set in turn."""
    return by_score(rng.permutation(units).astype(np.float64), regressions, rows)


def by_score(score: Array, regressions: Sequence[Regression], rows: Ints | None = None) -> Path:
    """Units in ascending order of `score` (N,), with the discrepancy of removing them and refitting nothing.

    Without regressions nothing is known of the discrepancy: it is 0. rows: the balanced set of each unit, (N,): one of
    each goes in turn.
    """
    n = score.size
    order = in_turns(np.argsort(score, kind="stable").astype(np.int64), rows)
    if not regressions:
        return Path(order, np.zeros(n + 1))
    k = np.zeros((n, n))
    for r in regressions:
        k += r.contributions(n)
    ordered = k[np.ix_(order, order)]
    # Removing the first m units costs the sum of the leading m × m block.
    sums = np.cumsum(np.cumsum(ordered, axis=0), axis=1).diagonal()
    loss = np.concatenate([[0.0], np.maximum(sums, 0.0)])[::-1]
    return Path(order, np.ascontiguousarray(loss))
