"""Greedy steps by brute force, from sample matrices in the paper's own scaling: α in the simplex, features N s_i.

Shares no formula with the package: D is evaluated from the features, every line by a dense grid and a bounded search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from onnxprune.selection import Quadratic

Array = NDArray[np.float64]
GRID = 41


@dataclass(frozen=True, eq=False)
class Samples:
    """Features s (T, N), N times the contribution of each unit; target f (T,); a linear term (N,) in α."""

    s: Array
    f: Array
    linear: Array

    @property
    def units(self) -> int:
        return int(self.s.shape[1])

    @property
    def scale(self) -> float:
        """What 1e-9 of D means: D of removing everything, without the linear term."""
        return float(self.f @ self.f)

    def at(self, alpha: Array) -> float:
        """||f - Σ α_i s_i||² + linear term."""
        return float(np.sum((self.f - self.s @ alpha) ** 2) + self.linear @ alpha)

    def quadratic(self) -> Quadratic:
        """The same in coefficients a = N α of the contributions."""
        n = self.units
        c = self.s / n
        return Quadratic(c.T @ c, c.T @ self.f - self.linear / (2 * n), float(self.f @ self.f))


def moved(alpha: Array, i: int, gamma: float) -> Array:
    """(1 - γ) A + γ e_i."""
    after = (1 - gamma) * alpha
    after[i] += gamma
    return after


def lowest(alpha: float) -> float:
    """The γ at which α + γ (1 - α) = 0."""
    return -alpha / (1 - alpha) if alpha < 1 else 0.0


def best_on_line(at: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """(D, γ): a dense grid, then a bounded search between the neighbours of its best point."""
    grid = np.linspace(low, high, GRID)
    values = [at(float(g)) for g in grid]
    j = int(np.argmin(values))
    found = [(values[j], float(grid[j]))]
    around = float(grid[max(j - 1, 0)]), float(grid[min(j + 1, GRID - 1)])
    if around[1] > around[0]:
        line = minimize_scalar(at, bounds=around, method="bounded", options={"xatol": 1e-10})
        found.append((float(line.fun), float(line.x)))
    return min(found)


def best_step(at: Callable[[Array], float], alpha: Array, *, removal: bool = True) -> float:
    """The least D of one step from α, over all units and all γ of U_i."""
    return min(
        best_on_line(lambda g, i=i: at(moved(alpha, i, g)), lowest(alpha[i]) if removal else 0.0, 1.0)[0]
        for i in range(alpha.size)
    )


def family(name: str, seed: int) -> Samples:
    """A random problem of at most ten units."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 11))
    rows = 15
    s = rng.standard_normal((rows, n)) + rng.standard_normal((rows, 1))
    linear = np.zeros(n)
    if name == "ill-conditioned":
        base = rng.standard_normal((rows, 2))
        s = base @ rng.standard_normal((2, n)) + 1e-4 * rng.standard_normal((rows, n)) + base[:, :1]
        s *= 10.0 ** rng.uniform(-1.5, 0.5, n)
    if name == "duplicated":
        s = s[:, rng.integers(0, max(n // 2, 1), n)]
    if name == "opposite":
        half = n // 2
        s[:, :half] = -s[:, half : 2 * half] + 0.3 * rng.standard_normal((rows, half))
    if name == "crowded":
        s = rng.standard_normal((3, n)) + rng.standard_normal((3, 1))
    if name == "zero unit":
        s[:, 0] = 0.0
    f = s.mean(axis=1)
    if name == "pruned inputs":
        s = 0.8 * s + 0.4 * rng.standard_normal(s.shape)
    if name == "linear":
        linear = rng.standard_normal(n) * float(f @ f) / n
    if name == "flat and linear":
        s[:, : n // 2] = 0.0
        f, linear = s.mean(axis=1), rng.standard_normal(n)
    return Samples(s, f, linear)


FAMILIES = (
    "plain",
    "ill-conditioned",
    "duplicated",
    "opposite",
    "crowded",
    "zero unit",
    "pruned inputs",
    "linear",
    "flat and linear",
)
