"""A page whose tables and plots are made from results.

What stands between `<!-- table: NAME -->` or `<!-- plot: NAME -->` and the next `<!-- end -->` is replaced; plots are
written into the folder beside the page that is named like it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.accuracy import tables
from benchmarks.accuracy.networks import NETWORKS
from benchmarks.accuracy.runs import Row
from benchmarks.decoder.__main__ import TABLE, rendered
from benchmarks.page import fill, put


def decoder(rows: Sequence[Row]) -> str:
    """The small language model beside other ways of choosing what goes."""
    mine = [r for r in rows if r["model"] == "decoder"]
    return rendered(mine) if mine else "*Not measured yet: `python -m benchmarks.decoder FOLDER --out FILE`.*"


def classifiers(rows: Sequence[Row]) -> list[Row]:
    """Rows of the kit's image classifiers, which are all that some tables and all plots speak of."""
    return [r for r in rows if r["model"] not in NETWORKS]


TABLES: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "bars": tables.bars,
    "methods": lambda rows: tables.methods(classifiers(rows)),
    "calibration": lambda rows: tables.calibration(classifiers(rows)),
    "sources": lambda rows: tables.sources(classifiers(rows)),
    "peers": lambda rows: tables.peers(classifiers(rows)),
    "transformers": tables.transformers,
    TABLE: decoder,
}
PLOTS = ("methods", "calibration", "peers")


def render(page: Path, rows: Sequence[Row], only: Sequence[str] = ()) -> None:
    """Replace every block of the page, or the tables `only`.

    Exits with one line where a name is unknown, or matplotlib is missing.
    """
    for name in only:
        put(page, "table", name, f"\n{TABLES[name](rows)}")
    if only:
        return
    made = {name: partial(make, rows) for name, make in TABLES.items()}
    drawn = {name: partial(_plots, name, classifiers(rows), page) for name in PLOTS}
    fill(page, {"table": made, "plot": drawn})


def _plots(name: str, rows: Sequence[Row], page: Path) -> str:
    """Links to the plots, made anew."""
    if find_spec("matplotlib") is None:
        sys.exit("plots need matplotlib: `pip install '.[bench]'` brings it")
    from benchmarks.accuracy import plots

    folder = page.with_suffix("")
    links = (f"![{title}]({folder.name}/{path.name})" for title, path in getattr(plots, name)(rows, folder))
    return "\n".join(links)
