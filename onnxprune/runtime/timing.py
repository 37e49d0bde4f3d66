"""Paired timing: what is compared is run in turns, so that a machine that slows down slows all of it down."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.numerics.arrays import Doubles

_QUICK = 0.2


@dataclass(frozen=True, eq=False)
class Times:
    """Wall-clock seconds of single runs, (runs,), unless another clock was given."""

    seconds: Doubles

    @property
    def median(self) -> float:
        """The median of the times, in seconds."""
        return float(np.median(self.seconds))

    @property
    def p90(self) -> float:
        """Seconds that nine of ten runs stay below."""
        return float(np.quantile(self.seconds, 0.9))


def paired(
    actions: Sequence[Callable[[], object]],
    *,
    warmup: int = 3,
    least_runs: int = 10,
    most_runs: int = 1000,
    budget: float = 2.0,
    clock: Callable[[], float] | None = None,
) -> tuple[Times, ...]:
    """Times of every action, as many of each. They take turns, and every other round goes backwards.

    warmup: rounds that do not count. Rounds go on until `budget` seconds have passed, but at least `least_runs` and at
    most `most_runs` of them. clock: what `Times` count, the wall clock unless given; `budget` is of the wall clock.
    """
    now = clock or time.perf_counter
    for _ in range(warmup):
        for action in actions:
            action()
    seconds: list[list[float]] = [[] for _ in actions]
    order = list(range(len(actions)))
    start = time.perf_counter()
    for done in range(most_runs):
        if done >= least_runs and time.perf_counter() - start >= budget:
            break
        for i in order:
            before = now()
            actions[i]()
            seconds[i].append(now() - before)
        order.reverse()
    return tuple(Times(np.array(s)) for s in seconds)


def quick_ratio(new: Times, old: Times) -> float:
    """The quickest fifth of one's runs over that of the other's; both from one call of `paired`.

    On a quiet machine that is the ratio of the medians. On a busy one it is closer to it than they are: a longer run is
    interrupted more often, which would make the shorter one look even shorter.
    """
    return float(np.quantile(new.seconds, _QUICK) / np.quantile(old.seconds, _QUICK))


def ratio(new: Times, old: Times) -> float:
    """Median over the rounds of one's time over the other's in the same round; both from one call of `paired`."""
    return float(np.median(new.seconds / old.seconds))
