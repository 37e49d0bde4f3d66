"""Models whose weights onnxruntime packs in blocks of codes, from one end to the other."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune import PruneResult, prune
from onnxprune.errors import CheckFailed
from onnxprune.graph import protobuf
from onnxprune.graph.unrounded import in_full_accuracy
from onnxprune.pipeline import inspect
from onnxprune.runtime.session import Session
from onnxprune.stages import finish
from tests.topologies.text import Topology

quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")

PERCEPTRON = Topology(
    """(float[N,32] x) => (float[N,10] y) {
        a = MatMul (x, w1[32,128])
        b = Add (a, b1[128])
        r = Relu (b)
        c = MatMul (r, w2[128,96])
        d = Add (c, b2[96])
        s = Relu (d)
        y = MatMul (s, w3[96,10])
    }""",
    (128, 96),
    opset=17,
)


@cache
def packed(bits: int = 4, *, symmetric: bool = True, level: int = 0, block: int = 16) -> onnx.ModelProto:
    """The perceptron as onnxruntime packs it."""
    made = quantizer.MatMulNBitsQuantizer(
        PERCEPTRON.model(), bits=bits, block_size=block, is_symmetric=symmetric, accuracy_level=level
    )
    made.process()
    found: onnx.ModelProto = made.model.model
    return found


def data(count: int = 256) -> dict[str, NDArray[Any]]:
    """Samples that lie mostly in a few directions."""
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((32, 32)) * np.linspace(1.0, 0.05, 32)
    return {"x": (rng.standard_normal((count, 32)) @ mixed).astype(np.float32)}


@cache
def pruned(bits: int = 4, **way: Any) -> PruneResult:
    return prune(packed(bits, **way), None, data(), ratio=0.3, fast=True)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


@pytest.mark.parametrize(("bits", "symmetric", "level"), [(4, True, 4), (4, False, 0), (8, True, 0), (8, False, 4)])
def test_a_packed_model_is_pruned_and_stays_packed(bits: int, symmetric: bool, level: int):
    """Fails where a layer comes out in another form, or bits, or with an accuracy that nobody asked for."""
    original = packed(bits, symmetric=symmetric, level=level)
    result = pruned(bits, symmetric=symmetric, level=level)
    small = result.model
    assert small is not None
    assert result.report.checks["normalised_against_original"] <= 1e-5
    assert result.report.checks["slice_against_oracle"] <= 1e-5
    assert result.report.achieved >= 0.3
    assert operators(small) == operators(original)
    assert protobuf.parameters(small) == result.report.after.parameters < result.report.before.parameters
    assert result.report.before.parameters == protobuf.parameters(original) == inspect(original).parameters
    before = {t.name: t for t in original.graph.initializer}
    for t in small.graph.initializer:
        assert t.data_type == before[t.name].data_type
    for was, now in zip(original.graph.node, small.graph.node, strict=True):
        if now.op_type == "MatMulNBits":
            sizes = {a.name: a.i for a in now.attribute}
            assert {**{a.name: a.i for a in was.attribute}, "K": sizes["K"], "N": sizes["N"]} == sizes
            assert list(was.input) == list(now.input)
            assert sizes["K"] % 16 == 0
    y, whole = (Session(m).run(data(64))["y"] for m in (small, original))
    assert np.abs(y - whole).mean() <= 0.35 * np.abs(whole).std()


def test_what_is_left_is_fitted():
    """Fails where packed weights are only sliced."""
    sliced = prune(packed(), None, data(), ratio=0.3, fast=True, refit="none")
    assert pruned().report.output_error is not None
    assert sliced.report.output_error is not None
    assert pruned().report.output_error < 0.8 * sliced.report.output_error


def test_fitted_weights_that_are_packed_wrongly_are_caught(monkeypatch: pytest.MonkeyPatch):
    """Fails where the fitted weights are packed otherwise than those that the check of the slice saw."""
    real, calls = finish.in_form, []

    def spoiled(*args: Any, **options: Any) -> onnx.ModelProto:
        model = real(*args, **options)
        calls.append(model)
        if len(calls) == 1:  # the one that is fitted
            codes = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8)
            other = numpy_helper.to_array(codes).copy()
            other[2].flat[0] ^= 1
            codes.CopyFrom(numpy_helper.from_array(other, codes.name))
        return model

    monkeypatch.setattr(finish, "in_form", spoiled)
    with pytest.raises(CheckFailed, match="the model to write differs from the fitted slice"):
        prune(packed(), None, data(), ratio=0.3, fast=True)
    assert len(calls) == 2


def test_half_precision(monkeypatch: pytest.MonkeyPatch):
    """Fails where scales in float16 come back in another type."""
    half = onnx.ModelProto()
    half.CopyFrom(packed())
    for t in half.graph.initializer:
        if t.data_type == onnx.TensorProto.FLOAT:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name))
    for v in (*half.graph.input, *half.graph.output):
        v.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    result = prune(half, None, {"x": data()["x"].astype(np.float16)}, ratio=0.3, fast=True)
    assert result.model is not None
    assert operators(result.model) == operators(half)
    assert {t.data_type for t in result.model.graph.initializer} == {
        onnx.TensorProto.UINT8,
        onnx.TensorProto.FLOAT16,
    }


def test_a_product_in_a_body():
    """Fails where packed weights of a branch are left unpacked, or where the branches do not share theirs any more."""
    model = onnx.ModelProto.FromString(packed().SerializeToString())
    nodes = list(model.graph.node)
    place = [k for k, n in enumerate(nodes) if n.op_type == "MatMulNBits"][1]
    branches = []
    for name in ("t", "e"):
        inner = onnx.NodeProto.FromString(nodes[place].SerializeToString())
        inner.output[0] = inner.name = name
        info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        branches.append(onnx.helper.make_graph([inner], name, [], [info]))
    instead = [
        onnx.helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        onnx.helper.make_node("Greater", ["total", "zero"], ["positive"]),
        onnx.helper.make_node(
            "If", ["positive"], list(nodes[place].output), then_branch=branches[0], else_branch=branches[1]
        ),
    ]
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (*nodes[:place], *instead, *nodes[place + 1 :])]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    small = prune(model, None, data(), ratio=0.3, fast=True).model
    assert small is not None
    assert operators(small) == operators(model)
    [choice] = (n for n in small.graph.node if n.op_type == "If")
    inside = [n for a in choice.attribute for n in a.g.node]
    assert [n.op_type for n in inside] == ["MatMulNBits"] * 2
    assert inside[0].input[1] == inside[1].input[1]
    assert {t.name for t in small.graph.initializer} == {t.name for t in model.graph.initializer}


def test_full_accuracy_is_that_of_the_weights():
    """Fails where a kernel that rounds what it multiplies is taken for the model itself."""
    rounds, plain = packed(level=4), packed(level=0)
    assert in_full_accuracy(plain) is plain
    y = Session(in_full_accuracy(rounds)).run(data(8))["y"]
    np.testing.assert_array_equal(y, Session(plain).run(data(8))["y"])
    assert any(a.name == "accuracy_level" and a.i == 4 for n in rounds.graph.node for a in n.attribute)
