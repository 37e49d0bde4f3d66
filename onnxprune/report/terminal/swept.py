"""A sweep as text."""

from __future__ import annotations

from onnxprune.report.sweep import Sweep, said_of, table_of
from onnxprune.report.terminal.screen import Part, Screen, line, note
from onnxprune.report.visible import made_visible


def sweep(s: Sweep, screen: Screen) -> str:
    """The points of a sweep, as text."""
    s = made_visible(s)
    heads, rows = table_of(s)
    table = screen.table(*heads)
    for row in rows:
        table.add_row(*row)
    parts: list[Part] = [
        line(s.model),
        line(),
        table,
        line(f"* on the Pareto front; judged on {s.judged}"),
        line(),
    ]
    parts += [note(text) for text in (*said_of(s), *s.notes)]
    written = [p.output for p in s.points if p.output]
    if written:
        parts += [line(), line(f"written: {', '.join(written)}")]
    return screen.render(parts)
