"""Small networks as onnxruntime's quantizer writes them, in each of its ways: as prunable as before, and exactly so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime  # noqa: TID251  as below
import pytest
from onnxruntime.quantization import (  # noqa: TID251  the quantizer is what these tests are about
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from onnxprune import cost, prune
from onnxprune.runtime.session import Session, saturates
from onnxprune.verification import checks
from tests.prepared import Array, Prepared, masked, prepare, random_keep, sliced
from tests.topologies.text import Topology

NETWORKS: Mapping[str, Topology] = {
    "perceptron": Topology(
        """(float[N,16] x) => (float[N,5] y) {
            a = MatMul (x, w1[16,24])
            b = Add (a, b1[24])
            r = Relu (b)
            c = Gemm <transB=1> (r, w2[16,24], b2[16])
            s = Sigmoid (c)
            y = MatMul (s, w3[16,5])
        }""",
        (24, 16),
        opset=17,
    ),
    "convolutions": Topology(
        """(float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[16,3,3,3], b1[16])
            r = Relu (a)
            d = Conv <group=16, pads=[1,1,1,1]> (r, w2[16,1,3,3], b2[16])
            e = Conv (d, w3[16,16,1,1], b3[16])
            s = Add (e, r)
            p = AveragePool <kernel_shape=[2,2], strides=[2,2]> (s)
            c = Conv (p, w4[12,16,1,1], b4[12])
            l = LeakyRelu (c)
            g = GlobalAveragePool (l)
            f = Flatten (g)
            y = Gemm <transB=1> (f, w5[5,12], b5[5])
        }""",
        (16, 12),
        opset=17,
    ),
    "recurrent": Topology(
        """(float[L,N,6] x) => (float[L,N,5] y) {
            a = MatMul (x, w1[6,10])
            r = Relu (a)
            s = LSTM <hidden_size=8, direction="bidirectional"> (r, wi[2,32,10], wr[2,32,8], b[2,64])
            t = Transpose <perm=[0,2,1,3]> (s)
            f = Reshape (t, to{0,0,-1})
            y = MatMul (f, w2[16,5])
        }""",
        (16, 10),
        opset=17,
    ),
}
_U8, _S8 = QuantType.QUInt8, QuantType.QInt8
TYPES: Mapping[str, Mapping[str, Any]] = {
    "u8s8": {"activation_type": _U8, "weight_type": _S8, "per_channel": True},
    "s8s8": {"activation_type": _S8, "weight_type": _S8, "per_channel": True},
    "u8u8": {"activation_type": _U8, "weight_type": _U8, "per_channel": False},
}
STATIC = [
    (name, kind, form)
    for name in ("perceptron", "convolutions")
    for kind in TYPES
    for form in (QuantFormat.QOperator, QuantFormat.QDQ)
]
DYNAMIC = [(name, kind, channels) for name in NETWORKS for kind in (_S8, _U8) for channels in (False, True)]


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, feeds: Mapping[str, Array]) -> None:
        self.batches = iter([feeds])

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self.batches, None)


@cache
def _static(name: str, kind: str, form: Any) -> onnx.ModelProto:
    row = NETWORKS[name]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_static(row.model(), str(path), _Reader(row.feeds(16)), quant_format=form, **TYPES[kind])
        return onnx.load(path)


@cache
def _dynamic(name: str, kind: Any, channels: bool) -> onnx.ModelProto:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        operators = ["MatMul", "Gemm", "Conv", "LSTM"]
        quantize_dynamic(NETWORKS[name].model(), str(path), operators, per_channel=channels, weight_type=kind)
        return onnx.load(path)


def _saved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as onnxruntime saves it with all of its optimizations."""
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "saved.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


@cache
def _plain(name: str) -> Prepared:
    row = NETWORKS[name]
    return prepare(row.model(), row.feeds(2))


def _share(p: Prepared) -> float:
    """The share of the MACs of which some channel can go."""
    macs, full = cost.macs(p.channels), [g.size for g in p.channels.groups]
    return 1.0 - macs.at([0] * len(full)) / macs.at(full)


def _as_prunable_and_exact(name: str, model: onnx.ModelProto) -> None:
    feeds = NETWORKS[name].feeds(2)
    p = prepare(model, feeds)
    # Exporters do not keep the names, but what can go stays the same.
    assert sorted(g.size for g in p.channels.groups) == sorted(g.size for g in _plain(name).channels.groups)
    assert _share(p) == pytest.approx(_share(_plain(name)), abs=0.01)
    assert _share(p) > 0.9
    keep = random_keep(p.channels, 0)
    small = sliced(p, keep)
    found = checks.exactness(model, p.normalised.proto, small, masked(p, keep), feeds, [NETWORKS[name].feeds(3)])
    assert found.normalised <= 1e-5
    assert found.slice <= 1e-5
    assert not any("Integer" in n.op_type or n.op_type.startswith(("QLinear", "QGemm")) for n in small.graph.node)


@pytest.mark.parametrize(("name", "kind", "form"), STATIC)
def test_static(name: str, kind: str, form: Any):
    """Fails where a layer with given scales keeps channels that it lost as a layer on numbers, or loses others."""
    _as_prunable_and_exact(name, _static(name, kind, form))


@pytest.mark.parametrize(("name", "kind", "channels"), DYNAMIC)
def test_dynamic(name: str, kind: Any, channels: bool):
    """Fails where a layer whose scale is taken at run time does."""
    _as_prunable_and_exact(name, _dynamic(name, kind, channels))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("convolutions", lambda: _static("convolutions", "u8s8", QuantFormat.QDQ)),
        ("convolutions", lambda: _static("convolutions", "s8s8", QuantFormat.QOperator)),
        ("convolutions", lambda: _dynamic("convolutions", _U8, False)),
        ("recurrent", lambda: _dynamic("recurrent", _S8, True)),
    ],
)
def test_as_onnxruntime_saves_it(name: str, model: Any):
    """Fails where what onnxruntime makes of a quantized network when it loads it, with channels last, cannot go."""
    _as_prunable_and_exact(name, _saved(model()))


@pytest.mark.parametrize("kind", ["u8s8", "u8u8"])
def test_onnxruntime_makes_the_same_kernels_of_it(kind: str):
    """Fails where the result would take longer than the operators on codes did, or give other codes."""
    model = _saved(_static("convolutions", kind, QuantFormat.QOperator))
    feeds = NETWORKS["convolutions"].feeds(16)
    written = prepare(model, NETWORKS["convolutions"].feeds(2)).normalised.proto
    assert _operators(_saved(written)) == _operators(_saved(model))
    got, expected = (Session(m).run(feeds)["y"] for m in (written, model))
    if not saturates():  # else what is written is computed by other kernels
        np.testing.assert_array_equal(got, expected)


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(f"{n.domain}.{n.op_type}" for n in model.graph.node)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("convolutions", lambda: _static("convolutions", "u8s8", QuantFormat.QOperator)),
        ("convolutions", lambda: _dynamic("convolutions", _U8, False)),
        ("perceptron", lambda: _dynamic("perceptron", _S8, True)),
        ("recurrent", lambda: _dynamic("recurrent", _S8, True)),
    ],
)
def test_from_one_end_to_the_other(name: str, model: Any):
    """Fails where selection, refit or a check of the result does not know what stands for an operator on codes."""
    result = prune(model(), None, NETWORKS[name].feeds(32), ratio=0.3, round_to=1, fast=True)
    assert result.model is not None
    assert result.report.achieved >= 0.3
    assert result.report.checks["slice_against_oracle"] <= 1e-5
