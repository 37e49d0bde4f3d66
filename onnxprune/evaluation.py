"""Judge a model on test data: every output against the original's, and by what its task is.

The error is that of `measures.figures`, as `prune` reports it. What the outputs mean is a row of `tasks.known`, which
is given or chosen by what they look like; or a function of the user's. Metrics read the first output: against an
original it is the original's first one, by its name in both. A sample whose scores hold a NaN is wrong, and agrees with
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from onnxprune.data.accepted import Data, Wanted
from onnxprune.data.class_labels import classes_of, labels_of
from onnxprune.data.inputs import input_specs
from onnxprune.data.ragged import Ragged
from onnxprune.data.samples import Samples
from onnxprune.data.sources import taken
from onnxprune.data.states import State, states_of
from onnxprune.errors import ModelError, UsageError
from onnxprune.intake import (
    empty_caches,
    fed_back,
    first_run,
    model_file,
    narrower,
    padded,
    ranks,
    sample_axes,
    unknown,
    unlisted,
)
from onnxprune.intake.model_file import ModelLike
from onnxprune.intake.unknown import Tail
from onnxprune.measures.by_output import OutputFigures, by_output
from onnxprune.measures.causal import is_causal
from onnxprune.measures.compared import Asked, compared, layouts_of, said_of_states
from onnxprune.measures.figures import Figures, change_of, figures_of
from onnxprune.measures.gates import SLACK, Gate, at_least, checked_limits, demand_all, error_gates
from onnxprune.measures.observed import Observed
from onnxprune.measures.verdict import verdict_of
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.options import shown, typed
from onnxprune.process import spill
from onnxprune.runtime.custom_ops import Libraries, registering
from onnxprune.runtime.custom_ops import checked as checked_libraries
from onnxprune.runtime.outputs import outputs_of, outputs_of_each
from onnxprune.runtime.session import notes_on
from onnxprune.tasks import custom
from onnxprune.tasks.answered import SHARE, Answered, Score
from onnxprune.tasks.gates import score_gates
from onnxprune.tasks.known import ASKED, BY_NAME, guessed, with_score
from onnxprune.tasks.names import CLASSIFICATION, DETECTION, NAMES
from onnxprune.tasks.sequence import tokens_in

NO_LIMITS: Mapping[str, float] = MappingProxyType({})

# Of the choice among more samples than are asked for.
_SEED = 0


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What was measured; None where it was not asked for, or where the task has no such thing.

    accuracy, original_accuracy: top-1, shares in [0, 1]. agreement: share of samples to which both models give the same
    class, or what the task has for that: of positions, neighbours or boxes. output_error: the mean over the outputs'
    parts of the squared error relative to the original's spread. data_sha256: of the samples as they were read (names,
    shapes, types and values), not of a file's bytes, so the same samples have the same in any form. figures: that of
    every part and output. by_output: each output of the original beside the model's. task: by whose metric, None where
    the outputs look like none, and task_why. scores: the numbers of the metric. prepared: what was
    done to files that hold no arrays.
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
    by_output: tuple[OutputFigures, ...] = ()
    task: str | None = None
    task_why: str = ""
    scores: tuple[Score, ...] = ()
    prepared: str = ""

    def __repr__(self) -> str:
        """In a line: what was measured."""
        figures = (
            ("top-1", self.accuracy),
            ("the original's", self.original_accuracy),
            ("agreement", self.agreement),
            ("output error", self.output_error),
            *((s.name, s.value) for s in self.scores if s.unit == SHARE and s.name not in ("top-1", "agreement")),
        )
        told = ", ".join(f"{name} {value:.2%}" for name, value in figures if value is not None)
        against = "" if self.against is None else f" against {self.against!r}"
        return f"<evaluation of {self.model!r}{against} on {self.samples} samples: {told or 'nothing measured'}>"

    @property
    def quality(self) -> Score:
        """What the task measures by labels: top-1 for class scores, mIoU for class maps, and so on."""
        if self.task is None or self.task == CLASSIFICATION:
            return Score("top-1", "get their label", self.accuracy, self.original_accuracy)
        name = BY_NAME[self.task].quality
        return next((s for s in self.scores if s.name == name), Score(name, "", None))

    @property
    def drop(self) -> float | None:
        """Points of top-1, or of what the task has for that, that were lost; negative where the model gained."""
        q = self.quality
        return None if q.value is None or q.original is None else 100.0 * (q.original - q.value)

    def as_dict(self) -> dict[str, Any]:
        """The evaluation as plain data; a number that is not finite becomes None."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "figures"} | {"drop": self.drop}
        values |= {"scores": [asdict(s) for s in self.scores], "by_output": [asdict(o) for o in self.by_output]}
        if self.figures is not None:
            values |= {
                "outputs": self.figures.as_dicts(),
                "error": self.figures.summary(),
                "verdict": asdict(verdict_of(self.figures)),
            }
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}

    def to_json(self, gates: Sequence[Gate] = ()) -> str:
        """The evaluation as JSON text, with what came of limits."""
        return json.dumps(self.as_dict() | {"gates": [asdict(g) for g in gates]}, indent=1) + "\n"


