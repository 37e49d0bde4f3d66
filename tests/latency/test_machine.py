"""What is known of the machine that measures."""

from __future__ import annotations

import subprocess

import numpy as np
import onnx
import pytest

from onnxprune.latency import machine
from onnxprune.latency.machine import OnnxRuntime
from onnxprune.runtime.processor import processor
from onnxprune.runtime.session import version
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
