"""From the cut model to candidates: refitted at the level that was asked for, and after learning from the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx

from onnxprune import refit, storage, verify
from onnxprune.calibrate.augment import images
from onnxprune.calibrate.layers import Layer
from onnxprune.config import PruneConfig
from onnxprune.graph import Array
from onnxprune.objective import relative_error
from onnxprune.recover import Material, Schedule, recover
from onnxprune.rewrite import cut, replace_initializers, set_initializers
from onnxprune.state import Calibrated, Coefficients, Coupled, Loaded, Masks, Refitted
from onnxprune.threads import mapped

RECOVERED = "recovered"


def refit_weights(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    masks: Masks,
    coefficients: Mapping[int, Coefficients],
    sliced: onnx.ModelProto,
    settings: PruneConfig,
) -> Refitted:
    """Refit at the level that was asked for; lockstep starts from the least-squares weights."""
    if settings.refit == "none":
        return Refitted({"none": sliced})
    channels, n = coupled.channels, loaded.normalised
    keep = channels.keep_classes(masks)
    if settings.refit == "greedy":
        factors = np.ones(keep.size)
        for g, a in coefficients.items():
            factors[channels.groups[g].units] = a
        folded = refit.scaled(calibrated.consumers, channels.graph.constants, keep, factors)
        return Refitted({"greedy": cut(replace_initializers(n.proto, folded), channels, keep)})
    level = "least-squares" if settings.refit == "lockstep" else settings.refit
    constants = channels.graph.constants
    fitted = replace_initializers(n.proto, {})
    notes: list[str] = []

    def weights_of(layer: Layer) -> dict[str, Array]:
        return refit.in_place((layer,), calibrated.moments, constants, keep, level)

    # One by one: all fitted weights in float64 would be twice the model.
    found = mapped(weights_of, calibrated.consumers, lambda layer: refit.memory_of([layer]))
    for layer, weights in zip(calibrated.consumers, found, strict=True):
        if refit.beyond(weights, {k: constants[k].dtype for k in weights}):
            notes.append(f"{layer.node.name} keeps its weights: refitted ones exceed {constants[layer.weight].dtype}")
        else:
            set_initializers(fitted, weights)
    plain = cut(fitted, channels, keep)
    if settings.refit != "lockstep":
        return Refitted({level: plain}, notes=tuple(notes))
    walked = onnx.ModelProto()
    walked.CopyFrom(plain)
    running = coupled.taken.of(walked)
    fits = refit.lockstep(
        coupled.taken.proto,
        running,
        coupled.taken.channels,
        coupled.layers,
        loaded.fit,
        keep,
        types=n.types,
        seed=settings.seed,
        memory=settings.memory,
    )
    set_initializers(walked, {t.name: storage.array_of(t) for t in running.graph.initializer})
    return Refitted({"least-squares": plain, "lockstep": walked}, tuple(fits), tuple(notes))


def recover_weights(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    masks: Masks,
    refitted: Refitted,
    settings: PruneConfig,
) -> Refitted:
    """One more candidate: the best so far after learning from the original, where that did it good."""
    candidates = refitted.candidates
    unfit = ""
    if loaded.fit.synthetic:
        unfit = "recovery was left out: random inputs teach nothing; use --calib"
    elif loaded.fit is loaded.held:
        unfit = "recovery was left out: the samples are too few to hold any out; give more"
    if unfit:
        return replace(refitted, notes=(*refitted.notes, unfit))
    level = nearest({k: held_out_error(c, loaded, calibrated) for k, c in candidates.items()})
    model = onnx.ModelProto()
    model.CopyFrom(candidates[level])
    weights, recovery = recover(
        coupled.taken.proto,
        coupled.taken.of(model),
        coupled.taken.channels,
        coupled.layers,
        Material(loaded.fit, loaded.held, calibrated.reference),
        coupled.channels.keep_classes(masks),
        Schedule(epochs=settings.epochs, seed=settings.seed, augment=images(flips=True, blends=True)),
    )
    notes = [recovery.why] if recovery.why else []
    if not weights:
        notes = notes or [f"recovery did no better than {level} on held-out samples; {level} was kept"]
    else:
        set_initializers(model, weights)
        candidates = {**candidates, RECOVERED: model}
    return replace(refitted, candidates=candidates, notes=(*refitted.notes, *notes), recovery=recovery)


def held_out_error(candidate: onnx.ModelProto, loaded: Loaded, calibrated: Calibrated) -> float:
    """Relative error of a candidate's outputs on the held-out samples."""
    return relative_error(verify.runs_on(candidate, loaded.held), calibrated.reference)


def nearest(errors: Mapping[str, float]) -> str:
    """The candidate with the least error, of equal ones the last; what is no number is worse than any."""
    return min(reversed(list(errors)), key=lambda k: errors[k] if np.isfinite(errors[k]) else float("inf"))
