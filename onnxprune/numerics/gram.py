"""Streaming second moments, each a small object with update, merge and result.

Gram:           P = E[x xᵀ] of x augmented with a constant 1, so that P also holds the means and the count.
NormalEquations: XᵀX, XᵀY and ΣY² of a regression, with x augmented likewise.
Products run in the data's own precision over a batch; sums are kept in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Array = NDArray[np.float64]


def augmented(x: Floats) -> Floats:
    """x (..., R, D) with a column of ones appended."""
    return np.concatenate([x, np.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


@dataclass
class Gram:
    """Sum of x xᵀ over rows, (g, D, D), and the number of rows."""

    total: Array
    rows: int = 0

    @classmethod
    def zeros(cls, groups: int, columns: int) -> Gram:
        """An empty sum over `columns` columns (the constant counts as one)."""
        return cls(np.zeros((groups, columns, columns)))

    def update(self, x: Floats) -> None:
        """Add rows x (g, R, D)."""
        self.total += x.transpose(0, 2, 1) @ x
        self.rows += x.shape[1]

    def merge(self, other: Gram) -> None:
        """Add the rows that another object has seen."""
        self.total += other.total
        self.rows += other.rows

    def result(self) -> Array:
        """E[x xᵀ], (g, D, D)."""
        return self.total / max(self.rows, 1)


@dataclass
class NormalEquations:
    """XᵀX (g, D, D), XᵀY (g, D, M) and ΣY² (g, M) of a regression."""

    xx: Array
    xy: Array
    yy: Array
    rows: int = 0

    @classmethod
    def zeros(cls, groups: int, columns: int, targets: int) -> NormalEquations:
        """Empty sums."""
        shape = (groups, columns)
        return cls(np.zeros((*shape, columns)), np.zeros((*shape, targets)), np.zeros((groups, targets)))

    def update(self, x: Floats, y: Floats) -> None:
        """Add rows x (g, R, D) with targets y (g, R, M)."""
        xt = x.transpose(0, 2, 1)
        self.xx += xt @ x
        if len(x) == 1:
            self.xy[0] += x[0].T @ y[0]  # one BLAS call; the stacked product is not
        else:
            self.xy += xt @ y
        self.yy += np.einsum("grm,grm->gm", y, y, dtype=np.float64)
        self.rows += x.shape[1]

    def merge(self, other: NormalEquations) -> None:
        """Add the rows that another object has seen."""
        self.xx += other.xx
        self.xy += other.xy
        self.yy += other.yy
        self.rows += other.rows

    def error(self, w: Array) -> Array:
        """Σ ||y - wᵀx||² per group and target, (g, M), of weights w (g, D, M)."""
        quadratic = np.einsum("gdm,gde,gem->gm", w, self.xx, w, optimize=True)
        squared: Array = np.maximum(self.yy - 2 * np.einsum("gdm,gdm->gm", w, self.xy) + quadratic, 0.0)
        return squared
