"""Models in half and double precision: through every stage, with types unchanged and slices that equal the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16

from onnxprune import prune
from onnxprune.data.inputs import input_specs
from onnxprune.data.sources import checked
from onnxprune.errors import CalibrationError
from onnxprune.numerics.arrays import cast, is_float
from onnxprune.refit import layerwise, lockstep
from onnxprune.refit.layerwise import beyond
from onnxprune.runtime import single_precision
from onnxprune.runtime.session import Session
from tests import digits
from tests.compare import assert_same
from tests.graphs import TABLE
from tests.kit import kit_models
from tests.number_types import TOLERANCE, TYPES, converted, data_of
from tests.prepared import masked, prepare, random_keep, sliced

ROWS = (
    "residual",
    "dense_concat",
    "depthwise",
    "gemm_variants",
    "layer_norm_convolution",
    "group_normalization_wide",
    "instance_norm",
    "rms_norm_by_parts",
    "reductions",
    "shuffle_static",
    "if_weights_inside",
    "weights_as_constant_nodes",
    "constant_of_shape",
)


KIT = ("no-kit", "preact_flatten_bn", "shufflenetv2_x_dynamo", "groupnorm_prelu_dynamo")


def types_of(model: onnx.ModelProto) -> list[tuple[str, int]]:
    """Names and element types of inputs and outputs."""
    return [(v.name, v.type.tensor_type.elem_type) for v in (*model.graph.input, *model.graph.output)]


def calibration(name: str, count: int = 96) -> dict[str, np.ndarray]:
    return data_of({"input": np.load(digits.CALIB)["input"][:count]}, name)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("row", ROWS)
def test_slice_equals_oracle(row: str, name: str):
    """Fails where a stage reads, slices or masks another number type as something else."""
    model = converted(TABLE[row].model(), name)
    feeds = data_of(TABLE[row].feeds(2), name)
    p = prepare(model, feeds)
    expected = Session(model).run(feeds)
    for k, y in Session(p.normalised.proto).run(feeds).items():
        assert_same(y, expected[k], rtol=TOLERANCE[name], atol=1e-6)
    keep = random_keep(p.channels, 0)
    # onnxruntime reads the epsilon of a normalization that it fuses as float32: float64 is compared as it stands.
    cut, oracle = (Session(x(p, keep), optimize=name != "float64").run(feeds) for x in (sliced, masked))
    for k, y in oracle.items():
        assert_same(cut[k], y, rtol=TOLERANCE[name], atol=1e-6)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("net", digits.NAMES)
def test_whole_job(net: str, name: str, tmp_path: Path):
    """Fails where the result has other types, is not exact, or a refit does harm."""
    model = converted(onnx.load(digits.path(net)), name)
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    errors: dict[str, float | None] = {}
    for refit in ("none", "least-squares", "lockstep"):
        report = prune(path, out, calibration(name), ratio=0.4, refit=refit, overwrite=True).report
        errors[refit] = report.output_error
        assert report.checks["slice_against_oracle"] <= min(TOLERANCE[name], 1e-4)
        assert report.checks["normalised_against_original"] <= TOLERANCE[name]
        assert report.achieved >= 0.4
    assert None not in errors.values()
    assert errors["lockstep"] <= errors["least-squares"] < 0.5 * errors["none"]
    result = onnx.load(out)
    assert types_of(result) == types_of(model)
    kinds = {t.data_type for t in result.graph.initializer if is_float(onnx.numpy_helper.to_array(t).dtype)}
    assert kinds == {TYPES[name][0]}
    assert not single_precision.uses(result, {onnx.TensorProto.FLOAT})
    # The operators of older sets know no bfloat16: such a model is as strictly valid as the original was.
    strict = name != "bfloat16" or result.opset_import[0].version >= 22
    onnx.checker.check_model(result, full_check=strict)
    feeds = {"input": data_of({"x": np.load(digits.TEST)["input"][:100]}, name)["x"]}
    for k, y in Session(result).run(feeds).items():
        assert y.dtype == TYPES[name][1], k
        assert np.isfinite(y).all()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(
    "path",
    [p for p in kit_models("arch") if any(k in str(p.id) for k in KIT)],
)
def test_kit(path: Path, name: str):
    """Fails where an exported network is not exact in another number type."""
    model = converted(onnx.load(path), name)
    report = prune(model, None, ratio=0.3, round_to=1, samples=16, refit="least-squares").report
    assert report.checks["slice_against_oracle"] <= min(TOLERANCE[name], 1e-4)
    assert report.achieved >= 0.3


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_weights_behind_a_cast(name: str):
    """Fails where weights stored in half precision, and computed with in single, cannot be pruned."""
    model = onnx.load(digits.path("resnet"))
    matrices = [t for t in model.graph.initializer if len(t.dims) == 4]
    for t in matrices:
        half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t).astype(TYPES[name][1]), f"{t.name}_half")
        node = onnx.helper.make_node("Cast", [half.name], [t.name], to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, node)
        t.CopyFrom(half)
    report = prune(model, None, {"input": np.load(digits.CALIB)["input"][:64]}, ratio=0.4)
    assert report.report.achieved >= 0.4
    assert report.report.checks["slice_against_oracle"] <= 1e-4
    assert report.model is not None
    assert types_of(report.model) == types_of(model)


# the twin


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_twin_computes_the_model(name: str):
    """Fails where the twin is anything but the model in single precision."""
    for row in ("residual", "loop", "layer_norm_convolution", "weights_as_constant_nodes"):
        model, feeds = TABLE[row].model(), TABLE[row].feeds(2)
        back = single_precision.single_precision(converted(model, name), {TYPES[name][0]})
        assert not single_precision.uses(back, {TYPES[name][0]})
        expected = Session(model).run(feeds)
        for k, y in Session(back).run(feeds).items():
            assert_same(y, expected[k], rtol=3e-2 if name == "bfloat16" else 1e-2, atol=1e-3)


def test_bfloat16_in_and_out():
    """Fails where feeds or outputs of a bfloat16 model are not what it declares."""
    model, feeds = converted(TABLE["residual"].model(), "bfloat16"), TABLE["residual"].feeds(2)
    session = Session(model)
    half = session.run(data_of(feeds, "bfloat16"))
    (y,) = half.values()
    assert y.dtype == bfloat16
    assert_same(next(iter(session.run(feeds).values())), y, rtol=2e-2, atol=1e-3)
    single = next(iter(Session(model, single=True).run(feeds).values()))
    assert single.dtype == np.float32


# types and ranges


def test_is_float():
    floats = (np.float16, np.float32, np.float64, bfloat16)
    others = (np.int64, np.uint8, np.bool_, np.complex64, np.str_)
    assert all(is_float(np.dtype(t)) for t in floats)
    assert not any(is_float(np.dtype(t)) for t in others)


def test_weights_beyond_the_type():
    """Fails where a refitted weight above 65504 becomes infinite without a word."""
    types = {"w": np.dtype(np.float16), "b": np.dtype(np.float32)}
    assert not beyond({"w": np.array([65504.0]), "b": np.array([1e6])}, types)
    assert beyond({"w": np.array([1.0, -70000.0])}, types)
    assert np.isinf(cast(np.array([1e6]), types["w"])).all()


@pytest.mark.parametrize("refit", ["least-squares", "lockstep"])
def test_layers_whose_refit_does_not_fit_keep_their_weights(refit: str, monkeypatch: pytest.MonkeyPatch):
    """Fails where one layer's overflow spoils the model, or goes unmentioned."""
    model = converted(onnx.load(digits.path("resnet")), "float16")
    options: dict[str, Any] = {"ratio": 0.4, "method": "magnitude", "samples": 64}
    plain = prune(model, None, calibration("float16"), refit="none", **options)

    def huge(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: 1e8 * function(*args)

    for module, name in ((layerwise, "restricted"), (layerwise, "restricted_by_inverse"), (lockstep, "_solve")):
        monkeypatch.setattr(module, name, huge(getattr(module, name)))
    result = prune(model, None, calibration("float16"), from_plan=plain.plan, refit=refit)
    assert any("keeps its weights: refitted ones exceed float16" in n for n in result.report.notes)
    assert result.report.output_error is not None
    assert np.isfinite(result.report.output_error)
    assert result.model is not None
    assert all(np.isfinite(onnx.numpy_helper.to_array(t)).all() for t in result.model.graph.initializer)


def test_calibration_data_in_single_precision():
    """Fails where data in float32 is refused for a model in half precision, or rounded beyond its range unnoticed."""
    for name in ("float16", "bfloat16"):
        specs = input_specs(converted(TABLE["plain"].model(), name))
        values = TABLE["plain"].feeds(4)
        found = checked(values, specs).arrays
        for k, v in values.items():
            assert_same(found[k], v.astype(TYPES[name][1]), rtol=0.0, atol=0.0)
        with pytest.raises(CalibrationError, match="NaN or infinite"):
            checked({k: np.where(v == v.flat[0], np.float32("nan"), v) for k, v in values.items()}, specs)
    specs = input_specs(converted(TABLE["plain"].model(), "float16"))
    with pytest.raises(CalibrationError, match="beyond float16"):
        checked({k: v + np.float32(1e6) for k, v in TABLE["plain"].feeds(4).items()}, specs)
    with pytest.raises(CalibrationError, match="convert it with"):
        checked({k: v.astype(np.int64) for k, v in TABLE["plain"].feeds(4).items()}, specs)
