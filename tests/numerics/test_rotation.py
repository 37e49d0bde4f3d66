"""The directions that tell readers most, against least squares and singular values."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.numerics.rotation import pooled, telling
from tests.compare import assert_same


def test_what_k_directions_leave_is_the_least():
    """Against numpy: Wᵀ x fitted to the first k entries misses what the best matrix of rank k misses, for every k."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 7)) @ rng.standard_normal((7, 7)) + 1.0
    w = rng.standard_normal((7, 9)) * np.array([3.0, 1, 5, 2, 0.1, 4, 1])[:, None]
    rows = telling(x.T @ x / 200, w @ w.T)
    assert_same(rows @ rows.T, np.eye(7), rtol=1e-12, atol=0.0)
    assert (np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1) > 0).all()
    y = x @ w
    left = np.linalg.svd(y, compute_uv=False)[:7] ** 2
    for k in range(1, 7):
        told = x @ rows[:k].T
        missed = y - told @ np.linalg.lstsq(told, y, rcond=None)[0]
        assert np.sum(missed**2) == pytest.approx(left[k:].sum(), rel=1e-9)


def test_empty_directions_come_last():
    """Fails where a direction without power, or that nobody reads, makes numbers of no size."""
    moments, weights = np.diag([1.0, 0, 2, 3]), np.diag([1.0, 5, 0, 1])
    rows = telling(moments, weights)
    assert_same(np.abs(rows[:2]), np.eye(4)[[3, 0]], rtol=1e-6, atol=0.0)
    assert_same(rows @ rows.T, np.eye(4), rtol=1e-12, atol=0.0)
    assert np.isfinite(telling(np.zeros((3, 3)), np.zeros((3, 3)))).all()


def test_each_reader_counts_by_its_relative_error():
    """Fails where a reader with large weights drowns the others."""
    m, h = np.diag([1.0, 2]), np.diag([3.0, 1])
    moments, weights = pooled([(m, h), (m, 100 * h)])
    assert_same(moments, 2 * m, rtol=1e-15, atol=0.0)
    assert_same(weights, 2 * h / 5, rtol=1e-12, atol=0.0)
