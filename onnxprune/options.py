"""Values of options: each of its type, and none so large that it can only be a slip of the pen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

from onnxprune.errors import UsageError

# Nothing has so many channels, samples or rounds.
MOST_NUMBER = 2**31 - 1

# Numbers of experts with more digits are none.
_DIGITS = 10


def typed(name: str, value: Any, kinds: str) -> Any:
    """`value` as one of some types, such as "int | None"; numpy's numbers become Python's, lists of texts tuples.

    Raises UsageError where it is of none of them; True and False are no numbers.
    """
    switch = type(value).__name__ in ("bool", "bool_")  # numpy's too
    for kind in kinds.split(" | "):
        if kind == "None" and value is None:
            return None
        if kind == "bool" and switch:
            return bool(value)
        if kind == "int" and isinstance(value, Integral) and not switch:
            return int(value)
        if kind == "float" and isinstance(value, Real) and not switch:
            return _as_float(value)
        if kind == "str" and isinstance(value, str):
            return str(value)
        if kind == "tuple[str, ...]" and isinstance(value, (tuple, list)) and all(isinstance(v, str) for v in value):
            return tuple(value)
        if kind == "tuple[int, ...]" and (numbers := _integers(value)) is not None:
            return numbers
    wanted = kinds.replace("tuple[str, ...]", "a list of texts").replace("str", "text").replace(" | ", " or ")
    wanted = wanted.replace("tuple[int, ...]", "a list of integers from 0 on")
    raise UsageError(f"{name} is {shown(value)}; it must be {wanted}")


def _integers(value: Any) -> tuple[int, ...] | None:
    """The integers of a tuple, a list or an array of one axis; None of anything else, and of negative ones."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if not isinstance(value, (tuple, list)) or any(isinstance(v, bool) or not isinstance(v, Integral) for v in value):
        return None
    return None if any(v < 0 for v in value) else tuple(map(int, value))


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def error_limit(value: Any, name: str = "max_error", such_as: str = "a share such as 0.05") -> float | None:
    """What an error may be at most, as a share; None for no limit. Raises UsageError for what limits nothing."""
    limit: float | None = typed(name, value, "float | None")
    if limit is not None and not 0.0 <= limit < math.inf:
        raise UsageError(f"{name} is {limit}; give {such_as}")
    return limit


def number(text: str) -> float:
    """A number as 0.4 or 40%. Raises ValueError for what is none."""
    bare = text.strip()
    return float(bare.removesuffix("%")) / (100.0 if bare.endswith("%") else 1.0)


def shares_by_pattern(name: str, pairs: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Pairs PATTERN=SHARE taken apart, shares as 0.2 or 20%. Raises UsageError for one that is none."""
    parted: list[tuple[str, float]] = []
    for pair in pairs:
        pattern, _, text = pair.rpartition("=")
        try:
            share = number(text)
        except ValueError:
            share = math.nan
        if not pattern or not 0.0 <= share < 1.0:
            raise UsageError(f"{name} {shown(pair)} is no pattern with a share in [0, 1); write 'PATTERN=0.2'")
        parted.append((pattern, share))
    return tuple(parted)


def experts_by_pattern(name: str, wanted: Sequence[str]) -> tuple[int, tuple[tuple[str, tuple[int, ...]], ...]]:
    """(how many experts go from each mixture, those that go from mixtures by pattern) of N and PATTERN=3,5.

    Raises UsageError for what is neither, for two numbers, and for an expert that is named twice.
    """
    counts: list[int] = []
    named: list[tuple[str, tuple[int, ...]]] = []
    for text in wanted:
        pattern, _, numbers = text.rpartition("=")
        parts = numbers.split(",")
        if not all(p.isascii() and p.isdigit() and len(p) < _DIGITS for p in parts) or (not pattern and "=" in text):
            raise UsageError(f"{name} {shown(text)} is no number of experts, and no 'PATTERN=3,5' that names some")
        if pattern:
            experts = sorted(map(int, parts))
            twice = next((e for e, other in pairwise(experts) if e == other), None)
            if twice is not None:
                raise UsageError(f"{name} {shown(text)} names the expert {twice} twice; leave one out")
            named.append((pattern, tuple(experts)))
        elif len(parts) > 1 or int(text) < 1:
            raise UsageError(f"{name} {shown(text)}: give how many experts go from each mixture, or 'PATTERN=3,5'")
        else:
            counts.append(int(text))
    if len(counts) > 1:
        raise UsageError(f"{name} says twice how many experts go from each mixture; leave one out")
    return counts[0] if counts else 0, tuple(named)


def check_most(name: str, value: Any, most: int) -> None:
    """Raises UsageError for a number above `most`, also in a tuple; what is no number passes."""
    if isinstance(value, tuple):
        value = max((v for v in value if isinstance(v, int)), default=None)
    if isinstance(value, int) and value > most:
        raise UsageError(f"{name} is {shown(value)}; it is at most {most}")


def exact_percent(share: float) -> str:
    """A share as it was asked for, no digit of it rounded away: 50%, 99.99%, 1e-15%."""
    text = f"{100.0 * share:.10g}"
    return f"{text}%" if text != "100" or share == 1.0 else f"{100.0 * share!r}%"


def at_most(share: float) -> str:
    """A share that is the most there is: rounded down."""
    return f"{math.floor(1000.0 * max(share, 0.0)) / 10.0:.1f}%"


def nearest(name: str, known: Iterable[str], most: int = 1) -> str:
    """The names among `known` that `name` is most likely a slip of, as "a or b"; empty where none is near."""
    lower = {k.lower(): k for k in known}
    found = get_close_matches(name.lower(), lower, n=most)
    return " or ".join(lower[k] for k in found)


def first_of(names: Sequence[str], most: int, between: str = ", ") -> str:
    """Some names, or sentences, for a message, and how many more there are: "a, b and 7 more"."""
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  of a foreign object, or an integer of more digits than Python writes
        return f"a very large {type(value).__name__}" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}…"


# Above these a number is a slip of the pen: nothing has so many samples in a run, threads or epochs.
MOST_THREADS = 1024
MOST: Mapping[str, int] = MappingProxyType(
    {
        "threads": MOST_THREADS,
        "batch": 1 << 16,
        "probes": 1 << 10,
        "recover": 10_000,
        "effort": 100_000,
        "seed": 2**63 - 1,
        "memory": 1 << 50,
    }
)
