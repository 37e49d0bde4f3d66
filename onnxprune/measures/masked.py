"""Entries that a model masks: infinite ones, and those that stand for it, such as -1e9 or the least number of a type.

Their size is none of the data's: a spread that takes in one of -10000 is a spread of masks, beside which the errors of
all that counts vanish.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import Array

# A mask is at least so large, at least this share of the lowest number, and everything else is this much smaller.
_LEAST, _WITHIN, _APART = 1e3, 0.9, 50.0
# What varies by less than this share of its squares is constant.
_STILL = 1e-12


def counting(y: Array) -> NDArray[np.bool_]:
    """Where the entries of `y`, first axis = samples, are finite and not masked."""
    fine: NDArray[np.bool_] = np.isfinite(y)
    limit = _limit(y, fine)
    if limit is None:
        return fine
    far = fine & (y <= limit)
    if y.ndim and len(y) > 1:  # an entry that always lies there and varies is a quantity with an offset
        rows = far.reshape(len(y), -1)
        always = np.flatnonzero(rows.all(axis=0))
        own = y.reshape(len(y), -1)[:, always].astype(np.float64)
        rows[:, always[own.var(axis=0) > _STILL * np.square(own).mean(axis=0)]] = False
        far = rows.reshape(y.shape)
    return fine & ~far


def masked(y: Array, y0: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(where both are masked, where `y0` alone is by a finite number): masks by the standard of `y0`."""
    fine: NDArray[np.bool_] = np.isfinite(y0)
    none = np.zeros_like(fine)
    both = none if fine.all() else (y == y0) & np.isinf(y0)
    limit = _limit(y0, fine)
    if limit is None:
        return both, none
    hidden = fine & ~counting(y0)
    return both | (hidden & (y <= limit)), hidden & ~(y <= limit)


def _limit(y: Array, fine: NDArray[np.bool_]) -> float | None:
    """What is not above this is a mask; None where there are none."""
    if not y.size or not fine.any():
        return None
    low = float((y if fine.all() else y[fine]).min())
    if not low <= -_LEAST:
        return None
    limit = _WITHIN * low
    rest = y[fine & (y > limit)]
    known = rest.size > 0 and max(abs(float(rest.min())), abs(float(rest.max()))) * _APART <= -low
    return limit if known else None
