"""Sequences of tokens: a score for every token of a vocabulary at each position, or the tokens themselves.

    perplexity = exp(mean over counted positions of -log p(the true token)),

the true token being the label of a position, or without labels the input of the next one. The latter says something
only of a model that reads no position behind the one it answers for, which is found out by a run. Positions that a mask
among the inputs, a negative label (-100, by custom) or the padding of samples of several lengths names do not count.
"""

from __future__ import annotations

import numpy as np

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.numerics.arrays import Array, Ints, Mask, is_float
from onnxprune.tasks.answered import LOWER, NUMBER, Answered, Score, best_of, log_probabilities


def likely(a: Answered) -> str:
    """Why the outputs look like scores of tokens; "" where they do not."""
    y, ids = a.reference.get(a.first), _ids(a)
    if y is None or ids is None or not is_float(y.dtype) or y.ndim != 3 or y.shape[:2] != ids.shape:
        return ""
    known = int(ids.max(initial=0))
    return f"{a.first!r} holds {y.shape[2]} scores for each token of the input" if y.shape[2] > known else ""


def measured(a: Answered) -> tuple[Score, ...]:
    """token-agreement and sequence-agreement with an original; token-accuracy and perplexity with labels or ids.

    Raises UsageError where the first output holds no tokens, and CalibrationError for labels that do not fit it.
    """
    y, y0 = a.pair(a.first)
    tokens = _tokens(y)
    if tokens is None or len(y) != a.samples:
        raise UsageError(
            f"the output {a.first!r} of shape {y.shape} holds no tokens: (samples, length, vocabulary), or integers "
            "(samples, length)"
        )
    counted = _counted(a, y if y0 is None else y0)
    scores: list[Score] = []
    truth, lost = _truth(a, y, counted)
    if truth is not None:
        scores += _against(truth, counted & (truth >= 0), y, y0, labelled=a.labels is not None)
    elif lost:
        scores.append(Score("perplexity", "by the next token", None, better=LOWER, unit=NUMBER, why=lost))
    if y0 is not None:
        original = _tokens(y0)
        same = (tokens == original) & (np.asarray(original) >= 0)
        why = "" if counted.any() else "every position is masked"
        share = float(same[counted].mean()) if counted.any() else None
        rows = counted.any(axis=1)
        whole = float((same | ~counted)[rows].all(axis=1).mean()) if rows.any() else None
        scores += [
            Score("token-agreement", "of the positions get the same token", share, why=why),
            Score("sequence-agreement", "get the same token everywhere", whole, why=why),
        ]
    return tuple(scores)


def _against(truth: Ints, counted: Mask, y: Array, y0: Array | None, *, labelled: bool) -> list[Score]:
    """What holds the tokens against the true ones."""
    why = "" if counted.any() else "no position has a label"
    told = "by the labels" if labelled else "by the next token of the input"

    def accuracy(v: Array | None) -> float | None:
        tokens = None if v is None else _tokens(v)
        return None if tokens is None or why else float((tokens == truth)[counted].mean())

    scores = [Score("token-accuracy", f"of the positions are right, {told}", accuracy(y), accuracy(y0), why=why)]
    if is_float(y.dtype):
        own, original = (None if v is None or why else _perplexity(v, truth, counted) for v in (y, y0))
        why = why or ("" if own is not None else "a true token has no probability, or a score is NaN")
        ratio = None if own is None or original is None else own / original
        scores.append(Score("perplexity", told, own, original, LOWER, NUMBER, why))
        if y0 is not None:
            scores.append(Score("perplexity-ratio", "× the original's", ratio, None, LOWER, NUMBER, why))
    return scores


def _perplexity(y: Array, truth: Ints, counted: Mask) -> float | None:
    """A sample at a time, as vocabularies are large; None where it is not finite."""
    total = 0.0
    for scores, t, keep in zip(y, truth, counted, strict=True):
        if keep.any():
            total += float(np.take_along_axis(log_probabilities(scores[keep]), t[keep, None], axis=1).sum())
    mean = -total / int(counted.sum())
    return float(np.exp(mean)) if np.isfinite(mean) and mean < 700.0 else None


def _tokens(y: Array) -> Ints | None:
    """The token at each position, (samples, length), -1 where a score is NaN; None where it holds none."""
    if y.ndim == 3 and is_float(y.dtype) and y.shape[2] > 1:
        return best_of(y, 2).astype(np.int64)
    if y.ndim == 2 and not is_float(y.dtype):
        return y.astype(np.int64)
    return None


def _counted(a: Answered, y: Array) -> Mask:
    """The positions of an output that are no padding, (samples, length)."""
    keep = a.mask(y.shape[1])
    counted = np.ones(y.shape[:2], bool) if keep is None else keep.copy()
    if is_float(y.dtype) and np.isinf(y).any():  # samples of several lengths are filled up
        counted &= ~np.isposinf(y).all(axis=2)
    return counted


def _ids(a: Answered) -> Array | None:
    name = tokens_in(a)
    return None if name is None else a.inputs[name]


def tokens_in(a: Answered) -> str | None:
    """The input of tokens: integers (samples, length) that are no mask; None where there is none."""
    rows = {k: v for k, v in a.inputs.items() if v.ndim == 2 and v.shape[1] > 1 and np.issubdtype(v.dtype, np.integer)}
    names = [k for k in rows if not any(n in k.lower() for n in ("mask", "type", "position", "segment"))]
    return next((k for k in names if "id" in k.lower() or "token" in k.lower()), next(iter(names), None))


def _truth(a: Answered, y: Array, counted: Mask) -> tuple[Ints | None, str]:
    """(the true token at each position, negative where it does not count, why there is none)."""
    vocabulary = y.shape[2] if y.ndim == 3 else None
    if a.labels is not None:
        if not np.issubdtype(a.labels.dtype, np.integer) or a.labels.shape != y.shape[:2]:
            raise CalibrationError(
                f"the labels are {a.labels.dtype} of shape {a.labels.shape}; a sequence takes the token of each "
                f"position, integers of shape {y.shape[:2]}"
            )
        truth = a.labels.astype(np.int64)
        if vocabulary is not None and truth.size and int(truth.max()) >= vocabulary:
            raise CalibrationError(f"labels reach {truth.max()}, the model has the tokens 0 to {vocabulary - 1}")
        return truth, ""
    ids = _ids(a)
    if vocabulary is None or ids is None or ids.shape != y.shape[:2] or int(ids.max(initial=0)) >= vocabulary:
        return None, ""
    if not a.causal():
        return None, "the model reads what comes behind a position: give labels"
    truth = np.full(ids.shape, -1, np.int64)
    truth[:, :-1] = np.where(counted[:, 1:], ids[:, 1:], -1)
    return truth, ""
