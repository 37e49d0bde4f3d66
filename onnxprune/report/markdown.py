"""A report as Markdown, such as GitHub shows it in the summary of a job: verdict and sizes first, the rest folded."""

from __future__ import annotations

from typing import Any

from onnxprune.report import view
from onnxprune.report.document import DONE, Document
from onnxprune.report.points import said_of, table_of
from onnxprune.report.templates import fill


def markdown(document: Document) -> str:
    """The document as Markdown text."""
    level, text = view.headline(document)
    timed = view.was_timed(document)
    if timed and document["status"] == DONE:
        level, text = "measured", ""
    swept = bool(document.get("points"))
    facts = [*view.quality_rows(document), *view.fewer_bits_rows(document), *view.check_rows(document)]
    context: dict[str, Any] = {
        "kind": document["kind"],
        "level": level,
        "text": text,
        "subject": _subject(document),
        "sizes": view.size_rows(document),
        "points": table_of(document) if swept else None,
        "said": said_of(document)[1:] if swept else [],
        "judged": document.get("judged"),
        "bench": view.bench_rows(document) if timed else [],
        "facts": facts + (view.bench_facts(document) if timed else []) + _data(document),
        "gates": view.gate_rows(document),
        "layers": view.gone_layers(document),
        "experts": view.gone_experts(document),
        "groups": view.group_rows(document),
        "whole": [] if swept else view.whole_rows(document),
        "pinned": view.pinned_by_remedy(document),
        "data": view.data_rows(document),
        "command": view.command_line(document),
        "repeat": view.repeat_rows(document),
        "warnings": document.get("warnings") or (),
        "notes": document.get("notes") or (),
    }
    return fill("report.md", context)


def _subject(document: Document) -> str:
    if document["kind"] == "bench":
        return ""
    against = document.get("against")
    return str(document.get("model") or "") + (f" against {against}" if against else "")


def _data(document: Document) -> list[tuple[str, str]]:
    line = view.data_line(document)
    return [("data", line)] if line else []
