"""Run a model on samples and look at the tensors that stand for its outputs, whatever became of it on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from onnxprune.data import layouts
from onnxprune.data.layouts import Layout
from onnxprune.data.samples import Samples
from onnxprune.data.states import State
from onnxprune.errors import RunError
from onnxprune.measures.answers import Answers, parts_in
from onnxprune.measures.figures import percent
from onnxprune.measures.observed import Observed, Whole, observed_of_model, observing, tensors_of
from onnxprune.measures.padding import padding_of
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.runtime.outputs import outputs_fed_back, outputs_of
from onnxprune.runtime.session import Session


def layouts_of(model: onnx.ModelProto, samples: Samples, without: Set[str] = frozenset()) -> dict[str, Layout]:
    """The layouts of a model's outputs, `without` these, where they are others than the samples along axis 0.

    Empty where the model does not run on two and three samples.
    """
    if not samples.sampled:
        return {}
    try:
        session = Session(model)
        wanted = [o for o in session.outputs if o not in without]
        if samples.per_run == 1:
            every = all(a is None for a in samples.arrangement.axes.values())
            return layouts.of_single_samples(session.run(samples.slice(0, 1), wanted), every=every)

        def run(indices: Sequence[int]) -> dict[str, Array]:
            return session.run(samples.take(list(indices)).slice(0, len(indices)), wanted)

        if samples.per_run is not None:
            return layouts.of_fixed_runs(run, samples.per_run, layouts.other_than_first(samples))
        return layouts.found(run, layouts.other_than_first(samples))
    except RunError:
        return {}


def watched(model: onnx.ModelProto, observed: Observed, types: Mapping[str, int]) -> onnx.ModelProto:
    """The model with the tensors that stand for its outputs, as far as it has them, as further outputs."""
    if observed.plain:
        return model
    available = tensors_of(model)
    return observing(model, dict.fromkeys((*observed.outputs, *(t for t in observed.tensors if t in available))), types)


@dataclass(eq=False)
class Asked:
    """What an original gave on the same samples when it was last asked: outputs by name, and where samples lie in them.

    key: which tensors it was asked for; several models in a row mostly ask for the same.
    """

    key: tuple[object, ...] = ()
    layouts: dict[str, Layout] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)


def compared(
    model: onnx.ModelProto,
    original: onnx.ModelProto,
    samples: Samples,
    states: Sequence[State] = (),
    asked: Asked | None = None,
    apart: Set[str] = frozenset(),
) -> tuple[dict[str, Array], Answers, Observed]:
    """Two models as they lie in their files: outputs of the first, answers of the second, and what stands for these.

    states: those that lost units stand for nothing. apart: outputs that never stand for anything. asked: kept between
    the models that are compared with one original on the same samples.
    """
    asked = Asked() if asked is None else asked
    observed = observed_of_model(original, model, states=apart)
    outputs, values, observed = _side_by_side(model, original, samples, observed, asked)
    lost = {
        t for t in {*observed.tensors} - {*observed.outputs} if t in outputs and outputs[t].shape != values[t].shape
    }
    cut = {s.output for s in states if _lost_entries(outputs.get(s.output), values.get(s.output))}
    if lost or cut:  # channels of them went, so others have to do
        observed = observed_of_model(original, model, lost, cut | apart)
        outputs, values, observed = _side_by_side(model, original, samples, observed, asked)
    observed = _with_still(observed, outputs, values)
    padding = padding_of(original, samples, values, observed.layouts)
    parts = parts_in(((w.tensors, w.outputs, w.columns) for w in observed.wholes), values, padding)
    return outputs, Answers.of(values, len(samples), parts, observed.layouts, padding), observed


def _lost_entries(y: Array | None, y0: Array | None) -> bool:
    """Whether some entries are zero in all samples, (samples, ...), that are not in those of the original."""
    if y is None or y0 is None or y.shape != y0.shape or not y.ndim:
        return False
    return bool((y0.any(axis=0) & ~y.any(axis=0)).any())


def said_of_states(
    model: onnx.ModelProto, original: onnx.ModelProto, samples: Samples, states: Sequence[State]
) -> tuple[str, ...]:
    """What comes of errors that a model hands itself: a note, where the samples are steps and have states.

    The samples have the original's own states, so what it gives for them is what it gives by itself. Of the states
    only what comes of them is compared, where there are other outputs.
    """
    if samples.sequence is None:
        return ()
    layouts = layouts_of(original, samples)
    values = outputs_of(original, samples, layouts)
    fed = {s.output for s in states}
    values = {k: v for k, v in values.items() if k not in fed} or values
    padding = padding_of(original, samples, values, layouts)
    reference = Answers.of(values, len(samples), None, layouts, padding)
    given = {o.name for o in model.graph.output}
    own = [s for s in states if s.output in given]  # of a layer that went there are none
    error = reference.error(outputs_fed_back(model, samples, own, layouts))
    how = f"over {len(samples)} steps, each model fed its own states"
    if not reference.parts or not np.isfinite(error):
        return (f"output error {how}: not measured",)
    return (f"output error {how}: {percent(error)} (squared error over spread of the outputs)",)


def _side_by_side(
    model: onnx.ModelProto, original: onnx.ModelProto, samples: Samples, observed: Observed, asked: Asked
) -> tuple[dict[str, Array], dict[str, Array], Observed]:
    """(outputs of the model, of the original, what is observed, with the layouts of that)."""
    key = (observed.plain, observed.outputs, observed.tensors, frozenset(observed.sized_by_values))
    if asked.key != key:
        reference = watched(original, observed, {})
        asked.layouts = layouts_of(reference, samples, observed.sized_by_values)
        asked.values = outputs_of(reference, samples, asked.layouts)
        asked.key = key
    observed = replace(observed, layouts=asked.layouts)
    return outputs_of(watched(model, observed, {}), samples, observed.layouts), asked.values, observed


def _with_still(observed: Observed, outputs: Mapping[str, Array], values: Mapping[str, Array]) -> Observed:
    """Add the outputs that no layer stands before, where they differ all the same, or where there are no others."""
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
