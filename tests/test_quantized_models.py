"""Models as onnxruntime's own quantizer writes them, from one end to the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import (  # noqa: TID251  the quantizer is what these tests are about
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from onnxprune import PruneResult, prune
from onnxprune.graph import protobuf
from onnxprune.pipeline import inspect
from onnxprune.runtime.saturation import DEPLOYED, EXACT
from onnxprune.runtime.session import Session, saturates
from tests import digits
from tests.graphs import TABLE
from tests.topologies.quantization import ROWS

Array = NDArray[Any]

_ACTIVATIONS: Mapping[str, Any] = {"activation_type": QuantType.QUInt8}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "int8_per_channel": {"weight_type": QuantType.QInt8, "per_channel": True},
    "uint8_per_tensor": {"weight_type": QuantType.QUInt8, "per_channel": False},
    "uint8_per_channel": {"weight_type": QuantType.QUInt8, "per_channel": True},
    "int8_activations": {
        "weight_type": QuantType.QInt8,
        "activation_type": QuantType.QInt8,
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": True},
    },
    "reduced_range": {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True},
    "microsoft_domain": {
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "extra_options": {"UseQDQContribOps": True},
    },
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, feeds: Mapping[str, Array]) -> None:
        self.batches = iter([{k: v[i : i + 16] for k, v in feeds.items()} for i in range(0, 64, 16)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.batches, None)


def quantized(model: onnx.ModelProto, feeds: Mapping[str, Array], way: str, form: QuantFormat) -> onnx.ModelProto:
    """`model` quantized by onnxruntime."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_static(model, str(path), _Reader(feeds), quant_format=form, **{**_ACTIVATIONS, **WAYS[way]})
        return onnx.load(path)


@cache
def _digits(name: str, way: str, form: QuantFormat = QuantFormat.QDQ) -> onnx.ModelProto:
    return quantized(onnx.load(digits.path(name)), {"input": np.load(digits.CALIB)["input"]}, way, form)


@cache
def _pruned(name: str, way: str, **options: Any) -> PruneResult:
    return prune(_digits(name, way), None, digits.CALIB, **options)


def _operators(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in proto.graph.node)


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    return {t.name: t.data_type for t in proto.graph.initializer}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(("resnet", way) for way in WAYS),
        ("mobilenet", "int8_per_channel"),
        ("mobilenet", "uint8_per_tensor"),
    ],
)
def test_a_quantized_model_is_pruned_and_stays_quantized(name: str, way: str):
    """Fails where quantized layers lose their refit, their types, or a pair of nodes on the way."""
    original = _digits(name, way)
    result = _pruned(name, way, ratio=0.4)
    small = result.model
    assert small is not None
    assert result.report.checks["slice_against_oracle"] <= 1e-5
    assert result.report.achieved >= 0.4
    assert result.report.checks["refit"] == "lockstep"
    assert _operators(small) == _operators(original)
    assert Counter(_types(small).values()) == Counter(_types(original).values())
    assert protobuf.parameters(small) == result.report.after.parameters < result.report.before.parameters
    # The same float model, pruned as much, loses up to half a point.
    assert digits.top1(small) >= digits.top1(original) - 0.015
    none = _pruned(name, way, ratio=0.4, refit="none").model
    assert none is not None
    assert digits.top1(small) > digits.top1(none)