@dataclass(eq=False)
class Original:
    """A model that several others are held against on the same samples: it is read, and answers, once.

    path: where it lies. tail: what of it onnxruntime cannot run. runs: whether a first run has been tried.
    """

    proto: onnx.ModelProto
    path: str
    tail: Tail
    runs: bool = False
    asked: Asked = field(default_factory=Asked)

    @classmethod
    def of(cls, model: ModelLike, *, allow_links: bool) -> Original:
        """Read it. Raises InputError."""
        return cls(*_model(model, allow_links=allow_links))

    def try_out(self, declared: onnx.ModelProto, samples: Samples) -> None:
        """Let it run once, in the child process, as it is declared for these samples. Raises RunError."""
        if not self.runs:
            first_run.run(declared, samples.example())
        self.runs = True


def evaluate(
    model: ModelLike,
    data: Data | Samples,
    *,
    against: ModelLike | None = None,
    labels: str | None = None,
    task: str | None = None,
    metric: str | Callable[..., object] | None = None,
    state: Sequence[str] = (),
    samples: int | None = None,
    allow_links: bool = False,
    custom_ops: Libraries = (),
) -> Evaluation:
    """Run `model`, and `against` (the original), over `data` and compare.

    data: as the calibration data of `prune`. labels: the key of the integer class of each sample, (samples,), or of
    what else the task reads. task: one of `tasks.known`; None for the one that the outputs look like. metric: in place
    of a task, one of its scores (perplexity); or a function of (outputs, the original's outputs, labels) that gives a
    number, or numbers by name; or file.py:function.
    samples: use at most this many, a seeded choice, or the first ones of batches.
    state: pairs OUT=IN as for `prune`; both models get the states of the original, and a note says what comes of it
    where each gets its own.
    allow_links, custom_ops: as for `prune`, of both models.
    Raises InputError for models or data that cannot be read or do not fit each other, RunError, and UsageError where
    there is nothing to compare with.
    """
    most = typed("samples", samples, "int | None")
    if most is not None and most < 1:
        raise UsageError(f"samples is {most}; it must be at least 1")
    if task is not None and task not in BY_NAME:
        raise UsageError(f"task is {shown(task)}; choose one of {', '.join(NAMES)}")
    if task is not None and metric is not None:
        raise UsageError("task and metric both say what is measured; leave out one of them")
    own = None
    if isinstance(metric, str) and ":" not in metric:
        task = with_score(metric).name
    elif metric is not None:
        own = custom.of(metric)
    if against is None and labels is None and own is None and task != "sequence":
        raise UsageError("there is nothing to compare with: give the original (--against), or labels (--labels)")
    with spill.spilling(), registering(checked_libraries(custom_ops)):
        original = None if against is None else Original.of(against, allow_links=allow_links)
        return _evaluated(model, data, original, labels, tuple(state), most, task, own, allow_links=allow_links)


