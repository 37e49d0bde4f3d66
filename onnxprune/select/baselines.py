"""Baselines: random order, weight magnitude, and Molchanov's Taylor scores of gates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.select.path import Array, Ints, Path, Regression, falling, in_turns
from onnxprune.select.quadratic import Quadratic


def random(
    units: int, known: Sequence[Regression] | Quadratic, rng: np.random.Generator, rows: Ints | None = None
) -> Path:
    """Units in random order; one of each balanced set in turn."""
    return by_score(rng.permutation(units).astype(np.float64), known, rows)


def taylor(gates: Array, order: int = 2) -> Array:
    """Scores (N,) from the gradients of a loss at one gate per unit, (samples, N), at gates of 1.

    order 2: E[d²] (Molchanov et al. 2019, arXiv 1906.10771: the squared first-order term). order 1: E|d|
    (Molchanov et al. 2017, arXiv 1611.06440). Both score a *loss* at the *full* layer, once; the Taylor
    screening of `exact` takes the gradient of the *discrepancy* from the full network, which vanishes there, at every
    step of the pruned layer. O(samples · N).
    """
    scores: Array = (np.abs(gates).astype(np.float64) ** order).mean(axis=0)
    return scores


def by_score(score: Array, known: Sequence[Regression] | Quadratic, rows: Ints | None = None) -> Path:
    """Units in ascending order of `score` (N,), with the discrepancy of removing them and refitting nothing.

    known: what the discrepancy is computed from. Without regressions nothing is known of it: it is 0. rows: the
    balanced set of each unit, (N,): one of each goes in turn.
    """
    n = score.size
    order = in_turns(np.argsort(score, kind="stable").astype(np.int64), rows)
    if isinstance(known, Quadratic):
        loss, floor = falling(known.removing(order)[::-1])
        return Path(order, loss, floor=floor)
    if not known:
        return Path(order, np.zeros(n + 1))
    k = np.zeros((n, n))
    for r in known:
        k += r.contributions(n)
    return by_score(score, Quadratic.of_gram(k), rows)
