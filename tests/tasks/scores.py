"""Scores of a metric by their names, for arrays that a test makes."""

from __future__ import annotations

from typing import Any

from onnxprune.numerics.arrays import Array
from onnxprune.tasks.answered import Answered, Score
from onnxprune.tasks.known import BY_NAME


def answered(y: Array, y0: Array | None = None, labels: Array | None = None, **more: Any) -> Answered:
    """One output, called o."""
    return Answered({"o": y}, len(y), None if y0 is None else {"o": y0}, labels, **more)


def scored(task: str, *args: Any, **more: Any) -> dict[str, Score]:
    """What a task measures; its row names every score."""
    row = BY_NAME[task]
    found = {s.name: s for s in row.measured(answered(*args, **more))}
    assert set(found) <= set(row.names)
    assert all(s.why or s.value is not None for s in found.values())
    return found
