"""Segmentation: a class for every position, from scores along an axis, one score for two classes, or the classes.

    IoU of class c = |truth = c and answer = c| / |truth = c or answer = c|,    counted over all samples together,

and mIoU is the mean over the classes that are in either. Labels below zero belong to no class, as does 255 where the
model has fewer classes: these positions do not count. A NaN among the scores is an answer that no label is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.measures.figures import probabilities
from onnxprune.numerics.arrays import Array, Ints, is_float
from onnxprune.tasks.answered import Answered, Score, best_of

# By custom the label of what belongs to no class.
_VOID = 255


@dataclass(frozen=True)
class ClassMap:
    """How classes are read from an output.

    axis: of the scores, None where each position has one number. threshold: above which that one means class 1, None
    where the numbers are the classes. classes: how many, None where that is not known.
    """

    axis: int | None
    threshold: float | None = None
    classes: int | None = None

    def of(self, y: Array) -> Ints:
        """The class of every position, (samples, …)."""
        if self.axis is not None:
            return best_of(y, self.axis).reshape(len(y), -1)
        flat = y.reshape(len(y), -1)
        if self.threshold is None:
            return (
                np.where(np.isfinite(flat), flat, -1).astype(np.int64) if is_float(y.dtype) else flat.astype(np.int64)
            )
        return np.where(np.isnan(flat), -1, flat > self.threshold).astype(np.int64)


def read(y: Array, places: tuple[int, ...] | None = None) -> ClassMap | None:
    """How an output is a class map, (samples, C, H, W), (samples, H, W, C) or (samples, H, W); None where it is none.

    places: (H, W) of the labels, where there are some.
    """
    if y.ndim not in (3, 4) or not y.size or (y.ndim == 4 and min(sorted(y.shape[1:])[1:]) < 2):
        return None
    whole = not is_float(y.dtype) or bool((y == np.rint(y)).all())
    if y.ndim == 3 or 1 in (y.shape[1], y.shape[3]):
        if whole:
            return ClassMap(None)
        return ClassMap(None, 0.5 if float(np.nanmin(y)) >= 0.0 and float(np.nanmax(y)) <= 1.0 else 0.0, 2)
    if not is_float(y.dtype):
        return None
    axis = 3 if y.shape[3] < y.shape[1] else 1
    if places is not None and len(places) == 2 and y.shape[2:] != places:
        axis = 3 if y.shape[1:3] == places else axis
    return ClassMap(axis, None, y.shape[axis])


def likely(a: Answered) -> str:
    """Why the outputs look like a class map; "" where they do not, or may as well be an image."""
    y = a.reference.get(a.first)
    image = a.image
    if y is None or image is None or len(y) != a.samples or y.ndim not in (3, 4):
        return ""
    how = read(y)
    if how is None or sorted(s for s in y.shape[1:] if s in image)[-2:] != sorted(image):
        return ""
    if how.axis is None:
        return f"{a.first!r} holds a class for every position" if not is_float(y.dtype) else ""
    scores = np.moveaxis(y[:1], how.axis, -1)
    if probabilities(scores.reshape(-1, scores.shape[-1])) or how.classes not in (1, 3, 4):
        return f"{a.first!r} holds {how.classes} scores for every position"
    return ""


def measured(a: Answered) -> tuple[Score, ...]:
    """miou and pixel-accuracy with labels; map-agreement and miou-original with an original.

    Raises UsageError where the first output is no class map, and CalibrationError for labels that do not fit it.
    """
    y, y0 = a.pair(a.first)
    reference = y if y0 is None else y0
    how = read(reference, None if a.labels is None else a.labels.shape[1:3])
    if how is None:
        raise UsageError(
            f"the output {a.first!r} of shape {y.shape} is no class map, (samples, classes, height, width)"
        )
    answer, original = how.of(y), None if y0 is None else how.of(y0)
    scores: list[Score] = []
    if a.labels is not None:
        truth = _truth(a.labels, answer, how)
        of_model, of_original = _scored(truth, answer), (None, None) if original is None else _scored(truth, original)
        why = "" if of_model[0] is not None else "no position has a label"
        scores += [
            Score("miou", "mIoU over the classes that occur", of_model[0], of_original[0], why=why),
            Score("pixel-accuracy", "of the positions get their label", of_model[1], of_original[1], why=why),
        ]
    if original is not None:
        same, why = _scored(original, answer), "the original's scores are NaN everywhere"
        why = why if same[0] is None else ""
        scores += [
            Score("map-agreement", "of the positions get the same class", same[1], why=why),
            Score("miou-original", "mIoU, the original's classes taken for the truth", same[0], why=why),
        ]
    return tuple(scores)


def _truth(labels: Array, answer: Ints, how: ClassMap) -> Ints:
    if not np.issubdtype(labels.dtype, np.integer) and labels.dtype != np.bool_:
        raise CalibrationError(f"the labels are {labels.dtype}; a class map takes integers, the class of each position")
    if labels[:1].size != answer[:1].size:
        raise CalibrationError(
            f"the labels have shape {labels.shape}, {labels[:1].size} positions in a sample, where the model gives "
            f"{answer[:1].size}: resize the labels to the size of the output, by the nearest one"
        )
    truth = labels.reshape(len(labels), -1).astype(np.int64)
    if how.classes is None or how.classes <= _VOID:
        truth = np.where(truth == _VOID, -1, truth)
    if how.classes is not None and truth.size and int(truth.max()) >= how.classes:
        raise CalibrationError(f"labels reach {truth.max()}, the model has the classes 0 to {how.classes - 1}")
    return truth


def _scored(truth: Ints, answer: Ints) -> tuple[float | None, float | None]:
    """(mIoU, share of positions that are the same); None where no position has a label."""
    keep = truth >= 0
    t, p = truth[keep], answer[keep]
    if not t.size:
        return None, None
    known, both = np.unique(np.concatenate([t, p]), return_inverse=True)
    t, p = both[: t.size], both[t.size :]
    hits = np.bincount(t[t == p], minlength=len(known)).astype(np.float64)
    either = np.bincount(t, minlength=len(known)) + np.bincount(p, minlength=len(known)) - hits
    classes = known >= 0  # what no class was told for is missed where it should be, and is none itself
    return float((hits[classes] / either[classes]).mean()), float(hits.sum() / t.size)
