"""Inputs with a default: callers may give other values for what they could give others for before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from onnxprune import inspect, prune
from onnxprune.graph.protobuf import copied
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.topologies.text import Topology

ROW = Topology(
    """(float[N,6] x) => (float[N,4] y) {
        a = MatMul(x, w1[6,8])
        s = Mul(a, scale[1])
        t = Add(s, shift[8])
        b = Relu(t)
        c = MatMul(b, w2[8,4])
        g = Add(gain{1.5}, one{1.0})
        d = Mul(c, g)
        y = Reshape(d, target{0,-1})
    }""",
    (8,),
)
NAMES = ("w1", "scale", "shift", "w2", "gain", "one", "target")


def _listing(names: Sequence[str], version: int = 8) -> onnx.ModelProto:
    proto = copied(ROW.model())
    proto.ir_version = version
    stored = {t.name: t for t in proto.graph.initializer}
    first = [onnx.helper.make_tensor_value_info(n, stored[n].data_type, stored[n].dims) for n in names]
    given = [*proto.graph.input]
    del proto.graph.input[:]
    proto.graph.input.extend([*first[:1], *given, *first[1:]])
    return proto


def _inputs(proto: onnx.ModelProto | None) -> list[str]:
    assert proto is not None
    return [v.name for v in proto.graph.input]


def _pruned(proto: onnx.ModelProto) -> onnx.ModelProto:
    result = prune(proto, None, ROW.feeds(64), ratio=0.3, round_to=1, fast=True)
    assert result.model is not None
    onnx.checker.check_model(result.model, full_check=True)
    return result.model


@pytest.mark.parametrize("names", [("scale",), ("gain",), ("gain", "scale", "one")], ids="+".join)
def test_what_was_listed_by_choice_can_be_given(names: tuple[str, ...]):
    """Fails where such an input is gone, or its default was folded with something, or stands where others stood."""
    proto = _listing(names)
    pruned = _pruned(proto)
    assert _inputs(pruned) == _inputs(proto)
    x = ROW.feeds(5)
    before, after = Session(proto), Session(pruned)
    kept = {n: onnx.numpy_helper.to_array(t) for t in pruned.graph.initializer for n in [t.name] if n in names}
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert {n: v.tolist() for n, v in kept.items()} == {n: stored[n].tolist() for n in names}
    zero = {n: np.zeros_like(kept[n]) for n in names}
    tripled = {n: 3 * kept[n] for n in names}
    base = after.run(x)["y"]
    assert_same(after.run({**x, **kept})["y"], base, rtol=0, atol=0)
    moved = after.run({**x, **tripled})["y"]
    assert np.abs(moved - base).max() > 0.1 * np.abs(base).max()
    if names == ("gain",):  # 3 * 1.5 + 1 instead of 1.5 + 1
        assert_same(moved, base * np.float32(5.5 / 2.5), rtol=1e-6, atol=0)
    assert before.run({**x, **zero})["y"].shape == after.run({**x, **zero})["y"].shape


def test_a_vector_that_belongs_to_channels_keeps_them():
    """Fails where callers could no longer give as many values as before."""
    found = inspect(_listing(("shift",)))
    assert [g for g in found.groups if g.units > 1] == []


def test_weights_stay_inputs_where_they_are_as_they_were():
    """Fails where a cut weight is offered, or a whole one is not, or one whose effect was folded elsewhere."""
    proto = _listing(NAMES)
    result = prune(proto, None, ROW.feeds(64), uniform=0.5, round_to=1, refit="none")
    assert _inputs(result.model) == ["x", "scale"]
    (note,) = (n for n in result.report.notes if "inputs no longer" in n)
    assert "w1, shift, w2 and 3 more" in note
    first = _listing(("w2", "w1"))
    assert _inputs(_pruned(first)) == ["x"]


def test_inputs_beside_weights_in_nodes_are_no_habit():
    """Fails where all initializers are inputs, as weights are stored in nodes, and are taken for weights."""
    proto = _listing(("gain", "target"))
    stored = {t.name: t for t in proto.graph.initializer}
    inside = [n for n in stored if n not in ("gain", "target")]
    nodes = [onnx.helper.make_node("Constant", [], [n], value=stored[n]) for n in inside]
    nodes += [onnx.NodeProto.FromString(n.SerializeToString()) for n in proto.graph.node]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(stored[n] for n in ("gain", "target"))
    pruned = _pruned(proto)
    assert _inputs(pruned) == ["gain", "x", "target"]
    feeds = {**ROW.feeds(4), "gain": np.array([-2.0], np.float32), "target": np.array([-1, 2], np.int64)}
    assert Session(pruned).run(feeds)["y"].shape == (8, 2)


def test_before_version_4_the_list_says_nothing():
    """Fails where what onnxruntime does not take from callers keeps anything from being cut."""
    assert _inputs(_pruned(_listing(NAMES, version=3))) == ["x"]


@pytest.mark.parametrize("names", [("sx",), ("sh", "sy"), ("sw", "sx")], ids="+".join)
def test_scales_of_operators_on_codes_stay_inputs(names: tuple[str, ...]):
    """Fails where a scale is lost, as the nodes that stand for such an operator read it, or where it counts no more."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 6] x) => (float[N, 4] y) {
        c = QuantizeLinear(x, sx, z)  h = QLinearMatMul(c, sx, z, w1, sw, zw, sh, z)
        q = QLinearMatMul(h, sh, z, w2, sw, zw, sy, z)  y = DequantizeLinear(q, sy, z)
    }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    values = {
        **{k: np.array(v, np.float32) for k, v in {"sx": 0.03, "sw": 0.01, "sh": 0.05, "sy": 0.1}.items()},
        **{"z": np.array(128, np.uint8), "zw": np.array(0, np.int8)},
        **{k: rng.integers(-90, 90, s).astype(np.int8) for k, s in {"w1": (6, 8), "w2": (8, 4)}.items()},
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in values.items())
    proto.graph.input.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, []) for n in names)
    x = {"x": rng.standard_normal((64, 6)).astype(np.float32)}
    result = prune(proto, None, x, uniform=0.5, round_to=1, refit="none")
    assert result.model is not None
    assert _inputs(result.model) == ["x", *names]
    assert {len(g.kept) for g in result.plan.groups} == {4}
    session = Session(result.model)
    base = session.run(x)["y"]
    for n in names:
        assert np.abs(session.run({**x, n: np.array(2 * values[n], np.float32)})["y"] - base).max() > 0.05
