"""Recovery: the pruned network learns from the original, on the calibration samples and without labels.

Loss: the mean over the parts of the outputs of ||s - t||² / ||t - mean t||² (as `measures.answers` has it), plus
`feature_weight` times the sum of the same over features between (`student.features_of`). Steps as in `descent`,
batches in random order, a rate that rises and falls once (`training`). The network is judged on the samples that were
held out, and the best state stays, which may be the one at the start. Where it does harm the rate is too high: what is
left of the passes begins again at the best state, with a third of it. Once the rate falls, training ends where the
error on those samples no longer does.

Hinton, Vinyals & Dean 2015 (arXiv 1503.02531); features: Romero et al. 2015 (arXiv 1412.6550).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import onnx

from onnxprune.calibration.input_moments import grams
from onnxprune.calibration.layers import Layer
from onnxprune.channels import ChannelGraph
from onnxprune.data.layouts import Layouts, samples_first
from onnxprune.data.samples import Samples
from onnxprune.errors import RunError
from onnxprune.graph import external
from onnxprune.measures.answers import Answers, Wide
from onnxprune.measures.padding import padding_of
from onnxprune.numerics.arrays import Array, Doubles, Mask
from onnxprune.numerics.least_squares import SolveFailed
from onnxprune.recovery.augment import Augment, Feeds, unchanged
from onnxprune.recovery.descent import Descent
from onnxprune.recovery.lessons import Lessons
from onnxprune.recovery.student import Spread, Student, Teacher, bytes_of_a_sample, features_of
from onnxprune.recovery.training import NotFinite, Stopped, Training, batch_of, part_size
from onnxprune.runtime.outputs import outputs_of
from onnxprune.surgery import replace_initializers

# What one sample may hold, and so many times the model on top: a small model can make very wide tensors.
_SAMPLE_BYTES, _TIMES_THE_MODEL = 4 << 30, 64
_SPREAD_SAMPLES = _GRAM_SAMPLES = 256
_EVALUATIONS = 10
# A rate is too high once held-out error is so many times that of the start; what ends far below it may pass above it by
# less.
_HARM, _BACK_OFF = 1.2, 3.0
# In the second half, where the rate falls, so many evaluations of which each lowers the error by less than this share
# are the end.
_PATIENCE, _LEAST_GAIN = 3, 0.005
# (epoch, epochs, error at the start, least error so far)
Tell = Callable[[int, int, float, float], None]
_DIFFERENT = "the samples differ in size, so that their outputs have no mean"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How to train.

    epochs: passes over the samples. rate: the highest one, relative as `descent` says. batch: samples per step. Where
    they are None they follow from the network (`Manner`).

    feature_weight: of the features, the outputs having 1 together. augment: changes each batch before both networks
    see it. seed: of the order, and of what `augment` draws. fixed: weights that are not trained. memory: bytes of the
    teacher's answers that stay in memory. provider: of PROVIDERS, what both networks run on.
    """

    epochs: int
    rate: float | None = None
    batch: int | None = None
    feature_weight: float = 1.0
    augment: Augment = unchanged
    seed: int = 0
    fixed: frozenset[str] = frozenset()
    memory: int = 128 << 20
    provider: str = "cpu"


@dataclass(frozen=True)
class Manner:
    """How a kind of network learns best: the highest rate, samples per step, and `shared` of `descent`."""

    rate: float
    batch: int
    shared: bool


# A convolution's gradient is a mean over many places of each sample, so that few samples and a high rate will do.
CONVOLUTIONS, OTHERS = Manner(1e-2, 16, shared=True), Manner(7e-3, 32, shared=False)


def manner_of(student: Student, schedule: Schedule) -> Manner:
    """By what most of the candidates for training belong to, with the rate and the batch of the schedule, if any."""
    sizes = [(x.node.op in ("Conv", "ConvTranspose"), student.sizes.get(x.weight, 0)) for x in student.layers]
    convolutions, every = sum(size for is_one, size in sizes if is_one), sum(size for _, size in sizes)
    usual = CONVOLUTIONS if 2 * convolutions > every else OTHERS
    return replace(
        usual,
        rate=usual.rate if schedule.rate is None else schedule.rate,
        batch=usual.batch if schedule.batch is None else schedule.batch,
    )


