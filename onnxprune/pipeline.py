"""The main job: the words of `sentence.halves`, from a model to a report and files that appear at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Unpack

from onnxprune import plan
from onnxprune.benchmark.measure import provider_named
from onnxprune.channels.describe import Description
from onnxprune.config import Options, PruneConfig
from onnxprune.data.accepted import Data
from onnxprune.data.sources import files_of
from onnxprune.errors import UsageError
from onnxprune.graph.external import Placement
from onnxprune.intake.model_file import ModelLike, called
from onnxprune.intake.preview import Preview
from onnxprune.jobs.kept import kept_in
from onnxprune.jobs.workplace import Workplace
from onnxprune.options import error_limit
from onnxprune.output.commit import Stage
from onnxprune.output.destination import check_data, check_outputs
from onnxprune.process import spill
from onnxprune.report.files import ReportFiles, Reports
from onnxprune.report.progress import Progress
from onnxprune.report.summary import Report
from onnxprune.runtime.custom_ops import Libraries, registering
from onnxprune.runtime.custom_ops import checked as checked_libraries
from onnxprune.sentence.exam import Exam, Limits, TestData
from onnxprune.sentence.halves import choose, make, prepare, replayed_from
from onnxprune.sentence.largest import STEP, Found, largest_cut
from onnxprune.sentence.machine import Machine
from onnxprune.stages import settings_beside
from onnxprune.stages.attention import described_attention
from onnxprune.stages.clock import Clock
from onnxprune.stages.couple import describe_loaded, foreseen
from onnxprune.stages.identity import identity
from onnxprune.stages.load import Calibration, load, opened
from onnxprune.stages.look import looked_at
from onnxprune.stages.refuse import SoFar, refusing
from onnxprune.stages.report import estimated, report_of, speed_gates, with_latency
from onnxprune.stages.save import PruneResult, foreseen_size, named, stored
from onnxprune.stages.settings_beside import Beside
from onnxprune.stages.time_layers import Timings, timed_with
from onnxprune.targets.alignment import AUTO, DEFAULT


def prune(
    model: ModelLike,
    output: str | os.PathLike[str] | None = None,
    calibration: Calibration = None,
    *,
    config: PruneConfig | None = None,
    from_plan: plan.Plan | str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    plan_file: str | os.PathLike[str] | None = None,
    report_file: ReportFiles = None,
    bench: bool | str = False,
    watch: Callable[[Progress], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    ready: Callable[[Report], None] = lambda _: None,
    jobs: int = 1,
    scheduler: str | None = None,
    provider: str | None = None,
    timing: Sequence[str | os.PathLike[str]] = (),
    timing_target: Sequence[str] = (),
    test: TestData = None,
    test_labels: str | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    max_error: float | None = None,
    min_speedup: float | None = None,
    largest: bool = False,
    allow_links: bool = False,
    custom_ops: Libraries = (),
    single_file: bool = False,
    pictures: bool = True,
    work: str | os.PathLike[str] | None = None,
    command: Sequence[str] = (),
    sources: Mapping[str, str] = MappingProxyType({}),
    stop: Callable[[], bool] = lambda: False,
    **options: Unpack[Options],
) -> PruneResult:
    """Prune `model` and, unless `output` is None, write the result there.

    model: a path or a ModelProto, which is not changed. calibration: a `.npz` keyed by input names, a `.npy`, a folder
    of either, arrays by input name, or batches, each a dict by input name, an array or tensor, or a tuple of these
    (labels behind the inputs get the key "label"): any iterable, such as a DataLoader, a function that yields them, a
    CalibrationDataReader of onnxruntime, a tf.data set. Batches are read once, up to `samples` samples; more than
    memory should hold goes to temporary files. None means seeded random inputs. options: fields of PruneConfig.
    from_plan: replay a plan instead of selecting, with the data that it was made with (or `force`); its own config then
    stands for `config`, and options replace single fields.
    dry_run: stop after the plan; no model is written. plan_file: save the plan too, as JSON. report_file: save the
    report, in one file or several, each in the form of its suffix (`report.files.FORMS`); of a run that is refused
    too, with the reason. overwrite: existing files may be replaced. bench: also time the original and the result in
    turns, one sample at a time, on the CPU or on the provider that it names (as for `bench`). watch: told of every
    stage, and how far it is (`Progress`; its `str` is a line). warn: called with what makes the result doubtful, as
    soon as it is known. ready: called with the report when all files are stored under temporary names; where it raises
    anything, nothing is written.
    jobs: processes that calibrate, select and try cuts; above 1, a script calls this under `if __name__ == "__main__"`.
    scheduler: the address of a Dask scheduler whose workers do so instead. provider: where calibration runs, "cpu" or
    "cuda", and what the budget "latency" counts the time on; None for the CPU and, of the time, what stands for the
    target. That time aside, none of the three changes the result beyond rounding, and none belongs to the plan.
    timing: timing files of other devices (`bench --layers`), whose time the budget "latency" then counts, without
    running anything; timing_target: the names of targets in them that count, all where none is given. The share has to
    hold on each.
    max_drop: points of top-1 that may be lost at most; min_agreement: the share of samples that keep their class at
    least; max_error: what the error of any output, or the share of answers that change, may be at most (0.05). Where
    one does not hold, or could not be measured, CheckFailed is raised, also with `force`. test: data that these are
    asked of, as the calibration data, instead of samples held out from that; test_labels: the key of the classes in it,
    None for its only key of integers. largest: instead of a ratio, the largest cut that holds these limits;
    BudgetUnreachable where none does. min_speedup: how many times as fast as the original the result has to be, by the
    lower end of the 95 % interval of runs in turns (see `bench`); else CheckFailed. allow_links: weights may lie where
    links beside the model lead. custom_ops: shared libraries of operators that onnxruntime registers in every session.
    single_file: weights go into `output` also where the original has them beside it; RunError where they do not fit.
    pictures: reports show a few of the images that the model was calibrated on, small. work: a folder for what the run
    computes on the way, which the same run takes up again after it was ended; it is left there.
    command: what was typed, for the report. sources: where options were found that were not typed, and which these
    are. stop: asked between the steps of recovery; where it says so, that ends with the best state so far.
    Raises the errors of `onnxprune.errors`; then nothing is written but `report_file`.
    """
    chosen = from_plan if from_plan is None or isinstance(from_plan, plan.Plan) else plan.load(Path(from_plan))
    given = config or (chosen.settings() if chosen else None)
    settings = PruneConfig(**options) if given is None else given.with_options(**options)
    if dry_run and bench:
        raise UsageError("a dry run makes no model that could be timed: leave out bench, or the dry run")
    least = error_limit(min_speedup, "min_speedup", "a factor such as 1.2")
    asked = Asked(Limits(max_drop, min_agreement, max_error), test, test_labels, least, largest)
    asked.check(settings, dry_run=dry_run, replays=chosen is not None)
    timed_on = None
    if bench or least is not None:
        timed_on = provider_named(bench if isinstance(bench, str) and bench else provider or "cpu")
    output = None if dry_run else output
    reports = Reports.of(report_file, overwrite=overwrite)
    beside = settings_beside.found(model, output, settings)
    check_outputs(
        (output, plan_file, *reports.paths, *beside.paths),
        (model, *files_of(calibration), *files_of(test), from_plan, *timing),
        overwrite,
    )
    timings = Timings.of(tuple(timing), tuple(timing_target), settings, replays=chosen is not None)
    machine = Machine.of(settings, jobs, scheduler, provider, custom_ops, timed_here=not timings.files)
    clock = Clock(watch, hear=warn, stop=stop)
    files = (output, plan_file, *reports.paths)
    so_far = SoFar(called(model), settings, tuple(command), clock)
    with Stage(overwrite=overwrite) as stage, registering(machine.libraries):
        with machine.working(clock.progress) as place:
            with refusing(so_far, reports, warn):
                result, placement, more = _run(
                    model,
                    files,
                    beside,
                    calibration,
                    settings,
                    chosen,
                    clock,
                    place,
                    timed_on,
                    timings,
                    asked,
                    so_far,
                    dry_run=dry_run,
                    allow_links=allow_links,
                    single_file=single_file,
                    pictures=pictures,
                    work=work,
                )
            result = replace(result, report=replace(result.report, sources=dict(sources)))
            clock.begin("save")
            result = stored(stage, result, placement, output, plan_file, reports, more)
        # The workers and the temporary files are gone: what is left to do is to rename.
        ready(result.report)
        named(stage, output)
        return result


def inspect(
    model: ModelLike,
    calibration: Calibration = None,
    *,
    attention: str = AUTO,
    target: str = DEFAULT,
    state: Sequence[str] = (),
    resize_io: Sequence[str] = (),
    allow_links: bool = False,
    custom_ops: Libraries = (),
) -> Description:
    """What of `model` can be pruned, and why the rest cannot; `model` and `calibration` as for `prune`.

    The data only fixes the sizes of symbolic dimensions. attention, target, state, resize_io: as in PruneConfig.
    allow_links, custom_ops: as for `prune`. Raises InputError, RunError and UsageError.
    """
    state, resize_io = tuple(state), tuple(resize_io)
    settings = PruneConfig(samples=2, attention=attention, target=target, state=state, resize_io=resize_io)
    with spill.spilling(), registering(checked_libraries(custom_ops)):
        loaded = load(model, calibration, settings, allow_links=allow_links)
        settings, notes = described_attention(loaded, settings)
        described = describe_loaded(loaded, settings)
        return replace(described, notes=(*described.notes, *notes))


def preview(
    model: ModelLike,
    data: Data,
    *,
    samples: int | None = None,
    state: Sequence[str] = (),
    sheet: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    allow_links: bool = False,
    custom_ops: Libraries = (),
) -> Preview:
    """What `model` would be calibrated on; `model` and `data` as for `prune`.

    samples, state: as in PruneConfig. sheet: a PNG to save, with some of the images side by side as the model reads
    them; overwrite: it may replace a file. allow_links, custom_ops: as for `prune`. Raises InputError, RunError and
    UsageError.
    """
    settings = PruneConfig(samples=samples, state=tuple(state))
    check_outputs((sheet,), (model, *files_of(data)), overwrite)
    with Stage(overwrite=overwrite) as stage, spill.spilling(), registering(checked_libraries(custom_ops)):
        loaded = load(model, data, settings, allow_links=allow_links)
        seen, picture = looked_at(loaded, pictures=sheet is not None)
        if sheet is not None:
            stage.put(Path(sheet), picture)
            stage.commit()
        return seen


@dataclass(frozen=True)
class Asked:
    """What the result has to hold, and the data that tells. largest: as large a cut as that allows."""

    limits: Limits
    test: TestData
    test_labels: str | None
    min_speedup: float | None
    largest: bool

    def check(self, settings: PruneConfig, *, dry_run: bool, replays: bool) -> None:
        """Raises UsageError for what does not go together."""
        if dry_run and (self.limits or self.min_speedup is not None):
            raise UsageError("a dry run makes no model that could be judged: leave out its limits, or the dry run")
        if self.largest and not self.limits:
            raise UsageError("the largest cut needs a limit that it has to hold: max_drop, min_agreement or max_error")
        if self.largest and (replays or settings.ratio is None):
            raise UsageError("the largest cut is one of ratios: leave out the plan, uniform and tolerances")


def _run(
    model: ModelLike,
    files: Sequence[str | os.PathLike[str] | None],
    beside: Beside,
    calibration: Calibration,
    settings: PruneConfig,
    replayed: plan.Plan | None,
    stage: Clock,
    place: Workplace,
    timed_on: str | None,
    timings: Timings,
    asked: Asked,
    so_far: SoFar,
    *,
    dry_run: bool,
    allow_links: bool,
    single_file: bool,
    pictures: bool,
    work: str | os.PathLike[str] | None,
) -> tuple[PruneResult, Placement, Mapping[Path, bytes]]:
    """The sentence, where the result's weights go, and what goes beside it.

    files: output, plan, reports. beside: settings files that lie beside the model. timed_on: the provider that times
    the models, None to leave that out. so_far: is told
    what is known, for the report of a run that is refused.
    """
    output, *others = files
    with stage("load"):
        loaded = opened(
            model,
            calibration,
            settings,
            replayed,
            allow_links=allow_links,
            single_file=single_file,
            told=stage,
            pictures=pictures,
        )
        so_far.loaded = loaded
        check_data(output, others, loaded.source)
        place = replace(place, kept=kept_in(work, identity(loaded, settings)))
        state = settings.state
        exam = Exam.of(model, loaded, asked.test, asked.test_labels, asked.limits, state=state, allow_links=allow_links)
    first = settings.with_options(ratio=STEP) if asked.largest else settings
    prepared = prepare(
        loaded, first, stage, place, replays=replayed, one_number=beside.one_number_of_heads, timings=timings
    )
    if asked.largest:
        found = largest_cut(prepared, first, stage, exam)
    elif replayed is None:
        found = Found(prepared, settings, choose(prepared, settings, stage))
    else:
        found = Found(prepared, settings, replayed_from(prepared, replayed, settings))
    prepared, settings, chosen = found.prepared, found.prepared.settled(found.settings), found.chosen
    loaded = prepared.loaded
    about = loaded, prepared.coupled, prepared.calibrated, chosen.masks, settings, stage
    coupled, masks, stopwatch = prepared.coupled, chosen.masks, prepared.stopwatch
    if found.checked is None:
        stage.warn(foreseen_size(loaded, coupled, masks))
    if dry_run:
        timed = timed_with(stopwatch, None, coupled, masks, stage)
        report = estimated(report_of(*about, None, None, timed, place, prepared.tried), coupled, prepared.tried, masks)
        report = replace(report, notes=(*report.notes, *foreseen(loaded, settings)))
        return PruneResult(None, chosen.plan, so_far.settled(report)), loaded.source.placement, {}
    checked = found.checked or make(prepared, chosen, settings, stage)
    gates, said = exam.asked_of(checked, loaded, stage)
    more, told = beside.written(loaded, checked)
    timed = timed_with(stopwatch, checked.model, coupled, masks, stage)
    report = report_of(*about, checked, output, timed, place, prepared.tried)
    notes = (*told, *said, *found.notes, *place.kept.notes)
    report = so_far.settled(replace(report, notes=(*report.notes, *notes)), gates)
    if timed_on is not None:
        stage.begin("bench")  # no stage of its own: the effort of a run is that of pruning
        report = with_latency(report, loaded, checked, timed_on)
        report = so_far.settled(report, (*gates, *speed_gates(report, asked.min_speedup)))
    return PruneResult(checked.whole, chosen.plan, report), loaded.source.placement, more
