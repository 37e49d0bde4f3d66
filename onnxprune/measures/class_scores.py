"""Outputs that are scores of classes."""

from __future__ import annotations

from onnxprune.errors import CalibrationError
from onnxprune.graph.view import Shape
from onnxprune.numerics.arrays import Array, Ints, is_float


def class_scores(output: Array, samples: int) -> bool:
    """Whether an output holds class scores: floating point, (samples, classes), with but axes of size 1 behind."""
    return is_float(output.dtype) and scores_shape(output.shape, samples)


def scores_shape(shape: Shape, samples: int) -> bool:
    """Whether this is the shape of class scores."""
    return len(shape) > 1 and shape[0] == samples and shape[1] > 1 and all(n == 1 for n in shape[2:])


def check_classes(labels: Ints, classes: int) -> None:
    """Raises CalibrationError unless each label is one of so many classes."""
    if labels.min() < 0 or labels.max() >= classes:
        raise CalibrationError(
            f"labels run from {labels.min()} to {labels.max()}, the model has the classes 0 to {classes - 1}"
        )
