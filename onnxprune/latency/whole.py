"""The time of whole models from that of their layers, fitted to whole models that were timed at several widths.

    T = c + Σ_l w_l t_l        c ≥ 0, w ≥ 0

T is a share of the original's time, t_l the seconds of layer l by its table, c what no layer explains. All w would be
one number s if layers took inside the model what they take by themselves; each is allowed to differ from it, as a layer
alone pays for its start and its layout: minimised is

    Σ_k ((T_k - c - Σ_l w_l t_kl) / (T_k + T̄))² + ρ² Σ_l (w_l / s - 1)²

Errors count relative to the longer times, T̄ is their mean. s is the best such number with all w equal. ρ is the error
of a timed model over that of a layer, which depends on how quiet the device was, and on how layers were timed: of a
few, the one by which whole models that are left out, one by one, are predicted best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from onnxprune.numerics.arrays import Doubles

PRIORS = (0.003, 0.01, 0.03, 0.1, 0.3)
# With fewer whole models two numbers are all that they tell.
FEW = 4


@dataclass(frozen=True, eq=False)
class Whole:
    """c, w and ρ above."""

    constant: float
    weights: Doubles
    prior: float = PRIORS[-1]

    def at(self, seconds: Doubles) -> Doubles:
        """T of models whose layers take these seconds, (..., layers)."""
        shares: Doubles = self.constant + seconds @ self.weights
        return shares


def fit(seconds: Doubles, shares: Doubles, prior: float | None = None) -> Whole:
    """Fit whole models, of which `seconds` (models, layers) has the layers and `shares` (models,) the times T.

    prior: ρ, None to choose it.
    """
    if prior is None:
        few = len(shares) <= FEW
        prior = PRIORS[-1] if few else min(PRIORS, key=lambda p: float(np.square(left_out(seconds, shares, p)).sum()))
    count = seconds.shape[1]
    total = seconds.sum(axis=1)
    unit = float(total.max()) or 1.0
    near = 1.0 / (shares + shares.mean())
    (constant, scale), _ = nnls(np.stack([near, total / unit * near], axis=1), shares * near)
    scale /= unit
    if scale <= 0.0 or len(shares) < FEW:
        return Whole(float(constant), np.full(count, scale), prior)
    # In numbers around 1: c as it is, and w as multiples of s.
    rows = np.concatenate([np.ones((len(shares), 1)), scale * seconds], axis=1) * near[:, None]
    stay = np.concatenate([np.zeros((count, 1)), prior * np.eye(count)], axis=1)
    solution, _ = nnls(np.concatenate([rows, stay]), np.concatenate([shares * near, np.full(count, prior)]))
    return Whole(float(solution[0]), scale * solution[1:], prior)


def left_out(seconds: Doubles, shares: Doubles, prior: float) -> Doubles:
    """The relative error of each whole model, predicted from all others, (models,)."""
    errors = np.empty(len(shares))
    for k in range(len(shares)):
        others = np.arange(len(shares)) != k
        errors[k] = float(fit(seconds[others], shares[others], prior).at(seconds[k])) / shares[k] - 1.0
    return errors
