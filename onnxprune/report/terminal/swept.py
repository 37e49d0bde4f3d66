"""A sweep as text."""

from __future__ import annotations

from onnxprune.report.points import said_of, table_of
from onnxprune.report.sweep import Sweep
from onnxprune.report.terminal.screen import Part, Screen, line, note
from onnxprune.report.visible import made_visible


def sweep(s: Sweep, screen: Screen) -> str:
    """The points of a sweep, as text."""
    s = made_visible(s)
    document = s.document()
    heads, rows = table_of(document)
    table = screen.table(*heads)
    for row in rows:
        table.add_row(*row)
    parts: list[Part] = [line(s.model), table, line(f"* on the Pareto front; judged on {s.judged}"), line()]
    parts += [note(text) for text in (*said_of(document), *s.notes)]
    if s.files:
        parts += [line(), line(f"written: {', '.join(s.files)}")]
    return screen.render(parts)