@pytest.mark.parametrize("way", ["int8_per_channel", "uint8_per_tensor"])
def test_biases_stand_at_the_product_of_the_scales(way: str):
    """Fails where an integer kernel, which reads no scale of a bias, would add it at another one."""
    small = _pruned("resnet", way, ratio=0.4).model
    assert small is not None
    producer = {o: n for n in small.graph.node for o in n.output}
    layers = [n for n in small.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(layers) == 11
    for n in layers:
        x, w, b = (producer[i] for i in n.input)
        assert [n.op_type for n in (x, w, b)] == ["DequantizeLinear"] * 3
        scales = [numpy_helper.to_array(_stored(small, d.input[1])) for d in (x, w, b)]
        product = np.broadcast_to(scales[0] * scales[1], scales[2].shape)
        np.testing.assert_allclose(scales[2], product, rtol=1e-6, atol=0.0)
        assert _stored(small, b.input[0]).data_type == onnx.TensorProto.INT32


def _stored(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if t.name == name)


def test_integer_kernels_agree_with_the_nodes_as_written():
    """Fails where onnxruntime, as it fuses the pairs into integer kernels, would compute something else.

    Those kernels of a processor that saturate compute something else of any model: the exact ones answer there.
    """
    small = _pruned("resnet", "int8_per_channel", ratio=0.4).model
    assert small is not None
    images = {"input": np.load(digits.TEST)["input"]}
    plain = next(iter(Session(small, optimize=False).run(images).values()))
    for kernels in (EXACT,) if saturates() else (EXACT, DEPLOYED):
        fused = next(iter(Session(small, kernels=kernels).run(images).values()))
        assert np.mean(fused.argmax(axis=1) == plain.argmax(axis=1)) >= 0.99
        assert np.abs(fused - plain).mean() <= 0.005 * np.abs(plain).max()


@pytest.mark.parametrize("row", ["squeeze_excite", "dense_concat", "transposed", "residual"])
def test_other_architectures(row: str):
    """Fails where a quantized architecture cannot be pruned as its float form is."""
    topology = TABLE[row]
    feeds = topology.feeds(64)
    model = quantized(topology.model(), feeds, "int8_per_channel", QuantFormat.QDQ)
    assert len(inspect(model, feeds).groups) == len(inspect(topology.model(), feeds).groups)
    result = prune(model, None, feeds, ratio=0.3, round_to=1)
    assert result.model is not None
    assert _operators(result.model) == _operators(model)
    assert result.report.checks["slice_against_oracle"] <= 1e-5


@pytest.mark.parametrize("row", [k for k in ROWS if k.startswith("quantized")])
def test_every_way_to_quantize_is_pruned(row: str):
    """Fails where a trial, a refit or a check does not know one of the types."""
    topology = TABLE[row]
    result = prune(topology.model(), None, topology.feeds(64), ratio=0.3, round_to=1)
    assert result.model is not None
    assert _operators(result.model) == _operators(topology.model())
    before, after = _types(topology.model()), _types(result.model)
    assert all(before[k] == v for k, v in after.items() if k in before)
    # A layer in floating point may get a bias, a quantized one does not.
    assert set(after) - set(before) == ({"y__bias"} if row == "quantized_by_channel" else set())


@pytest.mark.parametrize(
    ("name", "way"),
    [("resnet", "int8_per_channel"), ("resnet", "int8_activations"), ("mobilenet", "uint8_per_tensor")],
)
def test_operators_on_codes_are_pruned_as_the_float_model_is(name: str, way: str):
    """Fails where an operator on codes keeps a channel that one on numbers loses, or computes something else."""
    model = _digits(name, way, QuantFormat.QOperator)
    assert any(n.op_type == "QLinearConv" for n in model.graph.node)
    ours, plain = (inspect(m, digits.CALIB) for m in (model, onnx.load(digits.path(name))))
    assert [g.units for g in ours.groups] == [g.units for g in plain.groups]
    assert ours.share_of_macs == pytest.approx(plain.share_of_macs, abs=0.01)
    result = prune(model, None, digits.CALIB, ratio=0.4, fast=True)
    assert result.model is not None
    assert result.report.achieved >= 0.4
    assert result.report.checks["normalised_against_original"] <= 1e-5
    assert result.report.checks["slice_against_oracle"] <= 1e-5
    assert not any(op.startswith("QLinear") or op == "QGemm" for op in _operators(result.model))
    assert digits.top1(result.model) >= digits.top1(model) - 0.015
