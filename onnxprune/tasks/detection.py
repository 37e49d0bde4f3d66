"""Detection: mAP against labels, and how the boxes of the original moved.

Labels are boxes (samples, boxes, 5): x1, y1, x2, y2 in the coordinates in which the model gives them, and the class;
rows with a class below zero, or a NaN, fill up. Without labels the original's boxes with a score of at least a quarter
are held against the model's: the same thing is a box of one class with an IoU of at least a half.

    box-agreement = 2 · same / (boxes of the original + boxes of the model)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.numerics.arrays import Array
from onnxprune.tasks.answered import LOWER, Answered, Score
from onnxprune.tasks.average_precision import average_precision
from onnxprune.tasks.boxes import Boxes, matched
from onnxprune.tasks.heads import Head, head_of

_SURE, _SAME = 0.25, 0.5


def likely(a: Answered) -> str:
    """Why the outputs look like those of a detector; "" where they do not."""
    head = None if a.image is None else head_of(a.reference, a.samples, a.image, sure=True)
    return "" if head is None else f"{', '.join(map(repr, head.reads))}: boxes in the layout {head.layout}"


def measured(a: Answered) -> tuple[Score, ...]:
    """map and map50 with labels; box-agreement, box-iou, boxes-lost, boxes-new and score-change with an original.

    Raises UsageError where no output holds boxes, CalibrationError for labels that are none, and RunError where the
    library for mAP is not installed.
    """
    head = head_of(a.reference, a.samples, a.image, sure=False)
    if head is None:
        shapes = ", ".join(f"{k} {v.shape}" for k, v in a.reference.items())
        raise UsageError(
            f"no output holds boxes in a layout that is known ({shapes}); boxes that the model does not decode itself "
            "take a function of yours (--metric)"
        )
    for name in head.reads:  # which may list fewer things than the original
        if a.outputs.get(name) is None or a.outputs[name].ndim != a.reference[name].ndim:
            raise UsageError(f"the output {name!r} is not the same kind of tensor in both models")
    found = _boxes(head, a, a.outputs)
    originals = None if a.originals is None else _boxes(head, a, a.originals)
    scores: list[Score] = []
    if a.labels is not None:
        truth = _truth(a.labels, originals or found)
        own, before = average_precision(found, truth), None
        if originals is not None:
            before = average_precision(originals, truth)
        why = "" if own is not None else "the labels hold no box"
        for i, (name, what) in enumerate((("map", "mAP, IoU .50:.95"), ("map50", "mAP, IoU .50"))):
            value, original = (None if v is None else v[i] for v in (own, before))
            scores.append(Score(name, f"{what}, by pycocotools", value, original, why=why))
    return (*scores, *(() if originals is None else _moved(found, originals)))


def _boxes(head: Head, a: Answered, outputs: Mapping[str, Array]) -> list[Boxes]:
    return [head.boxes(outputs, i) for i in range(a.samples)]


def _moved(found: Sequence[Boxes], originals: Sequence[Boxes]) -> tuple[Score, ...]:
    sure = [(b.at(b.scores >= _SURE), o.at(o.scores >= _SURE)) for b, o in zip(found, originals, strict=True)]
    pairs = [(b, o, matched(b, o, _SAME)) for b, o in sure]
    same, model, original = (
        sum(len(m) for _, _, m in pairs),
        sum(len(b) for b, _, _ in pairs),
        sum(len(o) for _, o, _ in pairs),
    )
    overlaps = [iou for _, _, m in pairs for _, _, iou in m]
    changes = [abs(float(b.scores[i] - o.scores[j])) for b, o, m in pairs for i, j, _ in m]
    none = f"of {{}} no box has a score of {_SURE:g}"
    neither, lost, new = none.format("either model"), none.format("the original"), none.format("the model")
    gone = "no box of the original stays" if original else lost
    return (
        Score(
            "box-agreement",
            f"of the boxes with a score of {_SURE:g} are in both (2 · same / all)",
            2 * same / (model + original) if model + original else None,
            why="" if model + original else neither,
        ),
        Score("box-iou", "IoU of these, a mean", float(np.mean(overlaps)) if same else None, why="" if same else gone),
        Score(
            "boxes-lost",
            f"of the original's {original} boxes",
            1 - same / original if original else None,
            better=LOWER,
            why="" if original else lost,
        ),
        Score(
            "boxes-new",
            f"of the model's {model} boxes",
            1 - same / model if model else None,
            better=LOWER,
            why="" if model else new,
        ),
        Score(
            "score-change",
            "of the scores of those in both, a mean",
            float(np.mean(changes)) if same else None,
            better=LOWER,
            why="" if same else gone,
        ),
    )


def _truth(labels: Array, found: Sequence[Boxes]) -> list[Boxes]:
    if labels.ndim != 3 or labels.shape[2] != 5:
        raise CalibrationError(
            f"the labels have shape {labels.shape}; a detector takes boxes (samples, boxes, 5): x1, y1, x2, y2, class, "
            "rows with a class below zero fill up"
        )
    wide = labels.astype(np.float64)
    kept = [w[np.isfinite(w).all(axis=1) & (w[:, 4] >= 0)] for w in wide]
    every = np.concatenate(kept)
    if len(every) and bool((every[:, 2:4] < every[:, :2]).any()):
        raise CalibrationError(
            "the labels hold boxes whose second corner is in front of the first: x1, y1, x2, y2, class"
        )
    far = max((float(np.abs(b.corners[: 1 + len(b) // 4]).max()) for b in found if len(b)), default=0.0)
    if len(every) and far > 4.0 and float(every[:, :4].max()) <= 1.0:
        raise CalibrationError(
            f"the labels lie within 0 and 1, the model's boxes reach {far:.0f}: give them in the model's coordinates"
        )
    return [Boxes(w[:, :4], np.ones(len(w)), w[:, 4].astype(np.int64)) for w in kept]
