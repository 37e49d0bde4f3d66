"""What explodes only after the first run: at a later sample, at a larger batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.errors import RunError
from onnxprune.intake import first_run
from onnxprune.intake.counting import counts
from onnxprune.numerics.arrays import Array
from onnxprune.runtime import child, overdue
from onnxprune.runtime.overdue import _Watch
from onnxprune.runtime.session import Session

LAST = 23


def beside(nodes, **weights):
    """A small network, and beside it what makes a number 'c' of its input's largest value 'top'."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        *nodes,
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y0"]),
        helper.make_node("Add", ["y0", "c"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights |= {"w1": rng.standard_normal((6, 16)).astype("f"), "w2": rng.standard_normal((16, 3)).astype("f")}
    ports = [helper.make_tensor_value_info(k, TensorProto.FLOAT, ["N", n]) for k, n in (("x", 6), ("y", 3))]
    inits = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def counting():
    """As many turns of a Loop as the largest value says."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["s"], ["t"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, []),
        ],
    )
    nodes = [
        helper.make_node("Cast", ["top"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "", "zero"], ["c"], body=body),
    ]
    return beside(nodes, zero=np.float32(0))


def filling():
    """As many floats as the largest value says."""
    nodes = [
        helper.make_node("Cast", ["top"], ["n"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["n", "axis"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["many"]),
        helper.make_node("ReduceMean", ["many"], ["c"], keepdims=0),
    ]
    return beside(nodes, axis=np.array([0]))


def data(worst):
    x = np.abs(np.random.default_rng(1).standard_normal((LAST + 1, 6))).astype("f") + 1
    x[LAST, 0] = worst
    return {"x": x}


@pytest.mark.parametrize("samples", ["all are small", "the last one is large"])
def test_memory_at_a_later_sample(samples: str):
    """Fails where only the first samples are tried in the child process, or where honest data are refused."""
    options = {"ratio": 0.3, "fast": True}
    if samples == "all are small":
        assert prune(filling(), None, data(9.0), **options).model is not None
        return
    with pytest.raises(RunError, match=r"memory|alloc"):
        prune(filling(), None, data(2e9), **options)


def test_a_loop_at_a_later_sample(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child, "_SECONDS", 2.0)
    with pytest.raises(RunError, match="does not end"):
        prune(counting(), None, data(1e15), ratio=0.3, fast=True)


def test_a_run_in_this_process_is_ended(monkeypatch: pytest.MonkeyPatch):
    """Fails where nothing tells onnxruntime to stop; what comes after it runs."""
    session = Session(counting())
    few, many = ({"x": np.full((1, 6), n, np.float32)} for n in (3.0, 1e15))
    session.run(few)
    with monkeypatch.context() as m:
        m.setattr(overdue, "allowed", lambda size: 0.1)
        with pytest.raises(RunError, match=r"does not end: .* ONNXPRUNE_PATIENCE=10"):
            session.run(many)
    session.run(few)


def test_a_run_may_take_longer_the_larger_it_is():
    """Fails where a batch of honest samples is stopped, or where nothing is known and little is allowed."""
    watch = _Watch()
    assert watch.allowed(10**9) >= 600
    watch.expect(2.0, 1000)
    assert watch.allowed(1) >= 100
    assert watch.allowed(64_000) >= 64 * 2.0 * 10
    before = watch.allowed(64_000)
    watch.expect(0.001, 1000)
    assert watch.allowed(64_000) == before


def test_a_batch_that_is_refused_is_left_to_whoever_needs_it():
    """Fails where a model is refused for a size that its calibration never runs."""
    model = beside([helper.make_node("ReduceMax", ["three"], ["c"], keepdims=0)], three=np.ones(3, np.float32))
    model.graph.node[-1].input[1] = "rows"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 3), np.float32), "rows"))
    x = np.ones((8, 6), np.float32)
    with pytest.raises(RunError):
        first_run.run(model, {"x": x})
    first_run.run_all(model, [{"x": x}], seconds=0.0)


def by_shape():
    """As an exporter writes a broadcast: sizes that are computed from sizes."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Expand", ["one", "s"], ["wide"]),
        helper.make_node("ReduceMax", ["wide"], ["c"], keepdims=0),
    ]
    return beside(nodes, one=np.ones((1, 1), np.float32))


def test_sizes_that_come_from_sizes_alone_need_one_batch():
    """Fails where every exported model is run through all data twice, or where values are taken for sizes."""
    assert not counts(by_shape())
    assert not counts(beside([helper.make_node("Identity", ["top"], ["c"])]))
    assert counts(filling())
    assert counts(counting())


@pytest.mark.parametrize(("model", "batches"), [(by_shape, 1), (filling, 8)])
def test_batches_that_are_tried(monkeypatch: pytest.MonkeyPatch, model: Callable[[], onnx.ModelProto], batches: int):
    seen: list[int] = []
    real = first_run.run_all

    def spy(proto: onnx.ModelProto, given: Iterable[Mapping[str, Array]], *, seconds: float) -> None:
        feeds = list(given)
        seen.extend(len(f["x"]) for f in feeds)
        real(proto, feeds, seconds=seconds)

    monkeypatch.setattr(first_run, "run_all", spy)
    x = np.abs(np.random.default_rng(1).standard_normal((512, 6))).astype("f") + 1
    prune(model(), None, {"x": x}, ratio=0.3, fast=True, refit="none", method="magnitude")
    assert seen == [64] * batches
