"""Comparisons of arrays with an explicit tolerance: there is no default that could be too wide."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def relative_error(a: Array, b: Array) -> float:
    """max |a - b| / max |b|; infinite where shapes or the places of non-finite values differ."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(wide_b)
    if not np.array_equal(wide_a[~finite], wide_b[~finite], equal_nan=True) or not np.isfinite(wide_a[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    difference = float(np.abs(wide_a[finite] - wide_b[finite]).max())
    if difference == 0.0:
        return 0.0
    scale = float(np.abs(wide_b[finite]).max())
    return difference / scale if scale > 0.0 else float("inf")


def assert_same(a: Array, b: Array, *, rtol: float, atol: float) -> None:
    """`a` has the type and shape of `b`, and max |a - b| <= atol + rtol * max |b|.

    The scale is that of the whole array: an entry near zero is a sum of terms of that scale.
    """
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype, f"type {a.dtype} instead of {b.dtype}"
    assert a.shape == b.shape, f"shape {a.shape} instead of {b.shape}"
    if a.size == 0:
        return
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(wide_b)
    assert np.array_equal(wide_a[~finite], wide_b[~finite], equal_nan=True), "non-finite values differ"
    assert np.isfinite(wide_a[finite]).all(), "a value is not finite"
    if not finite.any():
        return
    difference = np.abs(wide_a[finite] - wide_b[finite]).max()
    bound = atol + rtol * np.abs(wide_b[finite]).max()
    assert difference <= bound, f"differs by {difference:.3g}, {difference / bound:.3g} times the bound {bound:.3g}"
