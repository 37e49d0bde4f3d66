"""How fast the discrepancy falls, where theory says so, with its explicit constants.

f = Σ s_i / N. δ: the largest distance between features, r: the distance of f from the boundary of their hull.
Joint steps: some s_i has <f_A - f, s_i - f> <= -r ||f_A - f||, so a step gains r² ||f_A - f||² / δ² at least: D falls
by the factor 1 - r²/δ² (Guélat & Marcotte 1986; Theorem 1 of arXiv 2010.15969).
Fixed steps: w_k = k (f - f_k) obeys w_{k+1} = w_k + f - s_i, and the step minimises its norm. On average over i,
||w||² grows by no more than the features' variance V, so D <= V / k; with r > 0 it stays below (δ²/2r)² + δ², so
D <= that / k² (Chen, Welling & Smola 2010; arXiv 2003.01794).
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from onnxprune.selection import Quadratic, gfs
from onnxprune.selection.imitation import greedy
from tests.selection.exhaustive import Array

UNITS = 60


def features(seed: int, dimensions: int) -> Array:
    """s (N, T): in few dimensions, so that the mean lies well inside the hull."""
    rng = np.random.default_rng(seed)
    found: Array = rng.standard_normal((UNITS, dimensions)) + rng.standard_normal(dimensions)
    return found


def quadratic(s: Array) -> Quadratic:
    return Quadratic.of_gram(s @ s.T / len(s) ** 2)


def depth(s: Array) -> float:
    """The distance of the mean from the boundary of the hull."""
    hull = ConvexHull(s)
    return float((-(hull.equations[:, :-1] @ s.mean(axis=0) + hull.equations[:, -1])).min())


@pytest.mark.parametrize("seed", range(6))
def test_joint_steps_fall_exponentially(seed: int) -> None:
    """Fails where a step gains less than theory promises, or the fall flattens before rounding."""
    s = features(seed, 6)
    r, delta = depth(s), float(pdist(s).max())
    q = quadratic(s)
    losses = np.array([step.loss for step in itertools.islice(greedy(q), 400)])
    above = losses[losses > 1e-11 * q.c]
    assert above.size > 10
    assert (above[1:] <= (1 - (r / delta) ** 2) * above[:-1] + 1e-13 * q.c).all()
    # Straight against the number of steps, not against its logarithm: the second half falls as far as the first.
    # (A power law D = C / k² would fall by a factor of four there.)
    middle = above.size // 2
    assert above[middle] / above[-1] > 100
    assert losses.min() <= 1e-11 * q.c


@pytest.mark.parametrize("seed", range(6))
def test_fixed_steps_fall_as_one_over_k_squared(seed: int) -> None:
    """Fails where fixed steps exceed their bound, or fall as fast as joint ones do."""
    s = features(seed, 3)
    r, delta = depth(s), float(pdist(s).max())
    losses = np.array([step.loss for step in itertools.islice(gfs.forward(quadratic(s)), 2000)])
    k = np.arange(1, losses.size + 1)
    bound = ((delta**2 / (2 * r)) ** 2 + delta**2) / k**2
    assert (losses <= bound + 1e-12 * losses[0]).all()
    # The mean over octaves, as single steps scatter.
    octaves = [(float(np.log(k[a:b].mean())), float(np.log(losses[a:b].mean()))) for a, b in _octaves(8, losses.size)]
    slope = float(np.polyfit(*np.array(octaves).T, 1)[0])
    assert -2.4 < slope < -1.6, slope


def _octaves(low: int, high: int) -> list[tuple[int, int]]:
    return [(a, 2 * a) for a in (low * 2**j for j in range(20)) if 2 * a <= high]


@pytest.mark.parametrize("seed", range(6))
def test_fixed_steps_without_an_interior_fall_as_one_over_k(seed: int) -> None:
    """Fails where the general bound V / k does not hold: as many dimensions as units, so the hull has no interior."""
    rng = np.random.default_rng(seed)
    s = rng.standard_normal((UNITS, UNITS)) + rng.standard_normal(UNITS)
    variance = float(np.sum((s - s.mean(axis=0)) ** 2) / UNITS)
    losses = np.array([step.loss for step in itertools.islice(gfs.forward(quadratic(s)), 200)])
    assert (losses <= variance / np.arange(1, losses.size + 1) * (1 + 1e-9)).all()