def evaluate_beside(
    original: Original,
    model: onnx.ModelProto,
    samples: Samples,
    *,
    labels: str | None = None,
    state: Sequence[str] = (),
    allow_links: bool = False,
) -> Evaluation:
    """As `evaluate`, of one of several models that are held against one original on the same samples."""
    with spill.spilling():
        return _evaluated(model, samples, original, labels, tuple(state), None, None, None, allow_links=allow_links)


def _evaluated(
    model: ModelLike,
    data: Data | Samples,
    against: Original | None,
    labels: str | None,
    state: tuple[str, ...],
    most: int | None,
    task: str | None,
    metric: custom.Metric | None,
    *,
    allow_links: bool,
) -> Evaluation:
    proto, name, tail = _model(model, allow_links=allow_links)
    original, original_name = proto, None
    if against is not None:
        original, original_name, tail = against.proto, against.path, against.tail
    states = states_of(original, state, tail.holds)
    proto, original = (ranks.declared(p, data, states) for p in (proto, original))
    _check_same_inputs(proto, original)
    samples = _samples(data, original, states, most)
    whole, proto, original, said = _side_by_side(proto, original, samples, states)
    first_run.run(proto, samples.example())
    truth = None if labels is None else labels_of(samples, labels)
    notes = [*_said_of(tail), *notes_on(proto), *samples.notes, *said]
    answers, observed = None, None
    if against is None:
        outputs = outputs_of(proto, samples, layouts_of(proto, samples))
    else:
        notes += notes_on(original)
        against.try_out(original, samples)
        outputs, answers, observed = compared(proto, original, samples, states, against.asked)
        _check_same_outputs(outputs, answers.values, observed)
        notes += [*said_of_states(whole, original, samples, states), *answers.padding.note]
    given: Mapping[str, Array] = outputs
    originals = None if answers is None else answers.values
    if metric is None and task in (None, DETECTION) and not states:
        given, originals = _with_listed(proto, original, samples, given, originals)
    a = _answered(original, samples, given, originals, truth)
    row, why = (BY_NAME[task], ASKED) if task is not None else (None, "")
    if row is None and metric is None:
        row, why = guessed(a)
    classes = row is not None and row.name == CLASSIFICATION
    if classes and labels is not None:
        a = replace(a, labels=classes_of(samples, labels))
    scores = row.measured(a) if row is not None else () if metric is None else custom.measured(metric, a)
    figures: Figures | None = None
    each: tuple[OutputFigures, ...] = ()
    if answers is not None and observed is not None:
        figures = figures_of(observed, answers, outputs, held_out=True, labelled=classes and labels is not None)
        if row is not None and not row.ranks:  # the largest entry of an embedding says nothing
            figures = replace(figures, agreement=None)
        each = by_output(observed.outputs, outputs, answers, figures)
    elif not scores:
        raise UsageError(f"nothing was compared: {why} (--task names one), and there is no original")
    if classes and figures is not None and figures.agreement is not None:
        scores = (*scores, Score("agreement", "get the same class", figures.agreement))
    agreement = None if figures is None else figures.agreement
    if row is not None and not classes:
        agreement = next((s.value for s in scores if s.name == row.agreement), None)
    elif not classes and agreement is None and metric is None:
        notes.insert(0, "the first output holds no class scores; top-1 and agreement do not apply")
    top_1 = next((s for s in scores if classes and s.name == row.quality), None) if row is not None else None
    return Evaluation(
        name,
        original_name,
        samples.origin,
        samples.sha256(),
        len(samples),
        None if top_1 is None else top_1.value,
        None if top_1 is None else top_1.original,
        agreement,
        None if figures is None else figures.error,
        tuple(dict.fromkeys(notes)),
        figures,
        each,
        None if row is None else row.name,
        why,
        scores,
        samples.prepared,
    )


