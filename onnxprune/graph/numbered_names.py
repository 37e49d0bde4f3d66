"""Names that differ in a number alone: those of the caches of a decoder, one for each layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"[0-9]+")


def number_in(name: str, names: Iterable[str]) -> tuple[int, int]:
    """(Start, end) of the number of a name in which most of the others differ from it; (0, 0) where none does."""
    others = [n for n in names if n != name]
    best, place = 0, (0, 0)
    for m in _NUMBER.finditer(name):
        count = sum(_like(name, *m.span()).fullmatch(n) is not None for n in others)
        if count > best:
            best, place = count, m.span()
    return place


def parted(name: str, names: Iterable[str]) -> tuple[str, int]:
    """(The name with # for its number, the number); "" where no other name differs from it in a number alone."""
    start, end = number_in(name, names)
    return (f"{name[:start]}#{name[end:]}", int(name[start:end])) if end else ("", 0)


def family(name: str, names: Sequence[str]) -> list[tuple[int, str]]:
    """(Number, name) of those that differ from a name in its number alone, ascending; none where it has no such."""
    start, end = number_in(name, names)
    like = _like(name, start, end)
    found = ((n, like.fullmatch(n)) for n in (names if end else ()))
    return sorted((int(m.group(1)), n) for n, m in found if m is not None)


def _like(name: str, start: int, end: int) -> re.Pattern[str]:
    return re.compile(f"{re.escape(name[:start])}([0-9]{{1,9}}){re.escape(name[end:])}")
