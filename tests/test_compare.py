"""The comparison that the other tests rest on."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compare import assert_same, relative_error


def test_bound_is_relative_to_the_whole_array():
    """Fails where the bound is looser or tighter than rtol * max |b| + atol."""
    b = np.array([0.0, -2.0])
    assert_same(b + 0.0199, b, rtol=0.01, atol=0.0)
    assert_same(b + 0.0299, b, rtol=0.01, atol=0.01)
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(b + 0.0201, b, rtol=0.01, atol=0.0)


@pytest.mark.parametrize(
    "a", [np.zeros(3), np.zeros((2, 1)), np.zeros(2, np.float32), np.array([0.0, np.nan]), np.array([0.0, np.inf])]
)
def test_differences_that_no_tolerance_excuses(a: np.ndarray):
    """Fails where shapes broadcast, types convert or a NaN passes."""
    with pytest.raises(AssertionError):
        assert_same(a, np.zeros(2), rtol=1e9, atol=1e9)


def test_non_finite_values_must_agree_in_place():
    """Fails where an infinity on both sides makes any other difference invisible."""
    b = np.array([np.inf, 1.0])
    assert_same(b.copy(), b, rtol=0.0, atol=0.0)
    with pytest.raises(AssertionError):
        assert_same(np.array([np.inf, 1.1]), b, rtol=0.01, atol=0.0)


def test_relative_error():
    """Fails where the scale is not that of the second operand."""
    assert relative_error(np.array([1.0, 5.0]), np.array([1.0, 4.0])) == 0.25
    assert relative_error(np.zeros(2), np.zeros(2)) == 0.0
    assert relative_error(np.ones(2), np.zeros(2)) == float("inf")
    assert relative_error(np.ones(2), np.ones(3)) == float("inf")
    assert relative_error(np.array([np.nan]), np.ones(1)) == float("inf")
