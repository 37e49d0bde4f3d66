"""The tasks that there are, a row for each: how its outputs look, what measures them, and by which of its scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxprune.errors import UsageError
from onnxprune.options import nearest, shown
from onnxprune.tasks import classification, detection, embedding, segmentation, sequence
from onnxprune.tasks.answered import Answered, Score
from onnxprune.tasks.names import CLASSIFICATION, DETECTION


@dataclass(frozen=True)
class Task:
    """One task.

    likely: why the outputs look like it, "" where they do not. measured: its scores. quality: the name of the one
    against labels, by which points are lost. agreement: of the one against the original. names: of all.
    ranks: whether the largest of a sample's numbers may be its class.
    """

    name: str
    likely: Callable[[Answered], str]
    measured: Callable[[Answered], tuple[Score, ...]]
    quality: str
    agreement: str
    names: tuple[str, ...]
    ranks: bool = True


# Why a task was taken that was named.
ASKED = "as was asked for"
# In the order in which outputs are looked at: what is more special comes first.
TASKS = (
    Task(
        DETECTION,
        detection.likely,
        detection.measured,
        "map",
        "box-agreement",
        ("map", "map50", "box-agreement", "box-iou", "boxes-lost", "boxes-new", "score-change"),
    ),
    Task(
        "sequence",
        sequence.likely,
        sequence.measured,
        "token-accuracy",
        "token-agreement",
        ("token-accuracy", "perplexity", "perplexity-ratio", "token-agreement", "sequence-agreement"),
    ),
    Task(
        "embedding",
        embedding.likely,
        embedding.measured,
        "recall-1",
        "neighbours",
        ("recall-1", "neighbours", "nearest", "embedding-cosine"),
        ranks=False,
    ),
    Task(
        "segmentation",
        segmentation.likely,
        segmentation.measured,
        "miou",
        "map-agreement",
        ("miou", "pixel-accuracy", "map-agreement", "miou-original"),
    ),
    Task(
        CLASSIFICATION,
        classification.likely,
        classification.measured,
        "top-1",
        "agreement",
        ("top-1", "agreement"),
    ),
)
BY_NAME = {t.name: t for t in TASKS}
BY_SCORE = {score: t for t in TASKS for score in t.names}


def with_score(score: str) -> Task:
    """The task that has this score. Raises UsageError where none has."""
    if score not in BY_SCORE:
        near = nearest(score, tuple(BY_SCORE))
        known = f"did you mean {near}?" if near else f"name a score ({', '.join(BY_SCORE)}) or file.py:function"
        raise UsageError(f"metric is {shown(score)}; {known}")
    return BY_SCORE[score]


def guessed(a: Answered) -> tuple[Task | None, str]:
    """(the task that the outputs look like, why); None where they look like none.

    Vectors may be scores or embeddings: a class for each sample says that they are scores.
    """
    scores = classification.likely(a)
    if scores and a.labels is not None and a.labels.size == a.samples:
        return BY_NAME[CLASSIFICATION], scores
    for task in TASKS:
        why = task.likely(a)
        if why:
            return task, why
    return None, "the outputs look like no task that is known"
