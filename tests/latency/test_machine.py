"""What is known of the machine that measures."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.latency import machine
from onnxprune.latency.machine import OnnxRuntime
from onnxprune.runtime.processor import processor
from onnxprune.runtime.session import Session, version
from tests import digits


def test_what_times_depend_on_is_in_the_identity():
    base = OnnxRuntime().identity()
    assert base["onnxruntime"] == version()
    assert base["processor"] == processor().name
    assert int(base["cores"]) >= 1
    assert OnnxRuntime(threads=1).identity() != base
    assert "gpu" not in base


def test_the_gpu_counts_where_it_is_used(monkeypatch: pytest.MonkeyPatch):
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, stdout="NVIDIA  H200\n")

    monkeypatch.setattr(machine.subprocess, "run", run)
    assert OnnxRuntime(providers=("CUDAExecutionProvider",)).identity()["gpu"] == "NVIDIA H200"

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(machine.subprocess, "run", missing)
    assert machine.gpu() == ""


def test_models_are_compared_in_turns():
    model, feeds = onnx.load(digits.path("resnet")), {"input": np.load(digits.CALIB)["input"][:1]}
    ticks = iter(range(10_000))
    a, b = OnnxRuntime(threads=1, clock=lambda: float(next(ticks)), seconds=0.0).compare([model, model], feeds)
    assert a.seconds.size == b.seconds.size >= 10
    assert set(a.seconds) == set(b.seconds) == {1.0}


def test_a_comparison_counts_the_models_own_time(monkeypatch: pytest.MonkeyPatch):
    now = 0.0

    class Fake:
        """Computes for as many seconds as the model has nodes; a run from Python takes 50 more."""

        def __init__(self, model: onnx.ModelProto, **_: object) -> None:
            self.work = float(len(model.graph.node))

        def run(self, _: object) -> None:
            nonlocal now
            now += 50.0 + self.work

        def bound(self, _: object) -> Callable[[], None]:
            def once() -> None:
                nonlocal now
                now += self.work

            return once

    def of(nodes: int) -> onnx.ModelProto:
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])] * nodes, "g", [], [])
        return onnx.helper.make_model(graph)

    monkeypatch.setattr(machine, "Session", Fake)
    half, whole = OnnxRuntime(clock=lambda: now, seconds=0.0).compare([of(3), of(6)], {})
    assert (half.median, whole.median) == (3.0, 6.0)


def test_what_is_compared_may_read_a_scalar():
    port, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node("Mul", ["x", "by"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [port("x", 1, [2]), port("by", 1, [])], [port("y", 1, [2])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    run = Session(model).bound({"x": np.ones(2, np.float32), "by": np.array(3.0, np.float32)})
    run()
    np.testing.assert_array_equal(run.outputs()[0], np.full(2, 3.0, np.float32))
