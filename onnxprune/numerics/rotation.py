"""Orthogonal coordinates of a signal x (C,) in which the first few tell most of what is read of it.

    M = E[x xᵀ] (C, C)                       moments of the signal
    y = Wᵀ x,  H = W Wᵀ (C, C)               what a layer reads, and how much of each direction

Of k numbers that are linear in x the best to tell y from are those of the k largest eigenvalues of M^½ H M^½: with its
eigenvectors v they are (M^-½ v)ᵀ x, and what they leave of E‖y‖² is the sum of the other eigenvalues (the truncated
singular value decomposition of Wᵀ M^½). Orthogonal rows of which the first k span the same, for every k, tell as much
to whoever fits y to them, and an orthogonal matrix loses no digits.

Of two signals q and k (C,) that meet in qᵀ k, as in attention, both may be turned: (A q)ᵀ (B k) = qᵀ k where Aᵀ B = 1.
With A = S^½ Uᵀ M_q^-½ and B = S^½ Vᵀ M_k^-½ of the singular value decomposition U S Vᵀ of M_q^½ M_k^½ the moments of
both become the diagonal S, so that of independent q and k the term of each coordinate is uncorrelated with all others,
and has the mean square S².
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.numerics.arrays import Doubles

# Directions with less power than this share of the mean are as good as empty.
_EMPTY = 1e-9
# The same where a matrix is not orthogonal, and its inverse would enlarge what is rounded.
_EMPTY_OF_TWO = 1e-7


def pooled(readers: Sequence[tuple[Doubles, Doubles]]) -> tuple[Doubles, Doubles]:
    """(M, H) for all readers of a signal together, given those of each: every one counts by its relative error."""
    moments = np.sum([m for m, _ in readers], axis=0)
    tiny = float(np.finfo(np.float64).tiny)
    weights = np.sum([h / max(float(np.sum(m * h)), tiny) for m, h in readers], axis=0)
    return moments, weights


def telling(moments: Doubles, weights: Doubles) -> Doubles:
    """Orthogonal rows (C, C), of which the first k tell most of what is read, for every k; M and H as above."""
    root, inverse = _roots(moments, _EMPTY)
    _, best = np.linalg.eigh(root @ weights @ root)
    columns, _ = np.linalg.qr(inverse @ best[:, ::-1])
    rows: Doubles = columns.T
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    signed: Doubles = rows * np.where(largest < 0, -1.0, 1.0)
    return signed


def balanced(left: Doubles, right: Doubles) -> tuple[Doubles, Doubles]:
    """(A, B), (C, C) each, for signals with these moments M_q and M_k, which need not be regular: as above."""
    (left_root, left_inverse), (right_root, right_inverse) = (_roots(m, _EMPTY_OF_TWO) for m in (left, right))
    u, s, vt = np.linalg.svd(left_root @ right_root)
    scale = np.sqrt(s)[:, None]
    a: Doubles = scale * (u.T @ left_inverse)
    b: Doubles = scale * (vt @ right_inverse)
    return a, b


def _roots(moments: Doubles, empty: float) -> tuple[Doubles, Doubles]:
    """M^½ and M^-½ (C, C), where directions with less than that share of the mean power are taken to have so much."""
    power, vectors = np.linalg.eigh(moments)
    power = np.maximum(power, max(empty * float(power.mean()), float(np.finfo(np.float64).tiny)))
    root, inverse = ((vectors * s) @ vectors.T for s in (np.sqrt(power), 1.0 / np.sqrt(power)))
    return root, inverse
