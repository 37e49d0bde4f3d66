"""Discrepancies as functions of the units' coefficients.

A pruned, rescaled layer is Σ_i a_i s_i with s_i the contribution of unit i, and a = 1 in the full layer. Against a
target f its squared error is
    D(a) = ||f - Σ a_i s_i||² = c - 2 tᵀa + aᵀKa,   K_ij = <s_i, s_j>, t_i = <f, s_i>, c = ||f||².
Where the contributions come from the layer's own unpruned inputs f = Σ s_i, so t = K1 and c = 1ᵀK1. Where they come
from inputs that are pruned already f is still the original output, and D(1) is what the inputs cost. A linear term of a
task loss adds to t alone: D may then be negative, and no reader may count on its sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.sparse import csr_array

from onnxprune.numerics.arrays import Doubles, Ints


class Discrepancy(Protocol):
    """What a pruned, rescaled layer costs, by the coefficients of its units."""

    def at(self, a: Doubles) -> float:
        """D(a), a (N,)."""

    def gradient(self, a: Doubles) -> Doubles:
        """∂D/∂a, (N,)."""


@dataclass(frozen=True, eq=False)
class Quadratic:
    """D(a) = c - 2 tᵀa + aᵀKa: k (N, N) symmetric and, up to rounding, positive semi-definite; t (N,)."""

    k: Doubles
    t: Doubles
    c: float

    @classmethod
    def of_gram(cls, k: Doubles) -> Quadratic:
        """(1 - a)ᵀ K (1 - a): the inputs are not pruned, so the full layer costs nothing."""
        t: Doubles = k.sum(axis=1)
        return cls(k, t, float(t.sum()))

    @classmethod
    def around(cls, k: Doubles, slope: Doubles, value: float) -> Quadratic:
        """value + slopeᵀ(a - 1) + (a - 1)ᵀ K (a - 1): one that is known around the full layer, to second order."""
        t: Doubles = k.sum(axis=1) - 0.5 * slope
        return cls(k, t, value - float(slope.sum()) + float(k.sum()))

    @classmethod
    def of_equations(
        cls, xx: Doubles, xy: Doubles, yy: Doubles, w: Doubles, unit: Ints, units: int, metric: Doubles
    ) -> Quadratic:
        """Of a layer's outputs Σ_c w_cᵀ x_c against a target y: E||y - Σ_j a_j s_j - rest||² in a metric.

        xx (D, D), xy (D, M), yy (M, M): second moments of columns and target; yy (M,) is their diagonal alone, with
        which D is right for a diagonal metric, and up to a constant for any other. w (D, M).
        unit (D,): the unit of each column, -1 for those of the rest, which stay. metric (M, M).
        """
        inside, rest = np.flatnonzero(unit >= 0), np.flatnonzero(unit < 0)
        wm = w @ metric
        left = xy - xx[:, rest] @ w[rest]  # E[x (y - rest)ᵀ]
        owner = csr_array((np.ones(inside.size), (unit[inside], np.arange(inside.size))), shape=(units, inside.size))
        core = (wm[inside] @ w[inside].T) * xx[np.ix_(inside, inside)]
        k: Doubles = owner @ (owner @ core).T
        t: Doubles = owner @ (wm[inside] * left[inside]).sum(axis=1)
        target = float((np.diag(metric) * yy).sum()) if yy.ndim == 1 else float((metric * yy).sum())
        c = target - float((wm[rest] * (xy[rest] + left[rest])).sum())
        return cls(0.5 * (k + k.T), t, c)

    @property
    def units(self) -> int:
        """How many units there are, N."""
        return int(self.t.size)

    def at(self, a: Doubles) -> float:
        """D(a), in O(N²)."""
        return self.c - 2.0 * float(self.t @ a) + float(a @ (self.k @ a))

    def gradient(self, a: Doubles) -> Doubles:
        """∂D/∂a = 2 (Ka - t), (N,), in O(N²)."""
        result: Doubles = 2.0 * (self.k @ a - self.t)
        return result

    def __add__(self, other: Quadratic) -> Quadratic:
        return Quadratic(self.k + other.k, self.t + other.t, self.c + other.c)

    def removing(self, order: Ints) -> Doubles:
        """D with the first m = 0..N units of `order` removed and all others at 1, (N + 1,), in O(N²).

        Around a = 1, so that the small values of a few removals keep their digits.
        """
        ordered = self.k[np.ix_(order, order)]
        slope = 2.0 * (self.t - self.k.sum(axis=1))[order]
        blocks = np.cumsum(np.cumsum(ordered, axis=0), axis=1).diagonal()
        result: Doubles = self.at(np.ones(self.units)) + np.concatenate([[0.0], np.cumsum(slope) + blocks])
        return result
