"""States that a model is fed back: units behind them go, the interface stays, slice and oracle agree step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray

from onnxprune import prune
from onnxprune.channels import ChannelGraph, build
from onnxprune.evaluation import evaluate
from onnxprune.graph import protobuf
from onnxprune.normalise import Normalised, normalise
from onnxprune.normalise.states import with_gathers
from onnxprune.runtime.session import Session
from onnxprune.surgery import cut, finish
from onnxprune.verification.oracle import masked_model
from tests.compare import assert_same
from tests.prepared import random_keep

Array = NDArray[Any]
States = Sequence[tuple[str, str]]
H, STEPS = 12, 4


def normal(*shape: int) -> Array:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) / 3).astype(np.float32)


def model(text: str, opset: int = 17, **weights: Array) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    return proto


def stacked(op: str) -> onnx.ModelProto:
    """Two recurrent layers with the states of both in one tensor, as exporters write them."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    more = {"LSTM": (", float[2, N, 12] c", ", float[2, N, 12] cn"), "GRU": ("", ""), "RNN": ("", "")}[op]
    layers, weights = [], {}
    for k in range(2):
        source = "x" if k == 0 else "s0"
        given, gets = f", h{k}", f"y{k}, hn{k}"
        layers.append(f"h{k} = Slice(h, at{k}, at{k + 1}, zero)")
        if op == "LSTM":
            layers.append(f"c{k} = Slice(c, at{k}, at{k + 1}, zero)")
            given, gets = f"{given}, c{k}", f"{gets}, cn{k}"
        layers.append(f"{gets} = {op}<hidden_size = {H}>({source}, w{k}, r{k}, b{k}, none{given})")
        layers.append(f"s{k} = Squeeze(y{k}, one)")
        width = 5 if k == 0 else H
        weights |= {f"w{k}": normal(1, gates * H, width), f"r{k}": normal(1, gates * H, H)}
        weights[f"b{k}"] = normal(1, 2 * gates * H)
    joined = "hn = Concat<axis = 0>(hn0, hn1)" + (" cn = Concat<axis = 0>(cn0, cn1)" if op == "LSTM" else "")
    text = " ".join(layers).replace("none", '""')
    places: dict[str, Array] = {f"at{k}": np.array([k]) for k in range(3)}
    return model(
        f"""g (float[T, N, 5] x, float[2, N, 12] h{more[0]}) => (float[T, N, 3] y, float[2, N, 12] hn{more[1]}) {{
            {text} {joined} y = MatMul(s1, v)
        }}""".replace('""', "_none"),
        v=normal(H, 3),
        one=np.array([1]),
        zero=np.array([0]),
        **places,
        **weights,
    )


