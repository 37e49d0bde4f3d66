"""The command that builds an engine: which inputs it names, in which shapes, and what it asks of the builder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from onnxprune import prune
from onnxprune.report.terminal import Screen, prune_report
from onnxprune.targets.tensorrt_command import Span, command, open_inputs
from tests import digits

OPEN = onnx.parser.parse_model(
    '<ir_version: 9, opset_import: ["": 18]> g (float[N, 3, H, 8] x, int64[1, 4] ids) => (float[N, 3, H, 8] y) '
    "{ y = Relu(x) }"
)


def test_sizes_that_are_open_have_a_range_and_others_are_not_named():
    met = [(1, 3, 9, 8), (1, 3, 5, 8), (1, 3, 6, 8)]
    spans = {"x": Span.over(met).with_batch(0, 16), "ids": Span.over([(1, 4)])}
    assert open_inputs(OPEN) == ("x",)
    assert command("a b/slim.onnx", OPEN, spans) == (
        "trtexec '--onnx=a b/slim.onnx' '--saveEngine=a b/slim.engine' --fp16 "
        "--minShapes=x:1x3x5x8 --optShapes=x:16x3x6x8 --maxShapes=x:16x3x9x8"
    )


def test_a_model_of_fixed_sizes_needs_none_and_a_quantized_one_asks_for_integers():
    fixed = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (float[1, 4] x) => (int8[1, 4] y) '
        "<float s = {0.5}> { y = QuantizeLinear(x, s) }"
    )
    assert command("m.onnx", fixed, {"x": Span.over([(1, 4)])}) == (
        "trtexec --onnx=m.onnx --saveEngine=m.engine --int8 --fp16"
    )


def test_the_report_has_the_command_of_its_data(tmp_path: Path):
    """Fails where the shapes are those of other data, or another target gets the command."""
    data = {"input": np.load(digits.CALIB)["input"][:8]}
    options = {"uniform": 0.3, "refit": "none", "fast": True, "overwrite": True}
    out = tmp_path / "slim.onnx"
    report = prune(digits.path("resnet"), out, data, target="tensorrt-fp16", **options).report
    assert report.engine == (
        f"trtexec --onnx={out} --saveEngine={out.with_suffix('.engine')} --fp16 --minShapes=input:1x1x8x8 "
        "--optShapes=input:1x1x8x8 --maxShapes=input:1x1x8x8"
    )
    assert "build an engine" in prune_report(report, Screen(160))
    assert not prune(digits.path("resnet"), out, data, **options).report.engine
