"""Gates on time go by the unfavourable end of the interval."""

from __future__ import annotations

from typing import Any

import pytest

from onnxprune.benchmark.gates import check, gates
from onnxprune.benchmark.measure import Bench, Comparison
from onnxprune.errors import UsageError


def bench(interval: tuple[float, float] | None, *, two: bool = True) -> Bench:
    c = Comparison(0.75, (0.7, 0.8), interval) if two else None
    return Bench((), c, "CPU", "ort", "model", "cpu", 0, 1, {}, "random", 20, 3)


@pytest.mark.parametrize(
    ("limits", "passed"),
    [
        ({"max_ratio": 0.8}, True),  # the upper end itself
        ({"max_ratio": 0.79}, False),  # the median is below
        ({"min_speedup": 1.25}, True),
        ({"min_speedup": 1.26}, False),
        ({"min_speedup": 1.4}, False),  # the lower end of the ratio would do
    ],
)
def test_the_unfavourable_end(limits: dict[str, float], passed: bool):
    (gate,) = gates(bench((0.7, 0.8)), **limits)
    assert gate.held == passed
    assert gate.limit == next(iter(limits.values()))
    assert ("its upper end is" if "max_ratio" in limits else "its lower end is") in gate.text


def test_rounds_that_bound_nothing_fail():
    """Fails where a gate passes because nothing was measured well enough."""
    (gate,) = gates(bench(None), max_ratio=10.0)
    assert not gate.held
    assert "20 rounds do not bound it" in gate.text


@pytest.mark.parametrize("name", ["max_ratio", "min_speedup"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 2000.0, "1", True])
def test_limits_that_limit_nothing(name: str, value: Any):
    with pytest.raises(UsageError, match=name):
        check(**{"max_ratio": None, "min_speedup": None, name: value})


def test_one_model_alone():
    assert gates(bench((0.7, 0.8), two=False)) == ()
    with pytest.raises(UsageError, match="compares two models"):
        gates(bench(None, two=False), min_speedup=1.2)