@dataclass(frozen=True)
class Recovery:
    """What training did.

    steps: of Adam. weights: how many arrays it trained. before, after: held-out error of the outputs.

    epoch: the one whose state was kept, 0 for the start. errors: what was measured after which epochs. why: what kept
    all or some of it from being done, else "". rate: the highest of the last steps, below the schedule's where that did
    harm. failed: whether it ended where a step could not be computed.
    """

    steps: int
    weights: int
    before: float
    after: float
    epoch: int
    errors: tuple[tuple[int, float], ...] = field(default=())
    why: str = ""
    rate: float = 0.0
    failed: bool = False


@dataclass(frozen=True, eq=False)
class Material:
    """Samples to learn from, and others to judge by, with the original's answers on those."""

    fit: Samples
    held: Samples
    reference: Answers


def recover(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    channels: ChannelGraph,
    layers: Sequence[Layer],
    material: Material,
    keep: Mask,
    schedule: Schedule,
    tell: Tell = lambda epoch, epochs, before, least: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Array], Recovery]:
    """(new weights of `pruned`, what was done); no weights where nothing was better than the start.

    original: the normalised model, of which `channels` and `layers` are; pruned: cut to the classes `keep`. tell: hears
    after each epoch its number, how many there are, and the held-out error at the start and of the best state so far.
    stop: asked between steps; where it says so, training ends there, and the best state so far stays.
    """

    layouts = material.reference.layouts

    def judge(weights: Mapping[str, Array]) -> float:
        error = material.reference.error(outputs_of(replace_initializers(pruned, weights), material.held, layouts))
        return error if np.isfinite(error) else float("inf")

    before, samples = judge({}), material.fit
    if samples.ragged:
        return {}, Recovery(0, 0, before, before, 0, why=f"recovery was left out: {_DIFFERENT}")
    try:
        _check_room(channels, external.model_bytes(original))
        student = Student(pruned, samples.example(), channels, layers, keep, schedule.fixed, schedule.provider)
        manner = manner_of(student, schedule)
        teacher, goals, masked = _goals(original, student, channels, layers, material, keep, schedule, manner.batch)
        if goals:
            student.follow(goals, masked)
    except RunError as e:
        return {}, Recovery(0, 0, before, before, 0, why=f"recovery was left out: {e}")
    if not student.weights or not np.isfinite(before):
        return {}, Recovery(0, 0, before, before, 0, why=_nothing(student, goals, before))
    course = _Course(before, manner.rate, {k: w.copy() for k, w in student.weights.items()})
    why, failed = "", False

    def taught(feeds: Feeds, own: Samples) -> dict[str, Array]:
        values = teacher(feeds)
        hidden = _without_padding(original, own, {t: values[t] for t in masked if t in values}, layouts)
        return {t: hidden.get(t, values[t]) for t in student.goals}

    lessons = Lessons(taught, samples, schedule.augment, schedule.memory)
    try:
        moments = _grams(student, samples, schedule)
        descent = Descent(student.weights, student.layers, moments, shared=manner.shared)
        training = Training(student, lessons, descent, manner.batch, schedule.seed, stop)
        tell(0, schedule.epochs, before, before)
        while course.done < schedule.epochs and not course.ended:
            student.restore(course.best)
            with closing(training.epochs(schedule.epochs - course.done, course.rate)) as epochs:
                _follow(course, epochs, training, schedule.epochs, judge, tell)
    except Stopped:
        why = f"recovery was interrupted after {course.steps} steps; the best state until then stays"
    except (RunError, SolveFailed, NotFinite) as e:
        why, failed = f"recovery stopped after {course.steps} steps: {e}", True
    found = Recovery(
        course.steps,
        len(student.weights),
        before,
        course.least,
        course.kept,
        tuple(course.errors),
        why,
        course.rate,
        failed,
    )
    return course.best if course.kept else {}, found


class _Course:
    """How training went so far.

    before: held-out error at the start; least: the least so far, that of the state `best` after the epoch `kept`.
    rate: of the steps now. done, steps: epochs and steps so far. ended: whether it ends before its last epoch.
    """

    def __init__(self, before: float, rate: float, start: dict[str, Array]) -> None:
        self.before, self.least, self.rate, self.best = before, before, rate, start
        self.done = self.steps = self.kept = 0
        self.ended = False
        self.errors = [(0, before)]

    @property
    def stands_still(self) -> bool:
        """Whether the error fell by next to nothing from each of the last evaluations to the next."""
        last = [e for _, e in self.errors[-_PATIENCE - 1 :]]
        return len(last) > _PATIENCE and all(b > (1 - _LEAST_GAIN) * a for a, b in pairwise(last))

    def judged(self, error: float, weights: Mapping[str, Array]) -> None:
        """Take note of the held-out error of these weights, which are copied where they are the best so far."""
        self.errors.append((self.done, error))
        if error < self.least:
            self.least, self.kept = error, self.done
            self.best = {k: w.copy() for k, w in weights.items()}


