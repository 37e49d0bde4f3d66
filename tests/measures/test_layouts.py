"""Outputs whose samples do not lie along axis 0: found by exchanging samples, and judged as those that do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import evaluate, prune
from onnxprune.data.layouts import NO_AXIS, NO_ROWS, SEVERAL_AXES, Layout, found
from onnxprune.errors import CheckFailed
from onnxprune.numerics.arrays import Array
from onnxprune.stages.save import PruneResult

STEPS, CLASSES, HIDDEN = 6, 5, 32
RNG = np.random.default_rng(0)
SAMPLES = RNG.standard_normal((7, 4)).astype(np.float32)
PER_STEP = RNG.standard_normal((STEPS, 4, CLASSES)).astype(np.float32)
node = helper.make_node
# What becomes of (steps, samples, classes), by name.
ORDERS: dict[str, Any] = {
    "samples, steps": lambda y: y.transpose(1, 0, 2),
    "steps, samples": lambda y: y,
    "last": lambda y: y.transpose(0, 2, 1),
    "side by side": lambda y: y.transpose(1, 0, 2).reshape(-1, CLASSES),
    "apart": lambda y: y.reshape(-1, CLASSES),
}
LAYOUTS = {
    "samples, steps": None,
    "steps, samples": Layout(1),
    "last": Layout(2),
    "side by side": Layout(0, STEPS),
    "apart": Layout(0, STEPS, strided=True),
}


def steps(x: Array) -> Array:
    return np.asarray(x @ PER_STEP)


@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("order", [*ORDERS])
def test_layouts_are_measured(order: str, noise: float):
    """Fails where an order of the samples is taken for another, or a little of the other samples hides it."""

    def run(indices: Sequence[int]) -> dict[str, Array]:
        x = SAMPLES[list(indices)]
        return {"y": ORDERS[order](steps(x + noise * x.mean()))}

    layout = found(run, 3).get("y")
    assert layout == LAYOUTS[order]
    if layout is not None:
        every = range(len(SAMPLES))
        first = layout.first(run(every)["y"], len(SAMPLES))
        plain = ORDERS["samples, steps"](steps(SAMPLES + noise * SAMPLES.mean()))
        np.testing.assert_array_equal(first, plain)
        np.testing.assert_array_equal(layout.back(first), run(every)["y"])


def test_what_has_no_samples_of_its_own():
    def run(indices: Sequence[int]) -> dict[str, Array]:
        x = SAMPLES[list(indices)]
        mixed = np.concatenate([x, x[::-1] + x], axis=1).reshape(-1, 4)
        return {"mean": x.mean(axis=0), "pairs": x @ x.T, "mixed": mixed + 3 * x.sum(axis=0), "one": x.sum()}

    why = {k: x.why for k, x in found(run, 1).items()}
    assert why == {"mean": NO_AXIS, "pairs": SEVERAL_AXES, "mixed": NO_ROWS}


def model(order: str, batch: int | str = "N", scale: float = 1.0) -> onnx.ModelProto:
    """(N, 4) to HIDDEN units, twice, and from these to the classes of every step, which have means far apart."""
    rng = np.random.default_rng(1)
    stored: dict[str, Array] = {
        "w": rng.standard_normal((4, HIDDEN)).astype(np.float32),
        "b": rng.standard_normal(HIDDEN).astype(np.float32),
        "d": (0.3 * rng.standard_normal((HIDDEN, HIDDEN))).astype(np.float32),
        "v": (0.3 * scale * rng.standard_normal((STEPS, HIDDEN, CLASSES))).astype(np.float32),
        "c": (30.0 * rng.standard_normal((STEPS, 1, CLASSES))).astype(np.float32),
        "front": np.array([0]),
        "rows": np.array([-1, CLASSES]),
    }
    nodes = [node("Gemm", ["x", "w", "b"], ["a"]), node("Relu", ["a"], ["q"]), node("MatMul", ["q", "d"], ["e"])]
    nodes += [node("Relu", ["e"], ["r"]), node("Unsqueeze", ["r", "front"], ["u"])]
    nodes += [node("MatMul", ["u", "v"], ["p"]), node("Add", ["p", "c"], ["t"])]
    nodes += {
        "samples, steps": [node("Transpose", ["t"], ["y"], perm=[1, 0, 2])],
        "steps, samples": [node("Identity", ["t"], ["y"])],
        "last": [node("Transpose", ["t"], ["y"], perm=[0, 2, 1])],
        "side by side": [node("Transpose", ["t"], ["s"], perm=[1, 0, 2]), node("Reshape", ["s", "rows"], ["y"])],
        "apart": [node("Reshape", ["t", "rows"], ["y"])],
    }[order]
    used = {i for n in nodes for i in n.input}
    rank = 2 if order in ("side by side", "apart") else 3
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(v, k) for k, v in stored.items() if k in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


X = np.random.default_rng(2).standard_normal((120, 4)).astype(np.float32)


def told(result: PruneResult) -> tuple[float, list[float], str]:
    error, interval = result.report.output_error, result.report.error["interval"]
    assert error is not None
    return error, list(interval), result.report.verdict["level"]


def kept(result: PruneResult) -> dict[str, tuple[int, ...]]:
    return {g.name: g.kept for g in result.plan.groups}


@pytest.mark.parametrize("options", [{"fast": True}, {"recover": 1}, {"method": "global", "refit": "none"}], ids=str)
def test_no_layout_changes_what_is_cut_or_said(options: dict[str, Any]):
    """Fails where the spread of some layout holds what differs between steps: 0.7 % instead of 120 %."""
    runs = {k: prune(model(k), None, {"x": X}, ratio=0.5, round_to=1, **options) for k in ORDERS}
    plain = runs.pop("samples, steps")
    assert told(plain)[0] > 0.05
    for order, run in runs.items():
        error, interval, level = told(run)
        assert error == pytest.approx(told(plain)[0], rel=1e-2), order
        assert interval == pytest.approx(told(plain)[1], rel=1e-2), order
        assert level == told(plain)[2], order
        assert kept(run) == kept(plain), order


@pytest.mark.parametrize("order", [k for k in ORDERS if k != "samples, steps"])
def test_a_tolerance_is_that_of_samples(order: str, tmp_path: Path):
    """Fails where a tolerance, or a limit, is met by steps that lie far apart."""
    limit = {"tolerance": 0.4, "round_to": 1, "fast": True}
    plain, other = (prune(model(k), None, {"x": X}, **limit) for k in ("samples, steps", order))
    assert other.report.output_error == pytest.approx(plain.report.output_error, rel=1e-2)
    assert kept(other) == kept(plain)
    with pytest.raises(CheckFailed, match="more than the allowed"):
        prune(model(order), tmp_path / "o.onnx", {"x": X}, ratio=0.8, fast=True, round_to=1, max_error=0.05)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("count", [32, 45])
@pytest.mark.parametrize("order", [*ORDERS])
def test_evaluation_by_hand(order: str, count: int):
    """Fails where batches are joined along another axis than that of the samples."""
    y0, y = (ORDERS["samples, steps"](_values(scale, X[:count])) for scale in (1.0, 1.2))
    by_hand = ((y - y0) ** 2).sum() / ((y0 - y0.mean(axis=0)) ** 2).sum()
    result = evaluate(model(order, scale=1.2), {"x": X[:count]}, against=model(order))
    assert result.output_error == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("order", [*ORDERS])
def test_one_sample_at_a_time(order: str):
    """Fails where the steps of a model with a batch of 1 pass for samples."""
    y0, y = (ORDERS["samples, steps"](_values(scale, X[:32])) for scale in (1.0, 1.2))
    by_hand = ((y - y0) ** 2).sum() / ((y0 - y0.mean(axis=0)) ** 2).sum()
    result = evaluate(model(order, 1, 1.2), {"x": X[:32]}, against=model(order, 1))
    assert result.output_error == pytest.approx(by_hand, rel=1e-4)


def _values(scale: float, x: Array) -> Array:
    """The model's numbers, (steps, samples, classes), in double precision."""
    w = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model("apart", scale=scale).graph.initializer}
    hidden = np.maximum(np.maximum(x @ w["w"] + w["b"], 0.0) @ w["d"], 0.0)
    return np.asarray(hidden @ w["v"] + w["c"])


def test_pairs_of_samples_are_not_measured():
    """Fails where a similarity of every sample to every other one has an error of samples."""
    pairs = model("apart")
    del pairs.graph.node[4:]
    pairs.graph.node.extend([node("Transpose", ["r"], ["p"], perm=[1, 0]), node("MatMul", ["r", "p"], ["y"])])
    del pairs.graph.initializer[3:]
    result = evaluate(pairs, {"x": X[:32]}, against=pairs)
    assert result.output_error is None
    assert result.figures is not None
    assert [f.why for f in result.figures.each] == [SEVERAL_AXES]
    assert not result.figures.measured
    assert result.agreement is None  # which of 32 samples is the most alike is no class
