"""Entries that a model masks: infinite ones, and those that stand for it, such as -1e9 or the least number of a type.

Their size is none of the data's: a spread that takes in one of -10000 is a spread of masks, beside which the errors of
all that counts vanish. A mask is one repeated number, with no more than something small added to it: large numbers that
vary are quantities. What two models give where the original masks is compared too, by the size of what may be added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.numerics.arrays import Array, Mask, in_rows

# A mask is at least so large, at least this share of the lowest number, and everything else is this much smaller.
_LEAST, _WITHIN, _APART = 1e3, 0.9, 50.0
# It is one number, to which something of the size of everything else may be added, and rounding in half precision: what
# varies by more is a quantity. Where two models mask, they may differ by twice that.
_SIZES, _ROUNDING = 2.0, 1e-3
# What varies by less than this share of its squares is constant.
_STILL = 1e-12


@dataclass(frozen=True)
class _Masks:
    """Where the numbers are so far below all others, and by how much what is added to a mask may move it."""

    far: Mask
    moves: float


def counting(y: Array) -> Mask:
    """Where the entries of `y`, first axis = samples, are finite and not masked."""
    fine: Mask = np.isfinite(y)
    masks = _masks(y, fine)
    return fine if masks is None else fine & ~masks.far


def near(y: Array) -> Mask:
    """Where the entries of `y` are finite and not far below all others, as masks are, whether these vary or not."""
    fine: Mask = np.isfinite(y)
    candidates = _far(y, fine)
    return fine if candidates is None else fine & ~_but_for_offsets(y, candidates.far)


def masked(y: Array, y0: Array) -> tuple[Mask, Mask]:
    """(where both are masked alike, where `y0` is by a finite number and `y` is not, or by another)."""
    fine: Mask = np.isfinite(y0)
    none = np.zeros_like(fine)
    both = none if fine.all() else (y == y0) & np.isinf(y0)
    masks = _masks(y0, fine)
    if masks is None:
        return both, none
    with np.errstate(invalid="ignore", over="ignore"):
        alike = np.abs(y.astype(np.float64) - np.where(masks.far, y0, 0.0)) <= 2.0 * masks.moves
    alike |= np.isneginf(y)
    return both | (masks.far & alike), masks.far & ~alike


def _masks(y: Array, fine: Mask) -> _Masks | None:
    """What is far below all others and repeats one number, as masks do; None where nothing does."""
    candidates = _far(y, fine)
    if candidates is None:
        return None
    own = y[candidates.far].astype(np.float64)
    if own.size < 2 or float(np.abs(own - np.median(own)).max()) > candidates.moves:
        return None
    return _Masks(_but_for_offsets(y, candidates.far), candidates.moves)


def _far(y: Array, fine: Mask) -> _Masks | None:
    """What is far below all others; None where nothing is."""
    if not y.size or not fine.any():
        return None
    low = float((y if fine.all() else y[fine]).min())
    if not low <= -_LEAST:
        return None
    limit = _WITHIN * low
    rest = y[fine & (y > limit)]
    if not rest.size:
        return None
    largest = max(abs(float(rest.min())), abs(float(rest.max())))
    if largest * _APART > -low:
        return None
    return _Masks(fine & (y <= limit), _SIZES * largest + _ROUNDING * -low)


def _but_for_offsets(y: Array, far: Mask) -> Mask:
    """`far` without the entries that always lie there and vary, which are quantities with an offset."""
    if not (y.ndim and len(y) > 1):
        return far
    rows = in_rows(far)
    always = np.flatnonzero(rows.all(axis=0))
    own = in_rows(y)[:, always].astype(np.float64)
    rows[:, always[own.var(axis=0) > _STILL * np.square(own).mean(axis=0)]] = False
    return rows.reshape(y.shape)
