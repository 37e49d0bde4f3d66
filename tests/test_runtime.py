"""Outputs of several runs, put together; runs on bound inputs; and providers that do not start."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import runtime
from onnxprune.errors import RunError
from onnxprune.runtime import Session, concatenated
from tests import digits


def test_samples_on_any_axis():
    """Fails where batches of another size are joined along steps instead of samples."""
    whole = np.arange(2 * 5 * 3).reshape(2, 5, 3)
    found = concatenated([{"y": whole[:, :3]}, {"y": whole[:, 3:]}])
    assert np.array_equal(found["y"], whole)
    assert np.array_equal(concatenated([{"y": whole}, {"y": whole}])["y"], np.concatenate([whole, whole]))


def test_what_is_no_array_is_left_out():
    assert set(concatenated([{"y": np.zeros(2), "s": [np.zeros(2)]}])) == {"y"}


@pytest.mark.parametrize("second", [np.zeros((3, 5)), np.zeros((2, 4, 1))], ids=["two axes", "another rank"])
def test_outputs_that_do_not_fit(second: np.ndarray):
    with pytest.raises(RunError, match="output 'y' has"):
        concatenated([{"y": np.zeros((2, 4))}, {"y": second}])


RELU = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 13]> main (float[N,2] x, float[N,2] u) => (float[N,2] y) { y = Relu (x) }'
)


def test_a_bound_run_gives_what_any_run_gives():
    session = Session(onnx.load(digits.path("resnet")), in_turns=True, spin=True)
    feeds = {"input": np.load(digits.CALIB)["input"][:3]}
    run = session.bound(feeds)
    run()
    run()
    (found,) = run.outputs()
    assert np.array_equal(found, session.run(feeds)["logits"])


def test_bound_inputs_live_as_long_as_the_runs():
    """Fails where onnxruntime reads memory that numpy has given to another array."""
    run = Session(RELU).bound({"x": np.full((1000, 2), 3.0, np.float32), "u": np.zeros((1000, 2), np.float32)})
    rubbish = [np.full((1000, 2), -1.0, np.float32) for _ in range(50)]
    run()
    assert np.all(run.outputs()[0] == 3.0)
    assert len(rubbish) == 50


def test_bound_outputs_that_are_no_tensors():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> main (float[4] x) => (seq(float[2]) y) { y = SplitToSequence (x) }'
    )
    Session(model).bound({"x": np.zeros(4, np.float32)})()


def test_inputs_that_do_not_fit_a_bound_run():
    with pytest.raises(RunError, match=r"onnxruntime cannot (take|run)"):
        Session(RELU).bound({"x": np.zeros((1, 3), np.float32), "u": np.zeros((1, 2), np.float32)})()


class Fallen:
    """A session that runs on the CPU, whatever was asked for."""

    def get_providers(self) -> list[str]:
        return [runtime.CPU]


def test_a_provider_that_did_not_start_is_refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Fails where onnxruntime's silent step down to the CPU goes unseen, or its log reaches the terminal."""

    def start(*_: Any, **options: Any) -> Fallen:
        assert options["enable_fallback"] == 0
        os.write(2, b"\x1b[1;31m2026 [E:onnxruntime:Default, x.cc:1 f()] FAIL : with error: libx.so: no file\n\x1b[m")
        return Fallen()

    monkeypatch.setattr(runtime.ort, "InferenceSession", start)
    with pytest.raises(RunError, match=r"Abacus did not start, and .* used the CPU: libx\.so: no file; install"):
        Session(RELU, providers=["Abacus", runtime.CPU])
    assert capfd.readouterr() == ("", "")


def test_reasons_in_the_log():
    assert runtime._reason(["[W:onnxruntime:Default, a.cc:1 f()] nothing"]) == ""
    assert runtime._reason(["12:00 [E:onnxruntime:, a.cc:1 f()]  what it is"]) == "what it is"


def test_fallbacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "available_providers", lambda: (runtime.CUDA, runtime.CPU))
    assert runtime.fallbacks(runtime.CPU) == (runtime.CPU,)
    assert runtime.fallbacks("TensorrtExecutionProvider") == ("TensorrtExecutionProvider", runtime.CUDA, runtime.CPU)
    assert runtime.fallbacks(runtime.CUDA) == (runtime.CUDA, runtime.CPU)


def test_half_precision_computes_nearly_the_same():
    model = onnx.load(digits.path("resnet"))
    before, paths = model.SerializeToString(), list(sys.path)
    feeds = {"input": np.load(digits.CALIB)["input"][:8]}
    half = Session(runtime.half_precision(model)).run(feeds)["logits"]
    np.testing.assert_allclose(half, Session(model).run(feeds)["logits"], rtol=0.0, atol=0.02)
    assert half.dtype == np.float32
    assert (model.SerializeToString(), sys.path) == (before, paths)


@pytest.mark.skipif(runtime.CUDA not in runtime.available_providers(), reason="this onnxruntime is built without CUDA")
def test_cuda_runs_or_says_why_not(capfd: pytest.CaptureFixture[str]):
    """On a machine with a GPU its outputs are those of the CPU; on others one line says what is missing."""
    feeds = {"x": np.array([[1.0, -2.0]], np.float32), "u": np.zeros((1, 2), np.float32)}
    try:
        run = Session(RELU, providers=runtime.fallbacks(runtime.CUDA)).bound(feeds)
    except RunError as e:
        assert str(e).startswith("CUDAExecutionProvider did not start, and onnxruntime would have used the CPU: ")
        assert "\n" not in str(e)
        assert capfd.readouterr() == ("", "")
        return
    run()
    assert np.array_equal(run.outputs()[0], [[1.0, 0.0]])
