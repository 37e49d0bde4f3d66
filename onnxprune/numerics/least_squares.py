"""Least squares from sums of products, with the pull Λ of `numerics.ridge`.

solve_spd:  (XᵀX + Λ)⁻¹ B: with B = XᵀY - XᵀX W0 how far argmin ||Y - X W'||² + ||W' - W0||²_Λ is from its prior W0.
restricted: W' = argmin (W' - W)ᵀ P (W' - W) over the kept rows only: with S kept and R removed,
            W'_S = W_S + P_SS⁻¹ P_SR W_R, the exact least-squares refit of a layer whose target is its own output.
Equal to `scipy.linalg.lstsq` on the kept columns, with rows √Λ appended.
"""

from __future__ import annotations

import numpy as np

from onnxprune.numerics import lapack
from onnxprune.numerics.arrays import Doubles, Floats, Ints, Mask
from onnxprune.numerics.columns import by_columns
from onnxprune.numerics.gram import mirror

# Directions of the inputs that carry less than this share of the mean power are noise of float32 accumulation.
JITTER = 1e-5


class SolveFailed(ArithmeticError):
    """A system that should be positive definite is not, even after the jitter."""


_INDEFINITE = "a Gram matrix is not positive semi-definite"
_NOT_FINITE = "a Gram matrix has entries that are not finite"


def _scales(diagonal: Doubles) -> Doubles:
    """1 / √diagonal along the last axis, 0 where a column is always zero. Raises SolveFailed."""
    if not np.isfinite(diagonal).all():
        raise SolveFailed(_NOT_FINITE)
    top = np.maximum(np.abs(diagonal).max(axis=-1, initial=0.0, keepdims=True), 1e-300)
    if (diagonal < -1e-9 * top).any():
        raise SolveFailed(_INDEFINITE)
    dead = diagonal <= 1e-24 * top
    result: Doubles = np.where(dead, 0.0, 1.0 / np.sqrt(np.where(dead, 1.0, diagonal)))
    return result


def _factored(a: Floats, ridge: float, dtype: type[np.floating] = np.float64) -> tuple[Doubles, Doubles]:
    """(L, s): L Lᵀ = diag(s) (a + Λ) diag(s), L lower triangular in Fortran order; what is above it is undefined."""
    s = _scales(np.diag(a).astype(np.float64))
    m = np.multiply(a, s[:, None], dtype=dtype, casting="same_kind", order="C")
    m *= s.astype(dtype)
    m[np.diag_indices_from(m)] = 1.0 + JITTER + ridge
    factor: Doubles = m.T  # symmetric, so the transpose is the same matrix, in the order that LAPACK works on in place
    if not lapack.cholesky(factor):
        raise SolveFailed(_INDEFINITE)
    return factor, s


def solve_spd(a: Doubles, b: Doubles, ridge: float = 0.0) -> Doubles:
    """(a + Λ)⁻¹ b for a symmetric positive semi-definite a (D, D), b (D, M), Λ = (JITTER + ridge) diag(a).

    Raises SolveFailed where the factorisation fails. A column that is always zero gets a zero row.
    """
    factor, s = _factored(a, ridge)

    def solved(sides: Doubles) -> Doubles:
        x: Doubles = np.multiply(sides, s[:, None], order="F")
        lapack.cholesky_solve(factor, x)
        if not np.isfinite(x).all():
            raise SolveFailed(_NOT_FINITE)
        x *= s[:, None]
        return x

    return by_columns(solved, b)


def inverse_spd(a: Floats, ridge: float = 0.0, dtype: type[np.floating] = np.float64) -> Doubles:
    """(a + Λ)⁻¹, regularised as in `solve_spd`, in Fortran order; dtype: in which it is computed."""
    inverse, s = _factored(a, ridge, dtype)
    lapack.cholesky_inverse(inverse)
    if not np.isfinite(np.diag(inverse)).all():
        raise SolveFailed(_NOT_FINITE)
    mirror(inverse)
    inverse *= s[:, None].astype(dtype)
    inverse *= s.astype(dtype)
    return inverse


def restricted(p: Doubles, w: Doubles, keep: Mask, ridge: float = 0.0) -> Doubles:
    """Kept rows of the weights after a least-squares refit: p (D, D), w (D, M), keep (D,) → (kept, M).

    ridge: towards w.
    """
    if keep.all():
        return np.array(w)
    gone = ~keep
    result: Doubles = w[keep] + solve_spd(p[np.ix_(keep, keep)], p[np.ix_(keep, gone)] @ w[gone], ridge)
    return result


def restricted_by_inverse(rows: Doubles, w: Doubles, gone: Ints) -> Doubles:
    """`restricted`, at full size with zeros for what is gone: rows (k, D) `gone` of (P + Λ)⁻¹, w (D, M).

    With Q = (P + Λ)⁻¹, W' = W - Q_:R Q_RR⁻¹ W_R: for few removed columns R of many, and where Q is known.
    """
    block = np.array(rows[:, gone], order="F")
    dead = np.flatnonzero(np.diag(block) <= 0.0)
    block[dead, dead] = 1.0
    solved = np.array(w[gone], order="F")
    if not lapack.cholesky(block):
        raise SolveFailed(_INDEFINITE)
    lapack.cholesky_solve(block, solved)
    result: Doubles = w - rows.T @ solved
    result[gone] = 0.0
    return result


def scale(k: Doubles, free: Mask, gone: Mask) -> Doubles:
    """argmin over a of (1 - a)ᵀ K (1 - a), a = 0 where `gone`, 1 where neither: the scalars of `free`, (free,)."""
    if not gone.any():
        return np.ones(int(free.sum()))
    missing = k[np.ix_(free, gone)].sum(axis=1, keepdims=True)
    return 1.0 + solve_spd(k[np.ix_(free, free)], missing)[:, 0]


def solve_spd_batch(xx: Doubles, b: Doubles, ridge: float = 0.0) -> Doubles:
    """`solve_spd` for many small systems at once: xx (g, D, D), b (g, D, M)."""
    s = _scales(np.einsum("gdd->gd", xx))
    a = xx * s[:, :, None] * s[:, None, :]
    index = np.arange(a.shape[1])
    a[:, index, index] = 1.0 + JITTER + ridge
    try:
        np.linalg.cholesky(a)  # the stacked solve alone would not notice an indefinite matrix
        solved = np.linalg.solve(a, b * s[:, :, None])
    except np.linalg.LinAlgError as e:
        raise SolveFailed(_INDEFINITE) from e
    if not np.isfinite(solved).all():
        raise SolveFailed(_NOT_FINITE)
    result: Doubles = solved * s[:, :, None]
    return result
