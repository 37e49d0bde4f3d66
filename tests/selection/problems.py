"""Random regressions with explicit rows, so that references can work on the data instead of its moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Problem:
    """x (rows, D) with a constant last column, w (D, M), unit (D,) with -1 for columns of no unit."""

    x: Array
    w: Array
    unit: NDArray[np.int64]
    units: int

    def moments(self) -> Array:
        """E[x xᵀ], (D, D)."""
        found: Array = self.x.T @ self.x / len(self.x)
        return found


def problem(
    seed: int, sizes: Sequence[int], *, free: int = 0, outputs: int = 3, shuffle: bool = True, zero: Sequence[int] = ()
) -> Problem:
    """Correlated columns: `sizes` of them per unit in any order, `free` of no unit, and the constant.

    zero: units whose columns are always zero.
    """
    rng = np.random.default_rng(seed)
    unit = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), np.full(free, -1)]).astype(np.int64)
    if shuffle:
        unit = rng.permutation(unit)
    count = unit.size
    x = rng.standard_normal((8 * count, count)) @ rng.standard_normal((count, count)) + rng.standard_normal(count)
    x[:, np.isin(unit, zero)] = 0.0
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return Problem(x, rng.standard_normal((count + 1, outputs)), np.append(unit, -1), len(sizes))
