"""Each output beside the original's: largest difference, cosine and agreement, against numbers counted by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest

from onnxprune.measures.answers import Answers
from onnxprune.measures.by_output import OutputFigures, by_output
from onnxprune.measures.figures import DIFFER, ERROR, NOT_MEASURED, Figure, Figures
from onnxprune.numerics.arrays import Array


def figures(*each: Figure) -> Figures:
    return Figures(None, None, "", None, each, 2, True)


NONE = figures()


def one(y: Array, y0: Array, samples: int = 2, told: Figures = NONE) -> OutputFigures:
    return by_output(["o"], {"o": y}, Answers({"o": y0}, samples, (), ()), told)[0]


def test_by_hand():
    y0 = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    y = np.array([[4.0, 3.0], [1.0, 1.0]], np.float32)
    found = one(y, y0)
    assert found.largest == 1.0
    assert found.cosine == pytest.approx((24 / 25 + 1 / np.sqrt(2)) / 2, abs=1e-12)
    assert found.agreement == 0.5  # the second has a tie in y, whose first entry counts
    assert found.why == ""


def test_numbers_whose_squares_are_none():
    """Fails where 1e200 overflows or 1e-200 vanishes in the cosine."""
    for size in (1e200, 1e-200):
        assert one(np.array([[size, 0.0]]), np.array([[size, size]]), 1).cosine == pytest.approx(0.5**0.5, abs=1e-12)


@pytest.mark.parametrize(("y", "cosine"), [([[0.0, 0.0]], 1.0), ([[0.0, 2.0]], 0.0)])
def test_zeros(y: list[list[float]], cosine: float):
    assert one(np.array(y), np.zeros((1, 2)), 1).cosine == cosine


def test_masked_entries_are_no_part_of_it():
    """Fails where -10000 in both makes every cosine 1."""
    y0 = np.array([[1.0, 0.0, -1e4], [0.0, 1.0, -1e4]], np.float32)
    y = np.array([[0.0, 1.0, -1e4], [1.0, 0.0, -1e4]], np.float32)
    assert one(y, y0).cosine == pytest.approx(0.0, abs=1e-9)


def test_integers_are_counted():
    found = one(np.array([1, 2, 3, 9]), np.array([1, 2, 3, 4]))
    assert (found.largest, found.cosine, found.agreement) == (5.0, None, 0.75)


@pytest.mark.parametrize(
    ("y", "y0", "why"),
    [
        (np.array([[np.nan, 1.0]]), np.array([[0.0, 1.0]]), "not finite"),
        (np.array([[np.inf, 1.0]]), np.array([[0.0, 1.0]]), "not finite"),
        (np.zeros((1, 3)), np.zeros((1, 2)), r"its shape is \(1, 3\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "no entries"),
        (np.array([["a"]], object), np.array([["a"]], object), "no numbers"),
    ],
)
def test_what_cannot_be_measured_says_why(y: Array, y0: Array, why: str):
    found = one(y, y0, 1)
    assert (found.largest, found.cosine) == (None, None)
    assert re.search(why, found.why)
    assert by_output(["o"], {}, Answers({"o": y0}, 1, (), ()), NONE)[0].why


def test_the_error_is_the_worst_that_speaks_of_it():
    told = figures(
        Figure(("o",), "channel 0", ERROR, 0.1),
        Figure(("o", "p"), "front", DIFFER, 0.3),
        Figure(("o",), "", DIFFER, 0.9, counts=False),
        Figure(("p",), "", NOT_MEASURED, None, why="lost"),
    )
    y = np.zeros((2, 2))
    found = by_output(["o", "p", "q"], dict.fromkeys("opq", y), Answers(dict.fromkeys("opq", y), 2, (), ()), told)
    assert [f.error for f in found] == [0.3, None, None]
