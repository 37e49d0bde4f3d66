"""Every inequality of docs/paper.md: on random layers, dead units, equal ones and ones on a line among them; on layers
of the bundled models; and on those that docs/paper/results.json has the curves of."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from experiments.paper.hull import hull_of, least_of_fixed_steps, most_of_fixed_steps
from experiments.paper.networks import Bundled, Prepared
from experiments.paper.records import Records
from experiments.paper.scope import BUNDLED, Place
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


def depth(s: Array) -> float:
    """The radius of the largest ball around the mean of the corners inside their hull, in its span, by Quickhull."""
    _, size, basis = np.linalg.svd(s - s.mean(axis=0))
    flat = (s - s.mean(axis=0)) @ basis[: int((size > 1e-9 * size[0]).sum())].T
    return float(-ConvexHull(flat).equations[:, -1].max())


@pytest.mark.parametrize("removal", [True, False])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_theorem_1(kind: str, seed: int, removal: bool) -> None:
    """D(n) ≤ D(1) qⁿ⁻¹ ≤ R² qⁿ⁻¹: fails where the bound, or the step, is wrong.

    The ball is that of Quickhull, so that dependent corners have theirs as well; where `hull_of` knows it they agree.
    """
    s = corners(kind, seed)
    q, r = quadratic(s), depth(s)
    hull = hull_of(q)
    losses = [s.loss for s in itertools.islice(greedy(q, removal=removal), 60)]
    rounding = 1e-12 * q.c
    assert r > 0
    assert (hull.radius > 0) == (kind in ("independent", "dead"))
    if hull.radius:
        assert hull.radius == pytest.approx(r, rel=1e-6)
    factor = 1 - (r / hull.diameter) ** 2
    for n, d in enumerate(losses, 1):
        assert d <= losses[0] * factor ** (n - 1) + rounding
    assert losses[0] <= hull.diameter**2 + rounding
    assert hull.diameter >= 2 * r


@pytest.mark.parametrize("seed", range(4))
def test_the_outputs_are_bounded_through_the_layer(seed: int) -> None:
    """D of the outputs ≤ L² D of the layer, and for the better of two runs as well (lemmas 4 to 6)."""
    rng = np.random.default_rng(seed)
    s = corners("independent", seed)
    inner, outer = rng.standard_normal((9, 7)), rng.standard_normal((4, 9))
    lipschitz = float(np.linalg.norm(inner, 2) * np.linalg.norm(outer, 2))

    def outputs(a: Array) -> Array:
        result: Array = outer @ np.maximum(inner @ (a @ s / len(s)), 0.0)
        return result

    def error(a: Array) -> float:
        return float(((outputs(a) - outputs(np.ones(len(s)))) ** 2).sum())

    q, factor = quadratic(s), 1 - (depth(s) / hull_of(quadratic(s)).diameter) ** 2
    local = list(itertools.islice(greedy(q), 30))
    behind = s @ inner.T
    other = list(itertools.islice(greedy(quadratic(behind)), 30))
    for n, (a, b) in enumerate(zip(local, other, strict=False), 1):
        assert error(a.coefficients) <= lipschitz**2 * a.loss + 1e-12
        better = min(error(a.coefficients), error(b.coefficients))
        assert better <= lipschitz**2 * local[0].loss * factor ** (n - 1) + 1e-12


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
    """λ N δ² / k² ≤ D ≤ (R² / 2r)² / k²: fails where GFS can come closer than means of k corners can, and where 1/k²
    alone is claimed from below."""
    q = quadratic(corners(kind, seed))
    for k, step in enumerate(itertools.islice(gfs.forward(q), 5 * q.units), 1):
        assert step.loss >= least_of_fixed_steps(q, k) - 1e-12 * q.c
    s = corners(kind, seed)
    hull = replace(hull_of(q), radius=depth(s))
    for k, step in enumerate(itertools.islice(gfs.forward(q), 5 * q.units), 1):
        assert step.loss <= most_of_fixed_steps(hull, k) + 1e-12 * q.c
    even = Quadratic.of_gram(np.eye(q.units))
    losses = [s.loss for s in itertools.islice(gfs.forward(even), 2 * q.units)]
    assert losses[q.units - 1] == pytest.approx(0.0, abs=1e-12)
    assert least_of_fixed_steps(even, q.units) == 0.0
    assert least_of_fixed_steps(even, q.units + 2) > 0.0


# layers of networks


@pytest.mark.parametrize("place", BUNDLED.places, ids=lambda p: p.key)
def test_layers_of_the_bundled_models(place: Place) -> None:
    """Theorem 1 and both bounds of fixed steps, at every step."""
    prepared = Prepared.of(Bundled().network(place.network), 64, method="local")
    q = prepared.local(prepared.named(place.group))
    hull = hull_of(q)
    rounding = 1e-10 * q.c
    for removal in (True, False):
        losses = [s.loss for s in itertools.islice(greedy(q, removal=removal), 3 * q.units)]
        for n, d in enumerate(losses, 1):
            assert d <= losses[0] * hull.factor ** (n - 1) + rounding
        assert losses[0] <= hull.diameter**2 + rounding
    for k, step in enumerate(itertools.islice(gfs.forward(q), 3 * q.units), 1):
        assert least_of_fixed_steps(q, k) - rounding <= step.loss <= most_of_fixed_steps(hull, k) + rounding


RESULTS = Records(Path(__file__).resolve().parents[1] / "docs" / "paper" / "results.json")
# Stored discrepancies have six digits.
DIGITS = 1 + 2e-5


@pytest.mark.parametrize("key", sorted(RESULTS.section("constants")))
def test_layers_of_the_page(key: str) -> None:
    """The same on the curves that the page shows: fails where a row was measured by other steps than it says."""
    constants, steps = RESULTS.section("constants")[key], RESULTS.section("convergence")[key]["steps"]
    assert constants["first"] <= constants["diameter"] * DIGITS
    assert 1 / DIGITS <= constants["least_ratio"] <= DIGITS
    for walk in ("local", "local, no removal"):
        d = [x for x in steps[walk]["d"] if x is not None]
        assert all(x <= d[0] * np.exp(-constants["bound"] * n) * DIGITS + 1e-9 for n, x in enumerate(d))
        assert all(b <= a * DIGITS + 1e-9 for a, b in itertools.pairwise(d))
    fixed = constants["fixed"]
    for n, least, d, most in zip(*(fixed[x] for x in ("n", "least", "d", "most")), strict=True):
        assert least <= d * DIGITS
        assert d == pytest.approx(steps["gfs"]["d"][n - 1], rel=1e-4)
        above = constants["diameter"] / (2 * constants["ratio"] * n) ** 2
        assert d <= most * DIGITS
        assert most == pytest.approx(above, rel=1e-3)
    for k, d in enumerate(steps["gfs"]["d"], 1):
        assert d <= constants["diameter"] / (2 * constants["ratio"] * k) ** 2 * DIGITS


@pytest.mark.parametrize("key", sorted(RESULTS.section("convergence")))
def test_no_curve_of_the_page_rises_with_the_units(key: str) -> None:
    """Fails where a size keeps the coefficients that a walk happened to pass it with."""
    curves = RESULTS.section("convergence")[key]["curves"]
    for method in ("local", "gfs"):
        d = curves[method]["local"]["d"]
        assert all(b <= a * DIGITS + 1e-9 for a, b in itertools.pairwise(d)), method
