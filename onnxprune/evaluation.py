"""Judge a model on test data: top-1 against labels, and agreement and output error against the original.

Top-1 and agreement read the first output, where that holds class scores: floating point, (samples, classes) with
nothing but axes of size 1 behind. Against an original it is the original's first one, by its name in both. A sample
whose scores hold a NaN is wrong, and agrees with nothing. Of a class map every entry counts. The error is that of
`measures.figures`, as `prune` reports it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import onnx

from onnxprune.data.accepted import Data, Wanted
from onnxprune.data.class_labels import classes_of
from onnxprune.data.inputs import input_specs
from onnxprune.data.samples import Samples
from onnxprune.data.sources import taken
from onnxprune.data.states import State, states_of
from onnxprune.errors import ModelError, UsageError
from onnxprune.graph import spill
from onnxprune.intake import fed_back, first_run, model_file, sample_axes, unknown
from onnxprune.intake.model_file import ModelLike
from onnxprune.measures.class_scores import check_classes
from onnxprune.measures.compared import compared, layouts_of, said_of_states
from onnxprune.measures.figures import Figures, figures_of, percent, share_of
from onnxprune.measures.figures import classes_of as classes_in
from onnxprune.measures.gates import Gate, demand_all, gate_of
from onnxprune.measures.observed import Observed
from onnxprune.measures.verdict import demand, verdict_of
from onnxprune.numerics.arrays import Array, Ints
from onnxprune.options import error_limit, typed
from onnxprune.runtime.custom_ops import Libraries, registering
from onnxprune.runtime.custom_ops import checked as checked_libraries
from onnxprune.runtime.outputs import outputs_of
from onnxprune.runtime.session import notes_on

# Shares are ratios of small integers: a limit that is met exactly must not fail by a rounding error.
_SLACK = 1e-9
# Of the choice among more samples than are asked for.
_SEED = 0


@dataclass(frozen=True)
class Evaluation:
    """What was measured; None where it was not asked for, or where the first output holds no class scores.

    accuracy, original_accuracy: top-1, shares in [0, 1]. agreement: share of samples to which both models give the same
    class. output_error: the mean over the outputs' parts of the squared error relative to the original's spread.
    data_sha256: of the samples as they were read (names, shapes, types and values), not of a file's bytes, so the same
    samples have the same in any form. figures: that of every part and output.
    """

    model: str
    against: str | None
    data: str
    data_sha256: str
    samples: int
    accuracy: float | None
    original_accuracy: float | None
    agreement: float | None
    output_error: float | None
    notes: tuple[str, ...] = ()
    figures: Figures | None = None

    @property
    def drop(self) -> float | None:
        """Points of top-1 that the model lost against the original; negative where it gained."""
        if self.accuracy is None or self.original_accuracy is None:
            return None
        return 100.0 * (self.original_accuracy - self.accuracy)

    def as_dict(self) -> dict[str, Any]:
        """The evaluation as plain data; a number that is not finite becomes None."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "figures"} | {"drop": self.drop}
        if self.figures is not None:
            values |= {
                "outputs": self.figures.as_dicts(),
                "error": self.figures.summary(),
                "verdict": asdict(verdict_of(self.figures)),
            }
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}

    def to_json(self) -> str:
        """The evaluation as JSON text."""
        return json.dumps(self.as_dict(), indent=1) + "\n"


def evaluate(
    model: ModelLike,
    data: Data,
    *,
    against: ModelLike | None = None,
    labels: str | None = None,
    state: Sequence[str] = (),
    samples: int | None = None,
    allow_links: bool = False,
    custom_ops: Libraries = (),
) -> Evaluation:
    """Run `model`, and `against` (the original), over `data` and compare.

    data: as the calibration data of `prune`. labels: the key of the integer class of each sample, (samples,).
    samples: use at most this many, a seeded choice, or the first ones of batches.
    state: pairs OUT=IN as for `prune`; both models get the states of the original, and a note says what comes of it
    where each gets its own.
    allow_links, custom_ops: as for `prune`, of both models.
    Raises InputError for models or data that cannot be read or do not fit each other, and RunError.
    """
    most = typed("samples", samples, "int | None")
    if most is not None and most < 1:
        raise UsageError(f"samples is {most}; it must be at least 1")
    with spill.spilling(), registering(checked_libraries(custom_ops)):
        return _evaluated(model, data, against, labels, tuple(state), most, allow_links=allow_links)


def _evaluated(
    model: ModelLike,
    data: Data,
    against: ModelLike | None,
    labels: str | None,
    state: tuple[str, ...],
    most: int | None,
    *,
    allow_links: bool,
) -> Evaluation:
    proto, name, unknowns = _model(model, allow_links=allow_links)
    original, original_name = proto, None
    if against is not None:
        original, original_name, unknowns = _model(against, allow_links=allow_links)
        _check_same_inputs(proto, original)
    states = states_of(original, state)
    samples = _samples(data, original, states, most)
    first_run.run(proto, samples.example())
    truth = None if labels is None else classes_of(samples, labels)
    figures: Figures | None = None
    notes = [*unknowns, *notes_on(proto), *samples.notes]
    original_classes: Ints | None = None
    first = _first_output(proto)
    if against is None:
        outputs = outputs_of(proto, samples, layouts_of(proto, samples))
    else:
        notes += notes_on(original)
        first_run.run(original, samples.example())
        first = _first_output(original)
        outputs, answers, observed = compared(proto, original, samples, states)
        _check_same_outputs(outputs, answers.values, observed)
        figures = figures_of(observed, answers, outputs, held_out=True, labelled=truth is not None)
        original_classes = _classes(answers.values, first, len(samples))
        notes += said_of_states(proto, original, samples, states)
    classes = _classes(outputs, first, len(samples))
    agreement = figures.agreement if figures is not None else None
    if classes is None and agreement is None:
        notes.insert(0, "the first output holds no class scores; top-1 and agreement do not apply")
    if truth is not None and classes is not None:
        check_classes(truth, outputs[first].shape[1])
    return Evaluation(
        name,
        original_name,
        samples.origin,
        samples.sha256(),
        len(samples),
        share_of(classes, truth),
        share_of(original_classes, truth),
        agreement,
        None if figures is None else figures.error,
        tuple(dict.fromkeys(notes)),
        figures,
    )


