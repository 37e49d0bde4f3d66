"""Meet a measured time: allocate for a limit, measure what comes of it, and correct the limit.

A cost that is composed of layers is off by a few percent for a whole model. So the limit that is handed to the
allocation is not the time that is wanted, but whatever has the wanted time measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

KeptUnits = tuple[int, ...]

_ROUNDS = 6
_CLOSE = 0.01
_INSIDE = 0.1
_FARTHEST = 3.0
_SLOWER = 2.0


@dataclass(frozen=True)
class Round:
    """The units that a limit leads to, and the share of the original's time that they take."""

    limit: float
    kept: KeptUnits
    measured: float


def meet(
    decide: Callable[[float], KeptUnits],
    measure: Callable[[KeptUnits], float],
    wanted: float,
    least: float,
    rounds: int = _ROUNDS,
) -> tuple[Round, ...]:
    """The rounds, best first, for a `wanted` share of the time. decide: limit → units. least: the lowest limit.

    Units that come out again are measured again: either measurement may have met a busy machine, so their mean counts.
    Ends where a measured share is within a percent of the wanted one, or a second measurement confirms the first. The
    best is the nearest, where being slower than wanted counts twice.
    """
    tried: list[Round] = []
    limit = max(wanted, least)
    for _ in range(rounds):
        kept = decide(limit)
        again = next((r for r in tried if kept == r.kept), None)
        share = measure(kept)
        if again is None:
            tried.append(Round(limit, kept, share))
        else:
            tried.remove(again)
            tried.append(replace(again, limit=limit, measured=(again.measured + share) / 2))
        confirmed = again is not None and abs(share / again.measured - 1.0) <= _CLOSE
        if confirmed or abs(tried[-1].measured / wanted - 1.0) <= _CLOSE:
            break
        limit = max(next_limit(tried, wanted), least)
    return tuple(sorted(tried, key=lambda r: max(wanted - r.measured, _SLOWER * (r.measured - wanted))))


def next_limit(tried: Sequence[Round], wanted: float) -> float:
    """Between the nearest rounds on either side; else on the line through the last two, or in proportion to one."""
    quicker = max((r for r in tried if r.measured <= wanted), key=lambda r: r.measured, default=None)
    slower = min((r for r in tried if r.measured > wanted), key=lambda r: r.measured, default=None)
    if quicker is None or slower is None:
        return _beyond(tried, wanted)
    share = (wanted - quicker.measured) / (slower.measured - quicker.measured)
    # At an end of the interval the same units would come out again.
    return quicker.limit + min(max(share, _INSIDE), 1.0 - _INSIDE) * (slower.limit - quicker.limit)


def _beyond(tried: Sequence[Round], wanted: float) -> float:
    last = tried[-1]
    proportional = last.limit * wanted / last.measured
    if len(tried) < 2 or (last.measured - tried[-2].measured) * (last.limit - tried[-2].limit) <= 0.0:
        return proportional
    slope = (last.measured - tried[-2].measured) / (last.limit - tried[-2].limit)
    # Two close measurements say little of their slope.
    step = _FARTHEST * abs(proportional - last.limit)
    return last.limit + min(max((wanted - last.measured) / slope, -step), step)
