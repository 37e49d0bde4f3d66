"""The groups of a run: those that lost channels, those that stay whole, and what patterns match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from onnxprune.report.groups import (
    curves_by_group,
    error_alone,
    if_cut,
    is_cut,
    saving,
    share,
    time_saved,
    why_whole,
    width,
)
from onnxprune.report.summary import PatternRow, Report
from onnxprune.report.terminal.screen import Grid, Screen

# From so many columns on there is room for what each group saves and costs.
_WIDE = 120
_SHOWN_LAYERS = 12


def _groups(report: Report) -> list[tuple[int, Mapping[str, Any]]]:
    return [(i, asdict(g)) for i, g in enumerate(report.groups)]


def changed_groups(report: Report, screen: Screen, *, verbose: bool = False) -> Grid:
    """The groups that lost channels; with what each saves and does by itself where there is room, or with `verbose`."""
    more = verbose or (screen.width >= _WIDE and not screen.piped)
    timed = bool((report.timing or {}).get("saved"))
    heads = ("MACs saved", "parameters saved", *["time saved"] * timed, "error alone") if more else ()
    table = screen.table("group", "channels", *heads, "producers", "consumers", " ", title="channels")
    curves = curves_by_group([asdict(c) for c in report.curves])
    for i, g in _groups(report):
        if not is_cut(g):
            continue
        gone = "" if g["channels_after"] else " (branch removed)"
        narrow = f"multiples of {g['alignment']}" if g["alignment"] != report.alignment.multiple else ""
        remarks = ", ".join(filter(None, ("mixing" if g["mixing"] else "", narrow)))
        cells = (
            saving(g, "macs", report.before.macs),
            saving(g, "parameters", report.before.parameters),
            *[time_saved(report.timing, i)] * timed,
            error_alone(curves.get(i), g),
        )
        numbers = (str(g["producers"]), str(g["consumers"]))
        table.add_row(g["name"], width(g) + gone, *(cells if more else ()), *numbers, remarks)
    return table


def reasons_to_stay(report: Report) -> dict[str, int]:
    """Why groups stay whole → how many, the most frequent first."""
    return dict(Counter(why_whole(g) for _, g in _groups(report) if not is_cut(g)).most_common())


def whole_groups(report: Report, screen: Screen) -> Grid:
    """The groups that stay whole, each with its MACs, what a cut was tried to do, and its reason."""
    table = screen.table("group", "channels", "MACs", "error if cut", " reason", title="unchanged")
    curves = curves_by_group([asdict(c) for c in report.curves])
    for i, g in _groups(report):
        if not is_cut(g):
            alone = if_cut(curves.get(i), g)
            table.add_row(g["name"], width(g), share(g, report.before.macs), alone, why_whole(g))
    return table


def patterns(rows: Sequence[PatternRow], screen: Screen) -> Grid:
    """What each pattern of an option matches."""
    table = screen.table("pattern", "nodes", "tensors", "groups", " layers", title="what the patterns match")
    for p in rows:
        shown = ", ".join(p.layers[:_SHOWN_LAYERS]) or "none"
        more = len(p.layers) - _SHOWN_LAYERS
        shown += f", and {more} more (--report lists them)" if more > 0 else ""
        table.add_row(f"{p.option} {p.pattern}", str(len(p.nodes)), str(len(p.tensors)), str(len(p.groups)), shown)
    return table
