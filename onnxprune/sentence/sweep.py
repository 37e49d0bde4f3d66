"""Several cuts of one network: calibrated, selected and tried once, then cut, refitted and judged at each ratio."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import onnx

from onnxprune.benchmark.measure import provider_named
from onnxprune.config import Options, PruneConfig
from onnxprune.data.sources import files_of
from onnxprune.errors import BudgetUnreachable, CheckFailed, NothingPrunable, OnnxPruneError, RunError, UsageError
from onnxprune.evaluation import Evaluation
from onnxprune.intake.model_file import ModelLike, called
from onnxprune.jobs.kept import kept_in
from onnxprune.measures.verdict import GOOD, verdict_of
from onnxprune.numerics.least_squares import SolveFailed
from onnxprune.options import exact_percent, number, shown, typed
from onnxprune.output.commit import Stage
from onnxprune.output.destination import check_data
from onnxprune.output.model_files import put_model, refused
from onnxprune.report.environment import versions
from onnxprune.report.files import ReportFiles, Reports, keeping_refusals
from onnxprune.report.progress import Progress
from onnxprune.report.summary import Report
from onnxprune.report.sweep import Point, Sweep, uncut, with_front
from onnxprune.runtime.custom_ops import Libraries, registering
from onnxprune.sentence.exam import Exam, Limits, TestData
from onnxprune.sentence.halves import Chosen, Prepared, choose, make, prepare
from onnxprune.sentence.machine import Machine
from onnxprune.sentence.sweep_folder import Folder
from onnxprune.stages.clock import Clock
from onnxprune.stages.identity import identity
from onnxprune.stages.load import Calibration, opened
from onnxprune.stages.report import bench_of, report_of
from onnxprune.stages.settings_beside import read_beside
from onnxprune.stages.time_layers import Timings, timed_with
from onnxprune.stages.verify import Checked

KEEP = ("all", "best", "none")
RATIOS = "0.1:0.7:0.1"
_MOST_POINTS = 99
_ROUNDING = 1e-9


def ratios_of(text: str) -> tuple[float, ...]:
    """Ratios as FIRST:LAST:STEP or a list with commas, each as 0.1 or 10%. Raises UsageError."""

    def share(part: str) -> float:
        try:
            return number(part)
        except ValueError:
            raise UsageError(f"{shown(part)} is no ratio; write 0.1:0.7:0.1, or 0.2,0.4") from None

    if ":" not in text:
        return checked_ratios([share(part) for part in text.split(",")])
    parts = [share(part) for part in text.split(":")]
    if len(parts) != 3 or not parts[2] > 0.0 or not parts[1] >= parts[0]:
        raise UsageError(f"{shown(text)} is no range of ratios; write FIRST:LAST:STEP, such as 0.1:0.7:0.1")
    first, last, step = parts
    if not last - first < _MOST_POINTS * step:
        raise UsageError(f"{shown(text)} has more than {_MOST_POINTS} ratios; give a larger step")
    return checked_ratios([round(first + i * step, 9) for i in range(int((last - first) / step + 1.0 + _ROUNDING))])


def checked_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    """Ascending, each once. Raises UsageError for what is none."""
    numbers: list[float] = [typed("a ratio", r, "float") for r in ratios]
    if not numbers:
        raise UsageError("there is no ratio to try")
    wrong = next((r for r in numbers if not 0.0 < r < 1.0), None)
    if wrong is not None:
        raise UsageError(f"ratio {wrong:g} is outside (0, 1)")
    found = tuple(sorted(set(numbers)))
    if len(found) > _MOST_POINTS:
        raise UsageError(f"{len(found)} ratios are too many; at most {_MOST_POINTS}")
    return found


def sweep(
    model: ModelLike,
    folder: str | os.PathLike[str] | None = None,
    calibration: Calibration = None,
    *,
    ratios: Sequence[float] | str = RATIOS,
    test: TestData = None,
    test_labels: str | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    max_error: float | None = None,
    keep: str = "all",
    config: PruneConfig | None = None,
    overwrite: bool = False,
    bench: bool | str = False,
    watch: Callable[[Progress], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    ready: Callable[[Sweep], None] = lambda _: None,
    jobs: int = 1,
    scheduler: str | None = None,
    provider: str | None = None,
    timing: Sequence[str | os.PathLike[str]] = (),
    timing_target: Sequence[str] = (),
    allow_links: bool = False,
    custom_ops: Libraries = (),
    single_file: bool = False,
    pictures: bool = True,
    work: str | os.PathLike[str] | None = None,
    report_file: ReportFiles = None,
    command: Sequence[str] = (),
    **options: Unpack[Options],
) -> Sweep:
    """Prune `model` by several ratios, and say what each saves and loses.

    The data is run, channels are selected and cuts are tried once; every ratio then has its own cut, refit, recovery
    (not with `fast`) and checks, and with `then` is stored in fewer bits, so that each model is what `prune` makes of
    that ratio. folder: where models,
    sweep.json and sweep.md go, made where it is missing; None to write nothing. Where `resize_io` has settings files
    beside the model written anew, each model has a folder of its own there, with these. ratios: of the budget, as
    numbers or as text (`ratios_of`). test: data to judge on, as the calibration data, instead of samples held out
    from that; test_labels: the key of the classes in it, None for the only key of integers. max_drop,
    min_agreement, max_error: limits as for `prune`; the best is the largest cut that holds them, or without any has
    a good verdict. keep: which models are written: "all", "best" or "none". bench: also time each against the
    original, on the CPU, on `provider`, or on the provider that it names. report_file: save the whole as a report
    too, in one file or several, each in the form of its suffix; of a sweep that is refused too. The others are as
    for `prune`.
    A ratio that cannot be met, or whose model fails a check, is a point without a model that says why; where none can,
    the first reason is raised. Raises the errors of `onnxprune.errors`; then nothing is written but `report_file`.
    """
    wanted = ratios_of(ratios) if isinstance(ratios, str) else checked_ratios([*ratios])
    if keep not in KEEP:
        raise UsageError(f"keep {keep!r} is unknown; choose one of {', '.join(KEEP)}")
    settings = (config or PruneConfig()).with_options(**options)
    if settings.ratio is None or options.keys() & {"ratio"}:
        raise UsageError("a sweep goes over ratios: leave out ratio, uniform and tolerances, and give ratios")
    settings = settings.with_options(ratio=wanted[0])
    limits = Limits(max_drop, min_agreement, max_error)
    timed_on = provider_named(bench if isinstance(bench, str) else provider or "cpu") if bench else None
    stem = Path(model).stem if isinstance(model, (str, os.PathLike)) else "model"
    files = Folder(None if folder is None else Path(folder), stem, read_beside(model, settings))
    reports = Reports.of(report_file, overwrite=overwrite)
    read = (model, *files_of(calibration), *files_of(test), *timing)
    clock = Clock(watch, hear=warn)
    made: list[Path] = []
    try:
        files.check(wanted if keep != "none" else (), reports.paths, read, made, overwrite=overwrite)
        timings = Timings.of(tuple(timing), tuple(timing_target), settings)
        machine = Machine.of(settings, jobs, scheduler, provider, custom_ops, timed_here=not timings.files)
        known = {"model": called(model), "versions": versions()}
        with (
            keeping_refusals(reports, "sweep", known, command),
            Stage(overwrite=overwrite) as stage,
            registering(machine.libraries),
        ):
            with machine.working(clock.progress) as place:
                with clock("load"):
                    loaded = opened(
                        model,
                        calibration,
                        settings,
                        None,
                        allow_links=allow_links,
                        single_file=single_file,
                        told=clock,
                        pictures=pictures,
                    )
                    for ratio in wanted:
                        check_data(files.model(ratio), (*files.tables, *reports.paths), loaded.source)
                    exam = Exam.of(
                        model, loaded, test, test_labels, limits, state=settings.state, allow_links=allow_links
                    )
                place = replace(place, kept=kept_in(work, identity(loaded, settings)))
                one_number = files.settings(wanted[0]).one_number_of_heads
                prepared = prepare(loaded, settings, clock, place, one_number=one_number, timings=timings)
                settings = prepared.settled(settings)
                prepared = prepared.for_several()
                run = _Run(prepared, settings, clock, exam, files, stage, keep, timed_on)
                result = replace(run.over(wanted), command=tuple(command))
                result = _stored(result, files, reports, stage)
            ready(result)
            stage.commit()
            return result
    finally:
        for new in reversed(made):  # where nothing is in it
            with suppress(OSError):
                new.rmdir()


def _stored(result: Sweep, files: Folder, reports: Reports, stage: Stage) -> Sweep:
    """Store tables and reports behind the models; the result with the names of all."""
    for path, text in zip(files.tables, (result.to_markdown(), result.to_json()), strict=False):
        stage.put(path, text.encode("utf-8", "backslashreplace"))
    reports.put(stage, result.document())
    return replace(result, files=tuple(map(str, stage.targets)))


@dataclass(frozen=True, eq=False)
class _Made:
    """A model, and the bytes of the settings files beside it by name: for equal cuts the same."""

    model: onnx.ModelProto
    settings: Mapping[str, bytes]


class _Run:
    """The second half of a sweep: one point after the other; of equal cuts the second is not made again."""

    def __init__(
        self,
        prepared: Prepared,
        settings: PruneConfig,
        clock: Clock,
        exam: Exam,
        files: Folder,
        stage: Stage,
        keep: str,
        timed_on: str | None,
    ) -> None:
        self.prepared, self.settings, self.clock, self.exam = prepared, settings, clock, exam
        self.files, self.stage, self.keep, self.timed_on = files, stage, keep, timed_on
        self._known: dict[bytes, tuple[Point, _Made, Report]] = {}
        self._errors: list[OnnxPruneError] = []
        self._last: Report | None = None
        self._top1: float | None = None
        self._seconds: float | None = None
        self._notes: list[tuple[float, str]] = []
        self._placement = prepared.loaded.source.placement

    def over(self, ratios: Sequence[float]) -> Sweep:
        """All points. Raises the first error where none can be made."""
        points: list[Point] = []
        best: tuple[int, _Made] | None = None
        for i, ratio in enumerate(ratios):
            self.clock.begin(f"ratio {ratio:g} ({i + 1} of {len(ratios)})")
            point, made = self._point(ratio)
            if made is not None and self._good(point):
                best = i, made
            if made is not None and self.keep == "all":
                point = self._written(point, made)
            points.append(point)
        if self._last is None:
            raise self._errors[0]
        if best is not None:
            points[best[0]] = replace(points[best[0]], best=True)
            if self.keep == "best":
                points[best[0]] = self._written(points[best[0]], best[1])
        return self._told(with_front(points), self._last)

    def _point(self, ratio: float) -> tuple[Point, _Made | None]:
        settings = self.settings.with_options(ratio=ratio)
        try:
            self.prepared = prepared = self.prepared.at(settings)
            chosen = choose(prepared, settings, self.clock)
            key = chosen.key
            if key not in self._known:
                self._known = {key: self._made(prepared, chosen, settings, ratio)}  # equal ones are neighbours
        except (BudgetUnreachable, NothingPrunable, CheckFailed, RunError) as e:
            self._errors.append(e)
            return Point(ratio=ratio, why=str(e)), None
        except SolveFailed as e:
            self._errors.append(RunError(f"{e}: the statistics cannot be trusted"))
            return Point(ratio=ratio, why=str(self._errors[-1])), None
        point, made, self._last = self._known[key]
        self._notes += [(ratio, note) for note in self._last.notes]
        return replace(point, ratio=ratio), made

    def _made(
        self, prepared: Prepared, chosen: Chosen, settings: PruneConfig, ratio: float
    ) -> tuple[Point, _Made, Report]:
        loaded, coupled = prepared.loaded, prepared.coupled
        checked = make(prepared, chosen, settings, self.clock)
        beside, told = self.files.settings(ratio).written(loaded, checked)
        timed = timed_with(prepared.stopwatch, checked.model, coupled, chosen.masks, self.clock)
        report = report_of(
            loaded,
            coupled,
            prepared.calibrated,
            chosen.masks,
            settings,
            self.clock,
            checked,
            None,
            timed,
            prepared.place,
            prepared.tried,
        )
        report = replace(report, notes=(*report.notes, *told))
        with self.clock("judge"):
            result = self.exam.result_of(checked, loaded)
        self._top1 = result.original_accuracy
        point = _measured(report, result, self.exam.limits)
        if checked.fewer_bits is not None and self.exam.test is None:
            point = replace(point, error_in_float=_finite(checked.fewer_bits.errors["pruned"]))
        if self.keep != "none":
            point = replace(point, why=point.why or refused(checked.whole, self._placement))
        if self.timed_on is not None:
            point = self._timed(point, checked, report, self.timed_on)
        return point, _Made(checked.whole, {path.name: blob for path, blob in beside.items()}), report

    def _timed(self, point: Point, checked: Checked, report: Report, provider: str) -> Point:
        self.clock.begin("bench")
        try:
            bench = bench_of(report, self.prepared.loaded, checked, provider)
        except OnnxPruneError as e:  # a model that was made and checked is worth more than its time
            self._notes.append((report.config["ratio"], f"its time was not measured: {e}"))
            return point
        assert bench.comparison is not None
        self._notes += [(report.config["ratio"], note) for note in bench.notes]
        self._seconds = bench.models[0].median
        return replace(
            point,
            seconds=bench.models[1].median,
            time_ratio=bench.comparison.ratio,
            time_interval=bench.comparison.interval,
        )

    def _good(self, point: Point) -> bool:
        return not point.why and (bool(self.exam.limits) or point.verdict == GOOD)

    def _written(self, point: Point, made: _Made) -> Point:
        path = self.files.model(point.ratio)
        if path is None or refused(made.model, self._placement):
            return point
        for name, blob in made.settings.items():
            self.stage.put(path.with_name(name), blob)
        put_model(self.stage, made.model, path, placement=self._placement)
        return replace(point, output=str(path))

    def _told(self, points: tuple[Point, ...], last: Report) -> Sweep:
        return Sweep(
            model=last.model,
            model_sha256=last.model_sha256,
            counted=self.settings.counted,
            original=last.before,
            points=points,
            judged=self.exam.where,
            config={k: v for k, v in self.settings.as_dict().items() if k != "ratio"},
            limits=self.exam.limits.given,
            calibration=last.calibration,
            seconds=dict(self.clock.seconds),
            versions=versions(),
            original_top1=self._top1,
            original_seconds=self._seconds,
            notes=(*_together(self._notes, sum(p.made for p in points)), *self.prepared.place.kept.notes),
            warnings=tuple(self.clock.warnings),
            groups=uncut(last.groups),
            curves=last.curves,
            pinned=last.pinned,
        )


def _together(notes: Sequence[tuple[float, str]], count: int) -> tuple[str, ...]:
    """Notes on single ratios as notes on the sweep: those on all of its `count` models once, the others with theirs."""
    ratios: dict[str, list[float]] = {}
    for ratio, note in notes:
        ratios.setdefault(note, []).append(ratio)

    def told(note: str) -> str:
        own = dict.fromkeys(ratios[note])
        return note if len(own) == count else f"{', '.join(map(exact_percent, own))}: {note}"

    return tuple(map(told, ratios))


def _measured(report: Report, result: Evaluation, limits: Limits) -> Point:
    """What there is to say of a model that was made."""
    broken = limits.broken_by(result)
    figures = result.figures
    verdict = "" if figures is None else verdict_of(figures).level
    return Point(
        ratio=0.0,
        achieved=report.achieved,
        size=report.after,
        error=_finite(result.output_error),
        interval=None if figures is None else figures.interval,
        agreement=result.agreement,
        top1=result.accuracy,
        drop=result.drop,
        verdict=verdict,
        widths={g.name: g.channels_after for g in report.groups if g.channels_after != g.channels_before},
        why=broken,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
