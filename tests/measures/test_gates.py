"""Limits that hold at their very value, limits on single outputs, and what cannot be limited."""

from __future__ import annotations

import pytest

from onnxprune.errors import CheckFailed, UsageError
from onnxprune.measures.figures import ERROR, NOT_MEASURED, Figure, Figures
from onnxprune.measures.gates import EVERY, Gate, as_typed, at_least, at_most, checked_limits, demand_all, error_gates

TOLD = Figures(
    *(0.2, None, "", None),
    (Figure(("boxes",), "", ERROR, 0.1), Figure(("scores",), "", ERROR, 0.3), Figure(("same",), "", ERROR, 0.0)),
    *(100, True),
)
NAMES = ("boxes", "scores", "same", "still")


def passed(limits: dict[str, float], told: Figures = TOLD) -> list[bool]:
    return [g.held for g in error_gates(told, limits, NAMES)]


def test_each_output_by_its_own_limit():
    assert passed({EVERY: 0.3}) == [True]
    assert passed({EVERY: 0.2}) == [False]
    assert passed({"boxes": 0.1, "scores": 0.1}) == [True, False]
    assert passed({EVERY: 0.1, "scores": 0.3}) == [True, True]  # its own holds in place of that for all
    assert passed({EVERY: 0.3, "boxes": 0.05}) == [True, False]
    assert passed({"still": 0.0}) == [True]
    assert passed(dict.fromkeys((EVERY, "boxes", "scores", "same"), 1.0)) == [True] * 4
    gate = error_gates(TOLD, {"scores": 0.1}, NAMES)[0]
    assert (gate.name, gate.limit) == ("--max-error scores", 0.1)
    assert gate.text == "an error of 30.0% (scores): more than the allowed 10.00%"


def test_an_output_that_was_not_measured_fails_its_own_limit_alone():
    """Fails where a limit passes because nothing was measured."""
    lost = Figures(0.1, None, "", None, (*TOLD.each, Figure(("still",), "", NOT_MEASURED, None, why="NaN")), 100, True)
    assert passed({"boxes": 0.1, "still": 9.0}, lost) == [True, False]
    assert passed({EVERY: 9.0}, lost) == [False]
    assert passed({EVERY: 0.1}, Figures(None, None, "nothing", None, (), 100, True)) == [False]


def test_an_output_that_does_not_exist():
    with pytest.raises(UsageError, match="'boxs', which the model does not have; did you mean 'boxes'"):
        error_gates(TOLD, {"boxs": 0.1}, NAMES)
    with pytest.raises(UsageError, match="there are 'boxes', 'scores', 'same', 'still'"):
        error_gates(TOLD, {"q": 0.1}, NAMES)


def test_limits_as_they_are_given():
    assert checked_limits(None) == {}
    assert checked_limits(0.1) == {EVERY: 0.1}
    assert checked_limits({"o": 1}) == {"o": 1.0}
    for wrong in (float("nan"), -0.1, float("inf"), True):
        with pytest.raises(UsageError, match="max_error"):
            checked_limits({"o": wrong})


def test_a_gate_is_called_as_it_is_typed():
    assert as_typed("--max-drop", 1.0) == "--max-drop 1"
    assert as_typed("--max-error boxes left", 0.001) == "--max-error boxes left:0.001"
    assert as_typed("--min-metric mAP", 0.7) == "--min-metric mAP=0.7"


def decimals(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def test_a_limit_holds_at_its_value():
    """Fails where rounding of a share fails a build, or where the two directions are exchanged."""
    assert at_least("a", 0.3, 0.1 + 0.2, "a").held
    assert at_most("a", 0.3, 0.1 + 0.2, "a").held
    assert not at_least("a", 0.3, 0.29, "a").held
    assert not at_most("a", 0.3, 0.31, "a").held
    assert at_most("--max-a", 0.3, 0.31, "a", decimals).text == "a 0.31 is above the demanded 0.30"
    assert not at_least("a", 0.3, float("nan"), "a").held
    assert not at_most("a", 0.3, float("nan"), "a").held


def test_what_breaks_a_limit_reads_otherwise():
    """Fails where a reader is told that 95.00% is below 95.00%, or that more than 0.00% was not allowed."""
    assert at_least("a", 0.95, 0.94999, "a").text == "a 94.999% is below the demanded 95.000%"
    assert at_most("a", 0.3, 0.3000001, "a", decimals).text == "a 0.3000001 is above the demanded 0.3000000"
    assert at_least("a", 1.0, 0.99999, "a").text == "a 99.999% is below the demanded 100.00%"
    assert at_least("a", 0.95, 0.95, "a").text == "a 95.00% is at least the demanded 95.00%"
    few = Figures(*(0.2, None, "", None), (Figure(("y",), "", ERROR, 2.5e-7),), *(100, True))
    (gate,) = error_gates(few, {EVERY: 1e-9}, ("y",))
    assert gate.text == "an error of 2.5e-05% (y): more than the allowed 1e-07%"
    (gate,) = error_gates(few, {EVERY: 2e-6}, ("y",))
    assert gate.text == "error 2.5e-05% is at most the demanded 0.0002%"


def test_all_that_failed_is_said():
    good, bad = Gate("a", 1, True, "fine"), Gate("b", 1, False, "b is high")
    demand_all([good])
    with pytest.raises(CheckFailed, match=r"^b is high; b is high$"):
        demand_all([bad, good, bad])
