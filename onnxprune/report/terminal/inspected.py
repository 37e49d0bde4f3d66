"""The description of a model as text."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.channels.describe import AxisUse, Description, GroupDescription
from onnxprune.options import first_of
from onnxprune.report.terminal.axes import numbered, remedies
from onnxprune.report.terminal.screen import Part, Screen, line, note, shortened
from onnxprune.report.units import count
from onnxprune.report.visible import made_visible

_SHOWN_PLACES = 3
# Columns that the numbers of a group take, with what is between them.
_NUMBERS = 27
_LEAST_ROOM = 25


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
        several = any(g.channels_per_unit > 1 for g in d.groups)
        each = ("channels each",) if several else ()
        table = screen.table("group", "units", *each, "parameters", " producers => consumers")
        names = [g.name + (" (mixing)" if g.mixing else "") for g in d.groups]
        if not screen.piped:
            names = [shortened(name, screen.width // 4) for name in names]
        room = screen.width - max(map(len, names)) - _NUMBERS - sum(len(c) + 3 for c in each)
        for name, g in zip(names, d.groups, strict=True):
            table.add_row(
                name,
                f"{g.units} heads" if g.head else str(g.units),
                *((str(g.channels_per_unit),) if several else ()),
                count(g.elements),
                _flow(g, room, whole=screen.piped),
            )
        parts.append(table)
    if d.layers:
        table = screen.table(
            "layer", "parameters", " name", " branches", title="whole layers that can go (--drop-layers)"
        )
        for x in d.layers:
            table.add_row(str(x.number), count(x.elements), x.name, " + ".join(x.branches))
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


def _flow(g: GroupDescription, room: int, *, whole: bool) -> str:
    """Producers and consumers: as many names of each as fit, at least one. whole: also where that does not fit."""
    told = (f"{_nodes(g.producers, most)} => {_nodes(g.consumers, most)}" for most in range(_SHOWN_PLACES, 0, -1))
    *others, least = told
    fits = next((text for text in (*others, least) if len(text) <= room), None)
    if fits is not None or whole:
        return fits or least
    half = (max(room, _LEAST_ROOM) - len(" => ")) // 2
    return f"{shortened(_nodes(g.producers, 1), half)} => {shortened(_nodes(g.consumers, 1), half)}"


def _nodes(places: Sequence[AxisUse], most: int) -> str:
    names = list(dict.fromkeys(p.node or p.weight for p in places))
    return first_of(names, most) if names else "nothing"
