"""Times are taken in turns; clocks are faked, so nothing here depends on the machine."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.runtime import timing
from onnxprune.runtime.timing import Times, paired, quick_ratio, ratio


class Machine:
    """A clock that only actions move; `slow` is how many times slower it runs at present."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now, self.slow, self.calls = 0.0, 1.0, []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def action(self, name: str, seconds: float):
        def act():
            self.calls.append(name)
            self.now += seconds * self.slow

        return act


def test_actions_take_turns_and_the_order_turns_too(monkeypatch: pytest.MonkeyPatch):
    machine = Machine(monkeypatch)
    paired([machine.action("a", 1), machine.action("b", 2)], warmup=1, least_runs=3, budget=0)
    assert "".join(machine.calls) == "ab" + "ab" + "ba" + "ab"


def test_every_action_gets_its_own_times(monkeypatch: pytest.MonkeyPatch):
    machine = Machine(monkeypatch)
    a, b = paired([machine.action("a", 1), machine.action("b", 2)], warmup=2, least_runs=5, budget=0)
    np.testing.assert_allclose(a.seconds, np.ones(5))
    np.testing.assert_allclose(b.seconds, np.full(5, 2.0))


def test_rounds_go_on_until_the_budget_is_spent(monkeypatch: pytest.MonkeyPatch):
    machine = Machine(monkeypatch)
    (a,) = paired([machine.action("a", 1)], least_runs=2, budget=7)
    assert a.seconds.size == 7
    (b,) = paired([machine.action("b", 1)], least_runs=2, most_runs=4, budget=7)
    assert b.seconds.size == 4


def test_the_ratio_does_not_see_a_machine_that_slows_down(monkeypatch: pytest.MonkeyPatch):
    machine = Machine(monkeypatch)

    def slower():
        machine.slow *= 3.0

    a, b, _ = paired([machine.action("a", 1), machine.action("b", 0.5), slower], least_runs=9, budget=0)
    # Backwards rounds slow down before both, forward ones behind both.
    assert ratio(b, a) == pytest.approx(0.5)
    assert a.seconds.max() > 1000 * a.seconds.min()


def test_median_and_p90():
    times = Times(np.arange(101) / 100)
    assert times.median == pytest.approx(0.5)
    assert times.p90 == pytest.approx(0.9)


def test_another_clock_may_count(monkeypatch: pytest.MonkeyPatch):
    """Fails where the clock that was given decides how long rounds go on, or the wall clock what a run took."""
    machine = Machine(monkeypatch)
    worked = [0.0]

    def act():
        machine.now += 10.0
        worked[0] += 1.0

    (times,) = paired([act], warmup=0, least_runs=1, budget=25.0, clock=lambda: worked[0])
    np.testing.assert_array_equal(times.seconds, np.ones(3))


def test_interruptions_of_the_longer_one_do_not_count():
    """Fails where a run that is interrupted more often looks slower than it is."""
    old = np.where(np.arange(100) % 3 == 0, 4.0, 9.0)
    new = np.where(np.arange(100) % 3 == 2, 7.0, 2.0)
    assert quick_ratio(Times(new), Times(old)) == 0.5
