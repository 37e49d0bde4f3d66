"""Streaming second moments, each a small object with update, merge and result.

Gram:           P = E[x xᵀ] of x augmented with a constant 1, so that P also holds the means and the count.
NormalEquations: XᵀX, XᵀY and ΣY² of a regression, with x augmented likewise.
Products run in the data's own precision over a batch; sums are kept in float64. A wide Gram is kept packed, the lower
triangle alone in the data's precision: the Grams of all layers are held at once, and would take ten times the model.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from math import isqrt

import numpy as np
from scipy.linalg import lapack as scipy_lapack

from onnxprune.numerics import lapack
from onnxprune.numerics.arrays import Doubles, Floats
from onnxprune.numerics.columns import by_columns
from onnxprune.threads import mapped

# Columns from which on a Gram is packed. Rounding errors of float32 sums over n batches grow with √n: after a thousand
# they are 1.4e-6 of the mean power in any entry and 8e-6 in norm, a hundredth of the least ridge of any refit.
PACKED = 512
# Below, one stacked product of full matrices is faster than a triangle per group.
_TRIANGULAR = 64
_TILE = 256


def augmented(x: Floats) -> Floats:
    """x (..., R, D) with a column of ones appended."""
    return np.concatenate([x, np.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


def mirror(a: Floats) -> None:
    """Copy the lower triangle of a (..., D, D) to the upper one, tile by tile."""
    n = a.shape[-1]
    for i in range(0, n, _TILE):
        j = min(i + _TILE, n)
        corner = a[..., i:j, i:j]
        corner[:] = np.tril(corner) + np.tril(corner, -1).swapaxes(-1, -2)
        a[..., i:j, j:] = a[..., j:, i:j].swapaxes(-1, -2)


def product(x: Floats) -> Floats:
    """XᵀX (g, D, D) of rows x (g, R, D); of many columns the lower triangles alone, by BLAS's symmetric product."""
    if x.shape[2] < _TRIANGULAR:
        small: Floats = x.transpose(0, 2, 1) @ x
        return small
    triangles: Floats = np.zeros((len(x), x.shape[2], x.shape[2]), x.dtype)
    for rows, out in zip(x, triangles, strict=True):
        lapack.add_products(np.ascontiguousarray(rows), out, beta=0.0)
    return triangles


