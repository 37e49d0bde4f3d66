"""What a model would be calibrated on, as text."""

from __future__ import annotations

from onnxprune.intake.preview import Preview
from onnxprune.report.terminal.facts import number, samples
from onnxprune.report.terminal.screen import Screen, line, listed, note
from onnxprune.report.visible import made_visible


def preview(p: Preview, screen: Screen) -> str:
    """What a model would be calibrated on, as text."""
    p = made_visible(p)
    facts = [("data", f"{p.origin}, {samples(p.samples)}")]
    facts += [("prepared", p.prepared)] if p.prepared else []
    facts += [("also", text) for text in p.labels]
    table = screen.table("input", " type", " shape", "min", "max", "mean", "std", " looks like")
    for v in p.inputs:
        f = v.figures
        shape = "x".join("?" if n < 0 else str(n) for n in f.shape) or "scalar"
        table.add_row(f.name, f.dtype, shape, *map(number, (f.least, f.most, f.mean, f.std)), v.looks)
        for i, c in enumerate(v.channels if len(v.channels) > 1 else ()):
            table.add_row(f"  channel {i}", "", "", *map(number, (c.least, c.most, c.mean, c.std)), "")
    return screen.render([line(p.model, "bold"), listed(facts, space=0), table, *(note(n) for n in p.notes)])
