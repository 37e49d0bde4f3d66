"""The closed loop, against machines that are off from what was predicted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnxprune.latency.search import KeptUnits, Round, meet, next_limit

UNITS = 1000


def units(limit: float) -> KeptUnits:
    """A cost in proportion to the units."""
    return (max(min(int(limit * UNITS), UNITS), 100),)


@pytest.mark.parametrize("wanted", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(
    "measured",
    [
        lambda x: x,
        lambda x: 0.2 + 0.8 * x,
        lambda x: x**2,
        lambda x: 0.9 * x**0.5,
        lambda x: 0.85 * x,
        lambda x: 1.3 * x - 0.1,
    ],
    ids=["right", "constant", "quicker", "slower", "less", "more"],
)
def test_the_measured_share_is_met(wanted: float, measured: Callable[[float], float]):
    best = meet(units, lambda kept: measured(kept[0] / UNITS), wanted, 0.1)[0]
    assert best.measured == pytest.approx(wanted, rel=0.02)


def test_a_share_that_is_right_is_measured_once():
    assert len(meet(units, lambda kept: kept[0] / UNITS, 0.5, 0.1)) == 1


def test_the_rounds_end_where_the_units_stay_the_same():
    calls: list[KeptUnits] = []

    def measure(kept: KeptUnits) -> float:
        calls.append(kept)
        return 0.9

    found = meet(lambda _: (7,), measure, 0.5, 0.1)
    assert calls == [(7,), (7,)]
    assert [(r.kept, r.measured) for r in found] == [((7,), 0.9)]


def test_a_measurement_that_was_disturbed_does_not_end_the_rounds():
    """Fails where units that come out again are believed to be as slow as they first seemed."""
    shares = iter([0.9, 0.5, 0.5, 0.5, 0.5, 0.5])
    limits: list[float] = []

    def decide(limit: float) -> KeptUnits:
        limits.append(limit)
        return (round(10 * limit),) if len(limits) > 2 else (5,)

    meet(decide, lambda kept: next(shares), 0.45, 0.1)
    # 0.9, then the mean of 0.9 and 0.5, each in proportion to the limit that led there.
    assert limits[:3] == pytest.approx([0.45, 0.225, 0.225 * 0.45 / 0.7])


def test_steps_that_jump_over_the_share_give_the_nearer_side():
    for below, above, best in ((0.45, 0.6, 1), (0.45, 0.53, 1), (0.45, 0.52, 2)):
        shares = {(1,): below, (2,): above}
        assert meet(lambda limit: (1,) if limit < 0.5 else (2,), shares.__getitem__, 0.5, 0.1)[0].kept == (best,)


def test_limits_stay_above_the_least():
    limits: list[float] = []

    def decide(limit: float) -> KeptUnits:
        limits.append(limit)
        return units(limit)

    meet(decide, lambda kept: 0.5 + kept[0] / UNITS, 0.55, 0.2)
    assert min(limits) >= 0.2


def test_the_next_limit_lies_between_two_sides():
    low, high = Round(0.3, (3,), 0.4), Round(0.5, (5,), 0.6)
    assert next_limit([low, high], 0.5) == pytest.approx(0.4)
    assert next_limit([low, high], 0.4001) == pytest.approx(0.32)
    assert next_limit([low], 0.6) == pytest.approx(0.45)
