"""Run a model on samples and look at the tensors that stand for its outputs, whatever became of it on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import numpy as np
import onnx

from onnxprune import verify
from onnxprune.calibrate.samples import Samples
from onnxprune.channels import ChannelGraph
from onnxprune.config import PruneConfig
from onnxprune.errors import CheckFailed, RunError
from onnxprune.measures import layouts
from onnxprune.measures.answers import Answers, Part, parts_in
from onnxprune.measures.figures import Figures, figures_of
from onnxprune.measures.layouts import Layout
from onnxprune.measures.observed import Observed, Whole, observed_in, observed_of_model, observing, tensors_of
from onnxprune.measures.verdict import demand
from onnxprune.normalise import Normalised
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.runtime import Session
from onnxprune.state import Coupled, Goals, Loaded
from onnxprune.taken import Taken

# Samples among which one is sought that differs from the first.
_LOOKED_AT = 64


def observed_of(taken: Taken, normalised: Normalised) -> Observed:
    """What stands for the outputs of the model that the samples run."""
    return observed_in(taken.channels.graph, normalised.types, lambda t: _may_go(taken.channels, t))


def _may_go(channels: ChannelGraph, tensor: str) -> bool:
    return any(not channels.classes.pinned[f].all() for f in channels.factors.get(tensor, ()))


def seen(taken: Taken, observed: Observed, normalised: Normalised, *, labelled: bool) -> Taken:
    """The model that the samples run, giving out what stands for its outputs. labelled: and the first output."""
    wanted = (*observed.outputs[: int(labelled)], *observed.tensors) or observed.outputs
    wanted = tuple(dict.fromkeys(wanted))
    if wanted == taken.channels.graph.outputs:
        return taken
    graph = replace(taken.channels.graph, outputs=wanted)
    proto = observing(taken.proto, wanted, normalised.types)
    return replace(taken, proto=proto, channels=replace(taken.channels, graph=graph))


def answers_of(loaded: Loaded, coupled: Coupled, samples: Samples, parts: Sequence[Part] | None = None) -> Answers:
    """The original's answers. parts: those of other samples; None where these samples show the scales."""
    observed = coupled.observed
    values = outputs_of(_original(loaded, coupled), coupled, loaded, samples)
    if parts is None:
        parts = parts_in(((w.tensors, w.outputs, w.columns) for w in observed.wholes), values)
    return Answers.of(values, len(samples), parts, observed.layouts)


def _original(loaded: Loaded, coupled: Coupled) -> onnx.ModelProto:
    """The original as it is, or as the samples run it, where only that has the tensors: names of a branch, or of a
    function."""
    return loaded.original if set(coupled.observed.tensors) <= tensors_of(loaded.original) else coupled.taken.proto


def with_layouts(coupled: Coupled, loaded: Loaded) -> Coupled:
    """With the places of the samples in what the original gives."""
    observed, original = coupled.observed, _original(loaded, coupled)
    found = layouts_of(_watched(original, coupled, loaded), loaded.fit, observed.sized_by_values)
    return replace(coupled, observed=replace(observed, layouts=found))


def layouts_of(model: onnx.ModelProto, samples: Samples, without: Set[str] = frozenset()) -> dict[str, Layout]:
    """Of a model's outputs with other layouts than the samples along axis 0, `without` these; none where it does not
    run on two and three samples."""
    if not any(s.batched for s in samples.specs):
        return {}
    try:
        session = Session(model)
        wanted = [o for o in session.outputs if o not in without]
        if samples.fixed_batch:
            return layouts.of_single_samples(session.run(samples.slice(0, 1), wanted))

        def run(indices: Sequence[int]) -> dict[str, Array]:
            return session.run(samples.take(list(indices)).slice(0, len(indices)), wanted)

        return layouts.found(run, _other_than_first(samples))
    except RunError:
        return {}


def _other_than_first(samples: Samples) -> int:
    """A sample whose inputs are not those of sample 0; the last one looked at where there is none."""
    last = min(len(samples), _LOOKED_AT) - 1
    names = [s.name for s in samples.specs if s.batched]
    first = samples.slice(0, 1, names)
    for i in range(1, last):
        other = samples.slice(i, i + 1, names)
        if any(not np.array_equal(first[k], other[k]) for k in names):
            return i
    return last


def outputs_of(model: onnx.ModelProto, coupled: Coupled, loaded: Loaded, samples: Samples) -> dict[str, Array]:
    """The outputs of a model over all samples, and the tensors that stand for them, where it has these."""
    return verify.outputs_of(_watched(model, coupled, loaded), samples, coupled.observed.layouts)


def runs_on(model: onnx.ModelProto, coupled: Coupled, loaded: Loaded, samples: Samples) -> dict[str, Array]:
    """As `outputs_of`, for a pruned model. Raises CheckFailed where onnxruntime refuses it."""
    return verify.runs_on(_watched(model, coupled, loaded), samples, coupled.observed.layouts)


