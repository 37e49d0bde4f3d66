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
from onnxprune.report.view import gone_experts, gone_layers

_SHOWN_LAYERS = 12


def _groups(report: Report, *, cut: bool) -> list[tuple[int, Mapping[str, Any]]]:
    """The groups that lost channels, or those that did not, with their numbers."""
    rows = [(i, asdict(g)) for i, g in enumerate(report.groups)]
    return [(i, g) for i, g in rows if is_cut(g) == cut]


def any_cut(report: Report) -> bool:
    """Whether any group lost channels."""
    return bool(_groups(report, cut=True))


def changed_groups(report: Report, screen: Screen) -> Grid:
    """The groups that lost channels."""
    table = screen.table("group", "channels", "producers", "consumers", " ", title="channels")
    for _, g in _groups(report, cut=True):
        gone = "" if g["channels_after"] else " (branch removed)"
        narrow = f"multiples of {g['alignment']}" if g["alignment"] != report.alignment.multiple else ""
        remarks = ", ".join(filter(None, ("mixing" if g["mixing"] else "", narrow)))
        table.add_row(g["name"], width(g) + gone, str(g["producers"]), str(g["consumers"]), remarks)
    return table


def layers_gone(report: Report, screen: Screen) -> list[Grid]:
    """The layers of a transformer that went as a whole; () where none did."""
    rows = gone_layers(asdict(report))
    if not rows:
        return []
    heads = ("MACs saved", "parameters saved", "error alone")
    table = screen.table("layer", *heads, title="whole layers that went")
    for row in rows:
        table.add_row(*row)
    return [table]


def experts_gone(report: Report, screen: Screen) -> list[Grid]:
    """The experts that went from mixtures; () where none did."""
    rows = gone_experts(asdict(report))
    if not rows:
        return []
    table = screen.table("mixture", "experts", " gone", "share of what all give", title="experts that went")
    for row in rows:
        table.add_row(*row)
    return [table]


def what_cuts_do(report: Report, screen: Screen) -> Grid:
    """What the cut of each group saves and does to the outputs by itself."""
    timed = bool((report.timing or {}).get("saved"))
    heads = ("MACs saved", "parameters saved", *["time saved"] * timed, "error alone")
    table = screen.table("group", *heads, title="what each cut saves and does by itself")
    curves = curves_by_group([asdict(c) for c in report.curves])
    for i, g in _groups(report, cut=True):
        saved = saving(g, "macs", report.before.macs), saving(g, "parameters", report.before.parameters)
        time = [time_saved(report.timing, i)] * timed
        table.add_row(g["name"], *saved, *time, error_alone(curves.get(i), g))
    return table


def reasons_to_stay(report: Report) -> dict[str, int]:
    """Why groups stay whole → how many, the most frequent first."""
    return dict(Counter(why_whole(g) for _, g in _groups(report, cut=False)).most_common())


def whole_groups(report: Report, screen: Screen) -> list[Grid]:
    """The groups that stay whole, with their MACs and what a cut was tried to do: a table for each reason."""
    curves = curves_by_group([asdict(c) for c in report.curves])
    tables = []
    for reason, n in reasons_to_stay(report).items():
        table = screen.table("group", "channels", "MACs", "error if cut", title=f"{n} unchanged: {reason}")
        for i, g in _groups(report, cut=False):
            if why_whole(g) == reason:
                table.add_row(g["name"], width(g), share(g, report.before.macs), if_cut(curves.get(i), g))
        tables.append(table)
    return tables


def patterns(rows: Sequence[PatternRow], screen: Screen) -> Grid:
    """What each pattern of an option matches."""
    table = screen.table("pattern", "nodes", "tensors", "groups", " layers", title="what the patterns match")
    for p in rows:
        shown = ", ".join(p.layers[:_SHOWN_LAYERS]) or "none"
        more = len(p.layers) - _SHOWN_LAYERS
        shown += f", and {more} more (--report lists them)" if more > 0 else ""
        table.add_row(f"{p.option} {p.pattern}", str(len(p.nodes)), str(len(p.tensors)), str(len(p.groups)), shown)
    return table
