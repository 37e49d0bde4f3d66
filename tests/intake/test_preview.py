"""A look at the data: figures by channel against numpy, what a range looks like, and pictures pixel by pixel."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import preview
from onnxprune.__main__ import main
from onnxprune.data.inputs import InputSpec
from onnxprune.data.samples import Samples
from onnxprune.errors import RunError, UsageError
from onnxprune.intake.figures import figures_of
from onnxprune.intake.preview import thumbnails
from tests import digits


def model_of(folder: Path, dims: list[Any], weight: tuple[int, ...]) -> Path:
    """A convolution over images or sequences."""
    w = np.random.default_rng(0).standard_normal(weight).astype(np.float32) * 0.1
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(w, "w")])
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def images(low: float, high: float, count: int = 20) -> Any:
    """(count, 3, 6, 5) with another mean in each channel, and both ends."""
    x = np.random.default_rng(1).uniform(0.2, 0.6, (count, 3, 6, 5)) + np.array([0.0, 0.1, 0.3])[:, None, None]
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0.0, 1.0
    return (low + (high - low) * x).astype(np.float32)


@pytest.mark.parametrize(
    ("low", "high", "looks", "warned"),
    [
        (0, 255, "raw pixels, 0 to 255", True),
        (0, 1, "0 to 1", False),
        (-1, 1, "-1 to 1", False),
        (-2.5, 2.5, "mean near 0, spread near 1", False),
        (-300, 900, "", False),
    ],
)
def test_ranges(low: float, high: float, looks: str, warned: bool, tmp_path: Path):
    """Fails where a channel's figures are not numpy's, or raw pixels are not named as such."""
    x = images(low, high)
    seen = preview(model_of(tmp_path, ["N", 3, 6, 5], (4, 3, 3, 3)), {"x": x})
    (view,) = seen.inputs
    assert (view.looks, seen.samples, view.figures.shape) == (looks, 20, (20, 3, 6, 5))
    by_channel = np.moveaxis(x, 1, 0).reshape(3, -1).astype(np.float64)
    want = np.stack([by_channel.min(1), by_channel.max(1), by_channel.mean(1), by_channel.std(1)], 1)
    got = [[c.least, c.most, c.mean, c.std] for c in view.channels]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * (high - low))
    assert any("as raw pixels do" in w for w in seen.warnings) == warned
    assert sum("raw pixels" in w for w in seen.warnings) <= 1


def test_sequences_and_labels(tmp_path: Path):
    """Fails where the channels of a sequence are not told, or classes not counted, over all parts of the data."""
    x = np.random.default_rng(2).standard_normal((16, 2, 9)).astype(np.float32)
    data = {"x": x, "label": np.arange(16) % 3, "where": np.zeros((16, 2))}
    seen = preview(model_of(tmp_path, ["N", 2, "T"], (4, 2, 3)), data)
    assert [round(c.mean, 6) for c in seen.inputs[0].channels] == [round(float(m), 6) for m in x.mean((0, 2))]
    assert seen.labels == ("label: 3 classes from 0 to 2, each 5-6 times", "where: float64 16x2")
    assert json.loads(seen.to_json())["samples"] == 16


def test_the_sheet(tmp_path: Path):
    """Fails where a picture is another sample, lies elsewhere, or channels and range are not the model's."""
    image = pytest.importorskip("PIL.Image")
    x = images(-1, 1, 5)
    model = model_of(tmp_path, ["N", 3, 6, 5], (4, 3, 3, 3))
    preview(model, {"x": x}, sheet=tmp_path / "s.png")
    sheet = np.asarray(image.open(io.BytesIO((tmp_path / "s.png").read_bytes())))
    assert sheet.shape == (4 + 6 + 4, 5 * (5 + 4) + 4, 3)
    for i in range(5):
        got = sheet[4:10, 4 + 9 * i : 9 + 9 * i].astype(float)
        assert np.abs(got - np.moveaxis(x[i], 0, -1) * 127.5 - 127.5).max() <= 0.51
    assert (sheet[:4] == 255).all()
    with pytest.raises((UsageError, RunError), match="exists"):
        preview(model, {"x": x}, sheet=tmp_path / "s.png")
    preview(model, {"x": x}, sheet=tmp_path / "s.png", overwrite=True)
    flat = model_of(tmp_path, ["N", 2, "T"], (4, 2, 3))
    with pytest.raises(UsageError, match="no input holds images"):
        preview(flat, {"x": np.ones((4, 2, 9), np.float32)}, sheet=tmp_path / "t.png")
    assert not (tmp_path / "t.png").exists()


def test_thumbnails_are_small_and_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a report of photographs is large, pictures of noise are shown, or images that nobody wants shown."""
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).normal(0.5, 0.3, (12, 3, 224, 320)).astype(np.float32)
    samples = Samples((InputSpec("x", pixels.dtype, (None, 3, None, None)),), {"x": pixels})
    address = thumbnails(samples, figures_of(samples))
    kind, _, text = address.partition(";base64,")
    assert (kind, len(text) < 16_000) == ("data:image/jpeg", True)
    with image.open(io.BytesIO(base64.b64decode(text))) as picture:
        assert picture.size == (8 * (46 + 4) + 4, 32 + 2 * 4)
    assert thumbnails(replace(samples, synthetic=True), figures_of(samples)) == ""
    flat = Samples((InputSpec("x", pixels.dtype, (None, 3)),), {"x": pixels[:, :, 0, 0]})
    assert thumbnails(flat, figures_of(flat)) == ""
    for option, shown in (((), True), (("--no-pictures",), False)):
        report = tmp_path / f"{shown}.json"
        args = ("--dry-run", "--ratio", "0.3", "--calib", str(digits.CALIB), "--samples", "16", "--method", "magnitude")
        assert main([str(digits.path("resnet")), *args, "--report", str(report), *option]) == 0
        pictures = json.loads(report.read_text(encoding="utf-8"))["calibration"]["pictures"]
        assert pictures.startswith("data:image/png;base64,") == shown == bool(pictures)
    capsys.readouterr()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where the table lacks a figure, the sheet is not written, or missing data is no usage error."""
    pytest.importorskip("PIL.Image")
    model, sheet = str(digits.path("resnet")), tmp_path / "sheet.png"
    assert main(["data", model, "--calib", str(digits.CALIB), "--samples", "40", "--sheet", str(sheet)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "float32 40x1x8x8" in shown
    assert "mean near 0, spread near 1" in shown
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert main(["data", model]) == 2
    assert "--calib is missing" in capsys.readouterr().err
    raw = tmp_path / "raw.npy"
    np.save(raw, np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8)).astype(np.float32))
    assert main(["data", model, "--calib", str(raw), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["inputs"][0]["looks"] == "raw pixels, 0 to 255"
    assert "warning" in said.err.lower()
