"""Classification: the first output holds class scores, (samples, classes), and the largest is the answer."""

from __future__ import annotations

from onnxprune.errors import UsageError
from onnxprune.measures.class_scores import check_classes, class_scores
from onnxprune.measures.figures import classes_of, share_of
from onnxprune.tasks.answered import Answered, Score


def likely(a: Answered) -> str:
    """Why the outputs look like class scores; "" where they do not."""
    y = a.reference.get(a.first)
    if y is None or not class_scores(y, a.samples):
        return ""
    return f"{a.first!r} holds {y.shape[1]} scores for each sample"


def measured(a: Answered) -> tuple[Score, ...]:
    """top-1, where there are labels.

    Raises UsageError where the first output holds no class scores, and CalibrationError for labels that are no classes.
    """
    y, y0 = a.pair(a.first)
    classes = classes_of(y, a.samples)
    if classes is None:
        raise UsageError(f"the output {a.first!r} of shape {y.shape} holds no class scores, (samples, classes)")
    if a.labels is None:
        return ()
    check_classes(a.labels, y.shape[1])
    original = None if y0 is None else share_of(classes_of(y0, a.samples), a.labels)
    return (Score("top-1", "get their label", share_of(classes, a.labels), original),)
