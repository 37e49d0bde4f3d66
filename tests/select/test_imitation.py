"""Greedy imitation, against exhaustive search over units and step sizes on explicit features."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.select.imitation import imitate, steps
from tests.compare import assert_same

Array = NDArray[np.float64]
RTOL = 1e-9
SEEDS = range(12)
# (units, dimensions, seed) of problems in which the greedy removes a unit again: it does so rarely.
REMOVING = ((5, 3, 134), (6, 2, 372), (6, 3, 368), (6, 4, 141))


def crowded(units: int, dimensions: int, seed: int) -> Array:
    """More units than dimensions, so that the first choices become superfluous."""
    rng = np.random.default_rng(seed)
    found: Array = rng.standard_normal((units, dimensions)) + rng.normal(size=dimensions)
    return found


def contributions(seed: int, units: int = 0) -> Array:
    """Contributions (N, T) of at most ten units, some of them nearly equal, some nearly opposite."""
    rng = np.random.default_rng(seed)
    n = units or int(rng.integers(2, 11))
    base = rng.standard_normal((max(n // 2, 1), 15))
    mix: Array = rng.standard_normal((n, len(base))) @ base + 0.3 * rng.standard_normal((n, 15)) + rng.normal(size=15)
    return mix


def discrepancy(s: Array, a: Array) -> float:
    """||f_N - f_A||² with f_A = Σ a_i N s_i, from the features themselves."""
    n = len(s)
    return float(np.sum((s.sum(axis=0) - a @ (n * s)) ** 2))


def moved(a: Array, i: int, gamma: float) -> Array:
    """(1 - γ) A + γ e_i."""
    b = (1 - gamma) * a
    b[i] += gamma
    return b


def candidates(s: Array, a: Array, *, removal: bool) -> list[tuple[float, int, float]]:
    """(discrepancy, unit, γ) of every unit's best step: the parabola through three points of γ, clipped to U_i."""
    found: list[tuple[float, int, float]] = []
    for i in range(len(s)):
        low = -a[i] / (1 - a[i]) if removal and a[i] < 1 else 0.0
        d = [discrepancy(s, moved(a, i, g)) for g in (0.0, 0.5, 1.0)]
        curve = 2 * (d[0] + d[2] - 2 * d[1])
        slope = d[2] - d[0] - curve
        gamma = 0.0 if curve <= 1e-14 * max(d) else float(np.clip(-slope / (2 * curve), low, 1.0))
        found.append((discrepancy(s, moved(a, i, gamma)), i, gamma))
    return found


PROBLEMS = {f"random-{seed}": contributions(seed) for seed in SEEDS} | {
    f"crowded-{key}": crowded(*key) for key in REMOVING
}


@pytest.mark.parametrize("removal", [True, False])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_step_is_the_best_one(name: str, removal: bool) -> None:
    """Fails where a step takes another unit, another γ, or reports another discrepancy than the best step has."""
    s = PROBLEMS[name]
    n = len(s)
    losses, history = steps(s @ s.T, 4 * n, removal=removal)
    scale = discrepancy(s, np.zeros(n))
    first = min(discrepancy(s, np.eye(n)[i]) for i in range(n))
    assert_same(losses[0], np.float64(first), rtol=RTOL, atol=RTOL * scale)
    for before, after, loss in zip(history, history[1:], losses[1:], strict=False):
        best, _, _ = min(candidates(s, before, removal=removal))
        assert_same(loss, np.float64(best), rtol=0.0, atol=RTOL * scale)
        assert_same(np.float64(discrepancy(s, after)), np.float64(best), rtol=0.0, atol=RTOL * scale)
        assert loss <= discrepancy(s, before) + RTOL * scale


@pytest.mark.parametrize("seed", range(3))
def test_no_step_on_a_dense_grid_is_better(seed: int) -> None:
    """Fails where the closed form, the reference above included, misses the minimum over U_i."""
    s = contributions(seed)
    losses, history = steps(s @ s.T, 2 * len(s))
    scale = discrepancy(s, np.zeros(len(s)))
    for before, loss in zip(history, losses[1:], strict=False):
        for i in range(len(s)):
            low = -before[i] / (1 - before[i]) if before[i] < 1 else 0.0
            grid = min(discrepancy(s, moved(before, i, g)) for g in np.linspace(low, 1.0, 201))
            assert loss <= grid + RTOL * scale


