"""Fused operators in the result: put back where what stands for them is whole, and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from benchmarks.saved_copies import saved
from onnxprune import prune
from onnxprune.graph.protobuf import copied
from onnxprune.normalise.unfused import unfuse
from onnxprune.runtime.session import Session
from onnxprune.surgery.fused import put_back
from tests.test_saved_copies import NETWORKS
from tests.topologies.text import Topology

TEXT = """(float[N,4,9,9] x, float[N,4] z) => (float[N,6,9,9] y, float[N,6] u) {
    a = com.microsoft.FusedConv <activation="Relu", group=2, pads=[1,1,1,1]> (x, w1[8,2,3,3])
    b = com.microsoft.FusedConv <activation="LeakyRelu", activation_params=[0.1]> (a, w2[6,8,1,1], b2[6])
    y = com.microsoft.FusedConv (b, w3[6,6,1,1], b3[6], b)
    p = com.microsoft.FusedGemm <activation="Elu", activation_alpha=0.5> (z, w4[4,8])
    g = com.microsoft.QuickGelu (p)
    q = com.microsoft.FusedMatMul <transA=1, transB=1, alpha=0.5> (g, g)
    v = com.microsoft.FusedMatMul (g, q)
    f = com.microsoft.BiasGelu (v, b5[8])
    s, , , t = com.microsoft.SkipLayerNormalization (f, p, g6[8], h6[8])
    r = Add (s, t)
    u = MatMul (r, w7[8,6])
}"""
ROW = Topology(TEXT, (), domains=("com.microsoft",), opset=17)


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


def test_what_nothing_has_touched_is_as_it_was():
    """Fails where a fused node does not come back, or with other attributes or inputs, or computes something else."""
    model, feeds = ROW.model(), ROW.feeds(8)
    proto = copied(model)
    unfused = unfuse(proto, feeds)
    assert put_back(proto, unfused.fused) == len(unfused.fused) == 9
    assert [n.op_type for n in proto.graph.node] == [n.op_type for n in model.graph.node]
    for was, now in zip(model.graph.node, proto.graph.node, strict=True):
        assert sorted(a.SerializeToString() for a in was.attribute) == sorted(
            a.SerializeToString() for a in now.attribute
        )
        assert list(was.input) == list(now.input)
    assert {t.name for t in proto.graph.initializer} == {t.name for t in model.graph.initializer}
    expected, got = Session(model).run(feeds), Session(proto).run(feeds)
    for k, y in expected.items():
        np.testing.assert_array_equal(got[k], y)


def test_those_in_bodies_come_back_too():
    """Fails where only the main graph's come back, as its nodes with their bodies are put in again."""
    text = """(float[N,4] x, bool c) => (float[N,4] y) {
        g = com.microsoft.QuickGelu (x)
        y = If (c) <
            then_branch = one () => (float[N,4] t) { t = com.microsoft.QuickGelu (g) },
            else_branch = two () => (float[N,4] e) { e = Relu (g) }
        >
    }"""
    row = Topology(text, (), domains=("com.microsoft",), opset=17)
    model, feeds = row.model(), row.feeds(2)
    proto = copied(model)
    unfused = unfuse(proto, feeds)
    assert put_back(proto, unfused.fused) == 2
    inside = [n.op_type for n in proto.graph.node for a in n.attribute for n in a.g.node]
    assert [n.op_type for n in proto.graph.node] == ["QuickGelu", "If"]
    assert sorted(inside) == ["QuickGelu", "Relu"]


def _bias(proto: onnx.ModelProto) -> None:
    conv = next(n for n in proto.graph.node if n.op_type == "Conv")
    conv.input.append("new")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "new"))


def _read_inside(proto: onnx.ModelProto) -> None:
    relu = next(n for n in proto.graph.node if n.op_type == "Relu")
    proto.graph.node.append(helper.make_node("ReduceSum", [relu.input[0]], ["other"], keepdims=0))
    proto.graph.output.append(helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, []))


def _another_number(proto: onnx.ModelProto) -> None:
    half = next(n for n in proto.graph.node if n.op_type == "Mul" and n.output[0] == "q")
    stored = next(t for t in proto.graph.initializer if t.name == half.input[1])
    stored.CopyFrom(numpy_helper.from_array(np.array(0.25, np.float32), stored.name))


def _another_setting(proto: onnx.ModelProto) -> None:
    next(n for n in proto.graph.node if n.op_type == "Elu").attribute[0].f = 0.7


@pytest.mark.parametrize(
    ("edit", "gone"),
    [(_bias, ""), (_read_inside, "FusedConv"), (_another_number, "FusedMatMul"), (_another_setting, "FusedGemm")],
)
def test_what_was_changed_is_not_undone(edit: Callable[[onnx.ModelProto], None], gone: str):
    """Fails where a fused node takes the place of nodes that compute something else, or that others read."""
    model, feeds = ROW.model(), ROW.feeds(8)
    proto = copied(model)
    unfused = unfuse(proto, feeds)
    edit(proto)
    expected = Session(proto).run(feeds)
    assert put_back(proto, unfused.fused) == 9 - bool(gone)
    before, after = _operators(model), _operators(proto)
    assert {k: n - after[k] for k, n in before.items() if after[k] < n} == ({gone: 1} if gone else {})
    got = Session(proto).run(feeds)
    for k, y in expected.items():
        np.testing.assert_allclose(got[k], y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_copy_is_fused_as_it_was(name: str, tmp_path: Path):
    """Fails where --keep-fused leaves an operator in standard ones though nothing stands in the way."""
    copy = saved(NETWORKS[name].model(), "extended", tmp_path / "copy.onnx")
    out = tmp_path / "out.onnx"
    result = prune(copy, out, None, ratio=0.4, refit="least-squares", samples=8, round_to=1, keep_fused=True)
    written = onnx.load(out)
    fused = {k: n for k, n in _operators(copy).items() if k.startswith(("Fused", "Quick", "Bias", "Skip"))}
    assert fused
    assert {k: _operators(written)[k] for k in fused} == fused
    assert any(note.startswith("--keep-fused") for note in result.report.notes)


PLAIN = Topology(
    "(float[N,6] x) => (float[N,4] y) { a = MatMul(x, w1[6,8])  b = Relu(a)  y = MatMul(b, w2[8,4]) }", (8,)
)


def _on_codes() -> onnx.ModelProto:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 6] x) => (float[N, 4] y) {
        c = QuantizeLinear(x, s, z)  d = QLinearMatMul(c, s, z, w1, s, zw, s, z)
        q = QLinearMatMul(d, s, z, w2, s, zw, s, z)  y = DequantizeLinear(q, s, z)
    }""")
    rng = np.random.default_rng(0)
    values = {"s": np.array(0.05, np.float32), "z": np.array(128, np.uint8), "zw": np.array(0, np.int8)}
    values |= {k: rng.integers(-20, 20, s).astype(np.int8) for k, s in {"w1": (6, 8), "w2": (8, 4)}.items()}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in values.items())
    return proto


@pytest.mark.parametrize(("codes", "why"), [(False, "the model has no operator"), (True, "operators on codes, and")])
def test_that_nothing_was_put_back_is_said(codes: bool, why: str):
    """Fails where --keep-fused is silent."""
    model = _on_codes() if codes else PLAIN.model()
    result = prune(model, None, PLAIN.feeds(64), uniform=0.5, round_to=1, refit="none", keep_fused=True)
    (note,) = (n for n in result.report.notes if n.startswith("--keep-fused"))
    assert note.startswith(f"--keep-fused: nothing was put back: {why}")
