"""Baselines: random order, and that of scores: weight magnitudes, or Taylor terms (Molchanov et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.numerics.arrays import Doubles, Ints
from onnxprune.selection.known import Choice, Known
from onnxprune.selection.path import Path, Regression, falling, in_turns
from onnxprune.selection.quadratic import Quadratic


def path_at_random(group: Known, choice: Choice) -> Path:
    """A random order, which depends on the seed and the group."""
    rng = np.random.default_rng((choice.seed, group.group))
    return random(group.size, group.regressions, rng, group.rows)


def path_of_magnitude(group: Known, choice: Choice) -> Path:
    """The order of the norms of the weights. Raises TypeError where there are none."""
    del choice
    return by_score(_scores(group), group.regressions, group.rows)


def path_of_taylor(group: Known, choice: Choice) -> Path:
    """The order of the squared first-order terms. Raises TypeError where there are none."""
    del choice
    if group.outputs is None:
        raise TypeError("Taylor terms of a group without gradients")
    return by_score(_scores(group), group.outputs, group.rows)


def _scores(group: Known) -> Doubles:
    if group.scores is None:
        raise TypeError("a group without scores")
    return group.scores


def random(
    units: int, discrepancy_source: Sequence[Regression] | Quadratic, rng: np.random.Generator, rows: Ints | None = None
) -> Path:
    """Units in random order; one of each balanced set in turn."""
    return by_score(rng.permutation(units).astype(np.float64), discrepancy_source, rows)


def by_score(score: Doubles, discrepancy_source: Sequence[Regression] | Quadratic, rows: Ints | None = None) -> Path:
    """Units in ascending order of `score` (N,), with the discrepancy of removing them and refitting nothing.

    discrepancy_source: the quadratic itself, or the regressions of the layers that read the group, whose contributions
    add up to it; without any the discrepancy is taken for 0. rows: the balanced set of each unit, (N,): one of each
    goes in turn.
    """
    n = score.size
    order = in_turns(np.argsort(score, kind="stable").astype(np.int64), rows)
    if isinstance(discrepancy_source, Quadratic):
        loss, floor = falling(discrepancy_source.removing(order)[::-1])
        return Path(order, loss, floor=floor)
    if not discrepancy_source:
        return Path(order, np.zeros(n + 1))
    k = np.zeros((n, n))
    for r in discrepancy_source:
        k += r.contributions(n)
    return by_score(score, Quadratic.of_gram(k), rows)
