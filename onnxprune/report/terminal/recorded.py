"""What was recorded of a model's layers for another machine, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.options import first_of
from onnxprune.report.terminal.facts import samples
from onnxprune.report.terminal.screen import Part, Screen, line, listed, note
from onnxprune.report.units import latency
from onnxprune.report.visible import made_visible

_SHOWN, _SHOWN_TARGETS = 8, 6


def recording(document: Mapping[str, Any], screen: Screen) -> str:
    """What stands in a timing file now, as `sentence.recording.Recording.as_dict` has it."""
    d = made_visible(document)
    widths = f"{len(d['layers'])} layers, {d['how']}, at {d['cuts']} combinations of widths"
    facts = [
        ("target", str(d["target"])),
        ("machine", ", ".join(f"{k} {v}" for k, v in d["machine"].items())),
        ("time of a run", f"{latency(d['seconds'])} ({samples(d['batch'])})"),
        ("timed", widths if d["cuts"] > 1 else f"{len(d['layers'])} layers at the present widths"),
        ("widths", f"multiples of {d['alignment']} channels"),
        ("targets", first_of(d["targets"], _SHOWN_TARGETS)),
        ("written", str(d["file"])),
    ]
    if d["cuts"] > 1:
        facts.insert(4, ("quickest of them", f"{min(d['shares']):.1%} of the time of a run"))
    table = screen.table("slowest layers", "operator", "channels", "time")
    for x in d["layers"][:_SHOWN]:
        channels = " x ".join(f"{n:g}" for n in x["channels"])
        table.add_row(str(x["output"]), str(x["operator"]), channels, latency(x["seconds"] or 0.0))
    parts: list[Part] = [line(str(d["model"]), "bold"), listed(facts), table, *(note(n) for n in d["notes"])]
    return screen.render(parts)