def gates_of(
    result: Evaluation,
    *,
    min_agreement: float | None = None,
    max_drop: float | None = None,
    max_error: float | None = None,
) -> tuple[Gate, ...]:
    """What came of each limit: a share of agreement, points of top-1 lost, the error of any output.

    Raises UsageError where what a limit is of was not measured, or for one that limits nothing.
    """
    for name, limit, most in (("min_agreement", min_agreement, 1.0), ("max_drop", max_drop, 100.0)):
        number = typed(name, limit, "float | None")
        if number is not None and not 0.0 <= number <= most:  # nothing is below a NaN
            raise UsageError(f"{name} is {limit}; it is from 0 to {most:g}")
    max_error = error_limit(max_error)
    gates: list[Gate] = []
    if min_agreement is not None:
        if result.agreement is None:
            raise UsageError("agreement was not measured: it needs the original, and class scores as the first output")
        held = result.agreement >= min_agreement - _SLACK
        text = f"is at least the demanded {min_agreement:.2%}" if held else f"is below the demanded {min_agreement:.2%}"
        gates.append(Gate("--min-agreement", min_agreement, held, f"agreement {result.agreement:.2%} {text}"))
    if max_drop is not None:
        if result.drop is None:
            raise UsageError("the drop was not measured: it needs labels, the original, and class scores")
        held = result.drop <= max_drop + _SLACK
        text = f"within the allowed {max_drop:.2f}" if held else f"more than the allowed {max_drop:.2f}"
        gates.append(Gate("--max-drop", max_drop, held, f"top-1 dropped by {result.drop:.2f} points, {text}"))
    if max_error is not None:
        if result.figures is None:
            raise UsageError("the output error was not measured: it needs the original (--against)")
        worst = result.figures.worst
        told = "" if worst is None or worst.value is None else f"{worst.name}: {percent(worst.value)}"
        gates.append(gate_of("--max-error", max_error, told, partial(demand, result.figures, max_error)))
    return tuple(gates)


def gate(
    result: Evaluation,
    *,
    min_agreement: float | None = None,
    max_drop: float | None = None,
    max_error: float | None = None,
) -> None:
    """Demand a share of agreement, at most so many points of top-1 lost, and at most such an error of any output.

    Raises CheckFailed where a limit is not kept, and UsageError as `gates_of`.
    """
    demand_all(gates_of(result, min_agreement=min_agreement, max_drop=max_drop, max_error=max_error))


def _model(model: ModelLike, *, allow_links: bool) -> tuple[onnx.ModelProto, str, tuple[str, ...]]:
    """(what of a model onnxruntime can run, its path, what to say of the rest)."""
    proto, source = model_file.read(model, allow_links=allow_links)
    front, tail = unknown.cut_off(proto)
    if not tail:
        return proto, source.path, ()
    return (
        model_file.declared(front)[0],
        source.path,
        (f"{tail.named}: what it and what lies behind read ({tail.read}) was evaluated",),
    )


def _samples(source: Data, proto: onnx.ModelProto, states: tuple[State, ...], most: int | None) -> Samples:
    if states:
        return fed_back.read(proto, source, states, most)
    samples = sample_axes.read(proto, taken(source, input_specs(proto), Wanted(most, _SEED)))
    if most is None or most >= len(samples):
        return samples
    return samples.take(np.sort(np.random.default_rng(_SEED).permutation(len(samples))[: samples.whole_runs(most)]))


def _first_output(proto: onnx.ModelProto) -> str:
    return next((o.name for o in proto.graph.output), "")


def _classes(outputs: Mapping[str, Array], first: str, samples: int) -> Ints | None:
    """Predicted class per sample by an output; None where that holds no class scores."""
    scores = outputs.get(first)
    return None if scores is None else classes_in(scores, samples)


def _check_same_inputs(a: onnx.ModelProto, b: onnx.ModelProto) -> None:
    def wanted(proto: onnx.ModelProto) -> dict[str, Any]:
        return {s.name: s.dtype for s in input_specs(proto)}

    if wanted(a) != wanted(b):
        first, second = (", ".join(f"{k} {v}" for k, v in wanted(p).items()) for p in (a, b))
        raise ModelError(f"the two models read different inputs: {first} against {second}")


def _check_same_outputs(outputs: Mapping[str, Array], reference: Mapping[str, Array], observed: Observed) -> None:
    """The outputs of the two, those of a size of their own in each model apart."""
    compared = [o for o in observed.outputs if o not in observed.sized_by_values]
    first, second = ({k: v[k].shape for k in compared if k in v} for v in (outputs, reference))
    if first != second:
        a, b = (", ".join(f"{k} {v}" for k, v in shapes.items()) for shapes in (first, second))
        raise ModelError(f"the two models give different outputs: {a} against {b}")
