"""TensorRT as a machine: which engines are built, and that the GPU is given back whatever happens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.benchmark.profile import NodeTime
from onnxprune.errors import RunError
from onnxprune.latency import engine
from onnxprune.latency.engine import TensorRT
from onnxprune.sentence import recording
from tests import digits

LOG: list[str] = []


class Engine:
    """Says what is done with it."""

    fails = False

    def __init__(self, model: Any, feeds: Any, gpu: Any, *, layers: bool = False) -> None:
        LOG.append(f"built {'with' if layers else 'without'} layers")

    def run(self) -> None:
        if self.fails:
            raise RunError("no")

    def node_times(self, runs: int, warmup: int) -> tuple[NodeTime, ...]:
        return (NodeTime("@3@ + @4@", "CaskConvolution", "tensorrt", 2e-3, 1.0),)

    def close(self) -> None:
        LOG.append("closed")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch):
    LOG.clear()
    monkeypatch.setattr(Engine, "fails", False)
    monkeypatch.setattr(engine.tensorrt_engine, "Engine", Engine)
    monkeypatch.setattr(engine.tensorrt_engine, "version", lambda: "10.9")
    monkeypatch.setattr(engine.tensorrt_engine, "library", lambda: None)
    monkeypatch.setattr(engine, "Gpu", lambda: SimpleNamespace(name="Fake GPU", close=lambda: LOG.append("given back")))


def test_layers_are_the_engines_own():
    (kernel,) = TensorRT().kernels(onnx.load(digits.path("resnet")), {})
    assert (kernel.name, kernel.seconds) == ("@3@ + @4@", 2e-3)
    assert LOG == ["built with layers", "closed", "given back"]


def test_models_are_timed_in_turns_and_the_gpu_is_given_back():
    proto = onnx.load(digits.path("resnet"))
    assert [len(t.seconds) > 0 for t in TensorRT(seconds=0.0).compare([proto, proto], {})] == [True, True]
    assert LOG == ["built without layers", "built without layers", "closed", "closed", "given back"]
    LOG.clear()
    Engine.fails = True
    with pytest.raises(RunError, match="no"):
        TensorRT(seconds=0.0).compare([proto], {"x": np.zeros(1)})
    assert LOG == ["built without layers", "closed", "given back"]


def test_a_target_of_tensorrt_has_the_gpu_and_the_precision_in_its_name():
    machine, layers, how = recording.machine_of("tensorrt", 0, "fp16")
    assert how == "inside the model"
    assert machine.identity() == layers.identity()
    assert recording.name_of(machine) == "Fake GPU tensorrt fp16"
