"""What several cuts of one network lose and save: the points of a sweep, as plain data, JSON and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onnxprune.report.document import REFUSED, Outcome, document_of, to_json
from onnxprune.report.markdown import markdown
from onnxprune.report.notebook import line, notebook
from onnxprune.report.points import limits_of
from onnxprune.report.summary import CurveRow, GroupRow, PinnedRow, Size


@dataclass(frozen=True, kw_only=True)
class Point:
    """One ratio: what was asked for, what came of it, and what was measured; None where it was not.

    achieved: share of the budget that went. error: the mean over the outputs' parts, with its 95 % interval;
    error_in_float: that of the same cut before it was stored in fewer bits, on samples held out.
    agreement, top1: shares. drop: points of top-1 that were lost. seconds, time_ratio: of a run, and over the
    original's in turns, with its interval. verdict: its level. front: no other point has lost more of the budget at no
    larger error. output: the file that it was written to. why: what kept it from being made, or which limit it breaks.
    widths: channels that are left of each group that was cut, by its name. made: whether there is a model at all.
    """

    ratio: float
    achieved: float | None = None
    size: Size | None = None
    error: float | None = None
    interval: tuple[float, float] | None = None
    error_in_float: float | None = None
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


@dataclass(frozen=True, kw_only=True, repr=False)
class Sweep:
    """The points in the order of their ratios, and what they are of.

    counted: what the ratios are shares of. original: its MACs, parameters and bytes; original_top1, original_seconds:
    None where not measured. judged: on which samples. best: the largest cut that holds all limits, or, without any,
    has a good verdict. seconds: by stage. groups, curves, pinned: as in `summary.Report`, of the groups before any cut.
    command: what was typed, () for a call from Python. files: all that is written; no part of the document.
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
    groups: tuple[GroupRow, ...] = ()
    curves: tuple[CurveRow, ...] = ()
    pinned: tuple[PinnedRow, ...] = ()
    command: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def best(self) -> Point | None:
        """The point that is marked as the best."""
        return next((p for p in self.points if p.best), None)

    @property
    def outcome(self) -> Outcome:
        """Refused where there are limits that no cut holds."""
        limits = limits_of(self.limits)
        return Outcome(REFUSED, f"no cut holds {limits}", 3) if limits and self.best is None else Outcome()

    def document(self) -> dict[str, Any]:
        """The sweep as plain data, by `docs/report-schema.json`."""
        data = asdict(self)
        stages, command = data.pop("seconds"), data.pop("command")
        del data["files"]
        data["effort"] = {"stages": stages, "seconds": sum(stages.values())}
        return document_of("sweep", data, self.outcome, command)

    def __repr__(self) -> str:
        """What matters most, in a line."""
        return line(self.document())

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        return notebook(self.document())

    def to_json(self) -> str:
        """The sweep as JSON text; numbers that are not finite become null."""
        return to_json(self.document())

    def to_markdown(self) -> str:
        """A summary for people, as GitHub shows it."""
        return markdown(self.document())


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


def uncut(groups: Sequence[GroupRow]) -> tuple[GroupRow, ...]:
    """Groups as they were before a cut."""
    return tuple(
        replace(
            g,
            channels_after=g.channels_before,
            units=(g.units[0], g.units[0]),
            macs=(g.macs[0], g.macs[0]),
            parameters=(g.parameters[0], g.parameters[0]),
        )
        for g in groups
    )
