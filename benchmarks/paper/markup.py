"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers are shown by `number`."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join("---" for _ in head) + "|"]
    lines += ["| " + " | ".join(c if isinstance(c, str) else number(c) for c in row) + " |" for row in rows]
    return "\n".join(lines)


def number(x: object) -> str:
    """Three significant digits, with an exponent where it is far from 1; "" for what was not measured."""
    if x is None:
        return ""
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        return str(x)
    if isinstance(x, int):
        return f"{x:,}"
    if x == 0:
        return "0"
    return f"{x:.3g}" if 1e-3 <= abs(x) < 1e4 else f"{x:.1e}"


def percent(x: float | None) -> str:
    """With one decimal, as 500 to 1,000 test images allow."""
    return "" if x is None else f"{x:.1f}"


def count(n: int, of: int, what: str) -> str:
    """How many of how many."""
    return f"all {of} {what}" if n == of else f"none of {of} {what}" if n == 0 else f"{n} of {of} {what}"


def missing(section: str) -> str:
    """What stands where nothing was measured yet."""
    return f"*Not measured yet: `python -m benchmarks.paper KIT --only {section} --output docs`.*"
