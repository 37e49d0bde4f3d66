"""Paths and regressions, against the data that their moments come from."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.selection import Path, Regression
from tests.compare import assert_same
from tests.selection.problems import Problem, problem

# float64 throughout; only the order of summation differs.
RTOL = 1e-10


def contributions(p: Problem) -> np.ndarray:
    """s_j (units, rows, M) from the rows themselves."""
    return np.stack([p.x[:, p.unit == u] @ p.w[p.unit == u] for u in range(p.units)])


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 3, 3), (1, 4, 2), (2, 0, 3)])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_contributions_equal_those_of_the_data(sizes: tuple[int, ...], weight: float) -> None:
    """Fails where columns are assigned to the wrong unit, or free columns are counted."""
    p = problem(0, sizes, free=2)
    r = Regression(p.moments(), p.w, p.unit, weight)
    s = contributions(p)
    expected = np.einsum("jrm,lrm->jl", s, s) / len(p.x) * weight
    assert_same(r.contributions(p.units), expected, rtol=RTOL, atol=0.0)


def test_power_is_the_variance_of_the_outputs() -> None:
    """Fails where the mean is not taken out, or taken from another column than the constant."""
    p = problem(1, (2, 3), free=1)
    y = p.x @ p.w
    r = Regression(p.moments(), p.w, p.unit)
    assert_same(np.array(r.power()), np.array(y.var(axis=0).sum()), rtol=RTOL, atol=0.0)
    plain = Regression(p.moments(), p.w, p.unit, centred=False)
    assert_same(np.array(plain.power()), np.array((y**2).mean(axis=0).sum()), rtol=RTOL, atol=0.0)


def test_power_of_a_constant_output_is_not_negative() -> None:
    """Fails where rounding makes a variance negative."""
    p = problem(2, (2, 3), free=1)
    w = np.zeros_like(p.w)
    w[-1] = 1e6
    assert 0.0 <= Regression(p.moments(), w, p.unit).power() < 1e-3


def test_kept_takes_the_last_units_of_the_order() -> None:
    """Fails where the first removed are kept, or `supports` is not preferred."""
    path = Path(np.array([2, 0, 3, 1]), np.zeros(5), {2: np.array([0, 2])})
    assert [np.flatnonzero(path.kept(n)).tolist() for n in range(5)] == [[], [1], [0, 2], [0, 1, 3], [0, 1, 2, 3]]


def test_one_moment_off_by_a_hundredth_is_seen() -> None:
    """The mutation check: one entry of P that is 1 % off fails the comparison above."""
    p = problem(3, (1, 4, 2), free=1)
    moments = p.moments()
    moments[2, 2] *= 1.01
    s = contributions(p)
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(
            Regression(moments, p.w, p.unit).contributions(p.units),
            np.einsum("jrm,lrm->jl", s, s) / len(p.x),
            rtol=RTOL,
            atol=0.0,
        )
