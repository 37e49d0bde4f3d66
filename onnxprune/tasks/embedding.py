"""Embeddings: a vector for each sample, of which nothing counts but who lies next to whom.

Of the K nearest neighbours that a sample has by cosine in the original's space, the share that is still among its K
nearest in the model's. Neighbours at the same distance are as near as each other, whichever is listed first. By chance
K / (samples - 1) of them would stay: K is ten, and fewer where that were more than a quarter.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.measures.by_output import cosine_of
from onnxprune.measures.figures import of_one_length
from onnxprune.numerics.arrays import Array, Doubles, Ints, is_float
from onnxprune.tasks.answered import NUMBER, Answered, Score

_NEIGHBOURS, _CHANCE = 10, 4
# Samples whose neighbours are looked for, among all, and how many at a time.
_MOST, _BLOCK = 4096, 256
# Equal vectors may differ so much in their cosine with a third.
_ALIKE = 1e-9
# Numbers in a vector: few ones are of one length by chance.
_LEAST = 16
_NAMES = ("embed", "hidden", "pool", "feature")


def likely(a: Answered) -> str:
    """Why the outputs look like embeddings; "" where they do not."""
    y = a.reference.get(a.first)
    if y is None or not is_float(y.dtype) or y.ndim < 2 or len(y) != a.samples or y.shape[-1] < 2:
        return ""
    if any(n in a.first.lower() for n in _NAMES) and y.ndim <= 3:
        return f"{a.first!r} is called so"
    return (
        f"{a.first!r} holds vectors of one length" if y.ndim == 2 and y.shape[1] >= _LEAST and of_one_length(y) else ""
    )


def vectors(y: Array, a: Answered) -> Doubles:
    """One vector for each sample, (samples, D): a mean over the positions that are no padding, where there are such."""
    if y.ndim == 3 and any(v.shape[:2] == y.shape[:2] for v in a.inputs.values()):
        keep = a.mask(y.shape[1])
        w = np.ones(y.shape[:2]) if keep is None else keep.astype(np.float64)
        total = np.maximum(w.sum(axis=1, keepdims=True), 1.0)
        v = np.where(w[..., None] > 0, y, 0.0).astype(np.float64)
        return np.asarray(np.einsum("ntd,nt->nd", v, w) / total)
    return y.reshape(len(y), -1).astype(np.float64)


def measured(a: Answered) -> tuple[Score, ...]:
    """neighbours, nearest and embedding-cosine with an original; recall-1 with labels.

    Raises UsageError where the first output holds no vectors, and CalibrationError for labels that are no classes.
    """
    y, y0 = a.pair(a.first)
    if not is_float(y.dtype) or y.ndim < 2 or len(y) != a.samples:
        raise UsageError(f"the output {a.first!r} of shape {y.shape} holds no vector for each sample")
    v, v0 = vectors(y, a), None if y0 is None else vectors(y0, a)
    scores: list[Score] = []
    if a.labels is not None:
        truth = _classes(a)
        original = None if v0 is None else _recall(v0, truth)
        why = "" if a.samples > 1 else "of a single sample there are no neighbours"
        value = _recall(v, truth)
        scores.append(Score("recall-1", "have a nearest neighbour of their own class", value, original, why=why))
    if v0 is not None:
        k = min(_NEIGHBOURS, (a.samples - 1) // _CHANCE)
        why = "" if k else f"of {a.samples} samples nearly all are neighbours: give more"
        cosine = cosine_of(v, v0, a.samples)
        lost = "" if cosine is not None else "it is not finite"
        scores += [
            Score("neighbours", f"of the {k} nearest neighbours stay", _kept(v, v0, k) if k else None, why=why),
            Score("nearest", "keep their nearest neighbour", _kept(v, v0, 1) if k else None, why=why),
            Score("embedding-cosine", "cosine with the original's, a mean", cosine, unit=NUMBER, why=lost),
        ]
    return tuple(scores)


def _asked(samples: int) -> Ints:
    """The samples whose neighbours are looked for."""
    return np.unique(np.linspace(0, samples - 1, min(samples, _MOST)).astype(np.int64))


def _unit(v: Doubles) -> Doubles:
    """Vectors of length 1; those of zeros stay, those with a NaN are nobody's neighbours."""
    with np.errstate(invalid="ignore"):
        scale = np.abs(v).max(axis=1, keepdims=True)
        v = v / np.where(scale > 0.0, scale, 1.0)
        length = np.linalg.norm(v, axis=1, keepdims=True)
        return np.asarray(v / np.where(length > 0.0, length, 1.0))


def _cosines(v: Doubles) -> Iterator[tuple[Ints, Doubles]]:
    """(samples, their cosines with all), a few at a time; -inf with themselves and with what is not finite."""
    unit = _unit(v)
    asked = _asked(len(v))
    for start in range(0, len(asked), _BLOCK):
        rows = asked[start : start + _BLOCK]
        with np.errstate(invalid="ignore"):
            c = unit[rows] @ unit.T
        c[np.isnan(c)] = -np.inf
        c[np.arange(len(rows)), rows] = -np.inf
        yield rows, c


def _kept(v: Doubles, v0: Doubles, k: int) -> float:
    """The share of the original's k nearest neighbours that are among the model's k nearest."""
    kept = total = 0
    for (_, c), (_, c0) in zip(_cosines(v), _cosines(v0), strict=True):
        near0 = np.argpartition(-c0, k - 1, axis=1)[:, :k]
        farthest = -np.partition(-c, k - 1, axis=1)[:, k - 1 : k]
        own = np.take_along_axis(c, near0, axis=1)
        with np.errstate(invalid="ignore"):
            kept += int((np.isfinite(own) & (own >= farthest - _ALIKE)).sum())
        total += near0.size
    return kept / total


def _recall(v: Doubles, truth: Ints) -> float | None:
    if len(v) < 2:
        return None
    hits = 0
    for rows, c in _cosines(v):
        near = c.argmax(axis=1)
        hits += int((np.isfinite(c.max(axis=1)) & (truth[near] == truth[rows])).sum())
    return hits / len(_asked(len(v)))


def _classes(a: Answered) -> Ints:
    labels = np.asarray(a.labels)
    if not np.issubdtype(labels.dtype, np.integer) or labels.size != a.samples:
        raise CalibrationError(
            f"the labels are {labels.dtype} of shape {labels.shape}; give an integer for each sample"
        )
    return labels.reshape(-1).astype(np.int64)
