"""Data that are handed over in Python: what is no array of the model's types is refused by name, and nothing wraps."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from onnxprune import prune
from onnxprune.data.class_labels import of as labels_of
from onnxprune.data.inputs import InputSpec
from onnxprune.data.samples import Samples
from onnxprune.data.sources import given
from onnxprune.errors import CalibrationError
from tests import digits

FLOAT, INT8 = (InputSpec("x", np.dtype(np.float32), (None, 3)),), (InputSpec("x", np.dtype(np.int8), (None, 3)),)
HALF = (InputSpec("x", np.dtype(np.float16), (None, 3)),)
TEXT = (InputSpec("x", np.dtype(object), (None, 3)),)
GOOD = np.ones((4, 3), np.float32)


class Stubborn:
    def __array__(self, *_: object, **__: object) -> Any:
        raise RuntimeError("no\nvalues")


REFUSED: dict[str, tuple[tuple[InputSpec, ...], Any, str]] = {
    "rows of different lengths": (FLOAT, {"x": [[1.0, 2.0, 3.0], [1.0]]}, "'x' is no array"),
    "an object that gives no values": (FLOAT, {"x": Stubborn()}, "'x' is no array: no values"),
    "Python objects": (FLOAT, {"x": np.array([[{}, None, 1]], object)}, "is object, the model wants float32"),
    "nothing": (FLOAT, {"x": None}, "is object, the model wants float32"),
    "text": (FLOAT, {"x": np.array([["1", "2", "3"]])}, "is <U1, the model wants float32"),
    "bytes": (FLOAT, {"x": np.array([[b"1", b"2", b"3"]])}, "is |S1, the model wants float32"),
    "complex numbers": (FLOAT, {"x": GOOD.astype(np.complex64)}, "is complex64, the model wants float32"),
    "truth values": (FLOAT, {"x": GOOD.astype(bool)}, "is bool, the model wants float32"),
    "times": (FLOAT, {"x": GOOD.astype("datetime64[s]")}, "the model wants float32"),
    "fields": (FLOAT, {"x": np.zeros((4, 3), [("a", "f4")])}, "the model wants float32"),
    "integers for floats": (FLOAT, {"x": [[1, 2, 3]]}, "is int64, the model wants float32"),
    "integers that would wrap": (INT8, {"x": np.full((4, 3), 300)}, "is int64, the model wants int8"),
    "integers of no type": (INT8, {"x": [[10**30, 1, 2]]}, "is object, the model wants int8"),
    "floats for integers": (INT8, {"x": np.full((4, 3), 0.5)}, "is float64, the model wants int8"),
    "beyond half precision": (HALF, {"x": np.full((4, 3), 1e6, np.float32)}, "has values beyond float16"),
    "values that are masked out": (FLOAT, {"x": np.ma.masked_equal(GOOD, 1.0)}, "'x' has values that are masked out"),
    "no samples": (FLOAT, {"x": GOOD[:0]}, "is empty"),
    "a single number": (FLOAT, {"x": np.float32(1)}, "has shape scalar, the model wants Nx3"),
    "another width": (FLOAT, {"x": GOOD[:, :2]}, "has shape 4x2, the model wants Nx3"),
    "one axis more": (FLOAT, {"x": GOOD[None]}, "has shape 1x4x3, the model wants Nx3"),
    "not a number": (FLOAT, {"x": GOOD * np.float32(np.nan)}, "NaN or infinite"),
    "infinite": (FLOAT, {"x": GOOD * np.float32(np.inf)}, "NaN or infinite"),
    "nothing at all": (FLOAT, {}, "the file has nothing|the data: no data for input 'x'"),
    "another name": (FLOAT, {"y": GOOD}, "no data for input 'x'"),
    "a name that is no text": (FLOAT, {1: GOOD}, "has the key 1; keys are names of inputs"),
    "other things than text": (TEXT, {"x": np.array([["a", 1, None]], object)}, "holds other things than text"),
    "numbers for text": (TEXT, {"x": GOOD}, "is float32, the model wants text"),
    "an array of several inputs": (FLOAT * 2, GOOD, "the data is one array, and the model has several inputs"),
    "an empty path": (FLOAT, "", "the path of the data is empty"),
    "a number": (
        FLOAT,
        3,
        "the data is of type int; give the path of a file or folder, arrays by input name, an array or",
    ),
    "bytes alone": (FLOAT, b"12", "the data is of type bytes; give"),
    "a class": (FLOAT, dict, "the data is of type type; give"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals(kind: str):
    """Fails where such data pass, are converted without a word, or end in an error of numpy's."""
    specs, data, match = REFUSED[kind]
    with pytest.raises(CalibrationError, match=match if "|the" in match else re.escape(match)) as e:
        given(data, specs)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("values", [GOOD, GOOD.tolist(), np.ma.masked_equal(GOOD, 7.0), np.asfortranarray(GOOD)])
def test_what_is_an_array_is_taken(values: Any):
    """Fails where the checks above refuse what is fine."""
    specs = FLOAT if not isinstance(values, list) else (InputSpec("x", np.dtype(np.float64), (None, 3)),)
    assert len(given({"x": values}, specs)) == 4


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.full(4, 2**63 + 5, np.uint64), "which is no class"),
        (np.ones(4, bool), "they must be integers"),
        (np.array(["a"] * 4), "they must be integers"),
        (np.ones(4, complex), "they must be integers"),
        (np.array([{}] * 4, object), "they must be integers"),
        (np.ones(3, np.int64), "there are 4 samples"),
        (np.int64(1), "there are 4 samples"),
    ],
)
def test_labels(labels: Any, match: str):
    """Fails where a class wraps to a negative number, or a foreign type is taken for classes."""
    samples = Samples(FLOAT, {"x": GOOD}, {"y": np.asarray(labels)}, "arrays in memory")
    with pytest.raises(CalibrationError, match=match):
        labels_of(samples, "y")


def test_prune_refuses_them_before_any_work(tmp_path: Any):
    """Fails where a run begins with data that it cannot use."""
    for data in ([1, 2], {"input": None}, {"input": [[1.0], [2.0, 3.0]]}, {7: GOOD}):
        with pytest.raises(CalibrationError):
            prune(digits.path("resnet"), tmp_path / "out.onnx", data)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
