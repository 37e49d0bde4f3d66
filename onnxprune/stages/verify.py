"""All checks on the result, before anything of it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import onnx

from onnxprune.config import PruneConfig
from onnxprune.data.samples import Samples
from onnxprune.data.states import states_of
from onnxprune.errors import CheckFailed, RunError
from onnxprune.graph.kept_inputs import unspecified
from onnxprune.intake import ranks, unknown
from onnxprune.measures.answers import Answers
from onnxprune.measures.compared import said_of_states
from onnxprune.measures.figures import Figures, figures_of, percent
from onnxprune.measures.gates import Gate, demand_all, gate_of
from onnxprune.measures.verdict import demand
from onnxprune.normalise import Normalised, symbols
from onnxprune.numerics.arrays import Array, Mask, Masks, is_float
from onnxprune.report.summary import FewerBitsRow
from onnxprune.runtime.session import Feeds
from onnxprune.stages.answers import runs_on
from onnxprune.stages.calibrate import Calibrated
from onnxprune.stages.couple import Coupled
from onnxprune.stages.finish import Finished
from onnxprune.stages.load import Loaded
from onnxprune.surgery.caches import CachesGone, caches_gone, without_caches
from onnxprune.surgery.resized import Resized, picked, resize, said
from onnxprune.targets import tensorrt_check
from onnxprune.targets.alignment import TARGETS
from onnxprune.verification import cache_names, checks
from onnxprune.verification.oracle import masked_model

_ONE_SIZE = (
    "sizes of inputs are symbolic, but the original ran at no other size: the result was compared at one size only"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Checked:
    """The model to write and what the checks found.

    exactness: None where --force has it written though that could not be told. sizes: how many sizes of the inputs it
    ran at. figures: how far its outputs are from the original's; None where it does not run. discrepancy: what a
    tolerance is of, on the samples of the figures; chosen: the same on those that the tolerance was held against.
    tensorrt: what TensorRT's parser refuses; None where that is not asked.
    whole: the model to write with what the checks leave aside: what lies behind unknown operators, and inputs that have
    no shape in the file; with the inputs and outputs that change, of which `resized` says what is left, and `caches`
    which went. wide: the same with those of the original. ports: positions of each input and output that might have
    changed, in the original. in_float, fewer_bits: where the result is stored in fewer bits, the model before that, and
    what became of it.
    """

    finished: Finished
    whole: onnx.ModelProto
    wide: onnx.ModelProto
    exactness: checks.Exactness | None
    sizes: int
    figures: Figures | None
    notes: tuple[str, ...]
    discrepancy: float | None = None
    chosen: float | None = None
    tensorrt: tuple[str, ...] | None = None
    resized: tuple[Resized, ...] = ()
    caches: CachesGone = field(default_factory=CachesGone)
    ports: Mapping[str, int] = field(default_factory=dict)
    in_float: onnx.ModelProto | None = None
    fewer_bits: FewerBitsRow | None = None

    @property
    def model(self) -> onnx.ModelProto:
        """The model to write."""
        return self.finished.model


@dataclass(frozen=True, eq=False)
class Declared:
    """A finished model with the inputs and outputs that --resize-io lets it have.

    resized: those that lost positions; caches: those that went with their layers.
    """

    model: onnx.ModelProto
    resized: tuple[Resized, ...]
    caches: CachesGone

    def checked_against(self, wide: onnx.ModelProto, original: onnx.ModelProto, sizes: Sequence[Feeds]) -> list[str]:
        """What changed, for the report. Raises CheckFailed where it gives something else than with those of the
        original."""
        told = []
        if self.resized or self.caches.gone:
            checks.structure(self.model, wide)
            checks.same_without(wide, self.model, lambda v: self.caches.left_of(picked(v, self.resized)), sizes)
        if self.resized:
            told.append(f"inputs and outputs changed, as --resize-io allows: {said(self.resized)}")
        if self.caches.gone:
            cache_names.same_pairs(original, self.model)
            told.append(f"caches changed, as --resize-io allows: {self.caches.said}")
        return told


def as_declared(whole: onnx.ModelProto, coupled: Coupled, normalised: Normalised, keep: Mask) -> Declared:
    """A finished model that declares what is left of its inputs and outputs. Raises CheckFailed."""
    narrow, changed = resize(whole, normalised.states)
    narrow, gone = without_caches(narrow, caches_gone(coupled.channels, normalised.states, keep))
    return Declared(narrow, changed, gone)


@dataclass(frozen=True, eq=False)
class Original:
    """What the checks ask of the original and of its normal form, whatever is cut: asked once for all cuts.

    narrow: how far the original itself is in fewer bits, by how that was done; None where it cannot be.
    """

    loaded: Loaded
    narrow: dict[tuple[object, ...], Figures | None] = field(default_factory=dict)

    @cached_property
    def other_sizes(self) -> Sequence[Feeds]:
        """Inputs at other sizes that it takes."""
        n = self.loaded.normalised
        return checks.other_sizes(self.loaded.original, self.loaded.fit.example(), n.shapes, n.reached)

    @cached_property
    def normal_form(self) -> tuple[float, int]:
        """(how far its normal form is from it, at how many sizes). Raises CheckFailed."""
        sizes = (self.loaded.fit.example(), *self.other_sizes)
        return checks.normal_form(self.loaded.original, self.loaded.normalised.proto, sizes)

    @cached_property
    def answers(self) -> Sequence[Mapping[str, checks.Shown] | None]:
        """What its outputs look like at all sizes."""
        return checks.shown_at(self.loaded.original, (self.loaded.fit.example(), *self.other_sizes))


def check(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    masks: Masks,
    sliced: onnx.ModelProto,
    finished: Finished,
    settings: PruneConfig,
    original: Original,
) -> Checked:
    """All checks. Raises CheckFailed unless `force`.

    original: what earlier cuts of the same network have asked of it.
    """
    notes = list(finished.notes)
    n, final = loaded.normalised, finished.model
    example = loaded.fit.example()
    exact: checks.Exactness | None = None
    figures: Figures | None = None
    discrepancy = chosen = None
    tensorrt: tuple[str, ...] | None = None
    sizes = 0
    whole = unknown.put_back(loaded.as_given(final), loaded.tail)
    keep = coupled.channels.keep_classes(masks)
    declared = as_declared(whole, coupled, n, keep)
    try:
        oracle = masked_model(n.proto, coupled.channels, keep, n.types)
        others = original.other_sizes
        if not others and symbols(example, loaded.original):
            notes.append(_ONE_SIZE)
        exact = checks.exactness(
            loaded.original,
            n.proto,
            sliced,
            oracle,
            example,
            others,
            finished=finished.unfitted,
            fitted=(final, finished.candidate),
            before=original.normal_form,
        )
        checks.structure(final, loaded.original)
        if loaded.tail:
            checks.structure(whole, unknown.put_back(loaded.given, loaded.tail))
        check_tokens(loaded, final, (example, *others))
        check_experts(loaded, (example, *others))
        if TARGETS[settings.target].tensorrt:
            tensorrt_check.check(loaded.original, final, n.proto)
            tensorrt = tuple(tensorrt_check.warnings(final))
            notes += tensorrt
        sizes = checks.runs_at_other_sizes(final, loaded.original, example, others, original.answers)
        notes += declared.checked_against(whole, loaded.original, (example, *others))
        judged, reference = finished.judged.coupled, finished.judged.reference
        given = outputs_of_result(finished, judged, loaded, reference, loaded.held)
        figures = figures_of_result(given, judged, loaded, reference)
        notes += reference.padding.note
        states = states_of(loaded.original, settings.state)
        notes += said_of_states(final, loaded.original, loaded.held, states)
        if judged is not coupled:  # what goals are of was chosen before it was known what goes
            given = {**outputs_of_result(finished, coupled, loaded, calibrated.reference, loaded.held), **given}
        checks.finite(given, {**calibrated.reference.values, **reference.values}, unspecified(loaded.original))
        goals = calibrated.goals
        if goals is not None and (settings.tolerance is not None or settings.labels is not None):
            discrepancy = goals.held.value(given, slice(0, len(loaded.held)))
        if goals is not None and settings.tolerance is not None:
            if loaded.deciding is not loaded.held:
                given = outputs_of_result(finished, coupled, loaded, calibrated.reference, loaded.deciding)
            chosen = goals.deciding.value(given, slice(0, len(loaded.deciding)))
            within_tolerance(chosen, settings)
    except (CheckFailed, RunError) as e:
        if not settings.force:
            raise CheckFailed(f"{e}; nothing was written") from e
        notes.append(f"--force: {e}")
    return Checked(
        finished=finished,
        whole=ranks.put_back(declared.model, loaded.shapeless),
        wide=ranks.put_back(whole, loaded.shapeless),
        resized=declared.resized,
        caches=declared.caches,
        ports={s.port: s.positions for s in n.states if s.resized},
        exactness=exact,
        sizes=sizes,
        figures=figures,
        notes=tuple(notes),
        discrepancy=discrepancy,
        chosen=chosen,
        tensorrt=tensorrt,
    )


def check_tokens(loaded: Loaded, final: onnx.ModelProto, sizes: Sequence[Mapping[str, Array]]) -> None:
    """Where tokens were listed: the model without the others gives what the one with them gives of the listed, and so
    does the result with logits of all tokens in their places. Raises CheckFailed."""
    tokens = loaded.tokens
    if tokens is None:
        return
    every = tokens.put_back(final)
    checks.structure(every, tokens.whole)
    for wide, narrow in ((tokens.whole, loaded.original), (every, final)):
        checks.same_outputs(wide, narrow, tokens.picked, sizes[0], sizes[1:], original=tokens.whole)


def check_experts(loaded: Loaded, sizes: Sequence[Mapping[str, Array]]) -> None:
    """Where experts went: the model without them gives what the one with all gives when it never chooses them. Raises
    CheckFailed."""
    if loaded.experts is not None:
        names = "model with fewer experts", "original whose routers never choose the others"
        checks.same_outputs(loaded.experts.masked(), loaded.original, dict, sizes[0], sizes[1:], names)


def outputs_of_result(
    finished: Finished, coupled: Coupled, loaded: Loaded, answers: Answers, samples: Samples
) -> dict[str, Array]:
    """Of the model that will be written; what stands for its outputs from what it was made of, where that is folded."""
    outputs = runs_on(finished.model, coupled, loaded, samples)
    if all(t in outputs for t in answers.tensors):
        return outputs
    return {**runs_on(finished.candidate, coupled, loaded, samples), **outputs}


def figures_of_result(outputs: Mapping[str, Array], coupled: Coupled, loaded: Loaded, answers: Answers) -> Figures:
    """How far the result's outputs on the judging samples are from the original's."""
    held_out = loaded.held_out is not None
    synthetic = loaded.held.synthetic
    labelled = loaded.labels is not None and not is_float(loaded.held.extras[loaded.labels].dtype)
    return figures_of(coupled.observed, answers, outputs, held_out=held_out, synthetic=synthetic, labelled=labelled)


def within_tolerance(discrepancy: float, settings: PruneConfig) -> None:
    """Raises CheckFailed where the refit has taken the outputs further from the original than the tolerance.

    discrepancy: the error of the outputs, or the loss that is added to the original's where there are labels.
    """
    if settings.tolerance is None or discrepancy <= settings.tolerance:
        return
    what = "the outputs differ by" if settings.labels is None else "the loss against the labels has grown by"
    raise CheckFailed(
        f"after the refit {what} {discrepancy:.2e}, more than the tolerance of {settings.tolerance}; "
        "--refit least-squares stays with the weights that were judged"
    )


def error_gate(figures: Figures | None, most: float | None) -> tuple[Gate, ...]:
    """The limit on what a figure may be, and whether all keep it; () for no limit."""
    if most is None:
        return ()
    wanted = f"an error of at most {percent(most)} was demanded"
    if figures is None:
        return (Gate("--max-error", most, False, f"{wanted}, but the result does not run"),)
    worst = figures.worst
    told = "" if worst is None or worst.value is None else f"{worst.name}: {percent(worst.value)}"
    return (gate_of("--max-error", most, told, partial(demand, figures, most)),)


def within(gates: Sequence[Gate]) -> None:
    """Raises CheckFailed where a gate is not kept, also with --force."""
    try:
        demand_all(gates)
    except CheckFailed as e:
        raise CheckFailed(f"{e}; nothing was written") from e
