"""Outputs that a few bytes blow up: one line, before they are kept and compared; honest ones pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.cli.program import main
from onnxprune.data.inputs import tensor_specs
from onnxprune.data.sources import given
from onnxprune.errors import RunError
from onnxprune.runtime import extent, outputs


def _expanding(entries: int, kind: int = TensorProto.INT8) -> onnx.ModelProto:
    """A layer, and an output of so many entries that are its sum."""
    w = np.ones((4, 8), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("ReduceSum", ["y"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=kind),
        helper.make_node("Expand", ["c", "shape"], ["z"]),
    ]
    weights = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.array([entries]), "shape")]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8]),
        helper.make_tensor_value_info("z", kind, [entries]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])], outputs, weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.FLOAT])
@pytest.mark.parametrize("command", ["inspect", "prune", "eval"])
def test_a_bomb_is_one_line(kind: int, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Its first run is within the limits of the child: what follows would keep and compare it many times."""
    path, data = tmp_path / "in.onnx", tmp_path / "data.npz"
    onnx.save(_expanding(50_000_000, kind), path)
    np.savez(data, x=np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32))
    arguments = {
        "inspect": ["inspect", str(path), "--calib", str(data)],
        "prune": [str(path), str(tmp_path / "out.onnx"), "--ratio", "0.3", "--calib", str(data)],
        "eval": ["eval", str(path), "--data", str(data), "--against", str(path)],
    }
    assert main(arguments[command]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "gives out 50,0" in line
    assert "'z'" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.npz", "in.onnx"]


def test_all_samples_together(monkeypatch: pytest.MonkeyPatch):
    """Fails where each batch is small enough and all of them are not."""
    model = _expanding(1000)
    specs = tensor_specs(model)
    samples = given({"x": np.ones((320, 4), np.float32)}, specs)
    monkeypatch.setattr(extent, "_EACH_BYTE", 0)
    monkeypatch.setattr(extent, "_OF_ALL", 10 * (1000 + 32 * 8))
    assert outputs.outputs_of(model, samples)["z"].shape == (10_000,)  # ten batches
    monkeypatch.setattr(extent, "_OF_ALL", 10 * (1000 + 32 * 8) - 1)
    with pytest.raises(RunError, match="12,560 numbers over all samples, most of them as 'z'"):
        outputs.outputs_of(model, samples)


def test_what_is_read_counts():
    """Outputs of many times an image's size, and logits of a large vocabulary, are honest."""
    feeds = {"x": np.zeros((2, 3, 512, 512), np.float32)}
    scores = {"y": np.broadcast_to(np.float32(0), (2, 150, 512, 512))}
    extent.check_run(scores, 10_000_000, feeds)
    extent.check_run({"y": np.broadcast_to(np.float32(0), (2, 1024, 50_257))}, 500_000_000, {})
    with pytest.raises(RunError, match="in one run"):
        extent.check_run(scores, 1000, {"x": np.zeros((2, 4), np.float32)})
