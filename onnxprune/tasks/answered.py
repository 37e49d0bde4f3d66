"""What a task's metric reads, and what it gives: arrays and names in, numbers with their names out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.measures.figures import probabilities
from onnxprune.numerics.arrays import Array, is_float

HIGHER, LOWER = "higher", "lower"
SHARE, NUMBER = "share", "number"


@dataclass(frozen=True)
class Score:
    """One number of a metric.

    name: by which a limit names it. about: what it is, for a reader. value: None where it was not measured, and `why`.
    original: the original's by the same labels, None where the score compares the two. better: `HIGHER` or `LOWER`.
    unit: `SHARE`, from 0 to 1, or `NUMBER`.
    """

    name: str
    about: str
    value: float | None
    original: float | None = None
    better: str = HIGHER
    unit: str = SHARE
    why: str = ""


@dataclass(frozen=True, eq=False)
class Answered:
    """What models gave for some samples.

    outputs: of the model by name, in its order, first axis = samples. originals: the same of the original, None without
    one. labels: as the data has them, first axis = samples. inputs: the integers and masks that were fed, (samples, …).
    shapes: of one sample of every input. causal: says, by a run, whether no position reads what comes behind it.
    """

    outputs: Mapping[str, Array]
    samples: int
    originals: Mapping[str, Array] | None = None
    labels: Array | None = None
    inputs: Mapping[str, Array] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    causal: Callable[[], bool] = lambda: False

    @property
    def reference(self) -> Mapping[str, Array]:
        """The outputs by which it is told what they are: the original's, where there is one."""
        return self.outputs if self.originals is None else self.originals

    @property
    def first(self) -> str:
        """The name of the first output."""
        return next(iter(self.reference), "")

    @property
    def image(self) -> tuple[int, int] | None:
        """Height and width of the input that looks like an image, (3 or 1, H, W) or (H, W, 3 or 1); None without."""
        for shape in self.shapes.values():
            if len(shape) == 3 and shape[0] in (1, 3, 4) and min(shape[1:]) > 4:
                return shape[1], shape[2]
            if len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) > 4:
                return shape[0], shape[1]
        return None

    def mask(self, length: int) -> Array | None:
        """Which of so many positions of each sample are no padding, (samples, length); None where no input says it."""
        for name, v in self.inputs.items():
            if "mask" in name.lower() and v.shape == (self.samples, length):
                return np.asarray(v != 0)
        return None

    def pair(self, name: str) -> tuple[Array, Array | None]:
        """An output of both models. Raises UsageError where the model does not have it, or not in the same shape."""
        y0 = None if self.originals is None else self.originals.get(name)
        y = self.outputs.get(name)
        if y is None or (y0 is not None and y.shape != y0.shape):
            raise UsageError(f"the output {name!r} is not the same kind of tensor in both models")
        return y, y0


def log_probabilities(scores: Array) -> Array:
    """Logarithms of probabilities along the last axis, given these, probabilities, or scores in front of a Softmax."""
    s = scores.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if (s >= 0.0).all() and probabilities(s.reshape(-1, s.shape[-1])):
            return np.asarray(np.log(s))
        s = s - s.max(axis=-1, keepdims=True)
        return np.asarray(s - np.log(np.exp(s).sum(axis=-1, keepdims=True)))


def best_of(scores: Array, axis: int) -> Array:
    """The class with the largest score along an axis, -1 where a score is NaN."""
    best: Array = np.asarray(scores.argmax(axis=axis), np.int64)
    if is_float(scores.dtype):
        best[np.isnan(scores).any(axis=axis)] = -1
    return best


def number(value: Any) -> float | None:
    """A number as Python has it; None for one that is not finite."""
    return float(value) if np.isfinite(value) else None