def _side_by_side(
    proto: onnx.ModelProto, original: onnx.ModelProto, samples: Samples, states: tuple[State, ...]
) -> tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto, tuple[str, ...]]:
    """The model with the states that it hands itself, both models as they are compared, and notes."""
    whole = narrower.taking(proto, original, samples, handed=True)[0] if states else proto
    return (whole, *unlisted.side_by_side(proto, original, samples, handed=bool(states)))


def _with_listed(
    proto: onnx.ModelProto,
    original: onnx.ModelProto,
    samples: Samples,
    outputs: Mapping[str, Array],
    originals: Mapping[str, Array] | None,
) -> tuple[Mapping[str, Array], Mapping[str, Array] | None]:
    """The outputs of both with those that list what was found, as many as there are on each sample."""
    reference = outputs if originals is None else originals
    names = [o.name for o in original.graph.output]
    names = [k for k in names if k not in reference or (reference[k].ndim and len(reference[k]) != len(samples))]
    if not names or samples.per_run not in (None, 1) or not samples.sampled:
        return outputs, originals
    own = {**outputs, **outputs_of_each(proto, samples, names)}
    return own, None if originals is None else {**originals, **outputs_of_each(original, samples, names)}


def _answered(
    original: onnx.ModelProto,
    samples: Samples,
    outputs: Mapping[str, Array],
    originals: Mapping[str, Array] | None,
    labels: Array | None,
) -> Answered:
    """What metrics read, given the tensors that were looked at: the outputs of the original alone, in its order."""
    names = [o.name for o in original.graph.output]
    inputs = {k: v[:] for k, v in samples.arrays.items() if len(v.shape) == 2 and not isinstance(v, Ragged)}
    a = Answered(
        {k: outputs[k] for k in names if k in outputs},
        len(samples),
        None if originals is None else {k: originals[k] for k in names if k in originals},
        labels,
        {k: v for k, v in inputs.items() if len(v) == len(samples) and (not is_float(v.dtype) or "mask" in k.lower())},
        {k: tuple(v.shape[1:]) for k, v in samples.arrays.items()},
    )
    ids = tokens_in(a)
    return replace(a, causal=lambda: ids is not None and is_causal(original, samples, ids, a.first))


def gates_of(
    result: Evaluation,
    *,
    min_agreement: float | None = None,
    max_drop: float | None = None,
    max_error: float | Mapping[str, float] | None = None,
    min_metric: Mapping[str, float] = NO_LIMITS,
    max_metric: Mapping[str, float] = NO_LIMITS,
) -> tuple[Gate, ...]:
    """Limits on a share of agreement, on the points of top-1 lost, on the error of outputs and on scores, as gates.

    max_error: one for all outputs, or by output, "" for those that are not named. min_metric, max_metric: by the name
    of a score, also cosine and largest-difference of the worst output, or OUT:cosine of one. Raises UsageError where
    what is limited was not measured, or for a limit that limits nothing.
    """
    for name, limit, most in (("min_agreement", min_agreement, 1.0), ("max_drop", max_drop, 100.0)):
        number = typed(name, limit, "float | None")
        if number is not None and not 0.0 <= number <= most:  # nothing is below a NaN
            raise UsageError(f"{name} is {limit}; it is from 0 to {most:g}")
    limits = checked_limits(max_error)
    found: list[Gate] = []
    if min_agreement is not None:
        if result.agreement is None:
            raise UsageError("agreement was not measured: it needs the original, and class scores, or another --task")
        name = BY_NAME[result.task].agreement if result.task is not None else "agreement"
        found.append(at_least("--min-agreement", min_agreement, result.agreement, name))
    if max_drop is not None:
        if result.drop is None:
            raise UsageError(
                "the drop was not measured: it needs labels, the original, and class scores, or another --task"
            )
        found.append(_drop_gate(result.quality.name, result.drop, max_drop))
    if limits:
        if result.figures is None:
            raise UsageError("the output error was not measured: it needs the original (--against)")
        found += error_gates(result.figures, limits, (o.output for o in result.by_output))
    found += score_gates(result.scores, result.by_output, min_metric, max_metric)
    return tuple(found)


