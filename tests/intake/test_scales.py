"""Whether the data has the scale of what the model was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import prune
from onnxprune.data.inputs import input_specs
from onnxprune.data.sources import checked
from onnxprune.intake import scales
from onnxprune.intake.figures import figures_of
from onnxprune.normalise import normalise
from tests import digits

RNG = np.random.default_rng(0)
SCALED = RNG.standard_normal((20, 3, 8, 8)).astype(np.float32)
RAW = RNG.integers(0, 256, (20, 3, 8, 8)).astype(np.float32)
CONV = "{0} y = Conv <pads: ints = [1, 1, 1, 1]> ({1}, w)"


def model(text: str, more: str = "", **weights: np.ndarray) -> onnx.ModelProto:
    """A network of one input (N, 3, 8, 8), and others in `more`; w is the weight of a convolution."""
    weights = {"w": (RNG.standard_normal((8, 3, 3, 3)) * 0.27).astype(np.float32), **weights}
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[N,3,8,8] x{more}) => (float[N,C,H,W] out) {{ {text} }}'
    )
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return proto


def said(proto: onnx.ModelProto, **data: Any) -> str:
    found = checked(data, input_specs(proto))
    return " ".join(scales.doubts(normalise(proto, found.example()).proto, found, figures_of(found)))


PLAIN = "y = Conv <pads: ints = [1, 1, 1, 1]> (x, w) out = Relu (y)"


def test_raw_pixels_in_front_of_a_convolution():
    """Fails where pixels from 0 to 255 pass unnoticed, whole numbers or not, or scaled ones do not."""
    proto = model(PLAIN)
    assert "as raw pixels do" in said(proto, x=RAW)
    assert "as raw pixels do" in said(proto, x=RNG.uniform(0, 255, RAW.shape).astype(np.float32))
    for fine in (SCALED, RAW / np.float32(255), RAW - np.float32(127)):
        assert said(proto, x=fine) == ""


@pytest.mark.parametrize(
    "text",
    [
        "d = Sub (x, mean) s = Div (d, std) y = Conv <pads: ints = [1, 1, 1, 1]> (s, w) out = Relu (y)",
        "y = Conv <pads: ints = [1, 1, 1, 1]> (x, small) out = Relu (y)",
    ],
)
def test_networks_for_raw_pixels(text: str):
    """Fails where a network that scales its input itself, or has weights for raw pixels, gets a warning."""
    weights = {"mean": np.float32(120).reshape(1), "std": np.float32(60).reshape(1)}
    weights["small"] = (RNG.standard_normal((8, 3, 3, 3)) * 0.27 / 100).astype(np.float32)
    assert said(model(text, **weights), x=RAW) == ""


def test_statistics_of_a_normalization():
    """Fails where data that is far from the stored mean and variance passes, or where ordinary data does not."""
    text = f"{PLAIN.replace('out = Relu (y)', '')} out = BatchNormalization (y, g, g, mean, var)"
    one, zero = np.ones(8, np.float32), np.zeros(8, np.float32)
    proto = model(text, g=one, mean=zero, var=2 * one)
    assert said(proto, x=SCALED) == ""
    assert "times as large at" in said(proto, x=RAW)
    assert "times as large at" in said(proto, x=RAW - np.float32(127))
    assert "times less at" in said(proto, x=SCALED / np.float32(255))
    raw = model(text, g=one, mean=zero, var=150.0**2 * one)
    assert said(raw, x=RAW - np.float32(127)) == ""


def test_an_input_of_zeros_beside_others():
    more = ", float[N,3,8,8] z"
    text = "a = Conv <pads: ints = [1, 1, 1, 1]> (x, w) b = Conv <pads: ints = [1, 1, 1, 1]> (z, w2) out = Add (a, b)"
    proto = model(text, more, w2=(RNG.standard_normal((8, 3, 3, 3)) * 0.27).astype(np.float32))
    assert "'z' is zero in every" in said(proto, x=SCALED, z=np.zeros_like(SCALED))
    assert said(proto, x=SCALED, z=SCALED) == ""


@pytest.mark.parametrize("name", digits.NAMES)
def test_trained_networks(name: str):
    """Fails where the data that a network was trained on gets a warning, raw pixels get none, or no report has it."""
    options: dict[str, Any] = {"method": "magnitude", "refit": "none", "dry_run": True}
    with np.load(digits.CALIB) as archive:
        data = {k: archive[k] for k in archive.files}
    (key,) = (s.name for s in input_specs(onnx.load(digits.path(name))))
    heard: list[str] = []
    report = prune(digits.path(name), None, data, warn=heard.append, **options).report
    assert heard == list(report.warnings) == []
    (figures,) = report.calibration["inputs"]
    assert (figures["name"], figures["least"], figures["most"]) == (key, data[key].min(), data[key].max())
    x = data[key]
    raw = (255 * (x - x.min()) / (x.max() - x.min())).astype(x.dtype)
    report = prune(digits.path(name), None, {**data, key: raw}, warn=heard.append, **options).report
    assert heard == list(report.warnings)
    assert len(heard) == 1
    assert key in heard[0]
