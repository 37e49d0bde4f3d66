"""Coordinates of a layer Y = X W in which its inputs are white.

With P = E[x xᵀ] (D, D) and B Bᵀ = (P + λ tr(P)/D · I)⁻¹, write W = B V: then Y = (X B) V, and X B is white as far as
the damping λ lets it be. A gradient G of W is Bᵀ G in V, and a step S in V is B S in W. A step of η in every entry of
V, with signs at random, moves each output by η √D.

Inputs of a convolution overlap and are correlated, so the loss of a layer is far better conditioned in V than in W:
P⁻¹ is the input half of the natural gradient (Martens & Grosse 2015, arXiv 1503.05671).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from onnxprune.numerics.arrays import Doubles
from onnxprune.numerics.least_squares import SolveFailed


def whitening(p: Doubles, damping: float) -> NDArray[np.float32]:
    """B of every group: p (g, D, D) → (g, D, D), lower triangle 0. Raises SolveFailed where P is not one.

    Equal to the transposed inverse of `numpy.linalg.cholesky` of the damped P.
    """
    inverses = np.empty(p.shape, np.float32)
    for g, gram in enumerate(p):
        mean = float(np.trace(gram)) / max(len(gram), 1)
        if not np.isfinite(mean) or mean < 0.0:
            raise SolveFailed("a Gram matrix has no trace that is positive")
        damped = gram + (damping * mean if mean > 0.0 else 1.0) * np.eye(len(gram))
        try:
            factor = linalg.cholesky(damped, lower=True, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError as e:
            raise SolveFailed("a Gram matrix is not positive semi-definite") from e
        inverse, failed = linalg.lapack.dtrtri(factor, lower=1, overwrite_c=1)
        if failed or not np.isfinite(inverse).all():
            raise SolveFailed("a Gram matrix is not positive semi-definite")
        inverses[g] = inverse.T
    return inverses


def output_spread(p: Doubles, w: Doubles, *, constant: bool) -> Doubles:
    """Standard deviation of each output, (g, M): p (g, D, D), w (g, D, M); constant: whether the last column is 1.

    Without a constant it is the root of the mean square. What varies little counts as a hundredth of the mean of all.
    """
    power = np.einsum("gdm,gde,gem->gm", w, p, w, optimize=True)
    if constant:
        power = power - np.einsum("gd,gdm->gm", p[:, -1], w) ** 2
    spread: Doubles = np.sqrt(np.maximum(power, 0.0))
    floored: Doubles = np.maximum(spread, 0.01 * spread.mean())
    return floored
