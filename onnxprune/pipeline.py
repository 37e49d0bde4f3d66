"""The main job: load → couple → calibrate → select → allocate → rewrite → refit → verify → report."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune import budget, cost, parts, plan, refit, runtime, selection, sensitivity, verify
from onnxprune import model as m
from onnxprune.calibrate import samples as data
from onnxprune.calibrate import statistics
from onnxprune.calibrate.layers import Layer, layers_of
from onnxprune.calibrate.samples import Samples
from onnxprune.calibrate.statistics import InputMoments
from onnxprune.channels import ChannelGraph, Group, build
from onnxprune.channels.describe import Description, describe
from onnxprune.config import PruneConfig
from onnxprune.errors import BudgetUnreachable, CheckFailed, NothingPrunable, RunError, UsageError
from onnxprune.graph import Array
from onnxprune.normalise import Normalised, normalise
from onnxprune.numerics.least_squares import SolveFailed
from onnxprune.numerics.threads import one_blas_thread
from onnxprune.oracle import masked_model
from onnxprune.report.summary import Effort, GroupRow, PinnedRow, Report, Size
from onnxprune.rewrite import cut, drop_zero_biases, merge_equal_clones, replace_initializers
from onnxprune.select import Path as SelectionPath

Mask = NDArray[np.bool_]
Masks = Mapping[int, Mask]
ModelLike = str | os.PathLike[str] | onnx.ModelProto
Calibration = str | os.PathLike[str] | Mapping[str, Array] | None

_RANDOM_SAMPLES = 64
_HELD_OUT_SHARE, _HELD_OUT_MOST = 8, 64


@dataclass(frozen=True)
class PruneResult:
    """The pruned model (None after a dry run), the plan and the report."""

    model: onnx.ModelProto | None
    plan: plan.Plan
    report: Report


@dataclass(eq=False)
class Stages:
    """Wall-clock seconds per stage; `watch` hears of each stage when it starts."""

    watch: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time one stage."""
        self.watch(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


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
    watch: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> PruneResult:
    """Prune `model` and, unless `output` is None, write the result there.

    model: a path or a ModelProto, which is not changed. calibration: a `.npz` keyed by input names, a `.npy`, a folder
    of either, or arrays by input name; None means seeded random inputs. options: fields of PruneConfig. from_plan:
    replay a plan instead of selecting; its own config then stands for `config`, and options replace single fields.
    dry_run: stop after the plan; no model is written. plan_file, report_file: save these too, as JSON. overwrite:
    existing files may be replaced. watch: called with the name of every stage.
    Raises the errors of `onnxprune.errors`; then nothing is written.
    """
    chosen = from_plan if from_plan is None or isinstance(from_plan, plan.Plan) else plan.load(Path(from_plan))
    settings = replace(config or (chosen.settings() if chosen else PruneConfig()), **options)
    output = None if dry_run else output
    check_outputs((output, plan_file, report_file), (model, calibration), overwrite)
    try:
        with one_blas_thread():
            result = _run(model, output, calibration, settings, chosen, Stages(watch), dry_run=dry_run)
    except SolveFailed as e:
        raise RunError(f"{e}: the statistics cannot be trusted; give more or cleaner calibration data") from e
    watch("save")
    _save(result, output, plan_file, report_file)
    return result


def _save(
    result: PruneResult,
    output: str | os.PathLike[str] | None,
    plan_file: str | os.PathLike[str] | None,
    report_file: str | os.PathLike[str] | None,
) -> None:
    """Write what was asked for: everything, or nothing and RunError."""
    files: dict[Path, bytes] = {}
    if output is not None and result.model is not None:
        files[Path(output)] = m.as_bytes(result.model)
    if plan_file is not None:
        files[Path(plan_file)] = result.plan.to_json().encode()
    if report_file is not None:
        files[Path(report_file)] = result.report.to_json().encode()
    m.write_all_atomically(files)


def inspect(model: ModelLike, calibration: Calibration = None) -> Description:
    """What of `model` can be pruned, and why the rest cannot; `model` and `calibration` as for `prune`.

    The data only fixes the sizes of symbolic dimensions. Raises InputError and RunError.
    """
    return describe_loaded(load(model, calibration, PruneConfig(samples=2)))


def _run(
    model: ModelLike,
    output: str | os.PathLike[str] | None,
    calibration: Calibration,
    settings: PruneConfig,
    replayed: plan.Plan | None,
    stage: Stages,
    *,
    dry_run: bool,
) -> PruneResult:
    """The sentence, one line per stage."""
    with stage("load"):
        loaded = load(model, calibration, settings)
    with stage("couple"):
        coupled = couple(loaded, settings)
    with stage("calibrate"):
        calibrated = calibrate(loaded, coupled, settings)
    if replayed is None:
        with stage("select"):
            paths = selection.paths(
                coupled.channels, coupled.layers, calibrated.moments, settings.method, settings.seed
            )
        with stage("allocate"):
            masks = allocate(loaded, coupled, calibrated, paths, settings)
        chosen = plan.make(coupled.channels, masks, loaded.source.sha256, settings.as_dict())
    else:
        masks = replay(replayed, loaded, coupled)
        chosen = replace(replayed, config=settings.as_dict())
    if dry_run:
        return PruneResult(None, chosen, report_of(loaded, coupled, calibrated, masks, settings, stage, None, None))
    with stage("rewrite"):
        sliced = rewrite(loaded, coupled, masks)
    with stage("refit"):
        refitted = refit_weights(loaded, coupled, calibrated, masks, sliced, settings)
    with stage("verify"):
        checked = check(loaded, coupled, calibrated, masks, sliced, refitted, settings)
    report = report_of(loaded, coupled, calibrated, masks, settings, stage, checked, output)
    return PruneResult(checked.model, chosen, report)


# load


@dataclass(frozen=True, eq=False)
class Loaded:
    """The original model, its normalised form, and the data: for fitting, and held out from it."""

    original: onnx.ModelProto
    source: m.Source
    normalised: Normalised
    fit: Samples
    held: Samples
    notes: tuple[str, ...]

    @property
    def count(self) -> int:
        """All samples."""
        return len(self.fit) + (len(self.held) if self.held is not self.fit else 0)


def check_outputs(
    outputs: Sequence[str | os.PathLike[str] | None], inputs: Sequence[ModelLike | Calibration], overwrite: bool
) -> None:
    """Refuse output paths that could not be written in the end, before any work is done.

    outputs: of model, plan and report; only the model's may be one of the `inputs`, to replace it.
    Raises UsageError and RunError.
    """
    taken = {Path(i).resolve() for i in inputs if isinstance(i, (str, os.PathLike))}
    for n, output in enumerate(outputs):
        if output is None:
            continue
        p = Path(output)
        _check_output(p, overwrite)
        if n and p.resolve() in taken:
            raise UsageError(f"{p} is used twice; model, data, plan and report are different files")
        taken.add(p.resolve())


def _check_output(p: Path, overwrite: bool) -> None:
    try:
        p.stat()
    except OSError as e:
        if e.errno == errno.ENAMETOOLONG:
            raise RunError(f"{p.name[:40]}… cannot be written: {e.strerror}") from e
    if p.is_dir():
        raise UsageError(f"{p} is a folder; name the file to write")
    if p.exists() and not p.is_file():
        raise UsageError(f"{p} is not an ordinary file; name another one")
    if p.exists() and not overwrite:
        raise UsageError(f"{p} exists; use --overwrite to replace it")
    if not p.parent.is_dir():
        raise RunError(f"{p} cannot be written: there is no folder {p.parent}")
    if not os.access(p.parent, os.W_OK):
        raise RunError(f"{p} cannot be written: no permission to write in {p.parent}")


def load(model: ModelLike, calibration: Calibration, settings: PruneConfig) -> Loaded:
    """Read and normalise the model, read and split the data."""
    if isinstance(model, onnx.ModelProto):
        original = model
        blob = model.SerializeToString(deterministic=True)
        source = m.source_of("(in memory)", blob)
    else:
        original, source = m.load(model)
    samples = read_samples(original, calibration, settings)
    normalised = normalise(original, samples.example())
    notes = list(normalised.notes)
    if samples.synthetic:
        notes.append("no calibration data was given: random inputs stand in, and the accuracy will suffer; use --calib")
    if samples.extras:
        notes.append(f"the calibration data holds keys that the model does not read: {', '.join(samples.extras)}")
    fit, held = split(samples, settings.seed)
    return Loaded(original, source, normalised, fit, held, tuple(notes))


def read_samples(proto: onnx.ModelProto, calibration: Calibration, settings: PruneConfig) -> Samples:
    """The calibration data, or random inputs; at most `settings.samples` of them, a seeded choice."""
    specs = data.input_specs(proto)
    if calibration is None:
        session = runtime.Session(proto)

        def runs(feeds: Mapping[str, Array]) -> bool:
            try:
                session.run(feeds)
            except RunError:
                return False
            return True

        return data.random(proto, specs, settings.samples or _RANDOM_SAMPLES, settings.seed, runs)
    found = (
        data.load(Path(calibration), specs)
        if not isinstance(calibration, Mapping)
        else data.checked(calibration, specs)
    )
    if settings.samples is not None and settings.samples < len(found):
        found = found.take(np.sort(np.random.default_rng(settings.seed).permutation(len(found))[: settings.samples]))
    return found


def split(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """(for fitting, held out): an eighth of the samples, at most 64, judges what the others fit."""
    count = min(len(samples) // _HELD_OUT_SHARE, _HELD_OUT_MOST)
    if count == 0:
        return samples, samples
    order = np.random.default_rng(seed).permutation(len(samples))
    return samples.take(order[count:]), samples.take(order[:count])


# couple


@dataclass(frozen=True, eq=False)
class Coupled:
    """The channel graph, its linear layers, and what may be cut (group index → why not, for those that may not)."""

    channels: ChannelGraph
    layers: tuple[Layer, ...]
    frozen: Mapping[int, str]


def trace(loaded: Loaded) -> ChannelGraph:
    """The channel graph of the normalised model."""
    n = loaded.normalised
    return build(m.view(n.proto, n.shapes, n.known_values, n.binding))


def describe_loaded(loaded: Loaded) -> Description:
    """Describe the channel graph."""
    n, source = loaded.normalised, loaded.source
    return describe(trace(loaded), source.path, source.sha256, n.notes, added=n.added_biases, clones=n.clones)


def couple(loaded: Loaded, settings: PruneConfig) -> Coupled:
    """Trace the channel graph. Raises NothingPrunable."""
    channels = trace(loaded)
    frozen = frozen_groups(channels, settings)
    if len(frozen) == len(channels.groups):
        raise NothingPrunable(f"no channel can be removed: {_why_nothing(channels, frozen)}")
    return Coupled(channels, layers_of(channels), frozen)


def _why_nothing(channels: ChannelGraph, frozen: Mapping[int, str]) -> str:
    if frozen and any("--" in why for why in frozen.values()):
        return next(why for why in frozen.values() if "--" in why)
    reasons: dict[str, int] = {}
    for p in channels.pinned:
        reasons[p.why.reason] = reasons.get(p.why.reason, 0) + p.positions
    most = sorted(reasons, key=lambda r: -reasons[r])[:3]
    return "; ".join(most) if most else "the model has no weights with channels"


def frozen_groups(channels: ChannelGraph, settings: PruneConfig) -> dict[int, str]:
    """Groups that may not be cut, with the reason: a single unit, --exclude, or not in --include."""
    frozen = {g.index: "a single unit" for g in channels.groups if g.size < 2}
    for pattern in settings.exclude:
        for index in _groups_matching(channels, pattern, inputs=True):
            frozen.setdefault(index, f"--exclude {pattern}")
    if settings.include:
        chosen: set[int] = set()
        for pattern in settings.include:
            chosen |= _groups_matching(channels, pattern, inputs=False)
        for g in channels.groups:
            if g.index not in chosen:
                frozen.setdefault(g.index, "not in --include")
    return frozen


def _groups_matching(channels: ChannelGraph, pattern: str, *, inputs: bool) -> set[int]:
    """Groups on the outputs (with `inputs` also on the inputs) of nodes, and on tensors, whose names match."""
    tensors = {t for t in channels.factors if fnmatchcase(t, pattern)}
    matched = bool(tensors)
    for n in channels.graph.nodes:
        if fnmatchcase(n.name, pattern):
            matched = True
            tensors.update(o for o in n.outputs if o)
            if inputs:
                tensors.update(i for i in n.inputs if i)
    if not matched:
        raise UsageError(f"the pattern {pattern!r} matches no node and no tensor; `onnxprune inspect` lists the names")
    found: set[int] = set()
    for t in tensors:
        for f in channels.factors.get(t, ()):
            found |= set(np.unique(channels.group_of[f]).tolist()) - {-1}
    return found


# calibrate


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Input moments by weight, and one plain pass: seconds for all samples, and outputs on the held-out ones."""

    consumers: tuple[Layer, ...]
    moments: Mapping[str, InputMoments]
    plain_seconds: float
    reference: Mapping[str, Array]


def calibrate(loaded: Loaded, coupled: Coupled, settings: PruneConfig) -> Calibrated:
    """Collect statistics of every layer that combines removable channels."""
    reference = verify.outputs_of(loaded.original, loaded.held)
    plain = plain_pass(loaded)
    per_group = selection.consumers_of(coupled.channels, coupled.layers)
    consumers = tuple({x.weight: x for g in per_group for x in g}.values())
    n = loaded.normalised
    moments = statistics.collect(n.proto, consumers, loaded.fit, n.shapes, settings.seed)
    return Calibrated(consumers, moments, plain, reference)


def plain_pass(loaded: Loaded) -> float:
    """Seconds that onnxruntime, with its own settings, takes for all samples: what the whole run is compared with."""
    session = runtime.Session(loaded.original, spin=True)
    session.run(loaded.fit.example())
    start = time.perf_counter()
    for part in {id(s): s for s in (loaded.fit, loaded.held)}.values():
        for feeds in part.batches(statistics.BATCH):
            session.run(feeds)
    return time.perf_counter() - start


# allocate


def allocate(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    paths: Sequence[SelectionPath],
    settings: PruneConfig,
) -> dict[int, Mask]:
    """Masks over the units of the groups that are cut. Raises BudgetUnreachable."""
    channels = coupled.channels
    widths = [allowed(g, coupled, settings) for g in channels.groups]
    price = cost.macs(channels) if settings.budget == "macs" else cost.parameters(channels)
    full = price.at([g.size for g in channels.groups])
    limit = (1.0 - settings.ratio) * full
    least = budget.smallest(price, widths)
    if least > limit:
        hint = "lower --ratio" + (", or give a smaller --round-to" if settings.round_to > 1 else "")
        raise BudgetUnreachable(
            f"{settings.ratio:.0%} of the {settings.budget} cannot go: at most {1 - least / full:.1%} can; {hint}"
        )
    n = loaded.normalised
    trials = sensitivity.measure(
        n.proto,
        channels,
        coupled.layers,
        calibrated.moments,
        loaded.held,
        calibrated.reference,
        paths,
        only={g.index for g in channels.groups if len(widths[g.index]) > 1},
        types=n.types,
        memory=settings.memory,
    )
    curves = [budget.measured_curve(p.loss, t) if t else p.loss for p, t in zip(paths, trials, strict=True)]
    found = budget.allocate(curves, price, budget.Budget(limit, widths))
    masks = {g.index: paths[g.index].kept(found.kept[g.index]) for g in channels.groups if found.kept[g.index] < g.size}
    whole = parts.with_every_part(channels, masks, paths)
    if whole is None:
        raise BudgetUnreachable(f"at {settings.ratio:.0%} some tensor would keep no channel at all; lower --ratio")
    return whole


def allowed(g: Group, coupled: Coupled, settings: PruneConfig) -> tuple[int, ...]:
    """Numbers of units that a group may keep."""
    if g.index in coupled.frozen:
        return (g.size,)
    widths = budget.allowed_widths(g.size, g.channels_per_unit, settings.round_to, settings.min_channels)
    least = parts.least_units(coupled.channels, g.index)
    return tuple(w for w in widths if w >= least)


def replay(chosen: plan.Plan, loaded: Loaded, coupled: Coupled) -> dict[int, Mask]:
    """The masks of a saved plan. Raises UsageError where it belongs to another model."""
    if chosen.model_sha256 != loaded.source.sha256:
        raise UsageError("the plan was made for another model (its checksum differs); make a new plan")
    masks = chosen.masks(coupled.channels)
    if coupled.channels.emptied(coupled.channels.keep_classes(masks)):
        raise UsageError("the plan leaves some tensor without a channel; make a new plan")
    return masks


# rewrite, refit


def rewrite(loaded: Loaded, coupled: Coupled, masks: Masks) -> onnx.ModelProto:
    """The cut model, nothing fitted."""
    return cut(loaded.normalised.proto, coupled.channels, coupled.channels.keep_classes(masks))


@dataclass(frozen=True, eq=False)
class Refitted:
    """Candidates by refit level, the least refitted first, and what lockstep did to each layer."""

    candidates: Mapping[str, onnx.ModelProto]
    fits: tuple[refit.Fit, ...] = ()


def refit_weights(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    masks: Masks,
    sliced: onnx.ModelProto,
    settings: PruneConfig,
) -> Refitted:
    """Refit at the level that was asked for; lockstep starts from the least-squares weights."""
    if settings.refit == "none":
        return Refitted({"none": sliced})
    channels, n = coupled.channels, loaded.normalised
    keep = channels.keep_classes(masks)
    level = "least-squares" if settings.refit == "lockstep" else settings.refit
    weights = refit.in_place(calibrated.consumers, calibrated.moments, channels.graph.constants, keep, level)
    plain = cut(replace_initializers(n.proto, weights), channels, keep)
    if settings.refit != "lockstep":
        return Refitted({level: plain})
    walked = onnx.ModelProto()
    walked.CopyFrom(plain)
    fits = refit.lockstep(
        n.proto,
        walked,
        channels,
        coupled.layers,
        loaded.fit,
        keep,
        types=n.types,
        seed=settings.seed,
        memory=settings.memory,
    )
    return Refitted({"least-squares": plain, "lockstep": walked}, tuple(fits))


# verify


@dataclass(frozen=True, eq=False)
class Checked:
    """The model to write and what the checks found."""

    model: onnx.ModelProto
    exactness: verify.Exactness | None
    sizes: int
    output_error: float
    errors: Mapping[str, float]
    level: str
    fits: tuple[refit.Fit, ...]
    notes: tuple[str, ...]


def check(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    masks: Masks,
    sliced: onnx.ModelProto,
    refitted: Refitted,
    settings: PruneConfig,
) -> Checked:
    """All checks; raises CheckFailed unless `force`. Of the refit's candidates the better on held-out data stays."""
    notes: list[str] = []
    channels, n = coupled.channels, loaded.normalised
    keep = channels.keep_classes(masks)
    example = loaded.fit.example()
    errors: dict[str, float] = {}
    for level, candidate in refitted.candidates.items():
        outputs = verify.runs_on(candidate, loaded.held)
        errors[level] = sensitivity.relative_error(outputs, calibrated.reference)
    level = settings.refit
    if level == "lockstep" and not errors["lockstep"] <= errors["least-squares"]:
        level = "least-squares"
        notes.append("lockstep did worse than plain least squares on held-out samples; least squares was kept")
    final = onnx.ModelProto()
    final.CopyFrom(refitted.candidates[level])
    merge_equal_clones(final, n.clones)
    drop_zero_biases(final, n.added_biases)
    exact: verify.Exactness | None = None
    sizes = 0
    try:
        oracle = masked_model(n.proto, channels, keep, n.types)
        exact = verify.exactness(loaded.original, n.proto, sliced, oracle, example)
        verify.structure(final)
        sizes = verify.runs_at_other_sizes(final, loaded.original, example)
        verify.finite(verify.outputs_of(final, loaded.held), calibrated.reference)
    except (CheckFailed, RunError) as e:
        if not settings.force:
            raise CheckFailed(f"{e}; nothing was written") from e
        notes.append(f"--force: {e}")
    return Checked(final, exact, sizes, errors[level], errors, level, refitted.fits, tuple(notes))


# report


def report_of(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    masks: Masks,
    settings: PruneConfig,
    stage: Stages,
    checked: Checked | None,
    output: str | os.PathLike[str] | None,
) -> Report:
    """Collect the report; for a dry run `checked` is None."""
    channels = coupled.channels
    full = [g.size for g in channels.groups]
    kept = [int(masks[g.index].sum()) if g.index in masks else g.size for g in channels.groups]
    prices = {"macs": cost.macs(channels), "params": cost.parameters(channels)}
    batch = max(next((s[0] for s in channels.graph.binding.values() if s), 1), 1)
    unchanged = m.parameters(loaded.original)
    removed = round(prices["params"].at(full) - prices["params"].at(kept))
    before = Size(round(prices["macs"].at(full) / batch), unchanged, loaded.source.size)
    after = Size(
        round(prices["macs"].at(kept) / batch),
        m.parameters(checked.model) if checked else unchanged - removed,
        checked.model.ByteSize() if checked else 0,
    )
    price = prices[settings.budget]
    return Report(
        model=loaded.source.path,
        model_sha256=loaded.source.sha256,
        output=None if output is None else str(output),
        dry_run=checked is None,
        config=settings.as_dict(),
        requested=settings.ratio,
        achieved=1.0 - price.at(kept) / price.at(full),
        before=before,
        after=after,
        groups=tuple(_row(g, k, why_whole(g, coupled, settings)) for g, k in zip(channels.groups, kept, strict=True)),
        pinned=pinned_rows(channels),
        checks=_checks(checked),
        output_error=checked.output_error if checked else None,
        calibration={
            "origin": loaded.fit.origin,
            "synthetic": loaded.fit.synthetic,
            "samples": loaded.count,
            "held_out": len(loaded.held) if loaded.held is not loaded.fit else 0,
            "sha256": loaded.fit.sha256(),
        },
        effort=Effort(dict(stage.seconds), calibrated.plain_seconds, peak_memory()),
        versions=versions(),
        refit=tuple(vars(f) for f in checked.fits) if checked else (),
        notes=(*loaded.notes, *(checked.notes if checked else ())),
    )


def _checks(checked: Checked | None) -> dict[str, Any]:
    if checked is None:
        return {}
    exact = checked.exactness
    return {
        "normalised_against_original": exact.normalised if exact else None,
        "slice_against_oracle": exact.slice if exact else None,
        "tolerance": exact.tolerance if exact else None,
        "input_sizes_run": checked.sizes,
        "refit": checked.level,
        "held_out_error": dict(checked.errors),
    }


def why_whole(g: Group, coupled: Coupled, settings: PruneConfig) -> str:
    """Why a group may not be cut at all, "" where it may."""
    if g.index in coupled.frozen:
        return coupled.frozen[g.index]
    return "" if len(allowed(g, coupled, settings)) > 1 else "too narrow for --round-to and --min-channels"


def _row(g: Group, kept: int, note: str) -> GroupRow:
    c = g.channels_per_unit
    return GroupRow(g.name, g.size * c, kept * c, len(g.producers), len(g.consumers), g.mixing, note)


def pinned_rows(channels: ChannelGraph) -> tuple[PinnedRow, ...]:
    """Every axis of a weight that cannot be cut."""
    return tuple(PinnedRow(p.tensor, p.axis, p.positions, p.why.op, p.why.reason) for p in channels.pinned)


def peak_memory() -> int | None:
    """Peak resident bytes of this process, None where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def versions() -> dict[str, str]:
    """Of onnxprune and what its numbers depend on."""
    from onnxprune import __version__

    return {
        "onnxprune": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": runtime.version(),
        "numpy": np.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
