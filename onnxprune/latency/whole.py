"""The time of whole models from that of their layers, fitted to whole models that were timed at several widths.

    T = c + Σ_l w_l t_l        c ≥ 0, w ≥ 0

T is a share of the original's time, t_l the seconds of layer l by its table, c what no layer explains. All w would be
one number s if layers took inside the model what they take by themselves; each is allowed to differ from it, as a layer
alone pays for its start and its layout: minimised is

    Σ_k ((T_k - c - Σ_l w_l t_kl) / T_k)² + PRIOR² Σ_l (w_l / s - 1)²

with PRIOR the error of a timed model over that of a layer: 1 % over 30 %. s is the best such number with all w equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from onnxprune.numerics.arrays import Doubles

PRIOR = 0.01 / 0.3
# With fewer whole models two numbers are all that they tell.
FEW = 4


@dataclass(frozen=True, eq=False)
class Whole:
    """c and w above."""

    constant: float
    weights: Doubles

    def at(self, seconds: Doubles) -> Doubles:
        """T of models whose layers take these seconds, (..., layers)."""
        shares: Doubles = self.constant + seconds @ self.weights
        return shares


def fit(seconds: Doubles, shares: Doubles) -> Whole:
    """Fit whole models, of which `seconds` (models, layers) has the layers and `shares` (models,) the times T."""
    count = seconds.shape[1]
    total = seconds.sum(axis=1)
    unit = float(total.max()) or 1.0
    (constant, scale), _ = nnls(np.stack([1.0 / shares, total / unit / shares], axis=1), np.ones(len(shares)))
    scale /= unit
    if scale <= 0.0 or len(shares) < FEW:
        return Whole(float(constant), np.full(count, scale))
    # In numbers around 1: c as it is, and w as multiples of s.
    rows = np.concatenate([np.ones((len(shares), 1)), scale * seconds], axis=1) / shares[:, None]
    prior = np.concatenate([np.zeros((count, 1)), PRIOR * np.eye(count)], axis=1)
    solution, _ = nnls(np.concatenate([rows, prior]), np.concatenate([np.ones(len(shares)), np.full(count, PRIOR)]))
    return Whole(float(solution[0]), scale * solution[1:])
