"""Whole runs that end in fewer bits: `quantize`, and `--then` behind a cut. All figures are those of the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import evaluate, prune, quantize
from onnxprune.cli.program import main
from onnxprune.errors import CheckFailed, ModelError, UsageError
from tests import digits
from tests.quantization.networks import RESIDUAL, network
from tests.report.test_forms import check

RESNET, CALIB, TEST = str(digits.path("resnet")), str(digits.CALIB), str(digits.TEST)
QUICK: dict[str, Any] = {"ratio": 0.5, "fast": True, "refit": "least-squares", "samples": 96}


def test_prune_and_int8_in_one_run(tmp_path: Path):
    """Fails where a figure is of the model in float, or the steps of the report are not those of the files."""
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    result = prune(RESNET, out, CALIB, then="int8", report_file=report, reduce_range="no", **QUICK)
    row = result.report.fewer_bits
    assert row is not None
    plain = prune(RESNET, None, CALIB, **QUICK)
    assert row.errors["pruned"] == pytest.approx(plain.report.output_error, rel=1e-6)
    assert row.errors["result"] == result.report.output_error
    pruned, alone = row.errors["pruned"], row.errors["alone"]
    assert pruned is not None and alone is not None and result.report.output_error is not None
    assert result.report.output_error <= 1.15 * (pruned + alone)
    assert result.report.after.macs == plain.report.after.macs
    assert result.report.after.parameters == plain.report.after.parameters
    assert result.report.after.bytes == out.stat().st_size < 0.7 * row.bytes["float"]
    check(json.loads(report.read_text(encoding="utf-8")))
    written = evaluate(out, TEST, against=RESNET, labels="label")
    assert written.drop is not None and written.drop < 3.0
    assert any(n.op_type == "DequantizeLinear" for n in onnx.load(out).graph.node)
    assert "quantize" in result.report.effort.stages
    again = prune(RESNET, None, CALIB, then="int8", reduce_range="no", **QUICK)
    assert again.model == result.model  # the same bytes


def test_a_result_that_says_nothing_is_a_warning():
    """Fails where numbers that half precision has not take the outputs away, and nobody is told."""
    model = network(RESIDUAL)
    for t in model.graph.initializer:
        if t.name in ("w1", "b1", "w2"):  # what the next layer makes of it is of the usual size again
            factor = np.float32(1e9 if t.name == "w2" else 1e-9)
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * factor, t.name))
    data = {"x": np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)}
    found = quantize(model, None, data, to="fp16")
    [told] = [w for w in found.report.warnings if "do not use this result" in w]
    assert told.startswith("in half precision the outputs")
    assert not quantize(network(RESIDUAL), None, data, to="fp16").report.warnings


def test_half_precision_that_saves_nothing_is_a_warning():
    """Fails where a file in half precision that is larger than the one in float is said to be fine."""
    data = {"x": np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)}
    found = quantize(network(RESIDUAL), None, data, to="fp16", keep_float=("Conv*", "Gemm*"))
    sizes = found.report.fewer_bits.bytes
    assert sizes["result"] >= sizes["float"]
    [told] = found.report.warnings
    assert told.startswith("in half precision the file is no smaller than in float") and "--keep-float" in told


def test_a_pattern_that_matches_nothing_is_refused_before_any_work():
    """Fails where it is noticed behind the cut, and by a name that the command does not know."""
    stages: list[str] = []
    with pytest.raises(UsageError, match=r"^--keep-float 'nobody\*'"):
        prune(
            RESNET, None, CALIB, then="int8", keep_float=("nobody*",), watch=lambda p: stages.append(p.stage), **QUICK
        )
    assert "calibrate" not in stages


def test_quantize_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where the command, its report or its files are not what they should be."""
    out, forms = tmp_path / "out.onnx", [tmp_path / f"r{s}" for s in (".json", ".html", ".md", ".xml")]
    reports = [x for f in forms for x in ("--report", str(f))]
    args = ["quantize", RESNET, str(out), "--calib", CALIB, "--samples", "96", "--reduce-range", "no"]
    gates = ["--test", TEST, "--labels", "label", "--max-drop", "1", "--max-error", "2%"]
    assert main([*args, *gates, *reports]) == 0
    told = capsys.readouterr().out
    assert "operators compute in integers" in told
    assert "written: " in told
    data = json.loads(forms[0].read_text(encoding="utf-8"))
    check(data)
    assert (data["kind"], data["output"]) == ("quantize", str(out))
    assert data["fewer_bits"]["bytes"]["result"] == out.stat().st_size
    assert [g["held"] for g in data["gates"]] == [True, True]
    assert "compute in integers" in forms[1].read_text(encoding="utf-8")
    assert "compute in integers" in forms[2].read_text(encoding="utf-8")
    assert main([*args, *reports]) == 2  # the files exist
    before = out.read_bytes()
    capsys.readouterr()
    assert main([*args, "--overwrite", *reports, "--max-error", "0.0001%"]) == 4
    assert "error of 0.0" in capsys.readouterr().err
    assert out.read_bytes() == before
    data = json.loads(forms[0].read_text(encoding="utf-8"))
    check(data)
    assert (data["status"], data["exit_code"], data["output"]) == ("refused", 4, None)


