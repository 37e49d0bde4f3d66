"""A page whose tables and plots are made from results.

What stands between `<!-- table: NAME -->` or `<!-- plot: NAME -->` and the next `<!-- end -->` is replaced; plots are
written into the folder beside the page that is named like it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.accuracy import tables
from benchmarks.accuracy.runs import Row

TABLES: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "bars": tables.bars,
    "methods": tables.methods,
    "calibration": tables.calibration,
    "sources": tables.sources,
    "peers": tables.peers,
}
PLOTS = ("methods", "calibration", "peers")
_BLOCK = re.compile(r"(<!-- (table|plot): ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(page: Path, rows: Sequence[Row]) -> None:
    """Replace every block of the page. Exits with one line where a name is unknown, or matplotlib is missing."""

    def block(found: re.Match[str]) -> str:
        start, kind, name, end = found.groups()
        text = TABLES[name](rows) if kind == "table" else _plots(name, rows, page)
        return f"{start}\n{text}\n\n{end}" if text else f"{start}{end}"

    text = page.read_text(encoding="utf-8")
    kinds = {"table": tuple(TABLES), "plot": PLOTS}
    for _, kind, name, _ in _BLOCK.findall(text):
        if name not in kinds[kind]:
            sys.exit(f"{page} asks for the {kind} {name!r}; there are {', '.join(kinds[kind])}")
    page.write_text(_BLOCK.sub(block, text), encoding="utf-8")


def _plots(name: str, rows: Sequence[Row], page: Path) -> str:
    """Links to the plots, made anew."""
    if find_spec("matplotlib") is None:
        sys.exit("plots need matplotlib: `pip install .[bench]` brings it")
    from benchmarks.accuracy import plots

    folder = page.with_suffix("")
    links = (f"![{title}]({folder.name}/{path.name})" for title, path in getattr(plots, name)(rows, folder))
    return "\n".join(links)
