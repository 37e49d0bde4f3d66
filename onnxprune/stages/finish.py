"""The model to write: the best of the refit's candidates, in the form of the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from onnxprune.config import PruneConfig
from onnxprune.graph import bodies
from onnxprune.graph.protobuf import copied
from onnxprune.intake import overridable
from onnxprune.normalise import Normalised
from onnxprune.normalise.unfused import RESTORED, operator_of
from onnxprune.numerics.arrays import Ints, Mask, Masks
from onnxprune.recovery.recover import Recovery
from onnxprune.refit import lockstep
from onnxprune.stages.answers import Judged
from onnxprune.stages.couple import Coupled
from onnxprune.stages.load import Loaded
from onnxprune.stages.refit import Refitted, held_out_error, nearest, worse
from onnxprune.surgery import descriptions, transposed
from onnxprune.surgery import finish as in_form


@dataclass(frozen=True, eq=False, kw_only=True)
class Finished:
    """The model to write, the candidate that it was made of, and the cut model without fits in the same form.

    level: the refit of the candidate. errors: of every candidate, by which they were compared. fits: what the walk did
    to each layer. recovery: what learning from the original did, where that was asked for. judged: by what these
    were compared.
    """

    model: onnx.ModelProto
    candidate: onnx.ModelProto
    unfitted: onnx.ModelProto
    level: str
    errors: Mapping[str, float]
    fits: tuple[lockstep.Fit, ...]
    notes: tuple[str, ...]
    recovery: Recovery | None
    judged: Judged


def finish(
    loaded: Loaded,
    judged: Judged,
    masks: Masks,
    sliced: onnx.ModelProto,
    refitted: Refitted,
    settings: PruneConfig,
) -> Finished:
    """Of the refit's candidates the better on held-out data, in the form of the original."""
    coupled = judged.coupled
    channels, n = coupled.channels, loaded.normalised
    keep = channels.keep_classes(masks)
    errors = {k: held_out_error(c, loaded, judged) for k, c in refitted.candidates.items()}
    level = nearest(errors)
    notes = list(refitted.notes)
    if settings.walks and worse(errors[settings.refit], errors[settings.level]):
        notes.append("lockstep did worse than plain least squares on held-out samples; least squares was kept")
    candidate = refitted.candidates[level]
    if not settings.cuts_channels:
        return _as_it_was(loaded, judged, candidate, level, errors)
    model, unfitted = (in_form(m, n, channels, keep, keep_fused=settings.keep_fused) for m in (candidate, sliced))
    for finished in (model, unfitted):
        transposed.put_back(finished, loaded.original)
    left_out = descriptions.put_back(model, loaded.original, channels, keep)
    left_out += overridable.put_back(model, loaded.with_defaults)
    if settings.keep_fused:
        notes.append(_said_of_fused(model, n))
    return Finished(
        model=model,
        candidate=candidate,
        unfitted=unfitted,
        level=level,
        errors=errors,
        fits=refitted.fits,
        notes=(*notes, *notes_on_bodies(coupled, keep), *notes_on_states(coupled, n, keep), *left_out),
        recovery=refitted.recovery,
        judged=judged,
    )


def _as_it_was(
    loaded: Loaded, judged: Judged, candidate: onnx.ModelProto, level: str, errors: Mapping[str, float]
) -> Finished:
    """Where no channel goes, the model without its rows or experts, in the operators that it came in."""
    model = copied(loaded.original)
    return Finished(
        model=model,
        candidate=candidate,
        unfitted=loaded.original,
        level=level,
        errors=errors,
        fits=(),
        notes=tuple(overridable.put_back(model, loaded.with_defaults)),
        recovery=None,
        judged=judged,
    )


def _said_of_fused(model: onnx.ModelProto, n: Normalised) -> str:
    """How many fused operators stand in the result again, or why none does."""
    if not n.fused:
        why = "the model has no operator that onnxruntime had fused and that was written in standard ones"
        if n.for_good:
            why = "operators on codes, and layouts in blocks, stay in the form that is pruned"
        return f"--keep-fused: nothing was put back: {why}"
    outputs = {o for node in bodies.every_node(model.graph) if operator_of(node) in RESTORED for o in node.output}
    count = sum(f.node.output[0] in outputs for f in n.fused)
    return f"--keep-fused: {count} of {len(n.fused)} fused operators are in the result; the others are in standard ones"


def notes_on_states(coupled: Coupled, n: Normalised, keep: Mask) -> list[str]:
    """For the report: the states that lost entries, given the classes that stay."""
    factors = coupled.channels.factors
    cut = dict.fromkeys(
        "=".join(s.state)
        for s in n.states
        if s.written and not s.resized and any(not keep[f].all() for f in factors.get(s.units, ()))
    )
    if not cut:
        return []
    named = ("states " if len(cut) > 1 else "state ") + ", ".join(cut)
    return [f"the entries of removed units in {named} are zeros: they are written so, and not read"]


def notes_on_bodies(coupled: Coupled, keep: Mask) -> list[str]:
    """For the report: what lost channels inside bodies, given the classes that stay, and could not be fitted."""
    channels = coupled.channels
    fitted = {x.weight for x in coupled.layers}

    def cut(classes: Ints | None) -> bool:
        return classes is not None and not keep[classes].all()

    inner = [x for x in channels.linears if x.node.index in channels.graph.inside and x.weight not in fitted]
    count = sum(cut(x.inputs) or cut(x.outputs) for x in inner)
    notes = [f"{count} layers inside the bodies of If, Loop or Scan were cut, but not refitted"] if count else []
    idle = sum(cut(channels.groups[g].units) for g in coupled.taken.idle)
    if idle:
        notes.append(
            f"{idle} groups were cut in branches that no calibration sample takes, by the size of their weights alone; "
            "give data that runs every branch"
        )
    return notes
