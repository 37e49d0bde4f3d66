"""The model in fewer bits: quantized by what its outputs do, checked like any result, and measured at each step."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import onnx

from onnxprune.config import PruneConfig
from onnxprune.data.samples import Samples
from onnxprune.data.states import states_of
from onnxprune.errors import CheckFailed, ModelError, RunError, UsageError
from onnxprune.graph.kept_inputs import unspecified
from onnxprune.intake import overridable, ranks, unknown
from onnxprune.measures.compared import Asked, compared
from onnxprune.measures.figures import Figures, figures_of, percent
from onnxprune.numerics.arrays import is_float
from onnxprune.options import shown
from onnxprune.output.model_files import written_bytes
from onnxprune.quantization.preparation import refused
from onnxprune.report.summary import FewerBitsRow, FloatRow
from onnxprune.runtime.processor import processor
from onnxprune.stages.load import Loaded
from onnxprune.stages.verify import Checked, Original
from onnxprune.targets import tensorrt_check
from onnxprune.targets.alignment import TARGETS
from onnxprune.targets.precision import FP16, IN_WORDS, placement_of, reduces
from onnxprune.verification import checks

# Samples that decide between ranges, and which layers stay in float: of those for fitting.
_CHOOSING = 64
# The squared error over the spread of the outputs that their mean has.
_MEAN = 1.0
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
    """What to warn of where fewer bits leave nothing of the outputs that the model in float has."""
    before, after = row.errors.get("pruned") or 0.0, row.errors.get("result")
    if after is None or after <= max(_MEAN, _MEAN * before):
        return ()
    return (
        f"in {IN_WORDS[row.precision]} the outputs are further from the original's than their mean is (an error of "
        f"{percent(after)}, {percent(before)} in float): do not use this result; name layers with --keep-float, or "
        "choose another precision",
    )


def check_before(loaded: Loaded, settings: PruneConfig) -> None:
    """Raises ModelError, before any work, where the model cannot be stored in fewer bits."""
    if settings.then is not None and (why := refused(loaded.original, IN_WORDS[settings.then])):
        raise ModelError(f"{why}: leave out --then {settings.then}")


def quantized(
    loaded: Loaded, checked: Checked, settings: PruneConfig, original: Original, told: Told = lambda _, __: None
) -> Checked:
    """The result of a cut in fewer bits, in place of that in float. Raises CheckFailed and RunError."""
    before = checked.figures
    narrow = in_fewer_bits(loaded, checked.model, settings, original, told, pruned=True)
    alone = _alone(loaded, settings, narrow, told)
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
    )
    return replace(
        checked,
        finished=replace(checked.finished, model=narrow.model),
        in_float=checked.model,
        whole=narrow.whole,
        wide=narrow.whole,
        figures=narrow.figures,
        notes=(*checked.notes, *narrow.notes),
        sizes=narrow.sizes,
        fewer_bits=row,
    )


def in_fewer_bits(
    loaded: Loaded,
    model: onnx.ModelProto,
    settings: PruneConfig,
    original: Original,
    told: Told = lambda _, __: None,
    *,
    pruned: bool = False,
) -> Narrow:
    """A model with the original's inputs and outputs in fewer bits, checked. Raises CheckFailed, ModelError, RunError.

    pruned: whether the model is a cut of the original, in words.
    """
    if settings.then == FP16:
        return _in_half(loaded, model, settings, original, told)
    # Only here: these tools take seconds to load.
    from onnxprune.quantization import int8

    choosing, asked = _choosing(loaded), Asked()
    target = TARGETS[settings.target]
    wanted = int8.Wanted(
        placement=placement_of(target.tensorrt),
        method=settings.ranges,
        reduce_range=reduces(settings.reduce_range, target.tensorrt, platform.machine(), processor().instructions),
        float_share=settings.float_share,
        floating=_named(model, settings),
    )
    bare = overridable.bare(model, loaded.with_defaults)
    made = int8.quantized(
        bare, loaded.fit, lambda p: _figures(p, loaded, choosing, settings, asked).error, wanted, told
    )
    said = overridable.put_back(made.model, loaded.with_defaults)
    figures, sizes, tensorrt = _checked(made.model, loaded, settings, original)
    whole = _whole(made.model, loaded)
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
        errors={"pruned" if pruned else "alone": None, "result": figures.error},
        agreements={"result": figures.agreement},
        bytes=_bytes(model, whole, loaded),
    )
    return Narrow(
        model=made.model,
        whole=whole,
        figures=figures,
        row=row,
        notes=(*made.notes, *said, *_notes(settings)),
        sizes=sizes,
        tensorrt=tensorrt,
    )


def _in_half(loaded: Loaded, model: onnx.ModelProto, settings: PruneConfig, original: Original, told: Told) -> Narrow:
    """As `in_fewer_bits`, in half precision."""
    from onnxprune.quantization import half

    bare = overridable.bare(model, loaded.with_defaults)
    made = half.halved(bare, loaded.fit, _named(model, settings), told)
    said = overridable.put_back(made.model, loaded.with_defaults)
    figures, sizes, tensorrt = _checked(made.model, loaded, settings, original)
    whole = _whole(made.model, loaded)
    floating = tuple(
        FloatRow(
            name=k.name,
            operator=k.operator,
            share=None,
            error=None,
            why="was named" if k.largest is None else f"reads or gives numbers of up to {k.largest:.3g}",
        )
        for k in made.kept
    )
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
        floating=floating,
        samples=made.samples,
        chosen_on=0,
        errors={"result": figures.error},
        agreements={"result": figures.agreement},
        bytes=_bytes(model, whole, loaded),
    )
    return Narrow(
        model=made.model,
        whole=whole,
        figures=figures,
        row=row,
        notes=(*made.notes, *said),
        sizes=sizes,
        tensorrt=tensorrt,
    )


def _bytes(model: onnx.ModelProto, whole: onnx.ModelProto, loaded: Loaded) -> dict[str, int]:
    placement = loaded.source.placement
    return {
        "float": written_bytes(_whole(model, loaded), None, placement=placement),
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
    states = states_of(loaded.original, settings.state)
    outputs, answers, observed = compared(model, loaded.judge, samples, states, asked)
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
        states = states_of(loaded.original, settings.state)
        outputs, answers, _ = compared(model, loaded.judge, loaded.held, states)
        checks.finite(outputs, answers.values, unspecified(loaded.original))
        if TARGETS[settings.target].tensorrt:
            tensorrt_check.check(loaded.original, model, loaded.normalised.proto)
            tensorrt = tuple(tensorrt_check.warnings(model))
        figures = _figures(model, loaded, loaded.held, settings)
    except (CheckFailed, RunError) as e:
        raise CheckFailed(f"{_plainly(str(e))}; nothing was written") from e
    return figures, sizes, tensorrt


def _plainly(text: str) -> str:
    return text.replace("the pruned model", "the quantized model")


def _whole(model: onnx.ModelProto, loaded: Loaded) -> onnx.ModelProto:
    """What is written of a model: with what the checks leave aside."""
    return ranks.put_back(unknown.put_back(loaded.as_given(model), loaded.tail), loaded.shapeless)


def _alone(loaded: Loaded, settings: PruneConfig, narrow: Narrow, told: Told) -> Figures | None:
    """How far the original itself is when it is quantized in the same way; None where that does not work."""
    from onnxprune.quantization import half, int8

    target, row = TARGETS[settings.target], narrow.row
    kept = frozenset(x.name for x in row.floating)
    bare = overridable.bare(loaded.original, loaded.with_defaults)
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


def _named(model: onnx.ModelProto, settings: PruneConfig) -> frozenset[str]:
    """The layers that `keep_float` names. Raises UsageError for a pattern that matches none."""
    found: set[str] = set()
    for pattern in settings.keep_float:
        own = {
            n.name or n.output[0]
            for n in model.graph.node
            if any(fnmatchcase(k, pattern) for k in (n.name, *n.output) if k)
        }
        if not own:
            raise UsageError(
                f"keep_float {shown(pattern)} matches no node; `onnxprune inspect MODEL` shows their names"
            )
        found |= own
    return frozenset(found)


def _notes(settings: PruneConfig) -> tuple[str, ...]:
    if settings.target == "ort-cuda":
        return (
            "onnxruntime's CUDA provider computes few operators in 8-bit integers; TensorRT does (--target "
            "tensorrt-int8)",
        )
    return ()