@dataclass
class Gram:
    """Sum of x xᵀ over rows, and the number of rows.

    total: (g, D, D) in float64, of which the lower triangles count; from PACKED columns on these alone, (g, D (D + 1) /
    2), in LAPACK's rectangular full packed format, in float32 as long as the rows are.
    """

    total: Floats
    rows: int = 0

    @classmethod
    def zeros(cls, groups: int, columns: int) -> Gram:
        """An empty sum over `columns` columns (the constant counts as one)."""
        if columns < PACKED:
            return cls(np.zeros((groups, columns, columns)))
        return cls(np.zeros((groups, columns * (columns + 1) // 2), np.float32))

    @property
    def packed(self) -> bool:
        """Whether the total is stored as triangles."""
        return self.total.ndim == 2

    @property
    def columns(self) -> int:
        """How many columns, D."""
        entries = self.total.shape[1]
        return (isqrt(8 * entries + 1) - 1) // 2 if self.packed else entries

    def update(self, x: Floats) -> None:
        """Add rows x (g, R, D)."""
        self.rows += x.shape[1]
        if not self.packed:
            self.total += product(x)
            return
        self._widen(x.dtype)
        for rows, total in zip(x, self.total, strict=True):
            lapack.add_packed_products(np.ascontiguousarray(rows, total.dtype), total)

    def merge(self, other: Gram) -> None:
        """Add the rows that another object has seen."""
        total = other.total
        if self.packed and not other.packed:
            # One batch, summed elsewhere: as precise as the sums that it joins. Both of its triangles are the same, and
            # the upper one in Fortran's order is the lower one in C's.
            pack = scipy_lapack.dtrttf if self.total.dtype == np.float64 else scipy_lapack.strttf
            total = np.stack([pack(full.T.astype(self.total.dtype), uplo="L")[0] for full in total])
        self._widen(total.dtype)
        self.total += total
        self.rows += other.rows

    def _widen(self, dtype: np.dtype[np.floating]) -> None:
        """Sum in float64 from now on, where that is asked for."""
        if dtype == np.float64 and self.total.dtype != dtype:
            self.total = self.total.astype(np.float64)

    def sums(self) -> Floats:
        """Σ x xᵀ, (g, D, D), in the precision of the total."""
        if not self.packed:
            copy: Floats = self.total.copy()
            mirror(copy)
            return copy
        whole: list[Floats] = []
        for packed in self.total:
            full = lapack.unpacked(packed, self.columns)
            mirror(full)
            whole.append(full.T)  # the same matrix, in C's order
        return whole[0][None] if len(whole) == 1 else np.stack(whole)

    def means(self) -> Floats:
        """E[x xᵀ], (g, D, D), in the precision of the total."""
        sums = self.sums()
        means: Floats = np.divide(sums, sums.dtype.type(max(self.rows, 1)), out=sums)
        return means

    def result(self) -> Doubles:
        """E[x xᵀ], (g, D, D), in float64."""
        means: Doubles = np.asarray(self.sums(), np.float64) / max(self.rows, 1)
        return means

    def first(self) -> Floats:
        """E[x xᵀ] of the first group alone, (D, D), in the precision of the total."""
        mean: Floats = Gram(self.total[:1], self.rows).means()[0]
        return mean


class NormalEquations:
    """XᵀX (g, D, D), XᵀY (g, D, M) and ΣY² (g, M) of a regression.

    finite: whether all rows were; those of a batch in which one is not are left out.
    """

    def __init__(self, xx: Gram, xy: Doubles, yy: Doubles) -> None:
        self._sum = xx
        self.xy: Doubles = xy
        self.yy: Doubles = yy
        self._xx: Doubles | None = None
        self.finite: bool = True

    @classmethod
    def zeros(cls, groups: int, columns: int, targets: int) -> NormalEquations:
        """Sums over no row yet."""
        return cls(Gram.zeros(groups, columns), np.zeros((groups, columns, targets)), np.zeros((groups, targets)))

    @property
    def rows(self) -> int:
        """How many rows were summed."""
        return self._sum.rows

    @property
    def xx(self) -> Doubles:
        """The sums XᵀX, (g, D, D)."""
        if self._xx is None:
            self._xx = np.asarray(self._sum.sums(), np.float64)
        return self._xx

    def update(self, x: Floats, y: Floats) -> None:
        """Add rows x (g, R, D) with targets y (g, R, M); both sums at the same time where they are large."""
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            self.finite = False
            return
        self._xx = None
        if x.shape[2] < PACKED:
            self._sum.update(x)
            self._update_targets(x, y)
        else:
            deque(mapped(lambda add: add(), (partial(self._sum.update, x), partial(self._update_targets, x, y))), 0)

    def _update_targets(self, x: Floats, y: Floats) -> None:
        if len(x) == 1:
            self.xy[0] += x[0].T @ y[0]  # one BLAS call; the stacked product is not
        else:
            self.xy += x.transpose(0, 2, 1) @ y
        self.yy += np.einsum("grm,grm->gm", y, y, dtype=np.float64)

    def merge(self, other: NormalEquations) -> None:
        """Add the rows that another object has seen."""
        self._xx = None
        self.finite = self.finite and other.finite
        self._sum.merge(other._sum)
        self.xy += other.xy
        self.yy += other.yy

    def gaps(self, w: Doubles) -> Doubles:
        """Xᵀ(Y - XW) of weights w (g, D, M), of the same shape."""
        if len(w) > 1:
            return self.xy - self.xx @ w
        gaps: Doubles = self.xy - by_columns(partial(np.matmul, self.xx[0]), w[0])
        return gaps

    def error(self, w: Doubles, gaps: Doubles | None = None) -> Doubles:
        """Σ ||y - wᵀx||² per group and target, (g, M), of weights w (g, D, M); gaps: those of `gaps`, if known."""
        explained = np.einsum("gdm,gdm->gm", w, self.xy + (self.gaps(w) if gaps is None else gaps))
        squared: Doubles = np.maximum(self.yy - explained, 0.0)
        return squared
