"""The network of a report as rows of a page, with what is told of each when it is pointed at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.report.document import Document
from onnxprune.report.groups import curves_by_group, sensitivity, width
from onnxprune.report.lanes import drawn, middle
from onnxprune.report.units import count

# Of these the dot is filled. A name keeps so many characters at its end where there is no room for all of it.
_FILLED, _TAIL = ("cut", "kept"), 16
_SYMBOLS = {"input": "input", "output": "output", "join": "join"}


def network(document: Document) -> dict[str, Any] | None:
    """The drawing: {svg: {...}, rows: [...]}, None where the document has no layers."""
    layers: Sequence[Mapping[str, Any]] = document.get("layers") or ()
    if not layers:
        return None
    drawing = drawn([row["sources"] for row in layers])
    widest = max((row["outputs"][0] for row in layers if row["outputs"]), default=1) or 1
    groups = document.get("groups") or ()
    curves = curves_by_group(document.get("curves") or ())
    rows = [_row(row, widest, groups, curves) for row in layers]
    dots: dict[str, str] = {}
    for i, (x, row) in enumerate(zip(drawing.x, rows, strict=True)):
        # Lines of no length with round ends: they stay round where a narrow window presses the drawing together.
        dots[row["state"]] = dots.get(row["state"], "") + f"M{x:g} {middle(i):g}h0"
    return {
        "rows": rows,
        "paths": "".join(drawing.paths),
        "dots": list(dots.items()),
        "holes": "".join(path for state, path in dots.items() if state not in _FILLED),
        "width": f"{drawing.width:g}",
        "height": f"{drawing.height:g}",
        "layers": sum(row["kind"] == "layer" for row in layers),
        "cut": sum(row["state"] in ("cut", "gone") for row in rows),
    }


def _row(
    row: Mapping[str, Any], widest: int, groups: Sequence[Mapping[str, Any]], curves: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    outputs = row["outputs"]
    before, after = outputs or (0, 0)
    state = row["kind"]
    if row["kind"] == "layer":
        state = "gone" if before and not after else "cut" if after < before else "kept"
    return {
        "kind": row["kind"],
        "state": state,
        "name": row["name"],
        "head": str(row["name"])[:-_TAIL],
        "tail": str(row["name"])[-_TAIL:],
        "operators": " · ".join(row["operators"]) or _SYMBOLS.get(row["kind"], ""),
        "before": before,
        "after": after,
        "wide": f"{100.0 * before / widest:.1f}",
        "slim": f"{100.0 * after / widest:.1f}",
        "widths": _widths(before, after) if outputs else "",
        "facts": _facts(row, groups, curves),
    }


def _widths(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} → {after}"


def _facts(
    row: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], curves: Mapping[int, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """What a row says when it is pointed at."""
    facts: list[tuple[str, str]] = []
    if row["inputs"]:
        facts.append(("channels in", _widths(*row["inputs"])))
    if row["outputs"]:
        facts.append(("channels out", _widths(*row["outputs"])))
    before, after = row["macs"]
    if before:
        share = f" ({1.0 - after / before:.0%})"
        facts.append(("MACs saved", f"{count(before - after)} of {count(before)}{share}"))
    group = row["group"]
    if group is not None and group < len(groups):
        facts.append(("group", f"{groups[group]['name']}, {width(groups[group])}"))
        facts.append(("sensitivity", sensitivity(curves.get(group), groups[group])))
    if row["stays"]:
        facts.append(("stays because", str(row["stays"])))
    return facts
