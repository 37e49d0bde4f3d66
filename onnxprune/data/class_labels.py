"""Labels: a further key of the calibration or test data, read and held against the model's first output."""

from __future__ import annotations

import numpy as np

from onnxprune.data.samples import Samples
from onnxprune.errors import CalibrationError
from onnxprune.graph.view import Graph
from onnxprune.numerics.arrays import Array, Ints, is_float

# Operators behind a Softmax that leave each sample its numbers, in their order.
_SAME_NUMBERS = frozenset("Identity Cast Reshape Flatten Squeeze Unsqueeze".split())


def of(samples: Samples, key: str) -> Array:
    """The labels under `key`: integer classes, (samples,), or floating-point targets, (samples, …).

    Raises CalibrationError where there are none, or not one per sample.
    """
    if key not in samples.extras:
        others = ", ".join(repr(k) for k in samples.extras) or "no other keys"
        raise CalibrationError(f"{samples.origin}: no labels under {key!r}; beside the inputs it holds {others}")
    labels = samples.extras[key]
    where = f"{samples.origin}: labels {key!r}"
    classes = bool(np.issubdtype(labels.dtype, np.integer))
    if not classes and not is_float(labels.dtype):
        raise CalibrationError(f"{where} are {labels.dtype}; they must be integers (classes) or floating-point targets")
    if labels.ndim == 0 or len(labels) != len(samples) or (classes and labels.size != len(samples)):
        raise CalibrationError(f"{where} have shape {labels.shape}; there are {len(samples)} samples")
    if classes and labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise CalibrationError(f"{where} reach {labels.max()}, which is no class")
    return labels.reshape(-1).astype(np.int64) if classes else labels


def labels_of(samples: Samples, key: str) -> Array:
    """The labels as they are: numbers, first axis = samples. Raises CalibrationError where they are none."""
    if key not in samples.extras:
        return of(samples, key)  # which says what there is
    labels = samples.extras[key]
    where = f"{samples.origin}: labels {key!r}"
    if not (is_float(labels.dtype) or np.issubdtype(labels.dtype, np.number) or labels.dtype == np.bool_):
        raise CalibrationError(f"{where} are {labels.dtype}; they must be integers, or other numbers")
    if labels.ndim == 0 or len(labels) != len(samples):
        raise CalibrationError(f"{where} have shape {labels.shape}; there are {len(samples)} samples")
    return labels


def classes_of(samples: Samples, key: str) -> Ints:
    """The labels as classes, (samples,). Raises CalibrationError unless they are one integer per sample."""
    if key in samples.extras and not np.issubdtype(samples.extras[key].dtype, np.integer):
        where = f"{samples.origin}: labels {key!r}"
        raise CalibrationError(
            f"{where} are {samples.extras[key].dtype}; they must be integers, the class of each sample"
        )
    return of(samples, key)


def after_softmax(graph: Graph, output: str) -> bool:
    """Whether an output with class scores, (samples, classes), holds the probabilities of a Softmax over the classes.

    What follows the Softmax may change the shape or the type, nothing else.
    """
    shape, tensor = graph.shape(output), output
    node = graph.producer.get(tensor)
    while node is not None and node.domain == "" and node.op in _SAME_NUMBERS:
        tensor = node.inputs[0]
        node = graph.producer.get(tensor)
    soft = graph.shape(tensor)
    if node is None or node.domain or node.op != "Softmax" or not shape or len(shape) < 2 or not soft:
        return False
    flattens = graph.opset < 13  # into two dimensions, before it normalises the second
    axis = int(node.attrs.get("axis", 1 if flattens else -1)) % len(soft)
    return axis > 0 and shape[1] == (int(np.prod(soft[axis:])) if flattens else soft[axis])