@pytest.mark.parametrize("seed", SEEDS)
def test_coefficients_stay_a_convex_combination(seed: int) -> None:
    """Fails where a step leaves the simplex."""
    s = contributions(seed)
    for a in steps(s @ s.T, 4 * len(s))[1]:
        assert (a >= 0.0).all()
        assert_same(a.sum(), np.float64(1.0), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("key", REMOVING)
def test_removal_steps_happen_and_remove_exactly(key: tuple[int, int, int]) -> None:
    """Fails where the negative end of U_i is never reached, or leaves a rest of the unit behind."""
    s = crowded(*key)
    _, history = steps(s @ s.T, 6 * len(s))
    removed = 0
    for before, after in itertools.pairwise(history):
        for i in np.flatnonzero((before > 0) & (after == 0)):
            removed += 1
            others = np.arange(len(s)) != i
            # What is left is the rest at its own proportions, scaled up to sum to one.
            assert_same(after[others], before[others] / (1 - before[i]), rtol=1e-9, atol=0.0)
    assert removed > 0
    _, history = steps(s @ s.T, 6 * len(s), removal=False)
    assert all((after[before > 0] > 0).all() for before, after in itertools.pairwise(history))


def test_the_negative_end_of_the_interval() -> None:
    """a_i = 0.3 is removed by γ = -3/7, and no further step away from a unit is taken."""
    a = np.array([0.35, 0.35, 0.3, 0.0])
    assert_same(moved(a, 2, -3 / 7), np.array([0.5, 0.5, 0.0, 0.0]), rtol=1e-12, atol=1e-12)
    # The target lies far beyond, on the side away from the third unit.
    s = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [8.0, 8.0]])
    best, _, gamma = candidates(s, a, removal=True)[2]
    assert_same(np.float64(gamma), np.float64(-3 / 7), rtol=1e-12, atol=0.0)
    assert best <= min(discrepancy(s, moved(a, 2, g)) for g in np.linspace(-3 / 7, 1.0, 2001)) + 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_imitate_gives_a_support_of_every_size(seed: int) -> None:
    """Fails where a size that the greedy skipped is missing, or the discrepancy grows with the units kept."""
    s = contributions(seed)
    n = len(s)
    path = imitate(s @ s.T)
    assert sorted(path.order.tolist()) == list(range(n))
    assert [int(path.kept(m).sum()) for m in range(n + 1)] == list(range(n + 1))
    assert (np.diff(path.loss) <= 0.0).all()
    assert_same(path.loss[0], np.float64(discrepancy(s, np.zeros(n))), rtol=RTOL, atol=0.0)
    assert path.loss[n] == 0.0


@pytest.mark.parametrize("seed", SEEDS)
def test_imitate_promises_only_what_its_support_can_reach(seed: int) -> None:
    """Fails where the discrepancy of a size is lower than any rescaling of its own support gives."""
    s = contributions(seed)
    n = len(s)
    k = s @ s.T
    path = imitate(k)
    losses, history = steps(k, 3 * n)
    for size in range(1, n):
        kept = path.kept(size)
        free = np.linalg.lstsq(s[kept].T, s.sum(axis=0), rcond=None)[0]
        reachable = float(np.sum((free @ s[kept] - s.sum(axis=0)) ** 2))
        assert path.loss[size] >= reachable - RTOL * k.sum()
        visited = [(loss, a) for loss, a in zip(losses, history, strict=True) if np.count_nonzero(a) == size]
        if visited:
            loss, a = min(visited, key=lambda v: v[0])
            assert path.loss[size] <= loss
            b = 1 - n * a
            assert_same(np.float64(b @ k @ b), np.float64(loss), rtol=0.0, atol=RTOL * float(k.sum()))


def test_one_entry_off_by_a_hundredth_is_seen() -> None:
    """The mutation check: a K with one entry 1 % off gives steps that the reference refuses."""
    s = contributions(1, units=6)
    k = s @ s.T
    i = int(np.diag(k).argmax())
    k[i, i] *= 1.01
    losses, _ = steps(k, 12)
    expected, _ = steps(s @ s.T, 12)
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(losses, expected, rtol=RTOL, atol=0.0)
