"""A report in a notebook: a small table without scripts, in the notebook's own colours, and a line for `repr`."""

from __future__ import annotations

from onnxprune.measures.figures import percent
from onnxprune.report import points, view
from onnxprune.report.document import Document
from onnxprune.report.templates import fill


def notebook(document: Document) -> str:
    """The document as a piece of HTML: verdict, sizes, figures, and the groups that lost channels, folded."""
    level, text = view.headline(document)
    return fill(
        "notebook.html",
        {
            "label": view.LABELS.get(level, level),
            "text": text,
            "sizes": view.size_rows(document),
            "points": points.table_of(document) if document.get("points") else None,
            "facts": [
                *view.quality_rows(document),
                *view.fewer_bits_rows(document),
                *view.check_rows(document),
            ],
            "warnings": document.get("warnings") or (),
            "groups": view.group_rows(document),
            "whole": sum(len(rows) for _, rows in view.whole_rows(document)),
        },
    )


def line(document: Document) -> str:
    """What matters most, in a line."""
    level, text = view.headline(document)
    if document.get("points"):
        ratios = "1 ratio" if len(document["points"]) == 1 else f"{len(document['points'])} ratios"
        return f"<sweep of {document.get('model')!r}: {ratios}, {text}>"
    parts = [view.LABELS.get(level, level)]
    parts += [f"{name} {before} → {after}" for name, before, after, removed in view.size_rows(document) if removed]
    error = document.get("output_error")
    parts += [] if error is None else [f"output error {percent(error)}"]
    return f"<report of {document.get('model')!r}: {', '.join(parts)}>"
