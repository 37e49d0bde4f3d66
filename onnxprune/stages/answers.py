"""What models answer on the samples: their outputs, and the tensors that stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from onnxprune.data.samples import Samples
from onnxprune.measures.answers import Answers, Part, parts_in
from onnxprune.measures.observed import observed_in
from onnxprune.measures.padding import padding_of
from onnxprune.numerics.arrays import Array, Masks
from onnxprune.runtime import outputs
from onnxprune.stages.couple import Coupled, original_of, seen, watched_of, with_layouts
from onnxprune.stages.load import Loaded
from onnxprune.stages.ports import resized_outputs


def answers_of(
    loaded: Loaded,
    coupled: Coupled,
    samples: Samples,
    parts: Sequence[Part] | None = None,
    model: onnx.ModelProto | None = None,
) -> Answers:
    """The original's answers. parts: those of other samples; None where these samples show the scales. model: another
    one that answers in place of the original."""
    observed = coupled.observed
    values = outputs_of(original_of(loaded, coupled) if model is None else model, coupled, loaded, samples)
    padding = padding_of(loaded.original, samples, values, observed.layouts)
    if parts is None:
        parts = parts_in(((w.tensors, w.outputs, w.columns) for w in observed.wholes), values, padding)
    return Answers.of(values, len(samples), parts, observed.layouts, padding)


@dataclass(frozen=True, eq=False)
class Judged:
    """What the result is judged by: the channel graph with what stands for the outputs, and the original's answers."""

    coupled: Coupled
    reference: Answers


def judged_by(loaded: Loaded, coupled: Coupled, reference: Answers, masks: Masks) -> Judged:
    """By what stands for the outputs now that it is known which channels went: also what might have gone and did not.

    reference: the answers by what stood for them until then. They are those of the original with all experts, also
    where all else was measured against the one without some.
    """
    keep = coupled.channels.keep_classes(masks)
    taken, n = coupled.taken, loaded.normalised

    def went(tensor: str) -> bool:
        return any(not keep[f].all() for f in taken.channels.factors.get(tensor, ()))

    states = resized_outputs(n) | {s.state[0] for s in n.states if s.written and went(s.units)}
    observed = observed_in(taken.channels.graph, n.types, went, states)
    whole = None if loaded.experts is None else loaded.judge
    if observed == replace(coupled.observed, layouts={}):
        return Judged(coupled, reference if whole is None else answers_of(loaded, coupled, loaded.held, model=whole))
    watched = seen(taken, observed, n, labelled=loaded.labels is not None)
    recoupled = with_layouts(replace(coupled, observed=observed, seen=watched), loaded)
    return Judged(recoupled, answers_of(loaded, recoupled, loaded.held, model=whole))


def outputs_of(model: onnx.ModelProto, coupled: Coupled, loaded: Loaded, samples: Samples) -> dict[str, Array]:
    """The outputs of a model over all samples, and the tensors that stand for them, where it has these."""
    return outputs.outputs_of(watched_of(model, coupled, loaded), samples, coupled.observed.layouts)


def runs_on(model: onnx.ModelProto, coupled: Coupled, loaded: Loaded, samples: Samples) -> dict[str, Array]:
    """As `outputs_of`, for a pruned model. Raises CheckFailed where onnxruntime refuses it."""
    return outputs.runs_on(watched_of(model, coupled, loaded), samples, coupled.observed.layouts)
