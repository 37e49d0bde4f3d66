"""The discrepancy of the network: a value of its outputs, and the seeds with which a reverse pass differentiates it.

An objective belongs to one data set and knows of it what the original model answers, and the labels where there are
some. It is 0 for the original model, and a sum over samples, so the values of batches add up:

- imitation:      mean over parts of ||y - y0||² / ||y0 - mean y0||²         (`output_imitation`, `measures.answers`)
- classes:        mean over samples of -log p_label, less that of y0         (`task_loss`, integer labels)
- targets t:      ||y - t||² / ||t - mean t||², less that of y0              (`task_loss`, floating-point labels)

With a gate a on each channel (1 keeps it) and J = dy/da, each is near a = 1

    value(a) ≈ value(1) + gᵀ(a - 1) + (a - 1)ᵀ K (a - 1),    K = ½ Jᵀ H J,    H the Hessian in the outputs

(Gauss-Newton). `gradient` gives the seed of g. `probe` draws for every sample a seed r with E[r rᵀ] = ½ H, so that
K = Σ over samples of E[d dᵀ], d = Jᵀ r: one reverse pass is one draw for all channels at once. For squares r is a
random sign times the root of the weight; for cross-entropy H is the Fisher matrix, and r the gradient at a label drawn
from the model's own answer (Martens 2020, arXiv 1412.1193, sections 8 and 9).

What is not finite stays out of the seeds and makes the value infinite, never NaN, so that it loses every comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.special import logsumexp

from onnxprune.errors import CalibrationError, ModelError
from onnxprune.graph.view import Shape
from onnxprune.measures.answers import Answers, difference, spread
from onnxprune.measures.class_scores import check_classes, scores_shape
from onnxprune.measures.padding import NONE, Padding
from onnxprune.numerics.arrays import Array, Doubles, Ints, Mask, cast, is_float

Index = slice | Ints
Wide = Doubles

# Labels that do not vary over the samples have no spread to measure an error by.
_LEAST_SPREAD = 1e-30
# Probabilities below these count as these: log p stays finite, and 1 / p in the range of the type.
_LEAST_PROBABILITY, _LEAST_HALF_PROBABILITY = 1e-7, 2.0**-14


class Objective(Protocol):
    """A discrepancy of the outputs over the samples, with its gradients.

    outputs: of the model, by name, for some samples (further ones are ignored). index: which samples these are.

    scale: factor on the seeds, against underflow in half precision; what is linear in them takes it along.
    Raises ModelError where an output has another shape than the original's.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the outputs that count."""

    @property
    def samples(self) -> int:
        """Size of the whole set."""

    def value(self, outputs: Mapping[str, Array], index: Index) -> float:
        """The share of these samples in the discrepancy; infinite where an output is not finite."""

    def gradient(self, outputs: Mapping[str, Array], index: Index, *, scale: float = 1.0) -> dict[str, Array]:
        """d value / d output, in the shape and type of each output that counts."""

    def probe(
        self, outputs: Mapping[str, Array], index: Index, rng: np.random.Generator, *, scale: float = 1.0
    ) -> dict[str, Array]:
        """Random seeds r, independent over samples, with E[r rᵀ] = ½ · Gauss-Newton Hessian of the value."""


# the relative error