def test_for_tensorrt_with_dynamic_shapes(tmp_path: Path):
    """Fails where the result is not held against the parser, or does not run at other sizes."""
    result = quantize(RESNET, None, CALIB, target="tensorrt-int8", samples=64)
    assert result.report.checks["tensorrt"] == []
    assert result.report.checks["input_sizes_run"] > 1
    assert result.report.fewer_bits.target == "tensorrt-int8"
    assert "int8" not in {t.name for t in result.model.graph.initializer}


def test_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where the command does not give a model of half the size that answers alike."""
    out, report = tmp_path / "half.onnx", tmp_path / "r.json"
    args = ["quantize", RESNET, str(out), "--to", "fp16", "--calib", CALIB, "--samples", "48", "--report", str(report)]
    assert main([*args, "--max-error", "0.1%"]) == 0
    assert "operators compute in half precision" in capsys.readouterr().out
    assert out.stat().st_size < 0.6 * digits.path("resnet").stat().st_size
    check(json.loads(report.read_text(encoding="utf-8")))
    assert main([*args, "--overwrite", "--ranges", "entropy"]) == 2
    result = prune(RESNET, None, CALIB, then="fp16", **QUICK)
    assert result.report.fewer_bits.errors["alone"] < 1e-3
    assert result.report.output_error == pytest.approx(result.report.fewer_bits.errors["pruned"], rel=0.05)


def test_weights_that_are_inputs(tmp_path: Path):
    """Fails where a model that lists its weights as inputs is refused, or its result asks callers for them."""
    model = network(RESIDUAL)
    for t in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    data = {"x": np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)}
    for ir_version in (3, 8):
        model.ir_version = ir_version
        source = tmp_path / f"listed{ir_version}.onnx"
        onnx.save(model, source)
        result = quantize(source, None, data)
        assert result.report.fewer_bits.layers == 3
        required = {i.name for i in result.model.graph.input} - {t.name for t in result.model.graph.initializer}
        assert required == {"x"}


def test_limits_hold_for_the_end_result():
    """Fails where a gate is asked of the model before it is quantized."""
    with pytest.raises(CheckFailed, match="more than the allowed"):
        prune(RESNET, None, CALIB, then="int8", max_error=1e-4, **QUICK)


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"keep_float": ("nobody*",)}, UsageError, r"^--keep-float 'nobody\*' matches no node"),
        ({"keep_float": ("*",)}, UsageError, r"--keep-float '\*' leaves every operator in float.*8-bit integers"),
        ({"to": "fp16", "keep_float": ("[!/]*", "/*")}, UsageError, "leaves every operator in float.*half precision"),
        (
            {"keep_float": ("*Conv*", "*Gemm*", "*Add*", "*Relu*", "*Pool*", "logits")},
            ModelError,
            "every layer was to stay in float",
        ),
        ({"to": "fp16", "float_share": 0.3}, UsageError, "float_share are about 8-bit integers"),
        ({"ranges": "guess"}, UsageError, "ranges 'guess' is unknown; choose one of auto, min-max"),
        ({"float_share": 1.5}, UsageError, "in \\[0, 1\\)"),
        ({"reduce_range": "maybe"}, UsageError, "choose one of auto, yes, no"),
        ({"to": "int3"}, UsageError, "then 'int3' is unknown; choose one of int8, fp16"),
        ({"ratio": 0.5}, UsageError, "quantize knows no option ratio"),
        ({"max_error": 0.1, "calibration": None}, UsageError, "give the calibration data"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], error: type[Exception], why: str, tmp_path: Path):
    """Fails where one is taken, or anything is written."""
    given = {"calibration": CALIB, "samples": 32} | options
    with pytest.raises(error, match=why):
        quantize(RESNET, tmp_path / "out.onnx", **given)
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_not_quantized(tmp_path: Path):
    """Fails where a model that is quantized already, or one of which nothing can be, is taken."""
    coded = tmp_path / "coded.onnx"
    quantize(RESNET, coded, CALIB, samples=64)
    with pytest.raises(ModelError, match="quantized already"):
        quantize(coded, None, CALIB, samples=64)
    with pytest.raises(ModelError, match="leave out --then int8"):
        prune(coded, None, CALIB, then="int8", **QUICK)
    assert main([RESNET, str(tmp_path / "o.onnx"), "--ratio", "0.5", "--calib", CALIB, "--ranges", "entropy"]) == 2
    assert main(["quantize", RESNET, str(tmp_path / "o.onnx")]) == 2


def test_weights_beside_the_model_are_read(tmp_path: Path):
    """Fails where weights in a file of their own are not quantized, or the result needs the original's file."""
    source = tmp_path / "big.onnx"
    onnx.save(network(RESIDUAL), source, save_as_external_data=True, location="big.data", size_threshold=256)
    data = {"x": np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)}
    quantize(source, tmp_path / "out.onnx", data)
    first = evaluate(tmp_path / "out.onnx", data, against=source)
    assert first.output_error is not None and first.output_error < 0.05
    (tmp_path / "big.data").unlink()
    assert "big.data" not in str(onnx.load(tmp_path / "out.onnx"))


def test_layers_that_are_named_stay_in_float():
    result = quantize(RESNET, None, CALIB, samples=64, keep_float=("/9/*",), float_share=0.0)
    (x,) = result.report.fewer_bits.floating
    assert (x.name, x.operator, x.why, x.error) == ("/9/Gemm", "Gemm", "was named", None)
    gemm = next(n for n in result.model.graph.node if n.op_type == "Gemm")
    assert "9.weight" in gemm.input or not any("Dequantize" in i for i in gemm.input[1:])