def without_names(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The parser has no way to leave an input out."""
    for n in proto.graph.node:
        n.input[:] = ["" if i == "_none" else i for i in n.input]
    return proto


PLAIN = """g (float[N, 5] x, float[1, N, 12] h) => (float[N, 3] y, float[1, N, 12] hn) {
    a = MatMul(x, wa)  b = MatMul(h, wb)  c = Add(a, b)  hn = Tanh(c)  q = Squeeze(hn, zero)
    d = MatMul(q, w1)  e = Relu(d)  y = MatMul(e, w2)
}"""
PLAIN_WEIGHTS = {"wa": normal(5, H), "wb": normal(H, H), "w1": normal(H, 9), "w2": normal(9, 3)}
CASES: dict[str, tuple[onnx.ModelProto, States, Mapping[str, tuple[int, ...]], int]] = {
    "LSTM": (
        without_names(stacked("LSTM")),
        [("hn", "h"), ("cn", "c")],
        {"x": (3, 2, 5), "h": (2, 2, H), "c": (2, 2, H)},
        2,
    ),
    "GRU": (without_names(stacked("GRU")), [("hn", "h")], {"x": (3, 2, 5), "h": (2, 2, H)}, 2),
    "RNN": (without_names(stacked("RNN")), [("hn", "h")], {"x": (3, 2, 5), "h": (2, 2, H)}, 2),
    "plain": (
        model(PLAIN, zero=np.array([0]), **PLAIN_WEIGHTS),
        [("hn", "h")],
        {"x": (2, 5), "h": (1, 2, H)},
        2,
    ),
    # Pad has its amounts as an attribute, Squeeze and Slice their axes.
    "opset 10": (
        model(PLAIN.replace("Squeeze(hn, zero)", "Squeeze<axes = [0]>(hn)"), 10, **PLAIN_WEIGHTS),
        [("hn", "h")],
        {"x": (2, 5), "h": (1, 2, H)},
        2,
    ),
    "cache of a convolution": (
        model(
            """g (float[N, 4, S] x, float[N, 8, 2] past) => (float[N, 3, S] y, float[N, 8, 2] present) {
                a = Conv<kernel_shape = [1]>(x, w0)  b = Relu(a)  c = Concat<axis = 2>(past, b)
                present = Slice(c, two, far, axis)  d = Conv<kernel_shape = [3]>(c, w1)  e = Relu(d)
                y = Conv<kernel_shape = [1]>(e, w2)
            }""",
            w0=normal(8, 4, 1),
            w1=normal(6, 8, 3),
            w2=normal(3, 6, 1),
            two=np.array([-2]),
            far=np.array([2**31]),
            axis=np.array([2]),
        ),
        [("present", "past")],
        {"x": (2, 4, 5), "past": (2, 8, 2)},
        2,
    ),
    # One tensor for two units of memory, cut along the axis of the units.
    "two in one": (
        model(
            """g (float[N, 5] x, float[N, 20] s) => (float[N, 3] y, float[N, 20] sn) {
                p, q = Split<axis = 1>(s, sizes)
                a = MatMul(x, wa)  b = MatMul(p, wb)  c = Add(a, b)  pn = Tanh(c)
                d = MatMul(pn, wc)  e = MatMul(q, wd)  f = Add(d, e)  qn = Tanh(f)
                sn = Concat<axis = 1>(pn, qn)  y = MatMul(qn, we)
            }""",
            wa=normal(5, 12),
            wb=normal(12, 12),
            wc=normal(12, 8),
            wd=normal(8, 8),
            we=normal(8, 3),
            sizes=np.array([12, 8]),
        ),
        [("sn", "s")],
        {"x": (2, 5), "s": (2, 20)},
        2,
    ),
    # What is read is not what is written piece by piece: the units of the whole state are one set.
    "shifted": (
        model(
            """g (float[N, 5] x, float[N, 3, 8] s) => (float[N, 3] y, float[N, 3, 8] sn) {
                late = Slice(s, one, far, one)  a = MatMul(x, wa)  b = Relu(a)  c = Unsqueeze(b, one)
                sn = Concat<axis = 1>(late, c)  m = ReduceMean<axes = [1], keepdims = 0>(sn)  y = MatMul(m, wb)
            }""",
            wa=normal(5, 8),
            wb=normal(8, 3),
            one=np.array([1]),
            far=np.array([2**31]),
        ),
        [("sn", "s")],
        {"x": (2, 5), "s": (2, 3, 8)},
        1,
    ),
    # A part of the state is handed on as it is, by one who reads it too.
    "part unchanged": (
        model(
            """g (float[N, 5] x, float[N, 20] s) => (float[N, 3] y, float[N, 20] sn) {
                p, q = Split<axis = 1>(s, sizes)
                a = MatMul(x, wa)  b = MatMul(p, wb)  c = Add(a, b)  pn = Tanh(c)  d = MatMul(q, wd)
                sn = Concat<axis = 1>(pn, q)  e = MatMul(pn, we)  y = Add(d, e)
            }""",
            wa=normal(5, 12),
            wb=normal(12, 12),
            wd=normal(8, 3),
            we=normal(12, 3),
            sizes=np.array([12, 8]),
        ),
        [("sn", "s")],
        {"x": (2, 5), "s": (2, 20)},
        1,
    ),
    # Keys and values of all steps so far: heads and their positions.
    "past of attention": (
        model(
            """g (float[N, T, 12] x, float[N, 3, P, 4] k, float[N, 3, P, 4] v)
               => (float[N, T, 5] y, float[N, 3, Q, 4] kn, float[N, 3, Q, 4] vn) {
                q0 = MatMul(x, wq)  q1 = Reshape(q0, heads)  q = Transpose<perm = [0, 2, 1, 3]>(q1)
                k0 = MatMul(x, wk)  k1 = Reshape(k0, heads)  k2 = Transpose<perm = [0, 2, 1, 3]>(k1)
                v0 = MatMul(x, wv)  v1 = Reshape(v0, heads)  v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
                kn = Concat<axis = 2>(k, k2)  vn = Concat<axis = 2>(v, v2)  kt = Transpose<perm = [0, 1, 3, 2]>(kn)
                s = MatMul(q, kt)  p = Softmax(s)  o = MatMul(p, vn)  o1 = Transpose<perm = [0, 2, 1, 3]>(o)
                o2 = Reshape(o1, flat)  y = MatMul(o2, wo)
            }""",
            wq=normal(12, 12),
            wk=normal(12, 12) / 2,
            wv=normal(12, 12) / 3,
            wo=normal(12, 5),
            heads=np.array([0, 0, 3, 4]),
            flat=np.array([0, 0, 12]),
        ),
        [("kn", "k"), ("vn", "v")],
        {"x": (2, 2, 12), "k": (2, 3, 3, 4), "v": (2, 3, 3, 4)},
        1,
    ),
}


def prepared(name: str) -> tuple[onnx.ModelProto, Normalised, ChannelGraph, dict[str, Array]]:
    proto, states, shapes, _ = CASES[name]
    rng = np.random.default_rng(0)
    feeds = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    n = with_gathers(normalise(proto, feeds), states)
    view = protobuf.view(n.proto, n.shapes, n.known_values, n.binding, n.free, states=n.states)
    return proto, n, build(view), feeds


@pytest.mark.parametrize("name", CASES)
def test_slice_and_oracle_agree_step_by_step(name: str):
    """Fails where an entry of a unit that went is read or written, one of a unit that stays has another place, or the
    two differ once they are fed their own states. The first state is none that the model makes."""
    proto, n, channels, feeds = prepared(name)
    _, states, _, groups = CASES[name]
    assert len(channels.groups) == groups
    rng = np.random.default_rng(1)
    for seed in range(3):
        keep = random_keep(channels, seed)
        sliced = finish(cut(n.proto, channels, keep), n, channels, keep)
        onnx.checker.check_model(sliced, full_check=True)
        assert [v.SerializeToString() for v in (*sliced.graph.input, *sliced.graph.output)] == [
            v.SerializeToString() for v in (*proto.graph.input, *proto.graph.output)
        ]
        narrow, whole = Session(sliced), Session(masked_model(n.proto, channels, keep, n.types))
        now = {"narrow": dict(feeds), "whole": dict(feeds)}
        for _ in range(STEPS):
            a, b = narrow.run(now["narrow"]), whole.run(now["whole"])
            for o, expected in b.items():
                assert_same(a[o], expected, rtol=1e-4, atol=1e-5)
            more = {"x": rng.standard_normal(feeds["x"].shape).astype(np.float32)}
            now = {k: {**more, **{i: y[o] for o, i in states}} for k, y in (("narrow", a), ("whole", b))}
        gone = [s for s in n.states if s.written and any(not keep[f].all() for f in channels.factors[s.units])]
        assert gone and all((a[s.state[0]] == 0).any() for s in gone)


@pytest.mark.parametrize("name", ["LSTM", "past of attention"])
def test_what_the_first_state_holds_for_units_that_went_is_not_read(name: str):
    """Fails where the slice reads an entry that it writes as zero."""
    _, n, channels, feeds = prepared(name)
    keep = random_keep(channels, 0)
    session = Session(cut(n.proto, channels, keep))
    written = session.run(feeds)
    for s in n.states:
        if s.written:
            o, i = s.state
            zero = (written[o] == 0).all(axis=tuple(a for a in range(written[o].ndim) if a != s.axis))
            other = feeds[i].copy()
            other[(slice(None),) * s.axis + (zero,)] = np.nan
            again = session.run({**feeds, i: other})
            assert_same(again["y"], written["y"], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", CASES)
def test_where_nothing_went_the_model_is_as_it_was(name: str):
    """Fails where a Gather or its indices stay that give all that they read, or a tensor keeps the name that it had
    meanwhile."""
    _, n, channels, _ = prepared(name)
    assert n.states
    keep = np.ones(channels.classes.pinned.size, bool)
    proto, _, shapes, _ = CASES[name]
    before = normalise(proto, {k: np.zeros(s, np.float32) for k, s in shapes.items()})
    view = protobuf.view(before.proto, before.shapes, before.known_values, before.binding, before.free)
    plain = build(view)
    every = np.ones(plain.classes.pinned.size, bool)
    a = finish(cut(n.proto, channels, keep), n, channels, keep)
    b = finish(cut(before.proto, plain, every), before, plain, every)
    assert sorted(n.SerializeToString() for n in a.graph.node) == sorted(n.SerializeToString() for n in b.graph.node)
    assert {t.name for t in a.graph.initializer} == {t.name for t in b.graph.initializer}


def test_what_nobody_calls_a_state_keeps_its_units():
    """Fails where an input and an output are taken for a state by themselves."""
    proto, _, shapes, _ = CASES["plain"]
    n = with_gathers(normalise(proto, {k: np.zeros(s, np.float32) for k, s in shapes.items()}), [])
    channels = build(protobuf.view(n.proto, n.shapes, n.known_values, n.binding, n.free))
    assert len(channels.groups) == 1 and not n.states


def test_what_a_state_writes_is_not_an_output_that_others_read():
    """Fails where the zeros of a state reach another output, or a node inside."""
    proto = model(
        PLAIN.replace("float[1, N, 12] hn)", "float[1, N, 12] hn, float[N, 12] q)"), zero=np.array([0]), **PLAIN_WEIGHTS
    )
    feeds = {"x": normal(2, 5), "h": normal(1, 2, H)}
    n = with_gathers(normalise(proto, feeds), [("hn", "h")])
    channels = build(protobuf.view(n.proto, n.shapes, n.known_values, n.binding, n.free, states=n.states))
    assert not any(g.size == H for g in channels.groups)
    assert_same(Session(n.proto).run(feeds)["q"], Session(proto).run(feeds)["q"], rtol=1e-5, atol=1e-6)


def test_a_run_with_states(tmp_path: Path):
    """Fails where the units of a state are not cut, the report does not say what its entries are, they count as an
    error, or a plan does not replay."""
    onnx.save(CASES["plain"][0], tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(2).standard_normal((96, 5)).astype(np.float32))
    result = prune(
        tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "x.npz", ratio=0.6, state=("hn=h",), fast=True
    )
    assert any(
        n == "the entries of removed units in state hn=h are zeros: they are written so, and not read"
        for n in result.report.notes
    )
    figures = {tuple(f["outputs"]): f for f in result.report.outputs}
    assert figures["hn",]["kind"] == "not measured" and figures["y",]["value"] is not None
    again = prune(tmp_path / "in.onnx", None, tmp_path / "x.npz", from_plan=result.plan)
    assert again.report.after.macs == result.report.after.macs
    judged = evaluate(tmp_path / "out.onnx", tmp_path / "x.npz", against=tmp_path / "in.onnx", state=("hn=h",))
    assert judged.figures is not None
    assert [f.kind for f in judged.figures.each if f.outputs == ("hn",)] == ["not measured"]
