"""Opsets before 9 through the whole job: brought to 9 and right, or refused at load with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import prune
from onnxprune.channels.describe import Description
from onnxprune.cli.program import main
from onnxprune.errors import ModelError
from onnxprune.intake import older
from onnxprune.numerics.arrays import Array
from onnxprune.pipeline import inspect
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.external import stored

_BODY = """
    a = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (x, w1)
    b = BatchNormalization <epsilon=0.001> (a, s, t, mean, var)
    c = Relu (b)
    u = Upsample <mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]> (c)
    d = Conv <kernel_shape=[1, 1]> (u, w2)
    p = GlobalAveragePool (d)
    f = Flatten (p)
    y = Gemm <transB=1> (f, w3, b3)
"""


def _model(opset: int, body: str = _BODY, *, listed: bool = True) -> onnx.ModelProto:
    """A small network in an old opset; listed: its weights are among its inputs, as IR version 3 demands."""
    rng = np.random.default_rng(0)
    sizes = {"w1": (16, 3, 3, 3), "s": (16,), "t": (16,), "mean": (16,), "var": (16,)}
    sizes |= {"w2": (24, 16, 1, 1), "w3": (5, 24), "b3": (5,)}
    text = f'<ir_version: {3 if listed else 4}, opset_import: ["" : {opset}]> main'
    model = onnx.parser.parse_model(f"{text} (float[N,3,6,6] x) => (float[N,5] y) {{ {body} }}")
    for name, shape in sizes.items():
        value = np.abs(rng.standard_normal(shape)) if name in ("s", "var") else rng.standard_normal(shape)
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        if listed:
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return model


def _data(count: int = 64) -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal((count, 3, 6, 6)).astype(np.float32)}


@pytest.mark.parametrize("opset", [7, 8])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_pruned(opset: int, listed: bool, beside: bool, tmp_path: Path):
    """Fails where the original is not the measure any more, or a weight is lost on the way."""
    model = _model(opset, listed=listed)
    path = stored(model, tmp_path, "one file") if beside else tmp_path / "in.onnx"
    if not beside:
        onnx.save(model, path)
    out = tmp_path / "out.onnx"
    options: dict[str, Any] = {"ratio": 0.3, "round_to": 1, "fast": True}
    result = prune(path, out, _data(), **options)
    assert any(f"is in opset {opset}" in n for n in result.report.notes)
    assert [o.version for o in onnx.load(out, load_external_data=False).opset_import] == [older.OLDEST]
    assert result.report.checks["normalised_against_original"] < 1e-5
    assert Session(str(out)).run(_data(3))["y"].shape == (3, 5)
    assert result.report.output_error is not None
    assert result.report.output_error < 0.5
    found: Description = inspect(path)
    assert any(f"is in opset {opset}" in n for n in found.notes)


@pytest.mark.parametrize("opset", [7, 8])
def test_converted(opset: int):
    """The same numbers, weights as they are stored, and inputs and outputs as they are declared."""
    model = _model(opset)
    found = older.converted(model, _data(2))
    assert_same(Session(found).run(_data(4))["y"], Session(model).run(_data(4))["y"], rtol=1e-5, atol=1e-5)
    assert [v.name for v in found.graph.input] == [v.name for v in model.graph.input]
    values = {t.name: t for t in found.graph.initializer}
    assert all(values[t.name] == t for t in model.graph.initializer)


_SCAN = """
    y = Scan <num_scan_inputs=1, body = g (float[3,6,6] i) => (float[3,6,6] o) { o = Relu (i) }> (, x)
    a = MatMul (m, v1)
    r = Relu (a)
    z = MatMul (r, v2)
"""


def test_what_cannot_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The converter knows no way for the Scan of opset 8: that is a reason before anything is computed."""
    ports = "(float[N,5,3,6,6] x, float[N,4] m) => (float[N,5,3,6,6] y, float[N,2] z)"
    model = onnx.parser.parse_model(f'<ir_version: 4, opset_import: ["" : 8]> main {ports} {{ {_SCAN} }}')
    for name, shape in (("v1", (4, 16)), ("v2", (16, 2))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    path = tmp_path / "in.onnx"
    onnx.save(model, path)
    why = "the model is in opset 8, and cannot be cut"
    assert main([str(path), "--ratio", "0.5", "--dry-run"]) == 3
    assert capsys.readouterr().err.endswith(f"no channel can be removed: {inspect(path).notes[0]}\n")
    assert any(why in n for n in inspect(path).notes)


def test_another_model_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Fails where what the converter makes is believed."""
    other = _model(9, _BODY.replace("y = Gemm", "neg = Neg (f)  y = Gemm").replace("(f, w3", "(neg, w3"))
    for n in other.graph.node:
        if n.op_type == "Upsample":
            del n.attribute[1:]
            n.input.append("scales")
    other.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    monkeypatch.setattr(onnx.version_converter, "convert_version", lambda *_: other)
    with pytest.raises(ModelError, match="another 'y'"):
        older.converted(_model(8), _data(2))
