"""Orthogonal coordinates of a signal x (C,) in which the first few tell most of what is read of it.

    M = E[x xᵀ] (C, C)                       moments of the signal
    y = Wᵀ x,  H = W Wᵀ (C, C)               what a layer reads, and how much of each direction

Of k numbers that are linear in x the best to tell y from are those of the k largest eigenvalues of M^½ H M^½: with its
eigenvectors v they are (M^-½ v)ᵀ x, and what they leave of E‖y‖² is the sum of the other eigenvalues (the truncated
singular value decomposition of Wᵀ M^½). Orthogonal rows of which the first k span the same, for every k, tell as much
to whoever fits y to them, and an orthogonal matrix loses no digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.numerics.arrays import Doubles

# Directions with less power than this share of the mean are as good as empty.
_EMPTY = 1e-9


def pooled(readers: Sequence[tuple[Doubles, Doubles]]) -> tuple[Doubles, Doubles]:
    """(M, H) for all readers of a signal together, given those of each: every one counts by its relative error."""
    moments = np.sum([m for m, _ in readers], axis=0)
    tiny = float(np.finfo(np.float64).tiny)
    weights = np.sum([h / max(float(np.sum(m * h)), tiny) for m, h in readers], axis=0)
    return moments, weights


def telling(moments: Doubles, weights: Doubles) -> Doubles:
    """Orthogonal rows (C, C), of which the first k tell most of what is read, for every k; M and H as above."""
    power, vectors = np.linalg.eigh(moments)
    power = np.maximum(power, max(_EMPTY * float(power.mean()), float(np.finfo(np.float64).tiny)))
    root, inverse = ((vectors * s) @ vectors.T for s in (np.sqrt(power), 1.0 / np.sqrt(power)))
    _, best = np.linalg.eigh(root @ weights @ root)
    columns, _ = np.linalg.qr(inverse @ best[:, ::-1])
    rows: Doubles = columns.T
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    signed: Doubles = rows * np.where(largest < 0, -1.0, 1.0)
    return signed
