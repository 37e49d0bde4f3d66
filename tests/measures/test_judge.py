"""Whole runs whose outputs jump, join other scales, are masked, or cannot be measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import evaluate, prune
from onnxprune.data.inputs import tensor_specs
from onnxprune.data.samples import Samples
from onnxprune.data.sources import checked
from onnxprune.errors import CheckFailed, UsageError
from onnxprune.numerics.arrays import Array
from onnxprune.report.terminal import Screen, prune_report
from onnxprune.runtime.session import Session
from onnxprune.stages.load import split

FAST = {"fast": True, "round_to": 1, "ratio": 0.5}
RNG = np.random.default_rng(0)
WEIGHTS = {
    k: (RNG.standard_normal(shape) * 0.3).astype(np.float32)
    for k, shape in {"w": (10, 32), "v": (32, 6), "u": (32, 4)}.items()
}
X = RNG.standard_normal((160, 10)).astype(np.float32)
FRESH = RNG.standard_normal((400, 10)).astype(np.float32)
node = helper.make_node


def network(
    tail: list[onnx.NodeProto],
    outputs: Mapping[str, tuple[int, list[Any]]],
    constants: Mapping[str, Any] | None = None,
    inputs: Mapping[str, tuple[int, list[Any]]] | None = None,
) -> onnx.ModelProto:
    """Scores `y` (N, 6) and numbers `b` (N, 4) of one hidden layer, and what a tail makes of them."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"])]
    nodes += [node("MatMul", ["r", "v"], ["y"]), node("MatMul", ["r", "u"], ["b"]), *tail]
    given = {"x": (TensorProto.FLOAT, ["N", 10]), **(inputs or {})}
    ports = [helper.make_tensor_value_info(k, *v) for k, v in given.items()]
    results = [helper.make_tensor_value_info(k, *v) for k, v in outputs.items()]
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in {**WEIGHTS, **(constants or {})}.items()]
    graph = helper.make_graph(nodes, "g", ports, results, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def error(y: Array, y0: Array) -> float:
    a, b = y.astype(np.float64), y0.astype(np.float64)
    return float(((a - b) ** 2).sum() / ((b - b.mean(axis=0)) ** 2).sum())


def inner(model: onnx.ModelProto | None, name: str, x: Array = FRESH) -> Array:
    """A tensor of a model on fresh samples."""
    assert model is not None
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(helper.make_empty_tensor_value_info(name))
    return Session(shown).run({"x": x})[name]


CLASSES = network([node("ArgMax", ["y"], ["o"], axis=1, keepdims=0)], {"o": (TensorProto.INT64, ["N"])})


@pytest.fixture(scope="module")
def classes() -> Any:
    return prune(CLASSES, None, {"x": X}, **FAST)


def test_a_class_map_is_pruned_by_its_scores(classes: Any):
    """Fails where labels are pruned blindly, or where so many of them change and the report says 0.00 %."""
    plain = prune(network([], {"y": (TensorProto.FLOAT, ["N", 6])}), None, {"x": X}, **FAST)
    assert [g.channels_after for g in classes.report.groups] == [g.channels_after for g in plain.report.groups]
    assert classes.report.output_error == pytest.approx(plain.report.output_error, rel=1e-5)
    real = error(inner(classes.model, "y"), inner(CLASSES, "y"))
    assert classes.report.output_error == pytest.approx(real, rel=0.5)
    labels = [Session(m).run({"x": FRESH})["o"] for m in (classes.model, CLASSES)]
    share = float(np.mean(labels[0] != labels[1]))
    told = next(f["value"] for f in classes.report.outputs if f["outputs"] == ("o",) and f["at"] == "")
    assert share > 0.05
    assert told == pytest.approx(share, abs=0.2)
    assert classes.report.agreement == pytest.approx(1.0 - told)
    assert classes.report.verdict["level"] in ("doubtful", "bad", "good")


def test_evaluation_says_the_same(classes: Any):
    e = evaluate(classes.model, {"x": FRESH}, against=CLASSES)
    assert e.output_error == pytest.approx(error(inner(classes.model, "y"), inner(CLASSES, "y")), rel=1e-5)
    labels = [Session(m).run({"x": FRESH})["o"] for m in (classes.model, CLASSES)]
    assert e.agreement == float(np.mean(labels[0] == labels[1]))


def test_a_limit_on_the_error(classes: Any, tmp_path: Path):
    """Fails where a result beyond the limit is written, with --force or where only the labels are beyond it."""
    out = tmp_path / "out.onnx"
    for force in (False, True):
        with pytest.raises(CheckFailed, match="more than the allowed"):
            prune(CLASSES, out, {"x": X}, max_error=0.001, plan_file=tmp_path / "plan.json", force=force, **FAST)
    changed = max(f["value"] for f in classes.report.outputs if f["value"] is not None)
    assert changed > classes.report.output_error
    with pytest.raises(CheckFailed, match="entries differ"):
        prune(CLASSES, out, {"x": X}, max_error=(changed + classes.report.output_error) / 2, **FAST)
    assert not any(tmp_path.iterdir())
    prune(CLASSES, out, {"x": X}, max_error=changed, **FAST)
    assert out.exists()


@pytest.mark.parametrize(
    "options", [{"max_error": -1.0}, {"max_error": float("nan")}, {"max_error": 0.1, "dry_run": True}]
)
def test_limits_that_make_no_sense(options: dict[str, Any]):
    with pytest.raises(UsageError):
        prune(CLASSES, None, {"x": X}, **FAST, **options)


def test_ranked_rows_are_pruned_as_the_raw_ones():
    """Fails where the order of a ranking is what the cuts are judged by."""
    raw = prune(network([], {"y": (TensorProto.FLOAT, ["N", 6])}), None, {"x": X}, **FAST)
    top = network(
        [node("TopK", ["y", "k"], ["s", "i"], axis=1)],
        {"s": (TensorProto.FLOAT, ["N", 3]), "i": (TensorProto.INT64, ["N", 3])},
        {"k": np.array([3])},
    )
    ranked = prune(top, None, {"x": X}, **FAST)
    assert ranked.report.output_error == pytest.approx(raw.report.output_error, rel=1e-5)
    assert error(inner(ranked.model, "y"), inner(top, "y")) == pytest.approx(
        error(inner(raw.model, "y"), inner(top, "y")), rel=1e-3
    )


@pytest.mark.parametrize("method", ["obs", "global"])
def test_rows_that_the_data_decide(method: str):
    """Fails where a result with another number of rows ends in an error, or its rows are compared."""
    tail = [node("Greater", ["y", "zero"], ["g"]), node("NonZero", ["g"], ["o"])]
    model = network(tail, {"o": (TensorProto.INT64, [2, "K"])}, {"zero": np.float32(0)})
    found = prune(model, None, {"x": X}, method=method, **FAST)
    assert found.report.output_error == pytest.approx(error(inner(found.model, "y"), inner(model, "y")), rel=0.5)
    assert [f["value"] for f in found.report.outputs if not f["at"]] == [None]


def test_boxes_and_scores():
    """Fails where what is large hides what is small: in selection, in recovery, or in the report."""
    pixels = np.float32(1000)
    tail = [
        node("Mul", ["b", "px"], ["box"]),
        node("Sigmoid", ["y"], ["p"]),
        node("Concat", ["box", "p"], ["o"], axis=1),
    ]
    model = network(tail, {"o": (TensorProto.FLOAT, ["N", 10])}, {"px": pixels})
    found = prune(model, None, {"x": X}, ratio=0.5, round_to=1, recover=3)
    told = {f["at"]: f["value"] for f in found.report.outputs}
    assert set(told) == {"box", "p"}
    for name, value in told.items():
        assert value == pytest.approx(error(inner(found.model, name), inner(model, name)), rel=0.6)
    assert told["p"] < 3 * told["box"]
    roots = np.sqrt([4, 6])
    both = float(roots @ [told["box"], told["p"]] / roots.sum())
    assert found.report.output_error == pytest.approx(both, rel=1e-6)
    assert found.report.agreement is None


def test_masked_logits_are_pruned_as_others():
    """Fails where -inf in the outputs makes the error NaN, or leaves selection and recovery without a measure."""
    mask = np.random.default_rng(1).random((160, 6)) > 0.3
    errors = []
    for fill in (-1e3, -np.inf):
        model = network(
            [node("Where", ["mask", "y", "fill"], ["o"])],
            {"o": (TensorProto.FLOAT, ["N", 6])},
            {"fill": np.float32(fill)},
            {"mask": (TensorProto.BOOL, ["N", 6])},
        )
        found = prune(model, None, {"x": X, "mask": mask}, ratio=0.5, round_to=1, recover=3)
        assert found.report.checks["recovery"]["steps"] > 0
        weights = {t.name: numpy_helper.to_array(t) for t in found.model.graph.initializer}
        hidden = np.maximum(FRESH @ weights["w"], 0)
        errors.append(error(hidden @ weights["v"], np.maximum(FRESH @ WEIGHTS["w"], 0) @ WEIGHTS["v"]))
        assert found.report.output_error is not None
        assert 0.0 < found.report.output_error < 1.0
    assert errors[1] < 1.3 * errors[0]


def test_an_original_that_is_not_finite():
    model = network([node("Sqrt", ["y"], ["o"])], {"o": (TensorProto.FLOAT, ["N", 6])})
    found = prune(model, None, {"x": X}, **FAST).report
    assert found.output_error is None
    assert "not finite" in found.error["why"]
    assert found.verdict["level"] == "unknown"
    assert not any("did worse" in n for n in found.notes)
    with pytest.raises(CheckFailed, match="was not measured"):
        prune(model, None, {"x": X}, max_error=10.0, **FAST)


def test_nothing_held_out():
    model = network([], {"y": (TensorProto.FLOAT, ["N", 6])})
    found = prune(model, None, {"x": X[:1]}, **FAST).report
    assert found.error["held_out"] is False
    assert found.verdict["level"] != "good"
    assert not any("1 calibration samples" in n for n in found.notes)


def test_a_limit_needs_samples_that_the_fits_have_not_seen():
    """Fails where a gate is passed by an error of 0 on the single sample that everything was fitted to."""
    model = network([], {"y": (TensorProto.FLOAT, ["N", 6])})
    for data, text in (
        ({"x": X[:1]}, "of a single sample no spread"),
        (None, "random inputs do not tell it"),
    ):
        with pytest.raises(CheckFailed, match=f"{text}.*nothing was written"):
            prune(model, None, data, max_error=50.0, **FAST)


@pytest.mark.parametrize("options", [{"ratio": 0.6}, {"uniform": 0.6}, {"tolerance": 0.45}], ids=str)
def test_the_verdict_names_the_option(options: dict[str, Any]):
    model = network([], {"y": (TensorProto.FLOAT, ["N", 6])})
    found = prune(model, None, {"x": X}, round_to=1, fast=True, **{"ratio": None, **options})
    text = (found.report.verdict or {})["text"]
    assert f"lower --{next(iter(options))}" in text
    against = evaluate(found.model or model, {"x": X}, against=model)
    assert "--" not in json.loads(against.to_json())["verdict"]["text"]


def test_a_tolerance_with_labels_is_of_the_loss():
    """Fails where the loss that a tolerance allows is neither told nor recorded, or is called one of the outputs."""
    model = network([], {"y": (TensorProto.FLOAT, ["N", 6])})
    truth = (Session(model).run({"x": X})["y"] + np.random.default_rng(1).standard_normal((160, 6))).argmax(axis=1)
    result = prune(
        model, None, {"x": X, "c": truth}, labels="c", tolerance=0.5, method="global", refit="none", round_to=1
    )
    rest, held = split(checked({"x": X, "c": truth}, tensor_specs(model)), 0)
    _, chosen_by = split(rest, 0)

    def loss(found: onnx.ModelProto, of: Samples | None) -> float:
        assert of is not None
        y = Session(found).run({"x": np.asarray(of.arrays["x"])})["y"].astype(np.float64)
        p = np.exp(y - y.max(axis=1, keepdims=True))
        return float(-np.log(p / p.sum(axis=1, keepdims=True))[np.arange(len(of)), of.extras["c"]].mean())

    assert result.model is not None
    checks = json.loads(result.report.to_json())["checks"]
    told, chosen = checks["discrepancy"], checks["chosen"]
    assert told == pytest.approx(loss(result.model, held) - loss(model, held), abs=1e-5)
    assert chosen == pytest.approx(loss(result.model, chosen_by) - loss(model, chosen_by), abs=1e-5)
    assert chosen <= 0.5
    text = " ".join(prune_report(result.report, Screen(200)).split())
    assert "within a tolerance of 0.5 on the loss that is added" in text
    assert f"loss added {told:.4g}, against the labels" in text
    assert f"tolerance loss added {chosen:.4g} ≤ 0.5, on 17 samples that only chose" in text
    plain = prune(model, None, {"x": X}, tolerance=0.05, round_to=1, fast=True).report
    assert "on the outputs" in prune_report(plain, Screen(200))
    assert "loss added" not in prune_report(plain, Screen(200))
    assert plain.checks["discrepancy"] == pytest.approx(plain.output_error, rel=1e-5)


def test_labels_say_that_there_are_classes():
    """Fails where the largest score decides without labels, or does not with them."""
    model = network([], {"y": (TensorProto.FLOAT, ["N", 6])})
    truth = Session(model).run({"x": X})["y"].argmax(axis=1)
    options = {"method": "global", "coefficients": "convex", "refit": "none", "round_to": 1, "ratio": 0.9}
    texts = []
    for labels in (None, "c"):
        found = prune(model, None, {"x": X, "c": truth}, labels=labels, **options).report
        assert found.agreement is not None
        assert found.agreement < 0.5
        texts.append((found.verdict or {})["text"])
    assert ["keep their class" in t for t in texts] == [False, True]


def test_a_mean_over_samples_is_no_error_of_samples():
    """Fails where one number for all samples, off by a hundredth of its size, is called good."""
    mean = node("ReduceMean", ["y"], ["o"], keepdims=0)
    found = prune(network([mean], {"o": (TensorProto.FLOAT, [])}), None, {"x": X}, **FAST).report
    assert found.output_error is None
    assert found.verdict["level"] == "unknown"
    assert "of all together" in found.verdict["text"]


def test_what_stands_in_a_branch():
    """Fails where the class is found inside an If, whose tensors have no place in the file."""
    results = {op: helper.make_tensor_value_info(op, TensorProto.INT64, None) for op in ("ArgMax", "ArgMin")}
    branches = [
        helper.make_graph([node(op, ["y"], [op], axis=1, keepdims=0)], op, [], [out]) for op, out in results.items()
    ]
    model = network(
        [node("If", ["flag"], ["o"], then_branch=branches[0], else_branch=branches[1])],
        {"o": (TensorProto.INT64, ["N"])},
        inputs={"flag": (TensorProto.BOOL, [])},
    )
    found = prune(model, None, {"x": X, "flag": np.array(True)}, **FAST).report
    assert {f["at"] for f in found.outputs} == {"y", ""}
    assert 0.0 < (found.output_error or 0.0) < 1.0