def _follow(
    course: _Course,
    epochs: Iterable[int],
    training: Training,
    last: int,
    judge: Callable[[Mapping[str, Array]], float],
    tell: Tell,
) -> None:
    """Go through these epochs, the rest up to `last`; leave them, and lower the rate, where they do harm."""
    done, steps = course.done, course.steps
    wanted = {done + round((last - done) * (i + 1) / _EVALUATIONS) for i in range(_EVALUATIONS)}
    for epoch in epochs:
        course.done, course.steps = done + epoch, steps + training.descent.steps
        if course.done in wanted:
            course.judged(judge(training.student.weights), training.student.weights)
        tell(course.done, last, course.before, course.least)
        if course.done not in wanted or course.done == last:
            continue
        if course.errors[-1][1] > _HARM * course.before:
            course.rate /= _BACK_OFF
            return
        if course.stands_still and 2 * epoch > last - done:
            course.ended = True
            return


def _check_room(channels: ChannelGraph, model_bytes: int) -> None:
    """Raises RunError where one sample holds more than a model of that size explains."""
    room = bytes_of_a_sample(channels.graph)
    if room > _SAMPLE_BYTES + _TIMES_THE_MODEL * model_bytes:
        raise RunError(
            f"one sample and its gradients would hold {room / 2**30:.1f} GiB, which the model's size does not explain"
        )


def _nothing(student: Student, goals: Mapping[str, Wide], before: float) -> str:
    """Why no weight was trained."""
    if not np.isfinite(before):
        return "recovery was left out: the outputs on held-out samples are not finite"
    if not goals:
        return "recovery was left out: no floating-point output of the model varies over the samples"
    reason = next(iter(student.missing.values()), "no weight is stored in floating point")
    return f"recovery was left out: no weight has a gradient ({reason})"


def _goals(
    original: onnx.ModelProto,
    student: Student,
    channels: ChannelGraph,
    layers: Sequence[Layer],
    material: Material,
    keep: Mask,
    schedule: Schedule,
    wanted: int,
) -> tuple[Teacher, dict[str, Wide], set[str]]:
    """The teacher, the weight of every tensor in the loss, per sample of a batch and relative to its spread, and those
    of them that have infinite entries. wanted: samples of a batch."""
    graph, samples = channels.graph, material.fit
    outputs = [t for t in material.reference.tensors if student.has(t)]
    features = [t for t in features_of(graph, layers) if student.has(t)] if schedule.feature_weight else []
    teacher = Teacher(original, channels, [*outputs, *features], keep, schedule.provider)
    spread = Spread()
    batch = batch_of(samples, wanted)
    some = samples.take(np.arange(samples.whole_runs(min(len(samples), _SPREAD_SAMPLES))))
    seen = 0
    for feeds in some.batches(part_size(student, batch, samples)):
        count = samples.count(feeds)
        values = samples_first(teacher(feeds), count, material.reference.layouts)
        own = some.part(seen, seen + count)
        spread.update(_without_padding(original, own, values, material.reference.layouts), count)
        seen += count
    weights: dict[str, Wide] = {}
    for t, s in spread.per_sample().items():
        share = material.reference.weights_of_spreads[t] if t in outputs else np.asarray(schedule.feature_weight)
        if t in material.reference.layouts:  # the loss sees it as the model gives it
            share = np.asarray(share.mean())
        weights[t] = share / (s * batch)
    if not any(t in outputs for t in weights):
        return teacher, {}, set()
    return teacher, weights, spread.masked


def _without_padding(
    original: onnx.ModelProto, samples: Samples, values: Mapping[str, Array], layouts: Layouts
) -> dict[str, Array]:
    """The teacher's values on these samples, infinite at padding, by which the loss knows what does not count."""
    padding = padding_of(original, samples, values, layouts)
    return {t: padding.without(t, v) for t, v in values.items()}


def _grams(student: Student, samples: Samples, schedule: Schedule) -> dict[str, Doubles]:
    """E[x xᵀ] of what each layer of the student reads, from some of the samples."""
    rng = np.random.default_rng(schedule.seed)
    count = samples.whole_runs(min(len(samples), _GRAM_SAMPLES))
    some = samples.take(np.sort(rng.permutation(len(samples))[:count]))
    return grams(student.proto, student.layers, some, student.shapes, schedule.seed, schedule.provider)
