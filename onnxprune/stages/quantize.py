"""The model in fewer bits: quantized by what its outputs do, checked like any result, and measured at each step."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import onnx

from onnxprune.config import PruneConfig
from onnxprune.data.samples import Samples
from onnxprune.data.states import states_of
from onnxprune.errors import CheckFailed, ModelError, RunError, UsageError
from onnxprune.graph.kept_inputs import unspecified
from onnxprune.intake import overridable, ranks, unknown
from onnxprune.measures.answers import Answers
from onnxprune.measures.compared import Asked, compared
from onnxprune.measures.figures import Figures, figures_of, percent
from onnxprune.measures.observed import Observed
from onnxprune.numerics.arrays import Array, Masks, is_float
from onnxprune.options import shown
from onnxprune.output.model_files import written_bytes
from onnxprune.quantization.preparation import refused
from onnxprune.report.summary import FewerBitsRow, FloatRow
from onnxprune.report.units import size
from onnxprune.runtime.processor import processor
from onnxprune.stages.couple import Coupled
from onnxprune.stages.load import Loaded
from onnxprune.stages.ports import resized_outputs
from onnxprune.stages.verify import Checked, Declared, Original, as_declared
from onnxprune.surgery.resized import said
from onnxprune.targets import tensorrt_check
from onnxprune.targets.alignment import TARGETS
from onnxprune.targets.precision import FP16, IN_WORDS, INT8, placement_of, reduces
from onnxprune.verification import checks

# Samples that decide between ranges, and which layers stay in float: of those for fitting.
_CHOOSING = 64
# The squared error over the spread of the outputs that their mean has.
_MEAN = 1.0
KEEP_FLOAT = "--keep-float"
Told = Callable[[int, int], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Narrow:
    """A model in fewer bits.

    model: what onnxruntime runs of it; whole: what is written. figures: how far its outputs are from the original's on
    the samples that judge. sizes: how many sizes of the inputs it ran at. tensorrt: as in `verify.Checked`.
    """

    model: onnx.ModelProto
    whole: onnx.ModelProto
    figures: Figures
    row: FewerBitsRow
    notes: tuple[str, ...]
    sizes: int
    tensorrt: tuple[str, ...] | None


def doubts_of(row: FewerBitsRow) -> tuple[str, ...]:
    """What to warn of: fewer bits that leave nothing of the outputs of the model in float, or that save nothing."""
    doubts: list[str] = []
    before, after = row.errors.get("pruned") or 0.0, row.errors.get("result")
    if after is not None and after > max(_MEAN, _MEAN * before):
        doubts.append(
            f"in {IN_WORDS[row.precision]} the outputs are further from the original's than their mean is (an error of "
            f"{percent(after)}, {percent(before)} in float): do not use this result; name layers with {KEEP_FLOAT}, or "
            "choose another precision"
        )
    if row.precision == FP16 and row.bytes["result"] >= row.bytes["float"]:
        doubts.append(
            f"in half precision the file is no smaller than in float ({size(row.bytes['float'])} → "
            f"{size(row.bytes['result'])}): {len(row.floating)} operators stay in single, with casts around them; name "
            f"fewer of them with {KEEP_FLOAT}, or leave it in float"
        )
    return tuple(doubts)


def check_before(loaded: Loaded, settings: PruneConfig, *, pruned: bool = True) -> None:
    """Before any work: raises ModelError where the model cannot be stored in fewer bits, and UsageError where a pattern
    of `keep_float` matches none of its nodes, or all of them do. pruned: whether a cut stands before."""
    if settings.then is None:
        return
    if why := refused(loaded.original, IN_WORDS[settings.then]):
        raise ModelError(f"{why}: leave out --then {settings.then}" if pruned else why)
    for pattern in settings.keep_float:
        if not _matching(loaded.original, pattern):
            raise UsageError(
                f"{KEEP_FLOAT} {shown(pattern)} matches no node; `onnxprune inspect MODEL` shows their names"
            )
    if settings.keep_float and _named(loaded.original, settings) == _matching(loaded.original, "*"):
        patterns = " ".join(f"{KEEP_FLOAT} {shown(p)}" for p in settings.keep_float)
        raise UsageError(
            f"{patterns} leaves every operator in float: name fewer, or leave out {IN_WORDS[settings.then]}"
        )


def quantized(
    loaded: Loaded,
    coupled: Coupled,
    masks: Masks,
    checked: Checked,
    settings: PruneConfig,
    original: Original,
    told: Told = lambda _, __: None,
) -> Checked:
    """The result of a cut in fewer bits, in place of that in float. Raises CheckFailed and RunError."""
    before = checked.figures
    narrow = in_fewer_bits(loaded, checked.model, settings, original, told)
    declared = as_declared(narrow.whole, coupled, loaded.normalised, coupled.channels.keep_classes(masks))
    _check_declared(declared, checked, narrow, original)
    manner = (settings.then, narrow.row.ranges, narrow.row.reduce_range, *(x.name for x in narrow.row.floating))
    if manner not in original.narrow:
        original.narrow[manner] = _alone(loaded, settings, narrow, told)
    alone = original.narrow[manner]
    row = replace(
        narrow.row,
        errors={
            "pruned": None if before is None else before.error,
            "alone": None if alone is None else alone.error,
            "result": narrow.figures.error,
        },
        agreements={
            "pruned": None if before is None else before.agreement,
            "alone": None if alone is None else alone.agreement,
            "result": narrow.figures.agreement,
        },
        bytes=_bytes(checked.whole, declared.model, loaded),
    )
    return replace(
        checked,
        finished=replace(checked.finished, model=narrow.model),
        in_float=checked.model,
        whole=declared.model,
        wide=narrow.whole,
        figures=narrow.figures,
        notes=(*checked.notes, *narrow.notes),
        sizes=narrow.sizes,
        fewer_bits=row,
    )


def _check_declared(declared: Declared, checked: Checked, narrow: Narrow, original: Original) -> None:
    """What --resize-io lets go is gone in fewer bits as in float, and nothing else changes by that. Raises
    CheckFailed."""
    sizes = (original.loaded.fit.example(), *original.other_sizes)
    try:
        if said(declared.resized) != said(checked.resized) or declared.caches.said != checked.caches.said:
            raise CheckFailed("--resize-io: inputs and outputs did not change in fewer bits: please report this model")
        declared.checked_against(narrow.whole, original.loaded.original, sizes)
    except (CheckFailed, RunError) as e:
        raise CheckFailed(f"{e}; nothing was written") from e


def in_fewer_bits(
    loaded: Loaded,
    model: onnx.ModelProto,
    settings: PruneConfig,
    original: Original,
    told: Told = lambda _, __: None,
) -> Narrow:
    """A model with the original's inputs and outputs in fewer bits, checked.

    Raises CheckFailed, ModelError and RunError.
    """
    bare = overridable.bare(model, loaded.with_defaults)
    made = (_halved if settings.then == FP16 else _in_integers)(loaded, bare, settings, told)
    told_of = overridable.put_back(made.model, loaded.with_defaults)
    figures, sizes, tensorrt = _checked(made.model, loaded, settings, original)
    whole = _whole(made.model, loaded)
    row = replace(
        made.row,
        errors={"result": figures.error},
        agreements={"result": figures.agreement},
        bytes=_bytes(_whole(model, loaded), whole, loaded),
    )
    return Narrow(
        model=made.model,
        whole=whole,
        figures=figures,
        row=row,
        notes=(*made.notes, *told_of, *_notes(settings)),
        sizes=sizes,
        tensorrt=tensorrt,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Made:
    """A model in fewer bits before it is checked. row: without what the checks measure."""

    model: onnx.ModelProto
    row: FewerBitsRow
    notes: tuple[str, ...]


def _in_integers(loaded: Loaded, bare: onnx.ModelProto, settings: PruneConfig, told: Told) -> _Made:
    # Only here: these tools take seconds to load.
    from onnxprune.quantization import int8

    choosing, asked = _choosing(loaded), Asked()
    target = TARGETS[settings.target]
    wanted = int8.Wanted(
        placement=placement_of(target.tensorrt),
        method=settings.ranges,
        reduce_range=reduces(settings.reduce_range, target.tensorrt, platform.machine(), processor().instructions),
        float_share=settings.float_share,
        floating=_named(bare, settings),
    )
    made = int8.quantized(
        bare, loaded.fit, lambda p: _figures(p, loaded, choosing, settings, asked).error, wanted, told
    )
    row = FewerBitsRow(
        precision=str(settings.then),
        target=settings.target,
        ranges=made.method,
        tried=made.tried,
        reduce_range=made.reduce_range,
        equalised=made.equalised,
        equalised_from=made.before_equalising,
        layers=made.layers,
        nodes=made.nodes,
        share=made.share,
        floating=tuple(
            FloatRow(name=x.name, operator=x.operator, share=x.share, error=x.error, why=x.why) for x in made.floating
        ),
        samples=made.samples,
        chosen_on=len(choosing),
    )
    return _Made(model=made.model, row=row, notes=made.notes)


def _halved(loaded: Loaded, bare: onnx.ModelProto, settings: PruneConfig, told: Told) -> _Made:
    from onnxprune.quantization import half

    ports = _at_ports(bare, loaded)
    made = half.halved(bare, loaded.fit, _named(bare, settings) | ports, told)
    row = FewerBitsRow(
        precision=FP16,
        target=settings.target,
        ranges=None,
        tried={},
        reduce_range=False,
        equalised=0,
        equalised_from=None,
        layers=None,
        nodes=made.nodes,
        share=None,
        floating=tuple(
            FloatRow(
                name=k.name,
                operator=k.operator,
                share=None,
                error=None,
                why=k.why,
            )
            for k in made.kept
            if k.name not in ports
        ),
        samples=made.samples,
        chosen_on=0,
    )
    return _Made(model=made.model, row=row, notes=made.notes)


def _bytes(before: onnx.ModelProto, whole: onnx.ModelProto, loaded: Loaded) -> dict[str, int]:
    placement = loaded.source.placement
    return {
        "float": written_bytes(before, None, placement=placement),
        "result": written_bytes(whole, None, placement=placement),
    }


def _choosing(loaded: Loaded) -> Samples:
    """The samples that decide: of those for fitting, so that those that judge are new to the result."""
    fit = loaded.fit
    return fit if len(fit) <= _CHOOSING else fit.take(range(fit.whole_runs(_CHOOSING)))


def _figures(
    model: onnx.ModelProto, loaded: Loaded, samples: Samples, settings: PruneConfig, asked: Asked | None = None
) -> Figures:
    """How far a model is from the original on some samples."""
    return _figures_from(loaded, samples, *_beside_original(model, loaded, samples, settings, asked))


def _beside_original(
    model: onnx.ModelProto, loaded: Loaded, samples: Samples, settings: PruneConfig, asked: Asked | None = None
) -> tuple[dict[str, Array], Answers, Observed]:
    states = states_of(loaded.original, settings.state)
    return compared(model, loaded.judge, samples, states, asked, resized_outputs(loaded.normalised))


def _figures_from(
    loaded: Loaded, samples: Samples, outputs: Mapping[str, Array], answers: Answers, observed: Observed
) -> Figures:
    labelled = loaded.labels is not None and not is_float(loaded.held.extras[loaded.labels].dtype)
    held_out, synthetic = loaded.held_out is not None, samples.synthetic
    return figures_of(observed, answers, outputs, held_out=held_out, synthetic=synthetic, labelled=labelled)


def _checked(
    model: onnx.ModelProto, loaded: Loaded, settings: PruneConfig, original: Original
) -> tuple[Figures, int, tuple[str, ...] | None]:
    """(figures on the samples that judge, sizes that it ran at, what TensorRT's parser refuses). Raises CheckFailed."""
    tensorrt: tuple[str, ...] | None = None
    try:
        checks.structure(model, loaded.original)
        sizes = checks.runs_at_other_sizes(
            model, loaded.original, loaded.fit.example(), original.other_sizes, original.answers
        )
        outputs, answers, observed = _beside_original(model, loaded, loaded.held, settings)
        checks.finite(outputs, answers.values, unspecified(loaded.original))
        if TARGETS[settings.target].tensorrt:
            tensorrt_check.check(loaded.original, model, loaded.normalised.proto)
            tensorrt = tuple(tensorrt_check.warnings(model))
        figures = _figures_from(loaded, loaded.held, outputs, answers, observed)
    except (CheckFailed, RunError) as e:
        raise CheckFailed(f"{_plainly(str(e))}; nothing was written") from e
    return figures, sizes, tensorrt


def _plainly(text: str) -> str:
    return text.replace("the pruned model", "the quantized model")


def _whole(model: onnx.ModelProto, loaded: Loaded) -> onnx.ModelProto:
    """What is written of a model: with what the checks leave aside."""
    return ranks.put_back(unknown.put_back(loaded.as_given(model), loaded.tail), loaded.shapeless)


def _alone(loaded: Loaded, settings: PruneConfig, narrow: Narrow, told: Told) -> Figures | None:
    """How far the original itself, with all experts, is when it is quantized in the same way; None where that does not
    work."""
    from onnxprune.quantization import half, int8

    target, row = TARGETS[settings.target], narrow.row
    kept = frozenset(x.name for x in row.floating)
    bare = overridable.bare(loaded.judge, loaded.with_defaults)
    if settings.then == FP16:
        try:
            return _figures(half.halved(bare, loaded.fit, kept, told).model, loaded, loaded.held, settings)
        except (ModelError, RunError):
            return None
    wanted = int8.Wanted(
        placement=placement_of(target.tensorrt),
        method=str(row.ranges),
        reduce_range=row.reduce_range,
        float_share=0.0,
        floating=kept,
    )
    try:
        made = int8.quantized(bare, loaded.fit, lambda _: None, wanted, told)
        return _figures(made.model, loaded, loaded.held, settings)
    except (ModelError, RunError):
        return None


def _at_ports(model: onnx.ModelProto, loaded: Loaded) -> frozenset[str]:
    """The nodes that are taken out of inputs and outputs by --resize-io: no cast may stand between."""
    producer = {o: n for n in model.graph.node for o in n.output if o}
    ends = [producer[s.tensor] for s in loaded.normalised.states if s.resized and s.tensor in producer]
    before = [producer[n.input[0]] for n in ends if n.input[0] in producer]
    return frozenset(n.name or n.output[0] for n in (*ends, *(n for n in before if n.op_type in ("Pad", "Gather"))))


def _named(model: onnx.ModelProto, settings: PruneConfig) -> frozenset[str]:
    """The layers that `keep_float` names; a pattern may match none where those went as a whole."""
    return frozenset().union(*(_matching(model, pattern) for pattern in settings.keep_float))


def _matching(model: onnx.ModelProto, pattern: str) -> set[str]:
    """The names of the nodes that a pattern matches, by themselves or by what they give."""
    return {
        n.name or n.output[0]
        for n in model.graph.node
        if any(fnmatchcase(k, pattern) for k in (n.name, *n.output) if k)
    }


def _notes(settings: PruneConfig) -> tuple[str, ...]:
    if settings.then == INT8 and settings.target == "ort-cuda":
        return (
            "onnxruntime's CUDA provider computes few operators in 8-bit integers; TensorRT does (--target "
            "tensorrt-int8)",
        )
    return ()
