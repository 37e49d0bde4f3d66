"""Top-1, agreement and output error against numbers that are counted by hand, and the gate on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import evaluate
from onnxprune.errors import CalibrationError, CheckFailed, ModelError, UsageError
from onnxprune.evaluation import Evaluation, gate, gates_of
from onnxprune.numerics.arrays import Array
from tests import digits
from tests.digits import pruned


def _model(body: str, out: str = "float[N,3]", name: str = "y") -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 13]> main (float[N,3] x) => ({out} {name}) {{ {body} }}'
    return onnx.parser.parse_model(text)


SAME, NEGATED = _model("y = Identity (x)"), _model("y = Neg (x)")
# Classes 0, 1, 2, 0; the lowest scores are at 2, 2, 0, 1.
X = np.array([[3, 2, 1], [2, 3, 1], [1, 2, 3], [3, 1, 2]], np.float32)


def test_by_hand():
    labels = np.array([0, 1, 0, 1])
    e = evaluate(NEGATED, {"x": X, "label": labels}, against=SAME, labels="label")
    assert e.samples == 4
    assert e.accuracy == 0.5  # 2, 2, 0, 1 against 0, 1, 0, 1
    assert e.original_accuracy == 0.5  # 0, 1, 2, 0
    assert e.drop == 0.0
    assert e.agreement == 0.0
    wide = X.astype(np.float64)
    expected = (4 * wide**2).sum() / ((wide - wide.mean(axis=0)) ** 2).sum()
    assert e.output_error == pytest.approx(expected, rel=1e-9)


def test_against_itself():
    e = evaluate(digits.path("resnet"), digits.TEST, against=digits.path("resnet"), labels="label")
    assert (e.agreement, e.output_error, e.drop) == (1.0, 0.0, 0.0)
    assert e.accuracy == 496 / 500


def test_outputs_in_another_order():
    """Fails where top-1 is that of whichever output each of the two has first."""
    text = '<ir_version: 8, opset_import: ["" : 13]> main (float[N,3] x) => (float[N,3] {}, float[N,3] {}) {{ {} }}'
    body = "scores = Identity (x)  aux = Neg (x)"
    original, other = (onnx.parser.parse_model(text.format(*o, body)) for o in (("scores", "aux"), ("aux", "scores")))
    labels = np.array([0, 1, 0, 1])  # the scores have two of four, the others none
    e = evaluate(other, {"x": X, "label": labels}, against=original, labels="label")
    assert (e.accuracy, e.original_accuracy, e.drop, e.agreement) == (0.5, 0.5, 0.0, 1.0)
    wrong = onnx.parser.parse_model(text.format("aux", "scores", "scores = Neg (x)  aux = Identity (x)"))
    e = evaluate(wrong, {"x": X, "label": np.array([0, 1, 2, 0])}, against=original, labels="label")
    assert (e.accuracy, e.original_accuracy, e.drop, e.agreement) == (0.0, 1.0, 100.0, 0.0)


def test_pruned_model():
    model = pruned("resnet", refit="least-squares").model
    assert model is not None
    e = evaluate(model, digits.TEST, against=digits.path("resnet"), labels="label")
    assert e.accuracy == digits.top1(model)
    assert e.agreement is not None
    assert 0.5 < e.agreement < 1.0
    assert e.output_error is not None
    assert 0.0 < e.output_error < 1.0


def test_without_labels_or_original():
    """Fails where a gate passes in CI because it was given nothing to compare with."""
    with pytest.raises(UsageError, match="nothing to compare with"):
        evaluate(SAME, {"x": X})
    model = _model("y = ReduceMax <axes=[1], keepdims=0> (x)", "float[N]")
    with pytest.raises(UsageError, match="nothing was compared"):
        evaluate(model, {"x": X, "label": np.zeros(4, np.int64)}, labels="label")


def test_trailing_axes_of_size_one():
    body = "a = Constant <value = int64[4] {0, 3, 1, 1}> ()  y = Reshape (x, a)"
    e = evaluate(_model(body, "float[N,3,1,1]"), {"x": X, "label": np.array([0, 1, 2, 0])}, labels="label")
    assert e.accuracy == 1.0


@pytest.mark.parametrize(
    ("body", "out", "error"),
    [
        ("y = ReduceMax <axes=[1], keepdims=0> (x)", "float[N]", None),  # 3 for every sample
        ("y = ReduceMin <axes=[1], keepdims=1> (x)", "float[N,1]", None),  # 1
        ("y = ArgMax <axis=1> (x)", "int64[N,1]", None),
        (
            "a = Constant <value = int64[3] {0, 3, 1}> ()  b = Reshape (x, a)  y = Concat <axis=2> (b, b)",
            "float[N,3,2]",
            0.0,
        ),
    ],
)
def test_outputs_that_are_no_scores(body: str, out: str, error: float | None):
    """Fails where agreement is made up of something that is not a class."""
    model = _model(body, out)
    e = evaluate(model, {"x": X, "label": np.array([0, 1, 2, 0])}, against=model, labels="label")
    assert (e.accuracy, e.agreement) == (None, None)
    assert e.output_error == error
    assert any("no class scores" in n for n in e.notes)
    with pytest.raises(UsageError, match="agreement was not measured"):
        gate(e, min_agreement=0.5)


def test_nan_is_wrong():
    """Fails where argmax over NaN counts as an answer."""
    broken = _model("y = Sqrt (x)")
    x = np.array([[1, -1, 0], [4, 1, 1]], np.float32)
    e = evaluate(broken, {"x": x, "label": np.array([1, 0])}, against=broken, labels="label")
    assert e.accuracy == 0.5
    assert e.agreement == 0.5
    json.loads(e.to_json(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.array([0.0, 1.0, 2.0, 0.0]), "must be integers"),
        (np.array(["a", "b", "c", "d"]), "must be integers"),
        (np.array([0, 1, 2]), "there are 4 samples"),
        (np.array([[0, 1], [2, 0]]), "there are 4 samples"),
        (np.array([0, 1, 2, 3]), "from 0 to 3, the model has the classes 0 to 2"),
        (np.array([0, 1, 2, -1]), "from -1 to 2"),
        (np.array([], np.int64), "there are 4 samples"),
    ],
)
def test_wrong_labels(labels: Array, match: str):
    with pytest.raises(CalibrationError, match=match):
        evaluate(SAME, {"x": X, "label": labels}, labels="label")


def test_missing_labels():
    with pytest.raises(CalibrationError, match="no labels under 'class'; beside the inputs it holds 'label'"):
        evaluate(SAME, {"x": X, "label": np.zeros(4, np.int64)}, labels="class")


def test_column_of_labels():
    assert evaluate(SAME, {"x": X, "label": np.array([[0], [1], [2], [0]])}, labels="label").accuracy == 1.0


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (_model("y = Concat <axis=1> (x, x)", "float[N,6]"), "give different outputs"),
        (_model("z = Identity (x)", "float[N,3]", "z"), "give different outputs"),
        (digits.path("resnet"), "read different inputs"),
    ],
)
def test_models_that_do_not_fit(other: onnx.ModelProto | Path, match: str):
    with pytest.raises(ModelError, match=match):
        evaluate(SAME, {"x": X}, against=other)


RESULT = Evaluation("m", "o", "d", "", 500, 491 / 500, 496 / 500, 0.98, 0.1)


def test_gate_holds_at_the_limit():
    """Fails where a rounding error in a ratio of integers fails a build."""
    gate(RESULT, min_agreement=0.98, max_drop=1.0)
    gate(replace(RESULT, accuracy=1.0), max_drop=0.0)


def test_a_gain_is_no_drop():
    """Fails where points that were gained are told as a drop below 0."""
    (found,) = gates_of(replace(RESULT, accuracy=497 / 500), max_drop=1.0)
    assert (found.held, found.text) == (True, "top-1 gained 0.20 points, where a drop of 1.00 is allowed")


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"min_agreement": 0.981}, r"agreement 98\.00% is below the demanded 98\.10%$"),
        ({"max_drop": 0.99}, r"top-1 dropped by 1\.00 points, more than the allowed 0\.99$"),
        ({"min_agreement": 1.0, "max_drop": 0.5}, "agreement .*; top-1 dropped"),
    ],
)
def test_gate_fails(limits: dict[str, float], match: str):
    with pytest.raises(CheckFailed, match=match):
        gate(RESULT, **limits)


@pytest.mark.parametrize("name", ["min_agreement", "max_drop"])
@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -0.1, 101.0, "0.5", True])
def test_gate_with_a_limit_that_limits_nothing(name: str, limit: Any):
    """Fails where a NaN, below which nothing is, lets every model pass."""
    with pytest.raises(UsageError, match=name):
        gate(RESULT, **{name: limit})


def test_gate_on_what_was_not_measured():
    with pytest.raises(UsageError, match="drop was not measured"):
        gate(replace(RESULT, accuracy=None), max_drop=1.0)


def test_limits_on_single_outputs():
    text = '<ir_version: 8, opset_import: ["" : 13]> main (float[N,3] x) => (float[N,3] a, float[N,3] b) {{ {} }}'
    original = onnx.parser.parse_model(text.format("a = Identity (x)  b = Identity (x)"))
    other = onnx.parser.parse_model(text.format("a = Identity (x)  b = Neg (x)"))
    e = evaluate(other, {"x": X}, against=original)
    assert [(o.output, o.largest, o.cosine, o.agreement) for o in e.by_output] == [
        ("a", 0.0, pytest.approx(1.0, abs=1e-12), 1.0),
        ("b", 6.0, pytest.approx(-1.0, abs=1e-12), 0.0),
    ]
    gate(e, max_error={"a": 0.0})
    with pytest.raises(CheckFailed, match=r"\(b\): more than the allowed"):
        gate(e, max_error={"": 0.01, "a": 1.0})
    with pytest.raises(UsageError, match="did you mean"):
        gate(e, max_error={"aa": 0.01})
    shown = json.loads(e.to_json(gates_of(e, max_error={"b": 0.5})))
    assert [o["output"] for o in shown["by_output"]] == ["a", "b"]
    assert [g["held"] for g in shown["gates"]] == [False]
