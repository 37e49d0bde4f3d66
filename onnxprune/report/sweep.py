"""What several cuts of one network lose and save: the points of a sweep, as plain data, JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onnxprune.measures.figures import percent
from onnxprune.options import exact_percent
from onnxprune.report.summary import Size
from onnxprune.report.units import count

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Point:
    """One ratio: what was asked for, what came of it, and what was measured; None where it was not.

    achieved: share of the budget that went. error: the mean over the outputs' parts, with its 95 % interval.
    agreement, top1: shares. drop: points of top-1 that were lost. seconds, time_ratio: of a run, and over the
    original's in turns, with its interval. verdict: its level. front: no other point has lost more of the budget at no
    larger error. output: the file that it was written to. why: what kept it from being made, or which limit it breaks.
    made: whether there is a model at all.
    """

    ratio: float
    achieved: float | None = None
    size: Size | None = None
    error: float | None = None
    interval: tuple[float, float] | None = None
    agreement: float | None = None
    top1: float | None = None
    drop: float | None = None
    seconds: float | None = None
    time_ratio: float | None = None
    time_interval: tuple[float, float] | None = None
    verdict: str = ""
    widths: Mapping[str, int] = field(default_factory=dict)
    front: bool = False
    best: bool = False
    output: str | None = None
    why: str = ""

    @property
    def made(self) -> bool:
        """Whether there is a model of it."""
        return self.size is not None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The points in the order of their ratios, and what they are of.

    counted: what the ratios are shares of. original: its MACs, parameters and bytes; original_top1, original_seconds:
    None where not measured. judged: on which samples. best: the largest cut that holds all limits, or, without any,
    has a good verdict.
    """

    model: str
    model_sha256: str
    counted: str
    original: Size
    points: tuple[Point, ...]
    judged: str
    config: Mapping[str, Any]
    limits: Mapping[str, float | None]
    calibration: Mapping[str, Any]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    original_top1: float | None = None
    original_seconds: float | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> Point | None:
        """The point that is marked as the best."""
        return next((p for p in self.points if p.best), None)

    def to_json(self) -> str:
        """The sweep as JSON text; numbers that are not finite become null."""
        text = json.dumps({"schema": SCHEMA} | asdict(self))
        return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=1) + "\n"

    def to_markdown(self) -> str:
        """A table for people, as GitHub shows it."""
        heads, rows = table_of(self)
        lines = [f"# Sweep of {self.model}", "", "| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += ["", f"Judged on {self.judged}. * on the Pareto front.", ""]
        lines += [f"- {text}" for text in (*said_of(self), *self.warnings, *self.notes)]
        return "\n".join(lines).rstrip() + "\n"


def with_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points with those marked that no other one beats: a smaller error at no smaller cut, or a larger cut at no
    larger error."""

    def beaten(p: Point) -> bool:
        assert p.achieved is not None and p.error is not None
        return any(
            q.achieved >= p.achieved and q.error <= p.error and (q.achieved, q.error) != (p.achieved, p.error)
            for q in points
            if q.achieved is not None and q.error is not None
        )

    return tuple(replace(p, front=p.achieved is not None and p.error is not None and not beaten(p)) for p in points)


def table_of(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: the original first, then every point; columns of what nobody measured are left out."""
    points = sweep.points
    columns: list[tuple[str, list[str]]] = [
        ("asked", ["original", *(exact_percent(p.ratio) for p in points)]),
        ("removed", ["", *(_share(p.achieved) + (" *" if p.front else "") for p in points)]),
    ]
    for head, name in (("MACs", "macs"), ("parameters", "parameters"), ("bytes", "bytes")):
        sizes = [sweep.original, *(p.size for p in points)]
        columns.append((head, ["" if s is None else count(getattr(s, name)) for s in sizes]))
    if any(p.seconds is not None for p in points):
        ratios = ["" if p.time_ratio is None else f"{p.time_ratio:.3f} ×" for p in points]
        columns.append(("time", [f"{1e3 * (sweep.original_seconds or 0.0):.3g} ms", *ratios]))
    if any(p.error is not None for p in points):
        columns.append(("error", ["", *("" if p.error is None else percent(p.error) for p in points)]))
    if any(p.agreement is not None for p in points):
        columns.append(("agreement", ["", *(_share(p.agreement, 2) for p in points)]))
    if any(p.top1 is not None for p in points):
        columns.append(("top-1", [_share(sweep.original_top1, 2), *(_share(p.top1, 2) for p in points)]))
    columns.append(("verdict", ["", *(p.verdict if p.made else "not made" for p in points)]))
    rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    return [head for head, _ in columns], rows


def said_of(sweep: Sweep) -> list[str]:
    """What else there is to say of the points, a line each."""
    best = sweep.best
    limits = ", ".join(f"--{k.replace('_', '-')} {v:g}" for k, v in sweep.limits.items() if v is not None)
    why = f"holds {limits}" if limits else "has a good verdict"
    lines = [f"the largest cut that {why}: --ratio {best.ratio:g}" if best else f"no cut {why}"]
    return lines + [f"{exact_percent(p.ratio)}: {p.why}" for p in sweep.points if p.why]


def _share(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}%}"
