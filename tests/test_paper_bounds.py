"""Every inequality of docs/paper.md, on random layers: dead units, equal ones, and ones on a line among them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from experiments.paper.hull import hull_of, least_of_fixed_steps
from onnxprune.selection import Quadratic, gfs
from onnxprune.selection.imitation import greedy

Array = NDArray[np.float64]
KINDS = ("independent", "dead", "equal", "on a line")


def corners(kind: str, seed: int, units: int = 7) -> Array:
    """s (N, T), N times the contribution of each unit; as many dimensions as there are units that live."""
    rng = np.random.default_rng(seed)
    s = rng.standard_normal((units, units)) + rng.standard_normal(units)
    if kind == "dead":
        s[:2] = 0.0
        s[:, : units - 2] @= rng.standard_normal((units - 2, units - 2))
        s[:, units - 2 :] = 0.0
    if kind == "equal":
        s[1] = s[0]
    if kind == "on a line":
        s[2] = 0.5 * (s[0] + s[1])
    return s


def quadratic(s: Array) -> Quadratic:
    return Quadratic.of_gram(s @ s.T / len(s) ** 2)


@pytest.mark.parametrize("seed", range(6))
def test_the_ball_is_that_of_the_hull(seed: int) -> None:
    """Fails where dead units are left out of the hull: against facets found by Quickhull."""
    s = corners("dead", seed)[:, :5]
    hull = hull_of(quadratic(s))
    facets = ConvexHull(np.concatenate([s[2:], np.zeros((1, 5))])).equations
    depth = float((-(facets[:, :-1] @ s.mean(axis=0) + facets[:, -1])).min())
    assert hull.dead == 2
    assert hull.radius == pytest.approx(depth, rel=1e-6)
    edges = np.linalg.norm(s[:, None] - s[None], axis=-1)
    assert hull.diameter == pytest.approx(float(edges.max()), rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_the_ball_of_a_simplex(seed: int) -> None:
    """Fails where a height is taken for a distance: against the least norm on each facet."""
    s = corners("independent", seed, 5)
    basis = np.linalg.svd(s[1:] - s[0])[2][:4]
    flat = (s - s[0]) @ basis.T
    facets = ConvexHull(flat).equations
    depth = float((-(facets[:, :-1] @ flat.mean(axis=0) + facets[:, -1])).min())
    assert hull_of(quadratic(s)).radius == pytest.approx(depth, rel=1e-6)


@pytest.mark.parametrize("removal", [True, False])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_theorem_1(kind: str, seed: int, removal: bool) -> None:
    """D(n) ≤ D(1) qⁿ⁻¹ ≤ R² qⁿ⁻¹: fails where the bound, or the step, is wrong."""
    q = quadratic(corners(kind, seed))
    hull = hull_of(q)
    losses = [s.loss for s in itertools.islice(greedy(q, removal=removal), 60)]
    rounding = 1e-12 * q.c
    assert (hull.radius > 0) == (kind in ("independent", "dead"))
    for n, d in enumerate(losses, 1):
        assert d <= losses[0] * hull.factor ** (n - 1) + rounding
    assert losses[0] <= hull.diameter**2 + rounding


def test_the_first_step_is_none_of_theorem_1() -> None:
    """D(0) qⁿ with D(0) = ||f||² is no bound: sixteen orthonormal contributions are at 16, and at 240 after γ = 1."""
    q = Quadratic.of_gram(np.eye(16))
    losses = [s.loss for s in itertools.islice(greedy(q), 8)]
    hull = hull_of(q)
    assert (q.c, losses[0]) == (16.0, pytest.approx(240.0))
    for n, d in enumerate(losses, 1):
        assert q.c * hull.factor**n < d <= losses[0] * hull.factor ** (n - 1) * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_fixed_steps_stay_above_their_resolution(kind: str, seed: int) -> None:
    """D ≥ λ N δ² / k²: fails where GFS can come closer than means of k corners can, and where 1/k² alone is claimed."""
    q = quadratic(corners(kind, seed))
    for k, step in enumerate(itertools.islice(gfs.forward(q), 5 * q.units), 1):
        assert step.loss >= least_of_fixed_steps(q, k) - 1e-12 * q.c
    even = Quadratic.of_gram(np.eye(q.units))
    losses = [s.loss for s in itertools.islice(gfs.forward(even), 2 * q.units)]
    assert losses[q.units - 1] == pytest.approx(0.0, abs=1e-12)
    assert least_of_fixed_steps(even, q.units) == 0.0
    assert least_of_fixed_steps(even, q.units + 2) > 0.0
