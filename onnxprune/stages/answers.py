"""What models answer on the samples: their outputs, and the tensors that stand for them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxprune.data.samples import Samples
from onnxprune.measures.answers import Answers, Part, parts_in
from onnxprune.numerics.arrays import Array
from onnxprune.runtime import outputs
from onnxprune.stages.couple import Coupled, original_of, watched_of
from onnxprune.stages.load import Loaded


def answers_of(loaded: Loaded, coupled: Coupled, samples: Samples, parts: Sequence[Part] | None = None) -> Answers:
    """The original's answers. parts: those of other samples; None where these samples show the scales."""
    observed = coupled.observed
    values = outputs_of(original_of(loaded, coupled), coupled, loaded, samples)
    if parts is None:
        parts = parts_in(((w.tensors, w.outputs, w.columns) for w in observed.wholes), values)
    return Answers.of(values, len(samples), parts, observed.layouts)


def outputs_of(model: onnx.ModelProto, coupled: Coupled, loaded: Loaded, samples: Samples) -> dict[str, Array]:
    """The outputs of a model over all samples, and the tensors that stand for them, where it has these."""
    return outputs.outputs_of(watched_of(model, coupled, loaded), samples, coupled.observed.layouts)


def runs_on(model: onnx.ModelProto, coupled: Coupled, loaded: Loaded, samples: Samples) -> dict[str, Array]:
    """As `outputs_of`, for a pruned model. Raises CheckFailed where onnxruntime refuses it."""
    return outputs.runs_on(watched_of(model, coupled, loaded), samples, coupled.observed.layouts)
