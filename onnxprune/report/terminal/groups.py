"""The groups of a run: those that lost channels, those that stay whole, and what patterns match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from onnxprune.report.summary import GroupRow, PatternRow, Report
from onnxprune.report.terminal.screen import Grid, Screen

_COSTS_MORE = "a cut here would cost more accuracy than elsewhere"
_SHOWN_LAYERS = 12


def changed_groups(report: Report, screen: Screen) -> Grid:
    """The groups that lost channels."""
    changed = [g for g in report.groups if g.channels_after != g.channels_before]
    table = screen.table("group", "channels", "producers", "consumers", " ", title="channels")
    for g in changed:
        gone = "" if g.channels_after else " (branch removed)"
        width = f"{g.channels_before} → {g.channels_after}{gone}"
        narrow = f"multiples of {g.alignment}" if g.alignment != report.alignment.multiple else ""
        remarks = ", ".join(filter(None, ("mixing" if g.mixing else "", narrow)))
        table.add_row(g.name, width, str(g.producers), str(g.consumers), remarks)
    return table


def why_whole(groups: Sequence[GroupRow]) -> dict[str, int]:
    """Why groups stay whole → how many, the most frequent first."""
    whole = [g for g in groups if g.channels_after == g.channels_before]
    return dict(Counter(g.note or _COSTS_MORE for g in whole).most_common())


def whole_groups(groups: Sequence[GroupRow], screen: Screen) -> Grid:
    """The groups that stay whole, each with its reason."""
    table = screen.table("group", "channels", " reason", title="unchanged")
    for g in groups:
        if g.channels_after == g.channels_before:
            table.add_row(g.name, str(g.channels_before), g.note or _COSTS_MORE)
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
