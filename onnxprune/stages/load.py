"""The model and the data: read, checked, brought into normal form, and split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import onnx

from onnxprune import plan
from onnxprune.config import PruneConfig
from onnxprune.data import class_labels, sources, stand_ins
from onnxprune.data.accepted import Data, Wanted
from onnxprune.data.inputs import InputSpec, tensor_specs
from onnxprune.data.samples import Samples
from onnxprune.data.sources import with_others
from onnxprune.data.states import State, states_of
from onnxprune.errors import CalibrationError, ModelError, UsageError
from onnxprune.graph import external, tensor_files
from onnxprune.graph.external import Placement
from onnxprune.graph.view import Shape
from onnxprune.intake import (
    counting,
    declarations,
    empty_caches,
    fed_back,
    first_run,
    model_file,
    overridable,
    padded,
    ranks,
    sample_axes,
    scales,
    unknown,
)
from onnxprune.intake.figures import InputFigures, digests, figures_of
from onnxprune.intake.figures import doubts as doubts_of_data
from onnxprune.intake.model_file import ModelLike, Source
from onnxprune.intake.overridable import Overridable
from onnxprune.intake.unknown import Tail
from onnxprune.normalise import Normalised
from onnxprune.normalise.states import with_gathers
from onnxprune.numerics.arrays import Array
from onnxprune.objective import fitted_labels
from onnxprune.runtime.session import Feeds, notes_on
from onnxprune.runtime.walker import runtime_batch
from onnxprune.stages import ports
from onnxprune.stages.dropped_experts import DroppedExperts, without_experts
from onnxprune.stages.tokens import Listed, doubts_of_special, listed_tokens
from onnxprune.surgery.vocabulary import ListedTokens

Calibration = Data | None
_RANDOM_SAMPLES = 64
_FEW_SAMPLES = 64
_NO_DATA = "no calibration data was given: random inputs stand in for it, and the accuracy WILL suffer; use --calib"
_HELD_OUT_SHARE, _HELD_OUT_MOST = 8, 64
# What comes behind the reading: the model run on all samples, and its normal form made.
_CHECK = "check"


class Told(Protocol):
    """Hears what is being done, while that can take long."""

    def begin(self, name: str) -> None:
        """What is done now."""

    def read(self, done: int, count: int) -> None:
        """So many samples are read by then, or were run; of so many, 0 where nobody can tell."""


class _Unheard:
    """Nobody listens."""

    def begin(self, _: str) -> None:
        """Nothing."""

    def read(self, _: int, __: int) -> None:
        """Nothing."""


_UNHEARD = _Unheard()


@dataclass(frozen=True, eq=False, kw_only=True)
class Loaded:
    """The original model, its normalised form, and the data: for fitting, and held out from it.

    held_out: None where the samples are too few to hold any out. chosen_by: what a tolerance is held against, neither
    fitted to nor reported on; None without one, or where the samples are too few for that. data_sha256: of all samples,
    and of their labels where the run reads them; inputs_sha256: without these. labels: their key. figures: of every
    input; doubts: what makes the data doubtful. with_defaults: the original's inputs that have a default.
    pictures: whether reports may show some of the images.
    tail: what lies behind operators that onnxruntime does not know; the original is the part in front. shapeless: the
    inputs that are declared without a shape in the file. tokens: where tokens were listed, the model with the others
    too; the original is then the one without these. experts: where experts went, the model with all of them; the
    original is then the one without. complete: the model with all tokens and experts, where any went.
    """

    original: onnx.ModelProto
    source: Source
    normalised: Normalised
    fit: Samples
    held_out: Samples | None
    notes: tuple[str, ...]
    data_sha256: str
    inputs_sha256: str
    chosen_by: Samples | None = None
    labels: str | None = None
    figures: tuple[InputFigures, ...] = ()
    doubts: tuple[str, ...] = ()
    with_defaults: Overridable = field(default_factory=Overridable)
    tail: Tail = field(default_factory=Tail)
    shapeless: tuple[str, ...] = ()
    pictures: bool = True
    tokens: ListedTokens | None = None
    experts: DroppedExperts | None = None
    complete: onnx.ModelProto | None = None

    @property
    def given(self) -> onnx.ModelProto:
        """The original with all that was given, tokens that are not listed and experts that went included."""
        return self.original if self.complete is None else self.complete

    @property
    def judge(self) -> onnx.ModelProto:
        """What the result's answers are compared with: the original with all experts."""
        return self.original if self.experts is None else self.experts.whole

    def as_given(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A model like the original, with logits of all tokens in their places again."""
        return model if self.tokens is None else self.tokens.put_back(model)

    @property
    def held(self) -> Samples:
        """What judges the fits: the samples held out, else those for fitting."""
        return self.fit if self.held_out is None else self.held_out

    @property
    def deciding(self) -> Samples:
        """What a tolerance is held against: samples of its own, else those that judge the fits."""
        return self.held if self.chosen_by is None else self.chosen_by

    @property
    def parts(self) -> tuple[Samples, ...]:
        """All samples, those held out first."""
        return tuple(p for p in (self.held_out, self.chosen_by, self.fit) if p is not None)

    @property
    def said_of_data(self) -> str:
        """Where data that hold no arrays came from, and how they were prepared; empty for others."""
        return f"{self.fit.origin}: {self.fit.prepared}" if self.fit.prepared else ""

    @property
    def count(self) -> int:
        """How many samples there are, those held out among them."""
        return sum(len(p) for p in self.parts)


def opened(
    model: ModelLike,
    calibration: Calibration,
    settings: PruneConfig,
    replayed: plan.Plan | None,
    *,
    allow_links: bool = False,
    single_file: bool = False,
    pictures: bool = True,
    told: Told = _UNHEARD,
) -> Loaded:
    """Load what a run needs, and say where its result's weights go: as the original's, or into one file.

    pictures: whether reports may show some of the images.
    Raises UsageError where the plan to replay belongs to another model or other data.
    """
    loaded = _opened(model, calibration, settings, replayed, told, allow_links=allow_links)
    loaded = replace(loaded, pictures=pictures)
    return replace(loaded, source=replace(loaded.source, placement=Placement.INSIDE)) if single_file else loaded


def _opened(
    model: ModelLike,
    calibration: Calibration,
    settings: PruneConfig,
    replayed: plan.Plan | None,
    told: Told,
    *,
    allow_links: bool,
) -> Loaded:
    if replayed is None:
        loaded = load(model, calibration, settings, allow_links=allow_links, told=told)
        _check_batch(loaded, calibration)
        return loaded
    # A plan has decided all that labels decide, so a replay needs none.
    unlabelled = settings.with_options(labels=None)
    loaded = load(
        model,
        calibration,
        unlabelled,
        replayed.divided_by,
        planned=replayed.experts,
        allow_links=allow_links,
        told=told,
    )
    checksums = (loaded.source.sha256, loaded.inputs_sha256)
    said = plan.check_origin(replayed, *checksums, synthetic=loaded.fit.synthetic, force=settings.force)
    return replace(loaded, notes=(*loaded.notes, *said))


def _check_batch(loaded: Loaded, calibration: Calibration) -> None:
    """Raise ModelError where an input is declared as a batch of nothing, and no data say that any size is meant."""
    if calibration is None and loaded.source.empty:
        names = ", ".join(map(repr, loaded.source.empty))
        raise ModelError(
            f"the input {names} is declared with a first size of 0, a batch of nothing; give data (--calib) where any "
            "size is meant, or export the model with its size"
        )


def load(
    model: ModelLike,
    calibration: Calibration,
    settings: PruneConfig,
    divided_by: int | None = None,
    *,
    planned: Sequence[plan.ExpertsPlan] | None = None,
    allow_links: bool = False,
    told: Told = _UNHEARD,
) -> Loaded:
    """Read and normalise the model, read and split the data, and hold the labels against the first output.

    divided_by: the seed of the split, where that is not the one of the settings. planned: the experts that stay, where
    a plan says so. allow_links: as for `external.resolve`.
    """
    original, source = model_file.read(model, allow_links=allow_links)
    if external.embedded_bytes(original) >= external.LARGE_BYTES:
        original = tensor_files.outside(original)
    original, tail = unknown.cut_off(original)
    if tail:
        original, _ = model_file.declared(original)
    first_run.infer(original)
    states = states_of(original, settings.state, tail.holds)
    shapeless = ranks.without_shape(original)
    original = ranks.declared(original, calibration, () if calibration is None else states)
    listed = listed_tokens(original, settings, whole=not tail, replays=planned is not None)
    original = listed.model
    samples = listed.of_these(read_samples(original, calibration, settings, states, told))
    told.begin(_CHECK)
    original, with_defaults = overridable.as_inputs(original)
    samples = fed_with(samples, with_defaults.fed)
    padding = padded.check(original, samples)
    seconds = first_run.run(original, samples.example())
    original, dropped = without_experts(original, samples, settings, planned)
    example, wider = samples.example(), samples.doubled()
    if wider is not None and first_run.Trial(original)(wider):
        example = wider
    normalised = _normal_form(original, example, samples.count(example), states, settings, seconds)
    unknown.check_versions(normalised.proto, tail)
    size = samples.run_size(runtime_batch(normalised.shapes, normalised.proto, bound=samples.count(example)))
    every = counting.counts(original) and counting.counts(normalised.proto)
    first_run.run_all(original, _batches(samples, size, None if every else 1, told), seconds=seconds)
    if settings.labels is not None:
        check_labels(normalised, samples, settings.labels)
    false = declarations.false_outputs(original, normalised.shapes)
    if false:
        original = declarations.with_true_outputs(original, normalised.shapes)
        mended = declarations.with_true_outputs(normalised.proto, normalised.shapes)
        normalised = replace(normalised, proto=mended)
    tokens, dropped, complete = _complete(listed, dropped, normalised.shapes)
    notes = [*source.notes, *listed.notes, *(dropped.notes if dropped else ()), *filter(None, [tail.note])]
    # Where no channel goes, the result has not the normal form, of which these are.
    notes += [*(normalised.notes if settings.cuts_channels else ()), *false, *samples.notes]
    notes += [*_notes_on_few(samples, settings), *notes_on(original), *_notes_on_unread(samples, settings, tail)]
    checksums = digests(samples)
    seed, chosen_by = settings.seed if divided_by is None else divided_by, None
    fit, held_out = split(samples, seed, checksums)
    if settings.tolerance is not None and held_out is not None:
        fit, chosen_by = split(fit, seed, digests(fit))
    inputs = samples.sha256()
    whole = inputs if settings.labels is None else samples.sha256(settings.labels)
    figures = figures_of(samples)
    return Loaded(
        original=original,
        with_defaults=with_defaults,
        shapeless=shapeless,
        tail=tail,
        tokens=tokens,
        experts=dropped,
        complete=complete,
        source=source,
        normalised=normalised,
        fit=fit,
        held_out=held_out,
        chosen_by=chosen_by,
        notes=tuple(notes),
        data_sha256=whole,
        inputs_sha256=inputs,
        labels=settings.labels,
        figures=figures,
        doubts=(
            *_doubts(normalised, samples, figures, checksums, settings),
            *padding,
            *doubts_of_special(tokens, model),
        ),
    )


def _normal_form(
    original: onnx.ModelProto,
    example: Feeds,
    count: int,
    states: Sequence[State],
    settings: PruneConfig,
    seconds: float,
) -> Normalised:
    """The normal form at an example of `count` samples, with Gathers at states and at what may change its size."""
    normalised = first_run.normalised(original, example, seconds=seconds)
    steps, resized = [(s.output, s.input) for s in states], ports.resized(original, settings.resize_io)
    normalised = with_gathers(replace(normalised, samples=count), steps, resized)
    ports.check_resized(normalised, settings.resize_io)
    return normalised


def _complete(
    listed: Listed, dropped: DroppedExperts | None, shapes: Mapping[str, Shape]
) -> tuple[ListedTokens | None, DroppedExperts | None, onnx.ModelProto | None]:
    """(the listed tokens and the dropped experts, each with the other ones gone already; the model with all of both, if
    there are any), declared by the shapes that the outputs have."""
    tokens = listed.declared_as(shapes)
    complete = None if tokens is None else tokens.whole
    if dropped is None:
        return tokens, None, complete
    dropped = replace(dropped, whole=declarations.with_true_outputs(dropped.whole, shapes))
    if tokens is None:
        return None, dropped, dropped.whole
    return replace(tokens, whole=dropped.cut(tokens.whole)), dropped, complete


def _doubts(
    normalised: Normalised,
    samples: Samples,
    figures: tuple[InputFigures, ...],
    checksums: Sequence[bytes],
    settings: PruneConfig,
) -> tuple[str, ...]:
    if samples.synthetic:
        told = settings.cuts_channels or settings.fewer_experts or settings.then is not None
        return (_NO_DATA,) if told else ()
    return (*doubts_of_data(samples, figures, checksums), *scales.doubts(normalised.proto, samples, figures))


def _batches(samples: Samples, size: int, most: int | None, told: Told) -> Iterator[Feeds]:
    """Batches of `size` samples, at most so many; it is told when one was worked on."""
    count = len(samples) if most is None else min(most * size, len(samples))
    for start in range(0, count, size):
        yield samples.slice(start, start + size)
        told.read(min(start + size, count), count)


def _notes_on_few(samples: Samples, settings: PruneConfig) -> list[str]:
    if samples.synthetic or not settings.cuts_channels or len(samples) >= _FEW_SAMPLES:
        return []
    few = "1 calibration sample" if len(samples) == 1 else f"{len(samples)} calibration samples"
    return [f"only {few}: the refit has little to go by; use a few hundred"]


def _notes_on_unread(samples: Samples, settings: PruneConfig, tail: Tail) -> list[str]:
    known = {settings.labels, *(v.name for v in tail.inputs), *samples.offered}
    unread = [k for k in samples.extras if k not in known]
    return [f"the calibration data holds keys that the model does not read: {', '.join(unread)}"] if unread else []


def fed_with(samples: Samples, values: Mapping[str, Array]) -> Samples:
    """The samples with further inputs, each with one value for all of them."""
    if not values:
        return samples
    specs = tuple(InputSpec(name, v.dtype, v.shape, whole=True) for name, v in values.items())
    return replace(samples, specs=(*samples.specs, *specs), arrays={**samples.arrays, **values})


def read_samples(
    proto: onnx.ModelProto,
    calibration: Calibration,
    settings: PruneConfig,
    states: Sequence[State] = (),
    told: Told = _UNHEARD,
) -> Samples:
    """The calibration data, or random inputs; at most `settings.samples` of them, a seeded choice. states: what the
    model is fed back."""
    specs = tensor_specs(proto)
    if calibration is None:
        if settings.labels is not None:
            raise UsageError(f"labels {settings.labels!r} are a key of the calibration data; give that too (--calib)")

        trial = first_run.Trial(proto)
        try:
            count = settings.samples or _RANDOM_SAMPLES
            return stand_ins.random(proto, specs, count, settings.seed, trial, shapes=trial.shapes)
        except CalibrationError as e:
            raise CalibrationError(f"{e} ({trial.why})" if trial.why else str(e)) from e
    wanted = Wanted(settings.samples, settings.seed, told.read)
    if states:
        samples = with_others(fed_back.read(proto, calibration, states, settings.samples), proto)
    else:
        given = sources.taken(calibration, empty_caches.fillable(proto, specs), wanted)
        samples = with_others(replace(sample_axes.read(proto, given), specs=specs), proto)
    if settings.labels is not None:
        class_labels.of(samples, settings.labels)  # before a choice is made, which keeps only what is one per sample
    if settings.samples is not None and settings.samples < len(samples):
        count = samples.whole_runs(settings.samples)
        samples = samples.take(np.sort(np.random.default_rng(settings.seed).permutation(len(samples))[:count]))
    return samples


def check_labels(n: Normalised, samples: Samples, key: str) -> None:
    """Raises CalibrationError where the labels do not fit the first output that is a tensor."""
    labels = class_labels.of(samples, key)
    tensors = [o for o in n.proto.graph.output if o.type.HasField("tensor_type")]
    shape = n.shapes.get(tensors[0].name) if tensors else None
    if shape is not None:
        batch = n.samples or samples.count(samples.example())
        shape = (len(samples) * shape[0] // batch, *shape[1:]) if shape else ()
        fitted_labels(labels, shape, onnx.helper.tensor_dtype_to_np_dtype(tensors[0].type.tensor_type.elem_type))


def split(samples: Samples, seed: int, checksums: Sequence[bytes] = ()) -> tuple[Samples, Samples | None]:
    """(for fitting, held out): an eighth of the different samples, at most 64, judges what the others fit; None of few.

    checksums: of each sample; those with the same one are copies, which are on one side.
    """
    copies: dict[bytes, list[int]] = {}
    for i, checksum in enumerate(checksums or [i.to_bytes(8, "big") for i in range(len(samples))]):
        copies.setdefault(checksum, []).append(i)
    places = list(copies.values())
    if samples.sequence is not None:  # neighbours in time are nearly the same
        return _end_held_out(samples)
    per_run = samples.per_run or 1
    count = min(len(places) // _HELD_OUT_SHARE, max(_HELD_OUT_MOST, per_run)) // per_run * per_run
    if count == 0:
        return samples, None
    order = np.random.default_rng(seed).permutation(len(places)).tolist()
    held = [places[i][0] for i in order[:count]]
    fit = [j for i in order[count:] for j in places[i]]
    return samples.take(fit[: samples.whole_runs(len(fit))]), samples.take(held)


def _end_held_out(samples: Samples) -> tuple[Samples, Samples | None]:
    """As `split`, for steps in time: the last steps judge, in their order."""
    per_run = samples.per_run or 1
    count = min(len(samples) // _HELD_OUT_SHARE, max(_HELD_OUT_MOST, per_run)) // per_run * per_run
    if count == 0:
        return samples, None
    first = len(samples) - count
    return samples.take(range(first)), samples.take(range(first, len(samples)))
