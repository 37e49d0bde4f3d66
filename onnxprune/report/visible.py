"""Text from outside on a terminal: names in a model may hold escape sequences, which move its cursor or set its title.

What is printed passes here, at the edge: reports as a whole (`made_visible`), everything else line by line
(`one_line`). JSON escapes such characters by itself, and is not changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")

_LONGEST = 2000


def visible(text: str) -> str:
    """Every character that is not printable (controls, line breaks, marks that turn the direction) as Python writes it.

    A space is printable, and so are letters of every script; a lone surrogate, which no encoding writes, is not.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str) -> str:
    """A message as one line: breaks and tabs, which libraries put into theirs, become spaces; a long one is cut."""
    line = visible(" ".join(text.split()))
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} … {line[-half:]}"


def made_visible(value: T) -> T:
    """A report, or any nesting of dataclasses, mappings and sequences, with every text in it `visible`."""
    return _made(value)  # type: ignore[no-any-return]


def _made(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _made(getattr(value, f.name)) for f in fields(value) if f.init})
    if isinstance(value, Mapping):
        return {_made(k): _made(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_made(v) for v in value)
    return value
