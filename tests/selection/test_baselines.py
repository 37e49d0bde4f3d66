"""Baselines: the order is the score's, the discrepancy that of removing without a refit."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.selection import Regression, baselines
from tests.compare import assert_same
from tests.selection.exhaustive import family
from tests.selection.problems import problem

# float64; only the order of summation differs.
RTOL = 1e-10


@pytest.mark.parametrize("sizes", [(1,) * 7, (2, 1, 3, 2)])
def test_loss_is_the_error_of_removing_alone(sizes: tuple[int, ...]) -> None:
    """Fails where the order and the discrepancy belong to different sets, or a consumer is left out."""
    score = np.random.default_rng(0).standard_normal(len(sizes))
    data = [(problem(1, sizes, free=2), 1.0), (problem(2, sizes, free=0), 0.25)]
    path = baselines.by_score(score, [Regression(p.moments(), p.w, p.unit, weight) for p, weight in data])
    assert path.order.tolist() == np.argsort(score).tolist()
    expected = np.zeros(len(sizes) + 1)
    for n in range(len(sizes) + 1):
        gone = ~path.kept(n)
        for p, weight in data:
            columns = (p.unit >= 0) & gone[p.unit]
            expected[n] += weight * float(((p.x[:, columns] @ p.w[columns]) ** 2).sum()) / len(p.x)
    assert_same(path.loss, expected, rtol=RTOL, atol=0.0)


def test_ties_keep_their_order() -> None:
    """Fails where equal scores make the plan depend on the sorting algorithm."""
    assert baselines.by_score(np.zeros(40), []).order.tolist() == list(range(40))


def test_without_regressions_only_the_order_is_known():
    """Fails where a group that nothing is known of gets another order, or a discrepancy."""
    path = baselines.by_score(np.array([2.0, 0.5, 1.0]), [])
    assert path.order.tolist() == [1, 2, 0]
    assert path.loss.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_random_is_a_permutation_by_the_generator() -> None:
    """Fails where the same seed gives another order, or a unit is missing."""
    first = baselines.random(20, [], np.random.default_rng(3))
    again = baselines.random(20, [], np.random.default_rng(3))
    other = baselines.random(20, [], np.random.default_rng(4))
    assert sorted(first.order.tolist()) == list(range(20))
    assert first.order.tolist() == again.order.tolist() != other.order.tolist()


@pytest.mark.parametrize("name", ["plain", "pruned inputs", "linear"])
def test_loss_of_a_quadratic_is_that_of_the_masks(name: str) -> None:
    """Fails where a path by score promises another discrepancy than removal has, or one that grows with units kept."""
    p = family(name, 3)
    n = p.units
    path = baselines.by_score(np.random.default_rng(0).standard_normal(n), p.quadratic())
    masks = [p.at(path.kept(m) / n) for m in range(n + 1)]
    expected = np.minimum.accumulate(masks)
    assert_same(path.floor + path.loss, expected, rtol=1e-9, atol=1e-9 * p.scale)
    assert path.loss[n] == 0.0
    assert path.coefficients_of(1) is None


def test_one_moment_off_by_a_hundredth_is_seen() -> None:
    """The mutation check: an entry of P that is 1 % off changes the discrepancy by more than the tolerance."""
    p = problem(5, (1,) * 5)
    moments = p.moments()
    right = baselines.by_score(np.arange(5.0), [Regression(moments.copy(), p.w, p.unit)])
    moments[0, 0] *= 1.01
    wrong = baselines.by_score(np.arange(5.0), [Regression(moments, p.w, p.unit)])
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(wrong.loss, right.loss, rtol=RTOL, atol=0.0)
