"""Limits on the time of one model beside another's.

A limit goes by the unfavourable end of the interval, so that noise fails a build rather than passes a slow model: with
95 % confidence the median of the ratio in this run is no worse.
"""

from __future__ import annotations

import math

from onnxprune.benchmark.measure import Bench
from onnxprune.errors import UsageError
from onnxprune.measures.gates import Gate
from onnxprune.options import typed

# What is above it limits nothing: no model that is worth comparing takes so many times as long.
_MOST = 1000.0


def check(*, max_ratio: float | None, min_speedup: float | None, two: bool = True) -> None:
    """Raises UsageError for a limit that limits nothing, or where there are no `two` models to compare."""
    for name, value in (("max_ratio", max_ratio), ("min_speedup", min_speedup)):
        number = typed(name, value, "float | None")
        if number is not None and not 0.0 < number <= _MOST:
            raise UsageError(f"{name} is {value}; it is above 0, and at most {_MOST:g}")
        if number is not None and not two:
            raise UsageError(f"{name} compares two models; name the other one, too")


def gates(result: Bench, *, max_ratio: float | None = None, min_speedup: float | None = None) -> tuple[Gate, ...]:
    """The limits as gates: OTHER's time over MODEL's is at most `max_ratio`, its inverse at least `min_speedup`.

    Raises UsageError for a limit that limits nothing, or where one model was timed alone.
    """
    check(max_ratio=max_ratio, min_speedup=min_speedup, two=result.comparison is not None)
    found: list[Gate] = []
    if max_ratio is not None:
        found.append(_gate("--max-ratio", max_ratio, max_ratio, result))
    if min_speedup is not None:
        found.append(_gate("--min-speedup", min_speedup, 1.0 / min_speedup, result))
    return tuple(found)


def _gate(option: str, limit: float, most: float, result: Bench) -> Gate:
    """most: of the ratio, whatever the limit is of."""
    name, c = option.rpartition("-")[2], result.comparison
    if c is None or c.interval is None:
        why = f"{result.rounds} rounds do not bound it: give more --runs, or leave it out"
        return Gate(option, limit, False, f"a {name} of {limit:g} was demanded, but {why}")
    low, high = c.interval
    held = high <= most
    if name == "ratio":
        ends, which, than = (low, high), "upper", "at most" if held else "above"
    else:
        ends = (1.0 / high, 1.0 / low if low > 0.0 else math.inf)
        which, than = "lower", "at least" if held else "below"
    return Gate(
        option, limit, held, f"{name} {ends[0]:.3f} to {ends[1]:.3f}: its {which} end is {than} the demanded {limit:g}"
    )
