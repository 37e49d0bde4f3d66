"""A page with blocks that are made from results.

What stands between `<!-- KIND: NAME -->` and the next `<!-- end -->` is replaced by what the maker of that name gives.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Makers = Mapping[str, Mapping[str, Callable[[], str]]]


def fill(page: Path, makers: Makers) -> None:
    """Replace every block of the page; makers: by kind and name. Exits with one line where a name is unknown."""
    blocks = pattern(makers)

    def block(found: re.Match[str]) -> str:
        start, kind, name, end = found.groups()
        text = makers[kind][name]()
        return f"{start}\n{text}\n\n{end}" if text else f"{start}{end}"

    text = page.read_text(encoding="utf-8")
    for _, kind, name, _ in blocks.findall(text):
        if name not in makers[kind]:
            sys.exit(f"{page} asks for the {kind} {name!r}; there are {', '.join(makers[kind])}")
    page.write_text(blocks.sub(block, text), encoding="utf-8")


def put(page: Path, kind: str, name: str, text: str) -> None:
    """Replace one block and leave the others. Exits with one line where the page has no such block."""
    found = page.read_text(encoding="utf-8")
    start = f"<!-- {kind}: {name} -->\n"
    if start not in found:
        sys.exit(f"{page} has no block {kind}: {name}")
    before, rest = found.split(start, 1)
    _, after = rest.split("<!-- end -->", 1)
    page.write_text(f"{before}{start}{text}\n\n<!-- end -->{after}", encoding="utf-8")


def pattern(kinds: Iterable[str]) -> re.Pattern[str]:
    """A block of one of these kinds: its first line, kind, name, and its last line."""
    return re.compile(rf"(<!-- ({'|'.join(map(re.escape, kinds))}): ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
