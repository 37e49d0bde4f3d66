"""From the cut model to candidates: the weights that stay, refitted at the level that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxprune.calibration.layers import Layer
from onnxprune.config import PruneConfig
from onnxprune.graph.protobuf import copied
from onnxprune.jobs.workplace import HERE, Workplace
from onnxprune.numerics.arrays import Array, Coefficients, Mask, Masks
from onnxprune.recovery.recover import Recovery
from onnxprune.refit import layerwise, lockstep
from onnxprune.refit.finite import keep_finite
from onnxprune.refit.reference import SharedPoints
from onnxprune.stages.answers import Judged, runs_on
from onnxprune.stages.calibrate import Calibrated
from onnxprune.stages.couple import Coupled
from onnxprune.stages.load import Loaded
from onnxprune.surgery import cut, replace_initializers, set_initializers, take_initializers
from onnxprune.threads import mapped

_UNFOLDED = (
    "--method {} chose these channels together with scales, which --refit none leaves out; --refit greedy folds "
    "them into the weights"
)


@dataclass(frozen=True, eq=False)
class Refitted:
    """Candidates by refit level, the least refitted first, what lockstep did to each layer, and what to say of it.

    recovery: what learning from the original did, where that was asked for.
    """

    candidates: Mapping[str, onnx.ModelProto]
    fits: tuple[lockstep.Fit, ...] = ()
    notes: tuple[str, ...] = ()
    recovery: Recovery | None = None


def refit_weights(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    masks: Masks,
    coefficients: Mapping[int, Coefficients],
    sliced: onnx.ModelProto,
    settings: PruneConfig,
    shared: SharedPoints | None = None,
    place: Workplace = HERE,
) -> Refitted:
    """Refit at the level that was asked for; lockstep starts from the least-squares weights.

    shared: of the cuts of one network that are refitted one after the other.
    """
    if settings.refit == "none" or not settings.cuts_channels:
        dropped = any((a[a != 0] != 1).any() for a in coefficients.values())
        return Refitted({"none": sliced}, notes=(_UNFOLDED.format(settings.method),) if dropped else ())
    keep = coupled.channels.keep_classes(masks)
    original = loaded.normalised.proto

    def mended(level: str, candidate: onnx.ModelProto) -> list[str]:
        undone = keep_finite(candidate, sliced, original, coupled.layers, loaded.parts)
        return [spoilt(x, level) for x in undone]

    refitted = _fitted(loaded, coupled, calibrated, keep, coefficients, mended, settings, shared, place)
    return replace(refitted, notes=(*refitted.notes, *_limits(coupled, keep)))


def _fitted(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    keep: Mask,
    coefficients: Mapping[int, Coefficients],
    mended: Callable[[str, onnx.ModelProto], list[str]],
    settings: PruneConfig,
    shared: SharedPoints | None,
    place: Workplace,
) -> Refitted:
    """The candidates of one refit; mended: takes back, in place, the fits that spoil what follows, and says which."""
    channels, n = coupled.channels, loaded.normalised
    if settings.folds:
        factors = np.ones(keep.size)
        for g, a in coefficients.items():
            factors[channels.groups[g].units] = a
        folded = layerwise.scaled(calibrated.consumers, channels.graph.constants, keep, factors)
        greedy = cut(replace_initializers(n.proto, folded), channels, keep)
        return Refitted({settings.refit: greedy}, notes=tuple(mended(settings.refit, greedy)))
    level = settings.level
    constants = channels.graph.constants
    fitted = replace_initializers(n.proto, {})
    notes: list[str] = []

    def weights_of(layer: Layer) -> dict[str, Array]:
        return layerwise.in_place((layer,), calibrated.moments, constants, keep, level)

    # One by one: all fitted weights in float64 would be twice the model.
    weights_by_layer = mapped(weights_of, calibrated.consumers, lambda layer: layerwise.memory_of([layer]))
    for layer, weights in zip(calibrated.consumers, weights_by_layer, strict=True):
        if layerwise.beyond(weights, {k: constants[k].dtype for k in weights}):
            notes.append(f"{layer.called} keeps its weights: refitted ones exceed {constants[layer.weight].dtype}")
        else:
            set_initializers(fitted, weights)
    plain = cut(fitted, channels, keep)
    notes += mended(level, plain)  # before lockstep, which starts from there
    if not settings.walks:
        return Refitted({level: plain}, notes=tuple(notes))
    walked = copied(plain)
    running = coupled.taken.of(walked)
    fits = lockstep.lockstep(
        coupled.taken.proto,
        running,
        coupled.taken.channels,
        coupled.layers,
        loaded.fit,
        keep,
        types=n.types,
        seed=settings.seed,
        memory=settings.memory,
        shared=shared,
        kept=place.kept,
        progress=place.progress,
        provider=calibrated.provider,
    )
    take_initializers(walked, running)
    notes += mended(settings.refit, walked)
    return Refitted({level: plain, settings.refit: walked}, tuple(fits), tuple(dict.fromkeys(notes)))


def _limits(coupled: Coupled, keep: Mask) -> list[str]:
    """Which layers that lost channels were not fitted, as what lies behind them is not defined for all numbers."""
    return [
        f"{x.called} keeps what is left of its weights: {x.limited} behind it is not defined for all numbers that "
        "fitted weights may give"
        for x in coupled.layers
        if x.limited and not x.kept_columns(keep).all()
    ]


def spoilt(layer: Layer, level: str) -> str:
    """The note on a layer whose fit was taken back."""
    return (
        f"{layer.called} keeps what is left of its weights: fitted by {level} they give numbers behind them that "
        "are not finite where the original's are"
    )


def held_out_error(candidate: onnx.ModelProto, loaded: Loaded, judged: Judged) -> float:
    """Relative error of what stands for a candidate's outputs, on the held-out samples."""
    return judged.reference.error(runs_on(candidate, judged.coupled, loaded, loaded.held))


def nearest(errors: Mapping[str, float]) -> str:
    """The candidate with the least error, of equal ones the last; what is no number is worse than any."""
    return min(reversed(list(errors)), key=lambda k: errors[k] if np.isfinite(errors[k]) else float("inf"))


def worse(error: float, other: float) -> bool:
    """Whether one candidate's error is the larger, as far as that was measured."""
    return bool(np.isfinite(other)) and not error <= other
