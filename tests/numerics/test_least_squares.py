"""Least squares, against `scipy.linalg.lstsq` on explicit rows.

The solver adds JITTER · diag to every system. The references do too: a ridge is a row √Λ per column, so nothing is left
to a wide tolerance.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg

from onnxprune.numerics.least_squares import (
    JITTER,
    SolveFailed,
    inverse_spd,
    restricted,
    restricted_by_inverse,
    scale,
    solve_spd,
    solve_spd_batch,
)
from onnxprune.numerics.ridge import random_sums
from tests.compare import assert_same

Array = NDArray[np.float64]
STRENGTHS = (0.0, 1e-3, 1.0)
# float64 through normal equations: the condition number of these random systems is below 1e3.
RTOL = 1e-9


def problem(seed: int, columns: int = 6, outputs: int = 3, count: int = 40) -> tuple[Array, Array, Array]:
    """X with columns of very different scales, Y, and a prior."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, columns)) @ rng.standard_normal((columns, columns))
    x *= 10.0 ** rng.integers(-2, 3, columns)
    return x, rng.standard_normal((count, outputs)), rng.standard_normal((columns, outputs))


def ridge(xx: Array, xy: Array, prior: Array, strength: float) -> Array:
    """argmin ||Y - XW||² + ||W - prior||²_Λ, as the refit asks for it."""
    return prior + solve_spd(xx, xy - xx @ prior, strength)


def ridge_batch(xx: Array, xy: Array, prior: Array, strength: float) -> Array:
    """Many small ones at once: xx (g, D, D), xy and prior (g, D, M)."""
    return prior + solve_spd_batch(xx, xy - xx @ prior, strength)


