"""A model as it is in fewer bits: what `then` does behind a cut, without one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import onnx

from onnxprune.benchmark.measure import Candidate, Feeds, Settings, measure, provider_named
from onnxprune.config import Options, PruneConfig
from onnxprune.data.sources import files_of
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.graph import external
from onnxprune.graph.external import Placement
from onnxprune.intake.model_file import ModelLike, called
from onnxprune.measures.figures import Figures
from onnxprune.measures.verdict import verdict_of
from onnxprune.output.commit import Stage
from onnxprune.output.destination import check_data, check_outputs
from onnxprune.output.model_files import commit, put_model, written_bytes
from onnxprune.process import spill
from onnxprune.report.environment import versions
from onnxprune.report.files import ReportFiles, Reports, keeping_refusals
from onnxprune.report.progress import Progress
from onnxprune.report.quantized import QuantizeReport
from onnxprune.runtime.custom_ops import Libraries, registering
from onnxprune.runtime.custom_ops import checked as checked_libraries
from onnxprune.sentence.exam import Exam, Limits, TestData
from onnxprune.stages.clock import Clock
from onnxprune.stages.load import Calibration, Loaded, load
from onnxprune.stages.quantize import Narrow, check_before, doubts_of, in_fewer_bits
from onnxprune.stages.report import calibration_of
from onnxprune.stages.verify import Original, within
from onnxprune.targets.precision import INT8

_OPTIONS = ("then", "target", "ranges", "reduce_range", "keep_float", "float_share", "samples", "seed", "state")


@dataclass(frozen=True, repr=False)
class QuantizeResult:
    """The model in fewer bits and the report, as which a notebook shows it."""

    model: onnx.ModelProto
    report: QuantizeReport

    def __repr__(self) -> str:
        """In a line: a model in words fills screens."""
        return f"QuantizeResult(report={self.report!r})"

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        return self.report._repr_html_()


def quantize(
    model: ModelLike,
    output: str | os.PathLike[str] | None = None,
    calibration: Calibration = None,
    *,
    to: str = INT8,
    overwrite: bool = False,
    report_file: ReportFiles = None,
    bench: bool | str = False,
    test: TestData = None,
    test_labels: str | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    max_error: float | None = None,
    allow_links: bool = False,
    custom_ops: Libraries = (),
    single_file: bool = False,
    pictures: bool = True,
    watch: Callable[[Progress], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    ready: Callable[[QuantizeReport], None] = lambda _: None,
    command: Sequence[str] = (),
    **options: Unpack[Options],
) -> QuantizeResult:
    """Store `model` in fewer bits as `target` wants it and, unless `output` is None, write the result there.

    to: "int8" or "fp16". options: of PruneConfig target, ranges, reduce_range, keep_float, float_share, samples, seed
    and state; all else as for `prune`. An eighth of the samples, at most 64, judges; ranges are those of the others.
    Raises the errors of `onnxprune.errors`; then nothing is written but `report_file`.
    """
    unknown = next((k for k in options if k not in _OPTIONS or k == "then"), None)
    if unknown is not None:
        raise UsageError(f"quantize knows no option {unknown}; there are {', '.join(_OPTIONS[1:])}")
    settings = replace(PruneConfig(then=to), **options)
    limits = Limits(max_drop, min_agreement, max_error)
    timed_on = provider_named(bench if isinstance(bench, str) and bench else "cpu") if bench else None
    if calibration is None and limits:
        raise UsageError("limits are told by data: give the calibration data")
    reports = Reports.of(report_file, overwrite=overwrite)
    check_outputs((output, *reports.paths), (model, *files_of(calibration), *files_of(test)), overwrite)
    began, clock = time.perf_counter(), Clock(watch, hear=warn)
    known: dict[str, Any] = {
        "model": called(model),
        "output": None,
        "config": _config(settings),
        "versions": versions(),
    }
    with Stage(overwrite=overwrite) as stage, registering(checked_libraries(custom_ops)):
        with spill.spilling(), keeping_refusals(reports, "quantize", known, command):
            with clock("load"):
                loaded = load(model, calibration, settings, allow_links=allow_links, told=clock)
                if single_file:
                    loaded = replace(loaded, source=replace(loaded.source, placement=Placement.INSIDE))
                loaded = replace(loaded, pictures=pictures)
                check_data(output, reports.paths, loaded.source)
                check_before(loaded, settings, pruned=False)
                known |= {"model_sha256": loaded.source.sha256, "calibration": calibration_of(loaded)}
                exam = Exam.of(model, loaded, test, test_labels, limits, state=settings.state, allow_links=allow_links)
            clock.warn(loaded.doubts)
            with clock("quantize"):
                narrow = in_fewer_bits(loaded, loaded.original, settings, Original(loaded), clock.read)
            clock.warn(doubts_of(narrow.row))
            gates, judged = exam.asked_of(_Finished(narrow.whole, narrow.figures), loaded, clock)
            report = _report(loaded, narrow, settings, clock, output, began)
            report = replace(report, notes=(*report.notes, *judged), gates=gates, command=tuple(command))
            if timed_on is not None:
                clock.begin("bench")
                report = _timed(report, loaded, narrow, timed_on)
            known |= {
                k: v for k, v in report.document().items() if k not in ("status", "reason", "exit_code", "output")
            }
            within(gates)
            clock.begin("save")
            result = _stored(stage, narrow, loaded, report, output, reports)
        ready(result.report)
        if output is None:
            stage.commit()
        else:
            commit(stage, Path(output))
        return result


@dataclass(frozen=True, eq=False)
class _Finished:
    """What limits are asked of."""

    wide: onnx.ModelProto
    figures: Figures


def _config(settings: PruneConfig) -> dict[str, Any]:
    """The options that decide the result."""
    return {k: v for k, v in settings.as_dict().items() if k in _OPTIONS}


def _report(
    loaded: Loaded,
    narrow: Narrow,
    settings: PruneConfig,
    clock: Clock,
    output: str | os.PathLike[str] | None,
    began: float,
) -> QuantizeReport:
    figures = narrow.figures
    tensorrt = {} if narrow.tensorrt is None else {"tensorrt": list(narrow.tensorrt)}
    return QuantizeReport(
        model=loaded.source.path,
        model_sha256=loaded.source.sha256,
        output=None if output is None else str(output),
        config=_config(settings),
        fewer_bits=narrow.row,
        checks={"input_sizes_run": narrow.sizes} | tensorrt,
        output_error=figures.error,
        agreement=figures.agreement,
        outputs=figures.as_dicts(),
        error=figures.summary(),
        verdict=asdict(verdict_of(figures)),
        calibration=calibration_of(loaded),
        versions=versions(),
        seconds=time.perf_counter() - began,
        notes=(
            *(n.replace("the refit has", "ranges have") for n in loaded.notes),
            *narrow.notes,
            *(narrow.tensorrt or ()),
        ),
        warnings=tuple(clock.warnings),
    )


def _timed(report: QuantizeReport, loaded: Loaded, narrow: Narrow, provider: str) -> QuantizeReport:
    """With the time of one sample through both models; with a note where that fails."""
    models = (
        Candidate(report.model, loaded.given, loaded.source.size),
        Candidate(report.output or "the result", narrow.model, report.fewer_bits.bytes["result"]),
    )
    feeds = loaded.fit.slice(0, loaded.fit.run_size(1))
    try:
        found = measure(models, Feeds(feeds, loaded.fit.count(feeds), loaded.fit.origin), Settings(provider))
    except OnnxPruneError as e:
        return replace(report, notes=(*report.notes, f"the latency was not measured: {e}"))
    return replace(report, latency=found.as_dict(), notes=(*report.notes, *found.notes))


def _stored(
    stage: Stage,
    narrow: Narrow,
    loaded: Loaded,
    report: QuantizeReport,
    output: str | os.PathLike[str] | None,
    reports: Reports,
) -> QuantizeResult:
    """Store what was asked for under temporary names, the model last. Raises RunError."""
    whole, placement = narrow.whole, loaded.source.placement
    if output is not None:
        sizes = {**report.fewer_bits.bytes, "result": written_bytes(whole, Path(output), placement=placement)}
        report = replace(report, fewer_bits=replace(report.fewer_bits, bytes=sizes))
    if reports.paths:
        reports.put(stage, report.document())
    if output is None:
        whole = external.embedded(whole)
    else:
        whole = put_model(stage, whole, Path(output), placement=placement)
    files = tuple(map(str, stage.targets))
    if output is not None:
        files = (files[-1], *files[:-1])
    return QuantizeResult(whole, replace(report, files=files))
