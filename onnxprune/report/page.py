"""A report as one HTML page that makes no request: style, scripts, charts and data are in it.

What is read is in the HTML itself, so that the page says everything where scripts are off; these draw the charts, move
the slider and lead through the network by arrow keys. Its policy (Content-Security-Policy) lets those scripts run, by
their checksums, and nothing else: neither what a model's names may bring in nor a request.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from onnxprune.report import points, view
from onnxprune.report.document import DONE, Document
from onnxprune.report.groups import counted_in, sensitivity, width
from onnxprune.report.network import network
from onnxprune.report.templates import fill

# More charts are folded.
_CHARTS = 24
_VENDORED = ("d3", "plot")
_SCRIPTS = {"d3": "vendored/d3.min.js", "plot": "vendored/plot.umd.min.js", "page": "templates/page.js"}


def html(document: Document) -> str:
    """The document as an HTML page."""
    level, text = view.headline(document)
    done = document["status"] == DONE
    timed = view.was_timed(document)
    bench = timed and done
    swept = bool(document.get("points"))
    curves, front = _curves(document), points.front(document)
    charts = bool(curves or front)
    scripts = [*(_VENDORED if charts else ()), "page"]
    context: dict[str, Any] = {
        "kind": document["kind"],
        "title": view.subject(document) or document["kind"],
        "level": "measured" if bench else level,
        "label": "measured" if bench else view.LABELS.get(level, level),
        "text": "" if bench else text,
        "tiles": view.tiles(document),
        "sizes": view.size_rows(document),
        "bench": view.bench_rows(document) if timed else [],
        "quality": [
            *view.quality_rows(document),
            *view.fewer_bits_rows(document),
            *(view.bench_facts(document) if timed else []),
        ],
        "checks": view.check_rows(document),
        "gates": view.gate_rows(document),
        "warnings": document.get("warnings") or (),
        "notes": document.get("notes") or (),
        "front": front,
        "points": points.table_of(document) if swept else None,
        "said": points.said_of(document)[1:] if swept else [],
        "judged": document.get("judged"),
        "widths": points.widths(document),
        "network": network(document),
        "curves": curves,
        "shown": _CHARTS,
        "whole_layers": view.gone_layers(document),
        "experts": view.gone_experts(document),
        "groups": view.group_rows(document),
        "timed": bool((document.get("timing") or {}).get("saved")),
        "whole": [] if swept else view.whole_rows(document),
        "pinned": view.pinned_by_remedy(document),
        "data_line": view.data_line(document),
        "data": view.data_rows(document),
        "pictures": view.pictures(document),
        "command": view.command_line(document),
        "repeat": view.repeat_rows(document),
        "settings": view.settings_rows(document),
        "style": _text("templates/page.css"),
        "scripts": [_text(_SCRIPTS[name]) for name in scripts],
        "policy": " ".join(f"'sha256-{_digest(_SCRIPTS[name])}'" for name in scripts),
        "licences": [_text(f"vendored/{name}.LICENSE") for name in _VENDORED] if charts else [],
        "island": {"curves": curves, "front": front},
    }
    return fill("page.html", context)


def _curves(document: Document) -> list[dict[str, Any]]:
    """The curve of each group that has one: what cutting it alone does to the outputs, against its channels."""
    groups: Sequence[Mapping[str, Any]] = document.get("groups") or ()
    rows = []
    for c in document.get("curves") or ():
        group = groups[c["group"]]
        what, each = counted_in(group)
        tries = [
            [n // each, e, int(n in c["tried"])]
            for n, e in zip(c["channels"], c["errors"], strict=True)
            if e is not None
        ]
        rows.append(
            {
                "name": str(group["name"]),
                "width": width(group),
                "counts": what,
                "after": None if document.get("points") else group["channels_after"] // each,
                "said": sensitivity(c, group),
                "points": tries,
            }
        )
    return rows


@cache
def _text(name: str) -> Markup:
    """A file of this room, as it is: it is the program's own."""
    return Markup((files("onnxprune.report") / name).read_text(encoding="utf-8"))


@cache
def _digest(name: str) -> str:
    return base64.b64encode(hashlib.sha256(str(_text(name)).encode()).digest()).decode()
