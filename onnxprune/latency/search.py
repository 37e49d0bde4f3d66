"""Meet a measured time: allocate for a limit, measure what comes of it, and correct the limit.

A price that is composed of layers is off by a few percent for a whole model. So the limit that is handed to the
allocation is not the time that is wanted, but whatever has the wanted time measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Kept = tuple[int, ...]

_ROUNDS = 6
_CLOSE = 0.01
_INSIDE = 0.1


@dataclass(frozen=True)
class Round:
    """The units that a limit leads to, and the share of the original's time that they take."""

    limit: float
    kept: Kept
    measured: float


def meet(
    decide: Callable[[float], Kept],
    measure: Callable[[Kept], float],
    wanted: float,
    least: float,
    rounds: int = _ROUNDS,
) -> tuple[Round, ...]:
    """The rounds, best first, for a `wanted` share of the time. decide: limit → units. least: the lowest limit.

    Ends where a measured share is within a percent of the wanted one, or the units stay the same.
    """
    found: list[Round] = []
    limit = max(wanted, least)
    for _ in range(rounds):
        kept = decide(limit)
        if any(kept == r.kept for r in found):
            break
        found.append(Round(limit, kept, measure(kept)))
        if abs(found[-1].measured / wanted - 1.0) <= _CLOSE:
            break
        limit = max(next_limit(found, wanted), least)
    return tuple(sorted(found, key=lambda r: abs(r.measured - wanted)))


def next_limit(found: Sequence[Round], wanted: float) -> float:
    """Between the nearest rounds on either side, or else in proportion to the last one."""
    quicker = max((r for r in found if r.measured <= wanted), key=lambda r: r.measured, default=None)
    slower = min((r for r in found if r.measured > wanted), key=lambda r: r.measured, default=None)
    if quicker is None or slower is None:
        return found[-1].limit * wanted / found[-1].measured
    share = (wanted - quicker.measured) / (slower.measured - quicker.measured)
    # At an end of the interval the same units would come out again.
    return quicker.limit + min(max(share, _INSIDE), 1.0 - _INSIDE) * (slower.limit - quicker.limit)
