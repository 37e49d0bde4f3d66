"""The main job: load → couple → calibrate → select → allocate → rewrite → refit → recover → verify → report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import (
    cost,
    labels,
    plan,
    runtime,
    selection,
    sequential,
    storage,
    trt_check,
    verify,
)
from onnxprune import model as m
from onnxprune.allocation import allocate, coefficients_of
from onnxprune.bodies import return_to_bodies
from onnxprune.calibrate import outputs, stand_ins, statistics
from onnxprune.calibrate import samples as data
from onnxprune.calibrate.outputs import OutputMoments
from onnxprune.calibrate.samples import Samples
from onnxprune.channels import ChannelGraph, branches, build
from onnxprune.channels.describe import Description, describe
from onnxprune.channels.untried import untried_branches, warnings_of, why_kept
from onnxprune.config import PruneConfig
from onnxprune.destination import check_data, check_outputs
from onnxprune.errors import CalibrationError, CheckFailed, NothingPrunable, RunError, UsageError
from onnxprune.fitting import held_out_error, nearest, recover_weights, refit_weights, worse
from onnxprune.gates import gates_of
from onnxprune.goals import goals_of, probed
from onnxprune.intake import counting, declarations, first_run, older, scales
from onnxprune.intake.figures import digests, figures_of
from onnxprune.intake.figures import doubts as doubts_of_data
from onnxprune.intake.inputs import check_samples
from onnxprune.intake.options import error_limit
from onnxprune.jobs import check_choice, scheduling
from onnxprune.latency.bench import provider_named
from onnxprune.latency.cache import Cache, default_folder
from onnxprune.latency.machine import OnnxRuntime
from onnxprune.latency.stopwatch import Latency, Stopwatch, feeds_of
from onnxprune.measures.figures import Figures
from onnxprune.measures.judge import (
    answers_of,
    discrepancy_of,
    figures_of_result,
    observed_of,
    outputs_of,
    outputs_of_result,
    seen,
    with_layouts,
    within,
    within_tolerance,
)
from onnxprune.measures.saturation import DEPLOYED
from onnxprune.normalise import Normalised, symbols
from onnxprune.numerics.least_squares import SolveFailed
from onnxprune.objective import fitted_labels
from onnxprune.oracle import masked_model
from onnxprune.output.commit import Stage
from onnxprune.output.model_files import commit, put_model
from onnxprune.report.summary import Report
from onnxprune.reporting import report_of, with_latency
from onnxprune.rewrite import cut, finish
from onnxprune.runtime import check_provider
from onnxprune.scope import (
    alignment,
    allowed,
    check_counted,
    frozen_groups,
    not_counted,
    notes_on_bodies,
    relaxed,
    why_nothing,
)
from onnxprune.select import Path as SelectionPath
from onnxprune.state import (
    HERE,
    Calibrated,
    Calibration,
    Checked,
    Clock,
    Coefficients,
    Coupled,
    Loaded,
    Mask,
    Masks,
    ModelLike,
    Place,
    Refitted,
)
from onnxprune.taken import layers_taken, taken_by
from onnxprune.targets import DEFAULT, TARGETS
from onnxprune.threads import one_blas_thread
from onnxprune.walk import runtime_batch

Cut = tuple[dict[int, Mask], dict[int, Coefficients]]
_RANDOM_SAMPLES = 64
_FEW_SAMPLES = 64
_NO_DATA = "no calibration data was given: random inputs stand in for it, and the accuracy WILL suffer; use --calib"
# Of a plain pass so much is timed.
_PLAIN_SECONDS = 1.0
_ONE_SIZE = (
    "sizes of inputs are symbolic, but the original ran at no other size: the result was compared at one size only"
)
_HELD_OUT_SHARE, _HELD_OUT_MOST = 8, 64


@dataclass(frozen=True)
class PruneResult:
    """The pruned model (None after a dry run), the plan and the report."""

    model: onnx.ModelProto | None
    plan: plan.Plan
    report: Report


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
    report_file: str | os.PathLike[str] | None = None,
    bench: bool | str = False,
    watch: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    ready: Callable[[Report], None] = lambda _: None,
    jobs: int = 1,
    scheduler: str | None = None,
    provider: str | None = None,
    max_error: float | None = None,
    **options: Any,
) -> PruneResult:
    """Prune `model` and, unless `output` is None, write the result there.

    model: a path or a ModelProto, which is not changed. calibration: a `.npz` keyed by input names, a `.npy`, a folder
    of either, or arrays by input name; None means seeded random inputs. options: fields of PruneConfig. from_plan:
    replay a plan instead of selecting, with the data that it was made with (or `force`); its own config then stands for
    `config`, and options replace single fields.
    dry_run: stop after the plan; no model is written. plan_file, report_file: save these too, as JSON. overwrite:
    existing files may be replaced. bench: also time the original and the result in turns, one sample at a time, on the
    CPU or on the provider that it names (as for `bench`). watch: called with the name of every stage, and with its
    progress ("select 3/8"). warn: called with what makes the result doubtful, as soon as it is known. ready: called
    with the report when all files are stored under temporary names; where it raises anything, nothing is written.
    jobs: processes that calibrate, select and try cuts; above 1, a script calls this under `if __name__ == "__main__"`.
    scheduler: the address of a Dask scheduler whose workers do so instead. provider: where calibration runs, "cpu" or
    "cuda", and what the budget "latency" counts the time on; None for the CPU and, of the time, what stands for the
    target. That time aside, none of the three changes the result beyond rounding, and none
    belongs to the plan. max_error: what the
    error of any output, or the share of answers that change, may be at most (0.05); where it is more, or could not be
    measured, CheckFailed is raised, also with `force`.
    Raises the errors of `onnxprune.errors`; then nothing is written.
    """
    chosen = from_plan if from_plan is None or isinstance(from_plan, plan.Plan) else plan.load(Path(from_plan))
    settings = (config or (chosen.settings() if chosen else PruneConfig())).with_options(**options)
    if dry_run and bench:
        raise UsageError("a dry run makes no model that could be timed: leave out bench, or the dry run")
    max_error = error_limit(max_error)
    if dry_run and max_error is not None:
        raise UsageError("a dry run makes no model whose error could be measured: leave out max_error, or the dry run")
    timed_on = provider_named("cpu" if bench is True else bench) if bench else None
    output = None if dry_run else output
    check_outputs((output, plan_file, report_file), (model, calibration, from_plan), overwrite)
    check_choice(jobs, scheduler)
    check_provider(provider or "cpu")
    timing_on = runtime.timing_on(provider, TARGETS[settings.target].provider)
    if settings.budget == "latency":
        runtime.check_starts(timing_on)  # before hours of calibration
    clock = Clock(watch, hear=warn)
    files = (output, plan_file, report_file)
    try:
        with Stage(overwrite=overwrite) as stage:
            with one_blas_thread(), storage.spilling(), scheduling(jobs, scheduler, clock.progress) as workers:
                place = Place(workers, provider or "cpu", timing_on)
                result, separate = _run(
                    model, files, calibration, settings, chosen, clock, place, timed_on, max_error, dry_run=dry_run
                )
                watch("save")
                result = _stored(stage, result, separate, *files)
            # The workers and the temporary files are gone: what is left to do is to rename.
            ready(result.report)
            _commit(stage, output)
            return result
    except SolveFailed as e:
        raise RunError(f"{e}: the statistics cannot be trusted; give more or cleaner calibration data") from e


def _stored(
    stage: Stage,
    result: PruneResult,
    separate: bool,
    output: str | os.PathLike[str] | None,
    plan_file: str | os.PathLike[str] | None,
    report_file: str | os.PathLike[str] | None,
) -> PruneResult:
    """Store what was asked for, the model last: where it is, all is. The result without references to temporary files.

    Raises RunError.
    """
    if plan_file is not None:
        stage.put(Path(plan_file), result.plan.to_json().encode())
    if report_file is not None:
        stage.put(Path(report_file), result.report.to_json().encode())
    if result.model is None:
        return result
    if output is None:
        return replace(result, model=storage.embedded(result.model))
    return replace(result, model=put_model(stage, result.model, Path(output), separate=separate))


def _commit(stage: Stage, output: str | os.PathLike[str] | None) -> None:
    """Give everything its name, or nothing and RunError."""
    if output is None:
        stage.commit()
    else:
        commit(stage, Path(output))


def inspect(
    model: ModelLike, calibration: Calibration = None, *, attention: str = "heads", target: str = DEFAULT
) -> Description:
    """What of `model` can be pruned, and why the rest cannot; `model` and `calibration` as for `prune`.

    The data only fixes the sizes of symbolic dimensions. attention, target: as in PruneConfig. Raises InputError,
    RunError and UsageError.
    """
    settings = PruneConfig(samples=2, attention=attention, target=target)
    with storage.spilling():
        return describe_loaded(load(model, calibration, settings), settings)


def _run(
    model: ModelLike,
    files: Sequence[str | os.PathLike[str] | None],
    calibration: Calibration,
    settings: PruneConfig,
    replayed: plan.Plan | None,
    stage: Clock,
    place: Place,
    timed_on: str | None,
    max_error: float | None,
    *,
    dry_run: bool,
) -> tuple[PruneResult, bool]:
    """The sentence, one line per stage, and whether the result's weights go beside it.

    files: output, plan, report. timed_on: the provider that times the models, None to leave that out. max_error: of
    the result, None for no limit.
    """
    output, *others = files
    with stage("load"):
        loaded = opened(model, calibration, settings, replayed)
        check_data(output, others, loaded.source)
    with stage("couple"):
        coupled = couple(loaded, settings, replayed)
        older.check(loaded.normalised.proto, loaded.normalised.notes)
        check_samples(loaded.original)
    # Not before: where nothing can be pruned, one line says so.
    stage.warn((*loaded.doubts, *warnings_of(coupled.untried, cut=settings.untried_branches == "cut")))
    with stage("calibrate"):
        calibrated = calibrate(loaded, coupled, settings, place, selects=replayed is None)
    stopwatch = stopwatch_of(loaded, coupled, settings, place) if settings.budget == "latency" else None
    if replayed is None:
        if stopwatch is not None:
            with stage("time layers"):
                stopwatch.measure()
        with stage("select"):
            candidates = select(coupled, calibrated, settings, place)
        tried = mixtures(candidates, settings)
        found = [cut_with(c, loaded, coupled, calibrated, settings, stage, stopwatch, place) for c in tried]
        masks, coefficients = found[0]
        if len(found) > 1:
            with stage("compare"):
                masks, coefficients = best_of(found, loaded, coupled, calibrated, settings)
        checksums = (loaded.source.sha256, loaded.inputs_sha256)
        chosen = plan.make(coupled.channels, masks, *checksums, settings.as_dict(), coefficients)
    else:
        masks = replay(replayed, coupled, settings)
        chosen = replace(
            replayed,
            data_sha256=loaded.inputs_sha256,
            config=settings.as_dict(),
            split_seed=None if replayed.divided_by == settings.seed else replayed.divided_by,
        )
        coefficients = chosen.coefficients(coupled.channels)
    if dry_run:
        timed = timed_with(stopwatch, None, coupled, masks, stage)
        report = report_of(loaded, coupled, calibrated, masks, settings, stage, None, None, timed, place)
        return PruneResult(None, chosen, replace(report, notes=(*report.notes, *foreseen(loaded, settings)))), False
    with stage("rewrite"):
        sliced = rewrite(loaded, coupled, masks)
    with stage("refit"):
        refitted = refit_weights(loaded, coupled, calibrated, masks, coefficients, sliced, settings)
    if settings.epochs:
        with stage("recover"):
            refitted = recover_weights(loaded, coupled, calibrated, masks, refitted, settings)
    with stage("verify"):
        checked = check(loaded, coupled, calibrated, masks, sliced, refitted, settings, max_error)
    timed = timed_with(stopwatch, checked.model, coupled, masks, stage)
    report = report_of(loaded, coupled, calibrated, masks, settings, stage, checked, output, timed, place)
    if timed_on is not None:
        stage.watch("bench")  # no stage of its own: the effort of a run is that of pruning
        report = with_latency(report, loaded, checked, timed_on)
    return PruneResult(checked.model, chosen, report), loaded.source.separate


# load


def opened(model: ModelLike, calibration: Calibration, settings: PruneConfig, replayed: plan.Plan | None) -> Loaded:
    """Load what a run needs. Raises UsageError where the plan to replay belongs to another model or other data."""
    if replayed is None:
        return load(model, calibration, settings)
    # A plan has decided all that labels decide, so a replay needs none.
    loaded = load(model, calibration, settings.with_options(labels=None), replayed.divided_by)
    known = (loaded.source.sha256, loaded.inputs_sha256)
    said = plan.check_origin(replayed, *known, synthetic=loaded.fit.synthetic, force=settings.force)
    return replace(loaded, notes=(*loaded.notes, *said))


def load(model: ModelLike, calibration: Calibration, settings: PruneConfig, divided_by: int | None = None) -> Loaded:
    """Read and normalise the model, read and split the data, and hold the labels against the first output.

    divided_by: the seed of the split, where that is not the one of the settings.
    """
    original, source = m.adopt(model) if isinstance(model, onnx.ModelProto) else m.load(model)
    if storage.embedded_bytes(original) >= storage.LARGE_BYTES:
        original = storage.outside(original)
    first_run.infer(original)
    samples = read_samples(original, calibration, settings)
    seconds = first_run.run(original, samples.example())
    normalised = first_run.normalised(original, samples.example(), seconds=seconds)
    batches = samples.batches(runtime_batch(normalised.shapes, normalised.proto))
    if not (counting.counts(original) and counting.counts(normalised.proto)):
        batches = islice(batches, 1)
    first_run.run_all(original, batches, seconds=seconds)
    if settings.labels is not None:
        check_labels(normalised, samples, settings.labels)
    false = declarations.false_outputs(original, normalised.shapes)
    if false:
        original = declarations.with_true_outputs(original, normalised.shapes)
        mended = declarations.with_true_outputs(normalised.proto, normalised.shapes)
        normalised = replace(normalised, proto=mended)
    notes = [*filter(None, [source.note]), *normalised.notes, *false]
    if not samples.synthetic and len(samples) < _FEW_SAMPLES:
        few = "1 calibration sample" if len(samples) == 1 else f"{len(samples)} calibration samples"
        notes.append(f"only {few}: the refit has little to go by; use a few hundred")
    notes += runtime.notes_on(original)
    unread = [k for k in samples.extras if k != settings.labels]
    if unread:
        notes.append(f"the calibration data holds keys that the model does not read: {', '.join(unread)}")
    checksums = digests(samples)
    fit, held = split(samples, settings.seed if divided_by is None else divided_by, checksums)
    inputs = samples.sha256()
    whole = inputs if settings.labels is None else samples.sha256(settings.labels)
    figures = figures_of(samples)
    doubts: tuple[str, ...] = (_NO_DATA,)
    if not samples.synthetic:
        doubts = (*doubts_of_data(samples, figures, checksums), *scales.doubts(normalised.proto, samples, figures))
    return Loaded(
        original, source, normalised, fit, held, tuple(notes), whole, inputs, settings.labels, figures, doubts
    )


def read_samples(proto: onnx.ModelProto, calibration: Calibration, settings: PruneConfig) -> Samples:
    """The calibration data, or random inputs; at most `settings.samples` of them, a seeded choice."""
    specs = data.tensor_specs(proto)
    if calibration is None:
        if settings.labels is not None:
            raise UsageError(f"labels {settings.labels!r} are a key of the calibration data; give that too (--calib)")

        trial = first_run.Trial(proto)
        try:
            return stand_ins.random(proto, specs, settings.samples or _RANDOM_SAMPLES, settings.seed, trial)
        except CalibrationError as e:
            raise CalibrationError(f"{e} ({trial.why})" if trial.why else str(e)) from e
    found = data.with_others(data.given(calibration, specs), proto)
    if settings.labels is not None:
        labels.of(found, settings.labels)  # before a choice is made, which keeps only what is one per sample
    if settings.samples is not None and settings.samples < len(found):
        found = found.take(np.sort(np.random.default_rng(settings.seed).permutation(len(found))[: settings.samples]))
    return found


def check_labels(n: Normalised, samples: Samples, key: str) -> None:
    """Raises CalibrationError where the labels do not fit the first output that is a tensor."""
    found = labels.of(samples, key)
    tensors = [o for o in n.proto.graph.output if o.type.HasField("tensor_type")]
    shape = n.shapes.get(tensors[0].name) if tensors else None
    if shape is not None:
        example = samples.example()
        batch = next((len(example[s.name]) for s in samples.specs if s.batched), 1)
        shape = (len(samples) * shape[0] // batch, *shape[1:]) if shape else ()
        fitted_labels(found, shape, onnx.helper.tensor_dtype_to_np_dtype(tensors[0].type.tensor_type.elem_type))


def split(samples: Samples, seed: int, checksums: Sequence[bytes] = ()) -> tuple[Samples, Samples]:
    """(for fitting, held out): an eighth of the different samples, at most 64, judges what the others fit.

    checksums: of each sample; those with the same one are copies, which are on one side.
    """
    copies: dict[bytes, list[int]] = {}
    for i, checksum in enumerate(checksums or [i.to_bytes(8, "big") for i in range(len(samples))]):
        copies.setdefault(checksum, []).append(i)
    places = list(copies.values())
    count = min(len(places) // _HELD_OUT_SHARE, _HELD_OUT_MOST)
    if count == 0:
        return samples, samples
    order = np.random.default_rng(seed).permutation(len(places)).tolist()
    held = [places[i][0] for i in order[:count]]
    return samples.take([j for i in order[count:] for j in places[i]]), samples.take(held)


# couple


def trace(loaded: Loaded, settings: PruneConfig) -> ChannelGraph:
    """The channel graph of the normalised model."""
    n = loaded.normalised
    return build(m.view(n.proto, n.shapes, n.known_values, n.binding, n.free), settings.attention)


def describe_loaded(loaded: Loaded, settings: PruneConfig) -> Description:
    """Describe the channel graph."""
    n, source = loaded.normalised, loaded.source
    channels = trace(loaded, settings)
    price, sizes, batch = cost.macs(channels), [g.size for g in channels.groups], channels.graph.batch
    macs = price.at(sizes) / batch, price.at([0 if size > 1 else 1 for size in sizes]) / batch
    notes = (*filter(None, [source.note]), *n.notes, *foreseen(loaded, settings))
    notes = (*notes, *not_counted(channels))
    stored = m.parameters(loaded.original)
    return describe(
        channels,
        source.path,
        source.sha256,
        notes,
        parameters=stored,
        macs=macs,
        added=n.added_biases,
        clones={*n.clones, *(k for k, t in n.tables.items() if t.generated)},
    )


def foreseen(loaded: Loaded, settings: PruneConfig) -> list[str]:
    """What the target will refuse of any result: it is the normalised model with fewer channels."""
    if not TARGETS[settings.target].tensorrt:
        return []
    whole = onnx.ModelProto()
    whole.CopyFrom(loaded.normalised.proto)
    return_to_bodies(whole, loaded.normalised.outside)
    return trt_check.warnings(whole)


def couple(loaded: Loaded, settings: PruneConfig, replayed: plan.Plan | None = None) -> Coupled:
    """Trace the channel graph. Raises NothingPrunable, and without a plan BudgetUnreachable (`scope.check_counted`)."""
    channels = trace(loaded, settings)
    frozen = frozen_groups(channels, settings)
    if len(frozen) == len(channels.groups):
        raise NothingPrunable(f"no channel can be removed: {why_nothing(channels, frozen)}")
    taken = taken_by(loaded.normalised, channels, (loaded.fit, loaded.held))
    untried = untried_branches(channels, taken.branches, loaded.normalised.types)
    if settings.untried_branches == "keep":
        for u in untried:
            frozen.update({g: f"no sample takes {u.text}" for g in u.groups if g not in frozen})
    if len(frozen) == len(channels.groups):
        raise NothingPrunable(f"no channel can be removed: {why_kept(untried)}")
    drops = branches.drops(channels)
    stored, n = m.parameters(loaded.original), loaded.normalised
    more, generated = {*n.added_biases, *n.clones}, {k: t.bytes for k, t in n.tables.items() if t.generated}
    own = channels.graph.constants.keys() - more - generated.keys()
    prices = {
        "macs": cost.macs(channels, drops),
        "params": cost.parameters_of_result(channels, drops, stored, own, more),
        "stored": cost.parameters_of_result(channels, drops, stored, own),
    }
    observed = observed_of(taken, n)
    coupled = Coupled(
        channels,
        taken,
        tuple(replace(x, made=generated.get(x.weight, 0)) for x in layers_taken(taken, channels)),
        observed,
        seen(taken, observed, n, labelled=settings.labels is not None),
        frozen,
        drops,
        prices=prices,
        stored_parameters=stored,
        untried=untried,
    )
    if replayed is None:
        check_counted(coupled, settings)
    return relaxed(with_layouts(coupled, loaded), settings)


# calibrate


def calibrate(
    loaded: Loaded, coupled: Coupled, settings: PruneConfig, place: Place = HERE, *, selects: bool = True
) -> Calibrated:
    """Collect statistics of every layer that combines removable channels.

    selects: also what only selection needs, the gradients of the outputs.
    """
    reference = answers_of(loaded, coupled, loaded.held)
    plain = plain_pass(loaded)
    per_group = selection.consumers_of(coupled.taken.channels, coupled.layers) if settings.reads_statistics else []
    consumers = tuple({x.weight: x for g in per_group for x in g}.values())
    n = loaded.normalised
    proto, seed = coupled.taken.proto, settings.seed
    moments = statistics.collect(proto, consumers, loaded.fit, n.shapes, seed, place.scheduler, place.provider)
    if not (selects and (settings.sequential or settings.reads_gradients)):
        return Calibrated(consumers, moments, plain, reference)
    goals = goals_of(loaded, coupled, reference, settings)
    layouts = coupled.observed.layouts
    gates = outputs.with_samples(gates_of(coupled.seen.channels), coupled.seen.proto, loaded.fit, layouts)
    known = OutputMoments()
    if settings.reads_gradients:
        known = probed(loaded, coupled, consumers, gates, goals, settings, place)
    return Calibrated(consumers, moments, plain, reference, goals, gates, known)


def plain_pass(loaded: Loaded) -> float:
    """Seconds that onnxruntime, with its own settings, takes for all samples: what the whole run is compared with.

    Where that is more than a second, what the first batches take stands for all.
    """
    session = runtime.Session(loaded.original, spin=True, kernels=DEPLOYED)
    session.run(loaded.fit.example())
    size = runtime_batch(loaded.normalised.shapes, loaded.normalised.proto)
    done, spent = 0, 0.0
    for feeds in loaded.fit.batches(size):
        start = time.perf_counter()
        session.run(feeds)
        spent += time.perf_counter() - start
        done += loaded.fit.count(feeds)
        if spent > _PLAIN_SECONDS:
            break
    return spent * loaded.count / done


# time


def stopwatch_of(loaded: Loaded, coupled: Coupled, settings: PruneConfig, place: Place) -> Stopwatch:
    """What times cuts of the model on this machine. Raises UsageError where the batch does not fit the model."""
    machine = OnnxRuntime(threads=settings.threads, providers=place.timing)
    return Stopwatch(
        loaded.original,
        loaded.normalised.proto,
        coupled.channels,
        [allowed(g, coupled, settings) for g in coupled.channels.groups],
        feeds_of(loaded.fit, settings.batch),
        machine,
        Cache(default_folder(), machine.identity()),
        settings.batch,
        alignment(coupled, settings),
        coupled.drops,
    )


def timed_with(
    stopwatch: Stopwatch | None, model: onnx.ModelProto | None, coupled: Coupled, masks: Masks, stage: Clock
) -> Latency | None:
    """The time of the result against the original, where the budget is one of time."""
    if stopwatch is None:
        return None
    with stage("time"):
        kept = tuple(int(masks[g.index].sum()) if g.index in masks else g.size for g in coupled.channels.groups)
        return stopwatch.timed(model, kept)


# select, allocate, imitate


def select(
    coupled: Coupled, calibrated: Calibrated, settings: PruneConfig, place: Place = HERE
) -> dict[str, list[SelectionPath]]:
    """The path of every group, by what it is selected for."""
    return selection.candidates(
        coupled.taken.channels,
        coupled.layers,
        calibrated.moments,
        calibrated.outputs,
        settings,
        place.scheduler,
    )


def mixtures(
    candidates: Mapping[str, Sequence[SelectionPath]], settings: PruneConfig
) -> list[Mapping[str, Sequence[SelectionPath]]]:
    """What is tried to the end: all candidates group by group and, where there are several, each of them alone.

    With a tolerance the first only, since the others would remove something else.
    """
    alone = [{name: paths} for name, paths in candidates.items()]
    return [candidates, *alone] if len(alone) > 1 and settings.tolerance is None else [candidates]


def cut_with(
    candidates: Mapping[str, Sequence[SelectionPath]],
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    settings: PruneConfig,
    stage: Clock,
    stopwatch: Stopwatch | None = None,
    place: Place = HERE,
) -> Cut:
    """Masks and coefficients by these candidates. Raises BudgetUnreachable and NothingPrunable."""
    with stage("allocate"):
        masks, paths = allocate(loaded, coupled, calibrated, candidates, settings, stopwatch, place.scheduler)
    if not settings.sequential:
        return masks, coefficients_of(masks, paths)
    with stage("imitate"):
        return imitate(loaded, coupled, calibrated, candidates, masks, settings)


def best_of(
    found: Sequence[Cut], loaded: Loaded, coupled: Coupled, calibrated: Calibrated, settings: PruneConfig
) -> Cut:
    """The cut whose refitted model comes closest to what its outputs shall imitate, on all samples.

    Those for fitting count as well: all cuts are fitted on them alike, and the others alone are too few to tell.
    """
    if calibrated.goals is None:
        return found[0]
    parts = ((loaded.fit, calibrated.goals.fit), (loaded.held, calibrated.goals.held))

    def error(cut: Cut) -> float:
        sliced = rewrite(loaded, coupled, cut[0])
        models = refit_weights(loaded, coupled, calibrated, *cut, sliced, settings).candidates.values()
        return min(
            sum(goal.value(outputs_of(p, coupled, loaded, s), slice(0, len(s))) * len(s) for s, goal in parts)
            for p in models
        )

    return min(found, key=error)


def imitate(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    candidates: Mapping[str, Sequence[SelectionPath]],
    masks: Masks,
    settings: PruneConfig,
) -> Cut:
    """Cut group by group, each on the inputs that the cuts before it left: to the widths of `masks`, or as far as the
    tolerance goes. Raises BudgetUnreachable and NothingPrunable."""
    channels = coupled.channels
    if settings.tolerance is None:
        widths: dict[int, tuple[int, ...]] = {g: (int(mask.sum()),) for g, mask in masks.items()}
    else:
        every = {g.index: allowed(g, coupled, settings) for g in channels.groups if g.index not in coupled.taken.idle}
        widths = {g: w for g, w in every.items() if len(w) > 1}
    chosen = sequential.select(loaded, coupled, calibrated, candidates, widths, settings)
    if not chosen.masks:
        raise NothingPrunable(f"not one group can be cut within a tolerance of {settings.tolerance}; give a larger one")
    dead = branches.dead_groups(coupled.drops, chosen.masks)
    masks = {g: mask for g, mask in chosen.masks.items() if g not in dead}
    return masks, {g: a for g, a in chosen.coefficients.items() if g not in dead}


def replay(chosen: plan.Plan, coupled: Coupled, settings: PruneConfig) -> dict[int, Mask]:
    """The masks of a saved plan.

    Raises UsageError where it counts other units of attention, or does not fit, and NothingPrunable where it keeps all.
    """
    units = chosen.settings().attention
    if units != settings.attention:
        raise UsageError(f"the plan counts in attention {units!r}, not {settings.attention!r}; make a new plan")
    masks = chosen.masks(coupled.channels)
    if all(mask.all() for mask in masks.values()):
        raise NothingPrunable("the plan keeps every channel, so nothing would be removed; make a new plan")
    if branches.left_of(coupled.channels, coupled.channels.keep_classes(masks)) is None:
        raise UsageError("the plan leaves some tensor without a channel; make a new plan")
    return masks


# rewrite


def rewrite(loaded: Loaded, coupled: Coupled, masks: Masks) -> onnx.ModelProto:
    """The cut model, nothing fitted."""
    return cut(loaded.normalised.proto, coupled.channels, coupled.channels.keep_classes(masks))


# verify


def check(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    masks: Masks,
    sliced: onnx.ModelProto,
    refitted: Refitted,
    settings: PruneConfig,
    max_error: float | None = None,
) -> Checked:
    """All checks; of the refit's candidates the better on held-out data stays.

    Raises CheckFailed unless `force`, and where figures exceed `max_error` always.
    """
    notes = list(refitted.notes)
    channels, n = coupled.channels, loaded.normalised
    keep = channels.keep_classes(masks)
    example = loaded.fit.example()
    errors = {k: held_out_error(c, loaded, coupled, calibrated) for k, c in refitted.candidates.items()}
    level = nearest(errors)
    if settings.refit == "lockstep" and worse(errors["lockstep"], errors["least-squares"]):
        notes.append("lockstep did worse than plain least squares on held-out samples; least squares was kept")
    final = finish(refitted.candidates[level], n, channels, keep)
    notes += notes_on_bodies(coupled, keep)
    exact: verify.Exactness | None = None
    figures: Figures | None = None
    discrepancy: float | None = None
    sizes = 0
    try:
        oracle = masked_model(n.proto, channels, keep, n.types)
        others = verify.other_sizes(loaded.original, example, n.shapes, n.reached)
        if not others and symbols(example, loaded.original):
            notes.append(_ONE_SIZE)
        unfitted = finish(sliced, n, channels, keep)
        exact = verify.exactness(loaded.original, n.proto, sliced, oracle, example, others, finished=unfitted)
        verify.structure(final, loaded.original)
        if TARGETS[settings.target].tensorrt:
            trt_check.check(loaded.original, final)
            notes += trt_check.warnings(final)
        sizes = verify.runs_at_other_sizes(final, loaded.original, example, others)
        given = outputs_of_result(final, refitted.candidates[level], coupled, loaded, calibrated.reference)
        figures = figures_of_result(given, coupled, loaded, calibrated.reference)
        verify.finite(given, calibrated.reference.values)
        discrepancy = discrepancy_of(given, loaded, calibrated.goals, settings)
        within_tolerance(discrepancy, settings)
    except (CheckFailed, RunError) as e:
        if not settings.force:
            raise CheckFailed(f"{e}; nothing was written") from e
        notes.append(f"--force: {e}")
    within(figures, max_error)
    return Checked(
        final, exact, sizes, figures, errors, level, refitted.fits, tuple(notes), refitted.recovery, discrepancy
    )