def reference(x: Array, y: Array, prior: Array, strength: float) -> Array:
    """argmin ||Y - XW||² + ||W - prior||²_Λ by QR-based least squares on appended rows."""
    root = np.sqrt((JITTER + strength) * (x**2).sum(axis=0))
    stacked = np.vstack([x, np.diag(root)])
    found: Array = linalg.lstsq(stacked, np.vstack([y, root[:, None] * prior]))[0]
    return found


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("seed", range(4))
def test_ridge_equals_lstsq_on_appended_rows(seed: int, strength: float) -> None:
    """Fails where the penalty pulls towards zero instead of the prior, or is not scaled per column."""
    x, y, prior = problem(seed)
    found = ridge(x.T @ x, x.T @ y, prior, strength)
    expected = reference(x, y, prior, strength)
    assert_same(x @ found, x @ expected, rtol=RTOL, atol=0.0)
    norms = np.linalg.norm(x, axis=0)[:, None]
    assert_same(found * norms, expected * norms, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("seed", range(3))
def test_jitter_alone_moves_a_fit_no_further_than_it_may(seed: int) -> None:
    """Fails where the jitter grows into a ridge: ||X (W - W_ls)|| is at most ||W_ls - prior|| in the metric Λ."""
    x, y, prior = problem(seed)
    free = linalg.lstsq(x, y)[0]
    found = ridge(x.T @ x, x.T @ y, prior, 0.0)
    distance = (free - prior) * np.linalg.norm(x, axis=0)[:, None]
    assert np.linalg.norm(x @ (found - free)) <= np.sqrt(JITTER) * np.linalg.norm(distance)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_ridge_batch_equals_ridge_of_each(strength: float) -> None:
    """Fails where the regressions of a stack leak into each other."""
    parts = [problem(seed) for seed in range(5)]
    xx = np.stack([x.T @ x for x, _, _ in parts])
    xy = np.stack([x.T @ y for x, y, _ in parts])
    found = ridge_batch(xx, xy, np.stack([p for _, _, p in parts]), strength)
    for g, (x, y, prior) in enumerate(parts):
        assert_same(x @ found[g], x @ reference(x, y, prior, strength), rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("seed", range(4))
def test_restricted_equals_lstsq_on_the_kept_columns(seed: int, strength: float) -> None:
    """Fails where the kept rows do not take over what the removed columns contributed."""
    x, _, w = problem(seed)
    keep = np.array([True, False, True, True, False, True])
    found = restricted(x.T @ x / len(x), w, keep, strength)
    expected = reference(x[:, keep], x @ w, w[keep], strength)
    assert_same(x[:, keep] @ found, x[:, keep] @ expected, rtol=RTOL, atol=0.0)


def test_restricted_to_everything_or_nothing() -> None:
    """Fails where a trivial removal disturbs the weights, or an empty system is not solved."""
    x, _, w = problem(0)
    p = x.T @ x
    assert_same(restricted(p, w, np.ones(6, bool), 1.0), w, rtol=0.0, atol=0.0)
    assert restricted(p, w, np.zeros(6, bool)).shape == (0, 3)


@pytest.mark.parametrize("seed", range(4))
def test_scale_equals_lstsq_on_the_contributions(seed: int) -> None:
    """Fails where fixed units are rescaled, or the scalars do not minimise (1 - a)ᵀ K (1 - a)."""
    rng = np.random.default_rng(seed)
    s = rng.standard_normal((50, 7)) @ rng.standard_normal((7, 7))
    gone = np.array([0, 1, 0, 0, 1, 0, 0], bool)
    fixed = np.array([0, 0, 0, 0, 0, 0, 1], bool)
    free = ~gone & ~fixed
    target = s.sum(axis=1) - s[:, fixed].sum(axis=1)
    expected = reference(s[:, free], target[:, None], np.ones((4, 1)), 0.0)[:, 0]
    assert_same(scale(s.T @ s, free, gone), expected, rtol=1e-8, atol=0.0)


def test_scale_of_a_whole_layer_is_one() -> None:
    """Fails where rounding rescales a layer that loses nothing."""
    assert_same(scale(np.eye(3), np.array([1, 1, 0], bool), np.zeros(3, bool)), np.ones(2), rtol=0.0, atol=0.0)


def test_always_zero_columns_keep_the_prior() -> None:
    """Fails where a dead column divides by zero or takes an arbitrary weight."""
    x, y, prior = problem(1)
    x[:, 2] = 0.0
    others = np.arange(6) != 2
    expected = prior.copy()
    expected[others] = reference(x[:, others], y, prior[others], 1e-3)
    norms = np.maximum(np.linalg.norm(x, axis=0), 1e-3)[:, None]
    for found in (
        ridge(x.T @ x, x.T @ y, prior, 1e-3),
        ridge_batch((x.T @ x)[None], (x.T @ y)[None], prior[None], 1e-3)[0],
    ):
        assert_same(found * norms, expected * norms, rtol=1e-8, atol=0.0)
        assert_same(found[2], prior[2], rtol=0.0, atol=0.0)


def test_all_columns_zero() -> None:
    """Fails where a layer whose whole input is zero raises or produces NaN."""
    assert_same(solve_spd(np.zeros((2, 2)), np.ones((2, 1))), np.zeros((2, 1)), rtol=0.0, atol=0.0)


def test_singular_systems_are_solved_by_the_jitter() -> None:
    """Fails where two equal columns make the factorisation fail: they share the weight."""
    x, y, _ = problem(2)
    x[:, 1] = x[:, 0]
    prior = np.zeros((6, 3))
    found = ridge(x.T @ x, x.T @ y, prior, 0.0)
    assert_same(found[1], found[0], rtol=1e-4, atol=1e-6)
    # Conditioned like 1 / JITTER now, so the normal equations lose digits that the reference has.
    assert_same(x @ found, x @ reference(x, y, prior, 0.0), rtol=1e-7, atol=0.0)


def test_inverse_is_that_of_the_regularised_matrix() -> None:
    """Fails where the inverse that elimination down-dates belongs to another matrix."""
    x, _, _ = problem(3)
    p = x.T @ x
    d = np.sqrt(np.diag(p))
    scaled = inverse_spd(p, 0.1) * np.outer(d, d)
    expected = linalg.inv(p / np.outer(d, d) + (JITTER + 0.1) * np.eye(6))
    assert_same(scaled, expected, rtol=RTOL, atol=0.0)


BROKEN = {
    "nan": lambda p: _with(p, 0, 1, np.nan),
    "nan on the diagonal": lambda p: _with(p, 1, 1, np.nan),
    "infinite": lambda p: _with(p, 2, 2, np.inf),
    "indefinite": lambda p: _with(p, 0, 1, 3 * np.sqrt(p[0, 0] * p[1, 1])),
    "negative diagonal": lambda p: _with(p, 1, 1, -p[1, 1]),
}


def _with(p: Array, i: int, j: int, value: float) -> Array:
    p = p.copy()
    p[i, j] = p[j, i] = value
    return p


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_systems_raise(kind: str) -> None:
    """Fails where a matrix that is no Gram matrix is silently solved."""
    x, y, _ = problem(4)
    x /= np.linalg.norm(x, axis=0)
    p, xy = x.T @ x, x.T @ y
    broken = BROKEN[kind](p)
    with pytest.raises(SolveFailed):
        solve_spd(broken, xy)
    with pytest.raises(SolveFailed):
        solve_spd_batch(np.stack([p, broken]), np.stack([xy, xy]), 1e-3)


def test_targets_that_are_not_finite_raise() -> None:
    """Fails where NaN in the targets reaches the weights."""
    x, y, prior = problem(5)
    xy = x.T @ y
    xy[0, 0] = np.nan
    with pytest.raises(SolveFailed):
        ridge(x.T @ x, xy, prior, 1e-3)
    with pytest.raises(SolveFailed):
        ridge_batch((x.T @ x)[None], xy[None], prior[None], 1e-3)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_one_gram_entry_off_by_a_hundredth_is_seen(strength: float) -> None:
    """The mutation check: a diagonal entry that is 1 % off fails the comparison with lstsq."""
    x, y, prior = problem(6)
    xx = x.T @ x
    i = int(np.diag(xx).argmax())
    xx[i, i] *= 1.01
    found = ridge(xx, x.T @ y, prior, strength)
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(x @ found, x @ reference(x, y, prior, strength), rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_refit_by_the_inverse_is_the_restricted_one(count: int, strength: float) -> None:
    """Fails where the rows of the inverse are taken for its columns' complement, or the ridge is another."""
    x, _, _ = problem(31, columns=9)
    x[:, 4] = 0.0
    p = x.T @ x / len(x)
    w = np.random.default_rng(32).standard_normal((9, 3))
    gone = np.random.default_rng(33).permutation(9)[:count]
    keep = np.ones(9, bool)
    keep[gone] = False
    rows = np.ascontiguousarray(inverse_spd(p, strength)[gone])
    found = restricted_by_inverse(rows, w, gone)
    expected = np.zeros_like(w)
    expected[keep] = restricted(p, w, keep, strength)
    norms = np.linalg.norm(x, axis=0)[:, None]
    assert_same(found * norms, expected * norms, rtol=1e-8, atol=0.0)
    assert not found[gone].any()


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_an_inverse_in_single_precision_is_close(strength: float) -> None:
    """Fails where columns of very different scales are inverted before they are scaled: the condition would be 1e8."""
    x, _, _ = problem(34, columns=40, count=100)
    p = x.T @ x
    expected, found = inverse_spd(p, strength), inverse_spd(p, strength, np.float32)
    assert found.dtype == np.float32
    norms = np.linalg.norm(x, axis=0)
    scale = norms[:, None] * norms
    assert_same(found.astype(np.float64) * scale, expected * scale, rtol=1e-4, atol=0.0)


def test_random_sums_keep_squared_errors_in_the_mean() -> None:
    """Fails where the sums are not scaled. 4,000 independent outputs on 64 sums: a standard error of a hundredth."""
    errors = np.random.default_rng(35).standard_normal((50, 4000))
    sums = random_sums(4000, 64)
    assert sums is not None and sums.shape == (4000, 64)
    assert ((errors @ sums) ** 2).sum() == pytest.approx((errors**2).sum(), rel=0.1)
    assert random_sums(64, 64) is None


def test_random_sums_are_unbiased_for_every_pair_of_outputs() -> None:
    """Fails where some outputs count more than others, or where errors of different outputs add up.

    The squared error of the sums is eᵀ S Sᵀ e: its diagonal is 1, and what is beside it is the mean of 4,096 signs,
    whose standard error is 1/64.
    """
    sums = random_sums(4097, 4096)
    assert sums is not None
    some = sums[:60] @ sums[:60].T
    assert_same(np.diag(some), np.ones(60), rtol=1e-12, atol=0.0)
    beside = some[np.triu_indices(60, 1)]
    assert np.abs(beside).max() < 5 / 64
    assert abs(beside.mean()) < 5 / 64 / np.sqrt(beside.size)


def test_random_sums_are_the_same_for_the_same_outputs() -> None:
    """Fails where two runs, or two machines, judge a ridge by other sums."""
    first, again, other = random_sums(100, 8), random_sums(100, 8), random_sums(101, 8)
    assert first is not None and again is not None and other is not None
    assert_same(first, again, rtol=0.0, atol=0.0)
    assert not np.array_equal(first, other[:100])


def test_a_refit_by_what_is_no_inverse_of_a_gram_raises() -> None:
    """Fails where an indefinite block ends in an error of scipy's own, or in weights."""
    rows = np.array([[1.0, 3.0, 0.0], [3.0, 1.0, 0.0]])
    with pytest.raises(SolveFailed, match="not positive semi-definite"):
        restricted_by_inverse(rows, np.ones((3, 2)), np.array([0, 1]))
