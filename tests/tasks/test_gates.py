"""Limits on scores, by their names."""

from __future__ import annotations

from typing import Any

import pytest

from onnxprune.errors import UsageError
from onnxprune.measures.by_output import OutputFigures
from onnxprune.tasks.answered import LOWER, NUMBER, Score
from onnxprune.tasks.gates import score_gates

SCORES = (
    Score("miou", "", 0.7),
    Score("perplexity", "", 20.0, better=LOWER, unit=NUMBER),
    Score("lost", "", None, why="no labels"),
)
OUTPUTS = (OutputFigures("a", 0.1, 0.5, 0.9, None), OutputFigures("b", 0.1, 2.0, 0.99, None))


@pytest.mark.parametrize(
    ("least", "most", "passed"),
    [
        ({"miou": 0.7}, {}, [True]),
        ({"miou": 0.71}, {}, [False]),
        ({}, {"perplexity": 20}, [True]),
        ({}, {"perplexity": 19.9}, [False]),
        ({"perplexity": 10.0}, {"miou": 0.8}, [True, True]),
        ({"lost": 0.0}, {}, [False]),
        ({"cosine": 0.9}, {"largest-difference": 1.9}, [True, False]),
        ({"b:cosine": 0.95, "a:cosine": 0.95}, {"a:largest-difference": 0.5}, [True, False, True]),
    ],
)
def test_limits(least: dict[str, float], most: dict[str, float], passed: list[bool]):
    found = score_gates(SCORES, OUTPUTS, least, most)
    assert [g.held for g in found] == passed
    assert [g.name for g in found] == [*(f"--min-metric {k}" for k in least), *(f"--max-metric {k}" for k in most)]


def test_an_output_that_was_not_measured_is_the_worst():
    lost = (*OUTPUTS, OutputFigures("c", None, None, None, None, "its shape is (2,) instead of (3,)"))
    (gate,) = score_gates((), lost, {"cosine": 0.0}, {})
    assert not gate.held
    assert "c: its shape" in gate.text
    integers = (*OUTPUTS, OutputFigures("c", 0.0, 0.0, None, 1.0))  # which have no cosine to speak of
    assert score_gates((), integers, {"cosine": 0.9}, {})[0].held


@pytest.mark.parametrize(
    ("least", "match"),
    [
        ({"miuo": 0.5}, "min_metric names 'miuo', which was not measured; did you mean miou"),
        ({"zzz": 0.5}, "there are cosine, a:cosine, b:cosine"),
        ({"miou": 70}, "it is a share: write 0.7 or 70%"),
        ({"perplexity": float("nan")}, "give a number"),
        ({"perplexity": "20"}, "must be float"),
    ],
)
def test_limits_that_limit_nothing(least: dict[str, Any], match: str):
    with pytest.raises(UsageError, match=match):
        score_gates(SCORES, OUTPUTS, least, {})
