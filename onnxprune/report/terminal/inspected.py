"""The description of a model as text."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.channels.describe import AxisUse, Description, GroupDescription
from onnxprune.report.terminal.axes import numbered, remedies
from onnxprune.report.terminal.screen import Part, Screen, line, note
from onnxprune.report.units import count
from onnxprune.report.visible import made_visible

_SHOWN_PLACES = 3


def inspection(d: Description, screen: Screen) -> str:
    """The description of a model, as text: what can be pruned, and why the rest cannot."""
    d = made_visible(d)
    share = min(d.share, 0.999) if d.prunable < d.parameters else 1.0
    groups = "1 group" if len(d.groups) == 1 else f"{len(d.groups)} groups"
    share_of_macs = min(d.share_of_macs, 0.999) if d.prunable_macs < d.macs else 1.0
    head = (
        f"{share:.1%} of {count(d.parameters)} parameters and {share_of_macs:.1%} of {count(d.macs)} MACs can be "
        f"pruned, in {groups}"
    )
    parts: list[Part] = [line(d.model, "bold"), line(head if d.groups else "no channel can be removed")]
    if d.groups:
        table = screen.table("group", "units", "channels each", "parameters", " producers => consumers")
        for g in d.groups:
            name = g.name + (" (mixing)" if g.mixing else "")
            table.add_row(
                name,
                f"{g.units} heads" if g.head else str(g.units),
                str(g.channels_per_unit),
                count(g.elements),
                _flow(g),
            )
        parts.append(table)
    if d.pinned:
        table = screen.table("tensor", "axis", "channels", " operator", " reason", title="axes that stay")
        numbers = numbered(p.remedy for p in d.pinned)
        for p in d.pinned:
            reason = f"{p.reason} [{numbers[p.remedy]}]"
            table.add_row(p.tensor, str(p.axis), str(p.channels), p.operator, reason)
        parts += [table, *remedies(numbers)]
    parts += [note(n) for n in d.notes]
    return screen.render(parts)


def _flow(g: GroupDescription) -> str:
    return f"{_nodes(g.producers)} => {_nodes(g.consumers)}"


def _nodes(places: Sequence[AxisUse]) -> str:
    names = list(dict.fromkeys(p.node or p.weight for p in places))
    more = len(names) - _SHOWN_PLACES
    return ", ".join(names[:_SHOWN_PLACES]) + (f" and {more} more" if more > 0 else "") if names else "nothing"
