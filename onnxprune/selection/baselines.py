"""Baselines: random order, and that of scores: weight magnitudes, or Taylor terms (Molchanov et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.numerics.arrays import Doubles, Ints
from onnxprune.selection.known import Choice, Known
from onnxprune.selection.path import Path, Regression, falling, in_turns
from onnxprune.selection.quadratic import Quadratic


def path_at_random(known: Known, choice: Choice) -> Path:
    """A random order, which depends on the seed and the group."""
    rng = np.random.default_rng((choice.seed, known.group))
    return random(known.size, known.regressions, rng, known.rows)


def path_of_magnitude(known: Known, choice: Choice) -> Path:
    """The order of the norms of the weights. Raises TypeError where there are none."""
    del choice
    return by_score(_scores(known), known.regressions, known.rows)


def path_of_taylor(known: Known, choice: Choice) -> Path:
    """The order of the squared first-order terms. Raises TypeError where there are none."""
    del choice
    if known.outputs is None:
        raise TypeError("Taylor terms of a group without gradients")
    return by_score(_scores(known), known.outputs, known.rows)


def _scores(known: Known) -> Doubles:
    if known.scores is None:
        raise TypeError("a group without scores")
    return known.scores


def random(
    units: int, known: Sequence[Regression] | Quadratic, rng: np.random.Generator, rows: Ints | None = None
) -> Path:
    """Units in random order; one of each balanced set in turn."""
    return by_score(rng.permutation(units).astype(np.float64), known, rows)


def by_score(score: Doubles, known: Sequence[Regression] | Quadratic, rows: Ints | None = None) -> Path:
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