def relative_error(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
    """Mean over floating-point outputs of ||y - y0||² / ||y0 - mean y0||², the mean taken over samples.

    Outputs that do not vary do not count.
    """
    return Answers.of(reference, 1).error(outputs)


# squares


@dataclass(frozen=True, eq=False)
class SquaredError:
    """Σ over outputs and samples of weight · ||y - target||², less what the original model has of it.

    target: by output, first axis = `samples` times the rows that the model gives for each. weight: one number, or one
    along an axis of channels. before: the original's share of each sample, (samples,). padding: of the target, which
    does not count.
    """

    target: Mapping[str, Array]
    weight: Mapping[str, Wide]
    samples: int
    before: Wide
    padding: Padding = NONE

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the outputs that count."""
        return tuple(self.target)

    def value(self, outputs: Mapping[str, Array], index: Index) -> float:
        """The share of these samples."""
        by_sample = -self.before[index]
        with np.errstate(over="ignore"):
            for k, w in self.weight.items():
                by_sample = by_sample + _squares(self._errors(k, outputs, index), len(by_sample), w)
        return _comparable(float(by_sample.sum()))

    def gradient(self, outputs: Mapping[str, Array], index: Index, *, scale: float = 1.0) -> dict[str, Array]:
        """2 · weight · (y - target)."""
        with np.errstate(over="ignore"):
            gradients = {k: scale * 2.0 * w * self._errors(k, outputs, index) for k, w in self.weight.items()}
        return {k: _seed(v, outputs[k]) for k, v in gradients.items()}

    def probe(
        self, outputs: Mapping[str, Array], index: Index, rng: np.random.Generator, *, scale: float = 1.0
    ) -> dict[str, Array]:
        """± the root of the weight, each sign drawn by itself."""
        probes = {
            k: scale * np.sqrt(w) * (2.0 * rng.integers(0, 2, outputs[k].shape) - 1.0) for k, w in self.weight.items()
        }
        for k, mask in self.padding.at.items():  # but for that, the Hessian is the same everywhere
            if k in probes:
                probes[k] = np.where(mask[index], 0.0, probes[k])
        return {k: _seed(v, outputs[k]) for k, v in probes.items()}

    def _errors(self, name: str, outputs: Mapping[str, Array], index: Index) -> Wide:
        y, whole = outputs[name], self.target[name]
        t = whole.reshape(self.samples, -1, *whole.shape[1:])[index].reshape(-1, *whole.shape[1:])
        if y.ndim == 0 and t.size == 1:  # a single number of a single sample
            t = t.reshape(())
        _check_shape(name, y.shape, t.shape)
        if name not in self.padding.at:
            return difference(y, t)
        mask = self.padding.at[name][index]
        return np.where(mask, 0.0, difference(y, np.where(mask, cast(np.array(np.inf), t.dtype), t)))


def output_imitation(reference: Mapping[str, Array], samples: int) -> SquaredError:
    """The `relative_error` against the original's outputs on `samples` samples, of which each batch has its share."""
    return imitation_of(Answers.of(reference, samples))


def imitation_of(answers: Answers) -> SquaredError:
    """The error against the original's answers, of which each batch has its share.

    A part does not count where a tensor of it does not have equally many rows for each sample.
    """
    count = answers.samples
    counted = answers.counting(lambda _, y: bool(y.ndim and y.size) and len(y) % count == 0)
    target = {k: answers.values[k] for k in counted.tensors}
    return SquaredError(target, counted.weights, count, np.zeros(count), answers.padding)


# labels


def fitted_labels(labels: Array, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """The labels as the first output wants them: classes as (samples,), targets in the output's shape.

    shape, dtype: of the first output, first axis = samples. Raises CalibrationError where they do not fit it.
    """
    shown = "x".join(map(str, shape)) or "a single number"
    if not is_float(dtype):
        raise CalibrationError(f"labels need an output in floating point; the first output is {dtype}")
    if not is_float(labels.dtype):
        if not scores_shape(shape, len(labels)):
            raise CalibrationError(
                f"integer labels are classes, but the first output ({shown}) holds no class scores (samples, classes); "
                "give its targets in floating point"
            )
        check_classes(labels, shape[1])
        return labels.astype(np.int64)
    if not np.isfinite(labels.astype(np.float64)).all():
        raise CalibrationError("the labels hold NaN or infinite values; clean the data first")
    if not shape or labels.shape[:1] != shape[:1] or _slim(labels.shape) != _slim(shape):
        given = "x".join(map(str, labels.shape))
        raise CalibrationError(f"floating-point labels have shape {given}, the first output has {shown}")
    return labels.reshape(shape)


def _slim(shape: Shape) -> Shape:
    return tuple(n for n in shape[1:] if n != 1)


def task_loss(reference: Mapping[str, Array], labels: Array, *, probabilities: bool = False) -> Objective:
    """The loss of the first output against labels, less the original model's; both over the whole set.

    labels: integer classes, (samples,): cross-entropy; floating-point targets: squared error over their spread.
    probabilities: the model gives p, behind a Softmax of its own, instead of the scores.
    Raises CalibrationError where the labels do not fit the output, or the original's loss is not finite.
    """
    if not reference:
        raise CalibrationError("labels need an output in floating point; the model has no tensor as output")
    name, y0 = next(iter(reference.items()))
    labels = fitted_labels(labels, y0.shape, y0.dtype)
    samples = len(y0)
    before = np.zeros(samples)
    if is_float(labels.dtype):
        weight = np.asarray(1.0 / max(spread(labels), _LEAST_SPREAD))
        with np.errstate(over="ignore"):
            before = _squares(y0.astype(np.float64) - labels.astype(np.float64), samples, weight)
        _check_finite(before)
        return SquaredError({name: labels}, {name: weight}, samples, before)
    before = _Answer.of(y0, probabilities).loss(labels) / samples
    _check_finite(before)
    return CrossEntropy(name, labels, y0.shape[1:], probabilities, before)


def _check_finite(before: Wide) -> None:
    if not np.isfinite(before).all():
        wrong = int(np.argmin(np.isfinite(before)))
        raise CalibrationError(f"the original model's loss on sample {wrong} is not finite; leave such samples out")


# cross-entropy


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Mean over the whole set of -log p_label, p the softmax of the scores over the classes, less the original's.

    labels: (samples,). classes: what follows the samples in the output's shape. before: the original's share of each
    sample, (samples,).
    """

    name: str
    labels: Ints
    classes: Shape
    probabilities: bool
    before: Wide

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the output that counts, alone."""
        return (self.name,)

    @property
    def samples(self) -> int:
        """Size of the whole set."""
        return len(self.labels)

    def value(self, outputs: Mapping[str, Array], index: Index) -> float:
        """The share of these samples."""
        answer, labels = self._answer(outputs, index)
        return _comparable(float((answer.loss(labels) / self.samples - self.before[index]).sum()))

    def gradient(self, outputs: Mapping[str, Array], index: Index, *, scale: float = 1.0) -> dict[str, Array]:
        """(p - onehot(label)) / samples."""
        answer, labels = self._answer(outputs, index)
        return {self.name: _seed(scale / self.samples * answer.slope(labels), outputs[self.name])}

    def probe(
        self, outputs: Mapping[str, Array], index: Index, rng: np.random.Generator, *, scale: float = 1.0
    ) -> dict[str, Array]:
        """(p - onehot(class drawn from p)) / √(2 samples)."""
        answer, _ = self._answer(outputs, index)
        root = scale / np.sqrt(2.0 * self.samples)
        return {self.name: _seed(root * answer.slope(answer.draw(rng)), outputs[self.name])}

    def _answer(self, outputs: Mapping[str, Array], index: Index) -> tuple[_Answer, Ints]:
        labels, y = self.labels[index], outputs[self.name]
        _check_shape(self.name, y.shape, (len(labels), *self.classes))
        return _Answer.of(y, self.probabilities), labels


@dataclass(frozen=True, eq=False)
class _Answer:
    """What a model says of some samples: log p, (samples, classes), and which samples have such an answer.

    log_floor: a probability that the model itself gives counts as no less than this, so that its inverse fits the type.
    """

    log_p: Wide
    sound: Mask
    log_floor: float | None

    @classmethod
    def of(cls, output: Array, probabilities: bool) -> _Answer:
        z = output.reshape(output.shape[:2]).astype(np.float64)
        most = z.max(axis=1)  # NaN where one is NaN
        sound = np.isfinite(most)
        if not probabilities:
            z = np.where(sound[:, None], z, 0.0)
            return cls(z - logsumexp(z, axis=1, keepdims=True), sound, None)
        floor = _LEAST_HALF_PROBABILITY if output.dtype.itemsize == 2 else _LEAST_PROBABILITY
        sound &= z.min(axis=1) >= 0.0
        return cls(np.log(np.maximum(np.where(sound[:, None], z, 1.0), floor)), sound, float(np.log(floor)))

    def loss(self, labels: Ints) -> Wide:
        """The loss of each sample, -log p_label, (samples,)."""
        return np.where(self.sound, -self.log_p[np.arange(len(labels)), labels], np.inf)

    def slope(self, labels: Ints) -> Wide:
        """d loss / d output, (samples, classes): p - onehot(label); where p is the output, -onehot(label) / p_label."""
        rows = np.arange(len(labels))
        if self.log_floor is None:
            slopes = np.exp(self.log_p)
            slopes[rows, labels] -= 1.0
        else:
            chosen = self.log_p[rows, labels]
            slopes = np.zeros_like(self.log_p)
            slopes[rows, labels] = np.where(chosen > self.log_floor, -np.exp(-chosen), 0.0)
        return np.where(self.sound[:, None], slopes, 0.0)

    def draw(self, rng: np.random.Generator) -> Ints:
        """A class of each sample, with its probability."""
        p = np.exp(self.log_p)
        if self.log_floor is not None:
            p = np.where(self.log_p > self.log_floor, p, 0.0)
        below = np.cumsum(p, axis=1)
        drawn = (below <= rng.random(len(p))[:, None] * below[:, -1:]).sum(axis=1)
        return np.asarray(np.minimum(drawn, p.shape[1] - 1), np.int64)


# shared


def _squares(errors: Wide, samples: int, weight: Wide) -> Wide:
    """The weighted sum of squares of each sample, (samples,)."""
    if weight.ndim:
        weighted: Wide = (weight * errors**2).reshape(samples, -1).sum(axis=1)
        return weighted
    plain: Wide = weight * (errors.reshape(samples, -1) ** 2).sum(axis=1)
    return plain


def _seed(values: Wide, output: Array) -> Array:
    """The seed in the shape and type of the output, 0 where that is not finite, and within the range of the type."""
    if output.dtype != np.float64:
        most = 2.0**15 if output.dtype == np.float16 else 2.0**127
        values = np.clip(values, -most, most)
    finite = np.isfinite(output) & np.isfinite(values.reshape(output.shape))
    return cast(np.where(finite, values.reshape(output.shape), 0.0), output.dtype)


def _comparable(value: float) -> float:
    return float(value) if np.isfinite(value) else float("inf")


def _check_shape(name: str, shape: Shape, expected: Shape) -> None:
    if shape != expected:
        shapes = ("x".join(map(str, s)) for s in (shape, expected))
        raise ModelError("output {!r} has shape {} where the original model gives {}".format(name, *shapes))