def _watched(model: onnx.ModelProto, coupled: Coupled, loaded: Loaded) -> onnx.ModelProto:
    observed = coupled.observed
    if not observed.plain and coupled.taken.branches and not set(observed.tensors) <= tensors_of(model):
        model = coupled.taken.of(model)
    return watched(model, observed, loaded.normalised.types)


def watched(model: onnx.ModelProto, observed: Observed, types: Mapping[str, int]) -> onnx.ModelProto:
    """The model with what stands for its outputs as further outputs, of that what it has."""
    if observed.plain:
        return model
    known = tensors_of(model)
    return observing(model, dict.fromkeys((*observed.outputs, *(t for t in observed.tensors if t in known))), types)


def compared(
    model: onnx.ModelProto, original: onnx.ModelProto, samples: Samples
) -> tuple[dict[str, Array], Answers, Observed]:
    """Two models as they lie in their files: outputs of the first, answers of the second, and what stands for these."""
    observed = observed_of_model(original, model)
    reference = watched(original, observed, {})
    observed = replace(observed, layouts=layouts_of(reference, samples, observed.sized_by_values))
    outputs = verify.outputs_of(watched(model, observed, {}), samples, observed.layouts)
    values = verify.outputs_of(reference, samples, observed.layouts)
    observed = _with_still(observed, outputs, values)
    parts = parts_in(((w.tensors, w.outputs, w.columns) for w in observed.wholes), values)
    return outputs, Answers.of(values, len(samples), parts, observed.layouts), observed


def _with_still(observed: Observed, outputs: Mapping[str, Array], values: Mapping[str, Array]) -> Observed:
    """With the outputs that no layer stands before, where they differ all the same, or where there are no others."""
    loose = [
        o
        for o in observed.outputs
        if o in observed.still
        and o in values
        and o in outputs
        and (not observed.wholes or not np.array_equal(outputs[o], values[o], equal_nan=is_float(values[o].dtype)))
    ]
    floating = tuple(Whole((o,), (o,)) for o in loose if is_float(values[o].dtype))
    others = {o for o in loose if not is_float(values[o].dtype)}
    return replace(
        observed,
        wholes=(*observed.wholes, *floating),
        still=observed.still - set(loose),
        missing=observed.missing | others,
    )


def outputs_of_result(
    final: onnx.ModelProto, candidate: onnx.ModelProto, coupled: Coupled, loaded: Loaded, answers: Answers
) -> dict[str, Array]:
    """Of the model that will be written; what stands for its outputs from what it was made of, where that is folded."""
    found = runs_on(final, coupled, loaded, loaded.held)
    if all(t in found for t in answers.tensors):
        return found
    return {**runs_on(candidate, coupled, loaded, loaded.held), **found}


def figures_of_result(outputs: Mapping[str, Array], coupled: Coupled, loaded: Loaded, answers: Answers) -> Figures:
    """How far the result's outputs on the judging samples are from the original's."""
    held_out = loaded.held_out is not None
    synthetic = loaded.held.synthetic
    labelled = loaded.labels is not None and not is_float(loaded.held.extras[loaded.labels].dtype)
    return figures_of(coupled.observed, answers, outputs, held_out=held_out, synthetic=synthetic, labelled=labelled)


def discrepancy_of(
    outputs: Mapping[str, Array], loaded: Loaded, goals: Goals | None, settings: PruneConfig
) -> float | None:
    """What a tolerance is of, on the judging samples: the error of the outputs, or the loss that is added to the
    original's where there are labels. None where there is neither, or nothing was selected."""
    if goals is None or (settings.tolerance is None and settings.labels is None):
        return None
    return goals.held.value(outputs, slice(0, len(loaded.held)))


def within_tolerance(discrepancy: float | None, settings: PruneConfig) -> None:
    """Raises CheckFailed where the refit has taken the outputs further from the original than the tolerance."""
    if settings.tolerance is None or discrepancy is None or discrepancy <= settings.tolerance:
        return
    what = "the outputs differ by" if settings.labels is None else "the loss against the labels has grown by"
    raise CheckFailed(
        f"after the refit {what} {discrepancy:.2e}, more than the tolerance of {settings.tolerance}; "
        "--refit least-squares stays with the weights that were judged"
    )


def within(figures: Figures | None, most: float | None) -> None:
    """Raises CheckFailed where a figure exceeds the limit, or could not be had."""
    if most is None:
        return
    if figures is None:
        raise CheckFailed(f"an error of at most {most:.2%} was demanded, but the result does not run")
    try:
        demand(figures, most)
    except CheckFailed as e:
        raise CheckFailed(f"{e}; nothing was written") from e
