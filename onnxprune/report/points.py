"""The points of a sweep in words: its table, its front with a slider over the ratios, and the widths at each ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.measures.figures import percent
from onnxprune.options import exact_percent
from onnxprune.report.document import Document
from onnxprune.report.groups import counted_in, width
from onnxprune.report.units import count, latency, size

Point = Mapping[str, Any]
_MEASURED = (
    ("error", "error"),
    ("error in float", "error_in_float"),
    ("agreement", "agreement"),
    ("top-1", "top1"),
)
_SIZES = (("MACs", "macs", count), ("parameters", "parameters", count), ("file size", "bytes", size))


def limits_of(limits: Mapping[str, float | None]) -> str:
    """The limits that were given, as they are typed; empty without any."""
    return ", ".join(f"--{k.replace('_', '-')} {v:g}" for k, v in limits.items() if v is not None)


def best_of(document: Document) -> Point | None:
    """The largest cut that holds the limits, or without any has a good verdict."""
    return next((p for p in document.get("points") or () if p.get("best")), None)


def said_of(document: Document) -> list[str]:
    """What else there is to say of the points, a line each: the best first."""
    best, limits = best_of(document), limits_of(document.get("limits") or {})
    why = f"holds {limits}" if limits else "has a good verdict"
    first = f"the largest cut that {why}: --ratio {best['ratio']:g}" if best else f"no cut {why}"
    return [first, *(f"{exact_percent(p['ratio'])}: {p['why']}" for p in document["points"] if p.get("why"))]


def table_of(document: Document) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: the original first, then every point; columns of what nobody measured are left out."""
    points: Sequence[Point] = document["points"]
    original = document.get("original")
    columns: list[tuple[str, list[str]]] = [
        ("asked", ["original", *(exact_percent(p["ratio"]) for p in points)]),
        ("removed", ["", *(_share(p.get("achieved")) + (" *" if p.get("front") else "") for p in points)]),
    ]
    for head, name, text in _SIZES:
        sizes = [original, *(p.get("size") for p in points)]
        columns.append((head, ["" if s is None else text(s[name]) for s in sizes]))
    if any(p.get("seconds") is not None for p in points):
        ratios = ["" if p.get("time_ratio") is None else f"{p['time_ratio']:.3f} ×" for p in points]
        columns.append(("time", [latency(document.get("original_seconds") or 0.0), *ratios]))
    for head, name in _MEASURED:
        if any(p.get(name) is not None for p in points):
            cells = ["" if p.get(name) is None else percent(p[name]) for p in points]
            before = document.get("original_top1") if name == "top1" else None
            columns.append((head, ["" if before is None else percent(before), *cells]))
    columns.append(("verdict", ["", *(str(p.get("verdict") or "") if p.get("size") else "not made" for p in points)]))
    rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    return [head for head, _ in columns], rows


def front(document: Document) -> dict[str, Any] | None:
    """The chart of error against size, and what the slider says at each ratio; None where nothing was swept.

    {counted, original, first, points: [{label, texts, front, size, error, low, high}]}: `size` counts what the ratios
    are shares of, of a latency MACs; `first` is the point that is shown at first.
    """
    points: Sequence[Point] = document.get("points") or ()
    if not points:
        return None
    name = "parameters" if str(document.get("counted")).startswith("param") else "macs"
    heads, rows = table_of(document)
    found = []
    for p, row in zip(points, rows[1:], strict=True):
        texts = [(h, cell.removesuffix(" *")) for h, cell in zip(heads[1:], row[1:], strict=True) if cell]
        texts += [("remark", str(p["why"]))] if p.get("why") else []
        low, high = p.get("interval") or (None, None)
        numbers = {"size": (p.get("size") or {}).get(name), "error": p.get("error"), "low": low, "high": high}
        found.append({"label": exact_percent(p["ratio"]), "texts": texts, "front": bool(p.get("front"))} | numbers)
    best = best_of(document)
    return {
        "counted": "parameters" if name == "parameters" else "MACs per sample",
        "original": (document.get("original") or {}).get(name),
        "first": 0 if best is None else list(points).index(best),
        "points": found,
    }


def widths(document: Document) -> tuple[list[str], list[list[str]]] | None:
    """Headings and rows: how wide each group is at each ratio that was made; None where no group was ever cut."""
    points: Sequence[Point] = [p for p in document.get("points") or () if p.get("size")]
    names = {name for p in points for name in p.get("widths") or {}}
    groups: Sequence[Mapping[str, Any]] = [g for g in document.get("groups") or () if g["name"] in names]
    if not groups:
        return None
    rows = []
    for g in groups:
        each = counted_in(g)[1]
        kept = [int((p.get("widths") or {}).get(g["name"], g["channels_before"])) for p in points]
        rows.append([str(g["name"]), width(g), *(str(n // each) for n in kept)])
    return ["group", "original", *(exact_percent(p["ratio"]) for p in points)], rows


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