def _drop_gate(name: str, drop: float, most: float) -> Gate:
    held = drop <= most + SLACK
    change, points = change_of(drop)
    if change == "gain":
        return Gate("--max-drop", most, held, f"{name} gained {points} points, where a drop of {most:.2f} is allowed")
    than = "within" if held else "more than"
    return Gate("--max-drop", most, held, f"{name} dropped by {points} points, {than} the allowed {most:.2f}")


def gate(result: Evaluation, **limits: Any) -> None:
    """Demand what `gates_of` says. Raises CheckFailed where a limit is not kept, and UsageError as `gates_of` does."""
    demand_all(gates_of(result, **limits))


def _model(model: ModelLike, *, allow_links: bool) -> tuple[onnx.ModelProto, str, Tail]:
    """(what of a model onnxruntime can run, its path, the rest)."""
    proto, source = model_file.read(model, allow_links=allow_links)
    front, tail = unknown.cut_off(proto)
    return (model_file.declared(front)[0] if tail else proto), source.path, tail


def _said_of(tail: Tail) -> tuple[str, ...]:
    if not tail:
        return ()
    return (f"{tail.named}: what it and what lies behind read ({tail.read}) was evaluated",)


def samples_for(original: onnx.ModelProto, data: Data, state: Sequence[str] = ()) -> Samples:
    """Test data as read for a model, for `evaluate` of several that came from it. Raises InputError."""
    return _samples(data, original, states_of(original, tuple(state)), None)


def _samples(source: Data | Samples, proto: onnx.ModelProto, states: tuple[State, ...], most: int | None) -> Samples:
    if isinstance(source, Samples):
        return source
    samples = _read(source, proto, states, most)
    return replace(samples, notes=(*samples.notes, *padded.check(proto, samples)))


def _read(source: Data, proto: onnx.ModelProto, states: tuple[State, ...], most: int | None) -> Samples:
    if states:
        return fed_back.read(proto, source, states, most)
    specs = input_specs(proto)
    given = taken(source, empty_caches.fillable(proto, specs), Wanted(most, _SEED))
    samples = replace(sample_axes.read(proto, given), specs=specs)
    if most is None or most >= len(samples):
        return samples
    return samples.take(np.sort(np.random.default_rng(_SEED).permutation(len(samples))[: samples.whole_runs(most)]))


def _check_same_inputs(a: onnx.ModelProto, b: onnx.ModelProto) -> None:
    """Raises ModelError unless a model reads what its original does, caches of layers that went aside."""

    def wanted(proto: onnx.ModelProto) -> dict[str, Any]:
        return {s.name: s.dtype for s in input_specs(proto)}

    own, others = wanted(a), wanted(b)
    caches = {s.name for s in input_specs(b) if empty_caches.may_be_cache(s)}
    if not own.items() <= others.items() or not others.keys() - own.keys() <= caches:
        first, second = (", ".join(f"{k} {v}" for k, v in wanted(p).items()) for p in (a, b))
        raise ModelError(f"the two models read different inputs: {first} against {second}")


def _check_same_outputs(outputs: Mapping[str, Array], reference: Mapping[str, Array], observed: Observed) -> None:
    """The outputs of the two, those of a size of their own in each model apart."""
    compared = [o for o in observed.outputs if o not in observed.sized_by_values]
    first, second = ({k: v[k].shape for k in compared if k in v} for v in (outputs, reference))
    if first != second:
        a, b = (", ".join(f"{k} {v}" for k, v in shapes.items()) for shapes in (first, second))
        raise ModelError(f"the two models give different outputs: {a} against {b}")
