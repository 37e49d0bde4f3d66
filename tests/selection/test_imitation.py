"""Greedy imitation, against exhaustive search over units and step sizes on explicit features."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.selection import Quadratic
from onnxprune.selection.imitation import QuadraticWalk, greedy
from tests.compare import assert_same
from tests.selection.exhaustive import FAMILIES, Array, Samples, best_on_line, best_step, family, lowest, moved

# Relative to D of removing everything.
RTOL = 1e-9
# (units, dimensions, seed) of problems in which the greedy removes a unit again: it does so rarely.
REMOVING = ((5, 3, 134), (6, 2, 372), (6, 3, 368), (6, 4, 141))


def crowded(units: int, dimensions: int, seed: int) -> Samples:
    """More units than dimensions, so that the first choices become superfluous."""
    rng = np.random.default_rng(seed)
    found: Array = rng.standard_normal((units, dimensions)) + rng.normal(size=dimensions)
    return Samples(units * found.T, found.sum(axis=0), np.zeros(units))


def check_step(p: Samples, before: Array, after: Array, loss: float, *, removal: bool) -> None:
    """One step (coefficients) is the best there is, and costs what it says."""
    best = best_step(p.at, before / p.units, removal=removal)
    assert_same(np.float64(loss), np.float64(best), rtol=0.0, atol=RTOL * p.scale)
    assert_same(np.float64(p.at(after / p.units)), np.float64(loss), rtol=0.0, atol=RTOL * p.scale)


@pytest.mark.parametrize("removal", [True, False])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", FAMILIES)
def test_every_step_is_the_best_one(name: str, seed: int, removal: bool) -> None:
    """Fails where a step takes another unit, another γ, or reports another discrepancy than the best step has.

    And where the greedy stops although a step would improve.
    """
    p = family(name, seed)
    n = p.units
    limit = 3 * n
    steps = list(itertools.islice(greedy(p.quadratic(), removal=removal), limit))
    first = min(p.at(e) for e in np.eye(n))
    assert_same(np.float64(steps[0].loss), np.float64(first), rtol=RTOL, atol=RTOL * p.scale)
    for before, step in itertools.pairwise(steps):
        check_step(p, before.coefficients, step.coefficients, step.loss, removal=removal)
        expected = n * moved(before.coefficients / n, step.unit, step.gamma)
        assert_same(step.coefficients, expected, rtol=1e-9, atol=0.0)
    if len(steps) < limit:
        last = steps[-1]
        assert last.loss - best_step(p.at, last.coefficients / n, removal=removal) <= RTOL * p.scale


@pytest.mark.parametrize("key", REMOVING)
def test_removal_steps_happen_remove_exactly_and_improve(key: tuple[int, int, int]) -> None:
    """Fails where the negative end of U_i is never reached, leaves a rest of the unit behind, or does not pay."""
    p = crowded(*key)
    steps = list(itertools.islice(greedy(p.quadratic()), 6 * p.units))
    removed = 0
    for before, step in itertools.pairwise(steps):
        a, b = before.coefficients, step.coefficients
        for i in np.flatnonzero((a > 0) & (b == 0)):
            removed += 1
            others = np.arange(p.units) != i
            # What is left is the rest at its own proportions, scaled up to sum to one.
            share = a / p.units
            assert step.unit == i
            assert_same(np.float64(step.gamma), np.float64(lowest(share[i])), rtol=1e-9, atol=0.0)
            assert_same(b[others], a[others] / (1 - share[i]), rtol=1e-9, atol=0.0)
            assert p.at(b / p.units) < before.loss - RTOL * p.scale
            # No step towards any unit does as well.
            assert step.loss <= best_step(p.at, share, removal=False) + RTOL * p.scale
    assert removed > 0
    forward = itertools.islice(greedy(p.quadratic(), removal=False), 6 * p.units)
    assert all((b.coefficients[a.coefficients > 0] > 0).all() for a, b in itertools.pairwise(forward))


def test_the_interval_reaches_below_zero() -> None:
    """a_i = 0.3 is removed by γ = -3/7; +3/7, U_i with its sign lost, would double its weight."""
    a = np.array([0.35, 0.35, 0.3, 0.0])
    assert_same(moved(a, 2, -3 / 7), np.array([0.5, 0.5, 0.0, 0.0]), rtol=1e-12, atol=1e-12)
    assert_same(moved(a, 2, 3 / 7), np.array([0.2, 0.2, 0.6, 0.0]), rtol=1e-12, atol=1e-12)
    assert_same(np.float64(lowest(0.3)), np.float64(-3 / 7), rtol=1e-12, atol=0.0)
    # The target lies far beyond, on the side away from the third unit: the best γ for it is the negative end.
    p = Samples(np.array([[1.0, 0.0, -1.0, 8.0], [0.0, 1.0, -1.0, 8.0]]), np.array([2.0, 2.0]), np.zeros(4))
    assert best_on_line(lambda g: p.at(moved(a, 2, g)), -2.0, 1.0)[1] < -3 / 7
    value, gamma = best_on_line(lambda g: p.at(moved(a, 2, g)), -3 / 7, 1.0)
    assert_same(np.float64(gamma), np.float64(-3 / 7), rtol=1e-6, atol=0.0)
    # The package, put there, has this value for the third unit.
    walk = QuadraticWalk(p.quadratic())
    walk.jump(4 * a)
    step = walk.advance(np.array([False, False, True, False]))
    assert step is not None
    assert_same(np.float64(step.gamma), np.float64(-3 / 7), rtol=1e-12, atol=0.0)
    assert_same(np.float64(step.loss), np.float64(value), rtol=1e-9, atol=0.0)
    assert_same(step.coefficients, np.array([2.0, 2.0, 0.0, 0.0]), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", ["plain", "crowded", "duplicated"])
def test_a_converged_greedy_stops(name: str) -> None:
    """Fails where steps that change nothing but rounding go on: 2,000 steps are far beyond convergence here."""
    p = family(name, 1)
    steps = list(itertools.islice(greedy(p.quadratic()), 2000))
    assert len(steps) < 2000
    assert steps[-1].loss <= 1e-9 * p.scale


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(FAMILIES), st.booleans())
def test_steps_stay_in_the_simplex_and_never_lose(seed: int, name: str, removal: bool) -> None:
    """Fails where a step leaves the simplex, or makes D larger by more than rounding."""
    p = family(name, seed)
    steps = list(itertools.islice(greedy(p.quadratic(), removal=removal), 5 * p.units))
    for step in steps:
        alpha = step.coefficients / p.units
        assert (alpha >= 0.0).all()
        assert_same(alpha.sum(), np.float64(1.0), rtol=0.0, atol=1e-11)
    losses = np.array([s.loss for s in steps])
    assert (np.diff(losses) <= 1e-12 * (p.scale + np.abs(losses[:-1]))).all()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(FAMILIES))
def test_free_steps_are_never_worse_than_nothing(seed: int, name: str) -> None:
    """Fails where the common factor is not the best one that keeps Σ α <= 1."""
    p = family(name, seed)
    for step in itertools.islice(greedy(p.quadratic(), free=True), 3 * p.units):
        alpha = step.coefficients / p.units
        assert (alpha >= 0.0).all()
        assert alpha.sum() <= 1.0 + 1e-11
        best, _ = best_on_line(lambda g, alpha=alpha: p.at((1 - g) * alpha), 1 - 1 / alpha.sum(), 1.0)
        assert step.loss <= best + RTOL * p.scale
        assert_same(np.float64(p.at(alpha)), np.float64(step.loss), rtol=0.0, atol=RTOL * p.scale)


def test_long_walks_do_not_drift() -> None:
    """Fails where what is carried along from step to step moves away from K a, across several refreshes."""
    rng = np.random.default_rng(0)
    s = rng.standard_normal((40, 50)) + 0.5
    q = Quadratic.of_gram(s.T @ s)
    count = 0
    for step in itertools.islice(greedy(q), 300):
        count += 1
        assert_same(np.float64(step.loss), np.sum((s @ (1 - step.coefficients)) ** 2), rtol=1e-9, atol=1e-9 * q.c)
    assert count == 300


def test_one_entry_off_by_a_hundredth_is_seen() -> None:
    """The mutation check: a K with one entry 1 % off gives a step that the exhaustive search refuses."""
    p = family("plain", 1)
    q = p.quadratic()
    i = int(np.diag(q.k).argmax())
    q.k[i, i] *= 1.01
    steps = list(itertools.islice(greedy(q), 12))
    with pytest.raises(AssertionError, match="times the bound"):
        for before, step in itertools.pairwise(steps):
            check_step(p, before.coefficients, step.coefficients, step.loss, removal=True)
