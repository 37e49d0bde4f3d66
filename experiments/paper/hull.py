"""The hull of a layer's units, and what theorem 1 promises for it.

The corners are s_i, N times the contribution of unit i. Units that never fire have theirs at the origin together: one
corner of weight dead / N, which the walk may use as any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.numerics.arrays import Doubles
from onnxprune.selection import Quadratic

# Relative to the largest: a contribution of less power is none.
_DEAD = 1e-9


@dataclass(frozen=True)
class Hull:
    """radius: of the largest ball around f inside the hull, in its affine span; 0 where f lies on its boundary, or the
    corners are affinely dependent, for which it is not known. diameter: its longest edge. dead: units that never fire.
    """

    radius: float
    diameter: float
    dead: int

    @property
    def factor(self) -> float:
        """q = 1 - r²/R²: what a step leaves of D at most, once there is a first one."""
        return 1.0 - (self.radius / self.diameter) ** 2 if self.diameter else 0.0

    @property
    def rate(self) -> float:
        """-log q."""
        return float(-np.log1p(-((self.radius / self.diameter) ** 2))) if self.diameter else np.inf


def hull_of(q: Quadratic) -> Hull:
    """Of a discrepancy whose target is the layer itself.

    In a simplex the distance of a point from the face opposite a corner is the corner's height times the point's
    barycentric coordinate: 1 / N for a unit, and dead / N for the origin.
    """
    power = np.diag(q.k)
    live = power > _DEAD * power.max()
    n, dead = q.units, int((~live).sum())
    count = int(live.sum()) + bool(dead)
    gram: Doubles = np.zeros((count, count))
    gram[: live.sum(), : live.sum()] = n**2 * q.k[np.ix_(live, live)]
    weight = np.full(count, 1.0 / n)
    if dead:
        weight[-1] = dead / n
    edges = np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram
    return Hull(float((_heights(gram) * weight).min()), float(np.sqrt(max(edges.max(), 0.0))), dead)


def _heights(gram: Doubles) -> Doubles:
    """The heights of the simplex with these inner products of its corners, (corners,); 0 where it is degenerate.

    The inverse of the bordered matrix holds the inner products of the barycentric coordinates' gradients, whose norms
    are 1 / height.
    """
    n = len(gram)
    scale = float(np.trace(gram)) / n
    bordered = np.ones((n + 1, n + 1))
    bordered[:n, :n], bordered[n, n] = gram / scale, 0.0
    if np.linalg.matrix_rank(bordered, tol=1e-12 * n) < n + 1:
        return np.zeros(n)
    heights: Doubles = np.sqrt(scale / np.maximum(np.diag(np.linalg.inv(bordered))[:n], 1e-300))
    return heights


def least_of_fixed_steps(q: Quadratic, k: int) -> float:
    """What D of GFS is at least after k steps: λ N δ² / k², where δ is the distance of k / N from the next integer and
    λ the least eigenvalue of the Gram matrix of the s_i.

    A is a mean of k corners, so its coefficients are n_i / k with integer n_i: Σ (n_i / k - 1 / N)² ≥ N δ² / k².
    """
    n = q.units
    away = abs(k / n - round(k / n))
    least = max(float(np.linalg.eigvalsh(n**2 * q.k)[0]), 0.0)
    return least * n * (away / k) ** 2


def most_of_fixed_steps(hull: Hull, k: int) -> float:
    """What D of GFS is at most after k steps: (R² / 2r)² / k², infinite where no ball is known.

    h = k (f_A - f) becomes h + s_i - f, with the i for which that is shortest. Some <h, s_i - f> ≤ -r ||h||, so
    ||h + s_i - f||² ≤ ||h||² - 2r ||h|| + R²: at or below R⁴/4r² where ||h|| is, as R ≥ 2r.
    """
    return (hull.diameter**2 / (2 * hull.radius * k)) ** 2 if hull.radius else np.inf
