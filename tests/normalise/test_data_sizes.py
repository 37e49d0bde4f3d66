"""Sizes that data decide: what came out the same for the samples at hand is not taken for the same for others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.normalise import normalise, sizes
from onnxprune.runtime.session import Session
from tests.topologies.text import Array, Topology

# One feature of the input is large in what is measured; how many there are decides a length.
HEAD = "(float[N,T,12] x) => (float[A,P,5] y)"
MANY = """
    a = MatMul(x, w1[12,8])
    r = Relu(a)
    top = ReduceMax <keepdims=0> (x, ax{0,1})
    big = Greater(top, lim{:9.0})"""
VIEW = """
    q = MatMul(cut, w2[8,5])
    n = Shape <start=1, end=2> (cut)
    t = Concat <axis=0> (rest{-1}, n, five{5})
    y = Reshape(q, t)"""
# What is counted in front of a branch, or inside it.
IN_A_BRANCH = f"""{MANY}
        least = ReduceMin <keepdims=0> (x)
        yes = Greater(least, low{{:-100.0}})
        %s
        y = If (yes) <
            then_branch = some () => (float[A,P,5] ty) {{
                %s
                n1 = Shape <start=1, end=2> (at)
                cut = Slice(r, from{{0}}, n1, along{{1}})
                q = MatMul(cut, w2[8,5])
                n = Shape <start=1, end=2> (cut)
                t = Concat <axis=0> (rest{{-1}}, n, five{{5}})
                ty = Reshape(q, t)
            }},
            else_branch = all () => (float[N,B,5] ey) {{ ey = MatMul(r, w3[8,5]) }}
        >"""
GRAPHS = {
    "nonzero": f"""{MANY}
        at = NonZero(big)
        n1 = Shape <start=1, end=2> (at)
        cut = Slice(r, from{{0}}, n1, along{{1}}) {VIEW}""",
    "compress": f"""{MANY}
        kept = Compress <axis=0> (top, big)
        n1 = Shape(kept)
        cut = Slice(r, from{{0}}, n1, along{{1}}) {VIEW}""",
    "unique": f"""{MANY}
        tens = Mul(top, tenth{{.,0.1}})
        up = Relu(tens)
        whole_ = Floor(up)
        u, u1, u2, u3 = Unique (whole_)
        both = Shape(u)
        n1 = Sub(both, one{{1}})
        cut = Slice(r, from{{0}}, n1, along{{1}}) {VIEW}""",
    "boxes": f"""{MANY}
        one = Cast <to=1> (big)
        s = Unsqueeze(one, first{{0,1}})
        k = Shape(top)
        l = Squeeze(k)
        p = Range(zero{{:0}}, l, step{{:1}})
        pf = Cast <to=1> (p)
        from_ = Mul(pf, apart{{:4.0}})
        to_ = Add(from_, side{{:1.0}})
        b1 = Unsqueeze(from_, last{{1}})
        b2 = Unsqueeze(to_, last{{1}})
        b = Concat <axis=1> (b1, b1, b2, b2)
        boxes = Unsqueeze(b, whole{{0}})
        kept = NonMaxSuppression(boxes, s, most{{100}}, over{{.,0.5}}, least{{.,0.5}})
        n1 = Shape <start=0, end=1> (kept)
        cut = Slice(r, from{{0}}, n1, along{{1}}) {VIEW}""",
    "bounds": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=1> (ones, whole{{0}})
        cut = Slice(r, from{{0}}, n1, along{{1}}) {VIEW}""",
    "range": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=0> (ones, whole{{0}})
        rows = Range(zero{{:0}}, n1, step{{:1}})
        cut = Gather <axis=1> (r, rows) {VIEW}""",
    "best": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=1> (ones, whole{{0}})
        cut, i = TopK <axis=1> (r, n1) {VIEW}""",
    "turns": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=0> (ones, whole{{0}})
        start = ReduceMean <keepdims=0> (r, whole1{{1}})
        last, rows = Loop (n1, , start) <
            body = turn (int64 i, bool c, float[N,8] s) => (bool c2, float[N,8] s2, float[N,8] o) {{
            c2 = Identity(c)
            s2 = Add(s, s)
            o = Identity(s)
        }}>
        cut = Transpose <perm=[1,0,2]> (rows) {VIEW}""",
    "growing": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=0> (ones, whole{{0}})
        row = Slice(r, from{{0}}, to{{1}}, along{{1}})
        cut = Loop (n1, , row) <body = turn (int64 i, bool c, float[N,R,8] s) => (bool c2, float[N,S,8] s2) {{
            c2 = Identity(c)
            s2 = Concat <axis=1> (s, row)
        }}> {VIEW}""",
    "until": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=0> (ones, whole{{0}})
        row = Slice(r, from{{0}}, to{{1}}, along{{1}})
        yes = Greater(n1, none{{:0}})
        cut = Loop (, yes, row) <body = turn (int64 i, bool c, float[N,R,8] s) => (bool c2, float[N,S,8] s2) {{
            i1 = Add(i, step{{:1}})
            c2 = Less(i1, n1)
            s2 = Concat <axis=1> (s, row)
        }}> {VIEW}""",
    "inside_a_branch": IN_A_BRANCH % ("", "at = NonZero(big)"),
    "in_front_of_a_branch": IN_A_BRANCH % ("at = NonZero(big)", ""),
    "range_in_a_branch": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=0> (ones, whole{{0}})
        least = ReduceMin <keepdims=0> (x)
        yes = Greater(least, low{{:-100.0}})
        rows = If (yes) <
            then_branch = some () => (int64[A] some) {{ some = Range(zero{{:0}}, n1, step{{:1}}) }},
            else_branch = all () => (int64[B] all) {{ all = Range(zero, n1, step) }}
        >
        cut = Gather <axis=1> (r, rows) {VIEW}""",
    "range_in_a_loop": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=0> (ones, whole{{0}})
        on = Constant <value = bool {{1}}> ()
        rows = Loop (twice{{:2}}, on, none{{0}}) <
            body = turn (int64 i, bool c, int64[R] s) => (bool c2, int64[S] s2) {{
                c2 = Identity(c)
                s2 = Range(zero{{:0}}, n1, step{{:1}})
            }}
        >
        cut = Gather <axis=1> (r, rows) {VIEW}""",
    "range_in_a_scan": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=0> (ones, whole{{0}})
        each = Scan <num_scan_inputs = 1, body = turn (int64 s) => (int64[S] o) {{
            o = Range(zero{{:0}}, n1, step{{:1}})
        }}> (few{{0,1}})
        rows = ReduceMax <keepdims=0> (each, whole)
        cut = Gather <axis=1> (r, rows) {VIEW}""",
    "loop_in_a_branch": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=0> (ones, whole{{0}})
        least = ReduceMin <keepdims=0> (x)
        yes = Greater(least, low{{:-100.0}})
        on = Constant <value = bool {{1}}> ()
        rows = If (yes) <
            then_branch = some () => (int64[A] some) {{
                some = Loop (n1, on) <body = turn (int64 i, bool c) => (bool c2, int64 o) {{
                    c2 = Identity(c)
                    o = Identity(i)
                }}>
            }},
            else_branch = all () => (int64[B] all) {{ all = Range(zero{{:0}}, n1, step{{:1}}) }}
        >
        cut = Gather <axis=1> (r, rows) {VIEW}""",
    "contributed_range": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=0> (ones, whole{{0}})
        rows = com.microsoft.Range(zero{{:0}}, n1, step{{:1}})
        cut = Gather <axis=1> (r, rows) {VIEW}""",
    "picked_from_a_sequence": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=0> (ones, whole{{0}})
        few = SequenceConstruct(one_{{0}}, two_{{0,1}}, three_{{0,1,2}})
        most = Min(n1, two{{:2}})
        before = Sub(most, step{{:1}})
        rows = SequenceAt(few, before)
        cut = Gather <axis=1> (r, rows) {VIEW}""",
    "joined_from_a_sequence": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=0> (ones, whole{{0}})
        on = Constant <value = bool {{1}}> ()
        nothing = SequenceEmpty <dtype=7> ()
        parts = Loop (n1, on, nothing) <
            body = turn (int64 i, bool c, seq(int64[A]) s) => (bool c2, seq(int64[B]) s2) {{
                c2 = Identity(c)
                row = Unsqueeze(i, whole)
                s2 = SequenceInsert(s, row)
            }}
        >
        rows = ConcatFromSequence <axis=0> (parts)
        cut = Gather <axis=1> (r, rows) {VIEW}""",
    "either": f"""{MANY}
        ones = Cast <to=7> (big)
        n1 = ReduceSum <keepdims=0> (ones, whole{{0}})
        more = Greater(n1, only{{:1}})
        cut = If (more) <
            then_branch = two () => (float[N,B,8] two) {{ two = Slice(r, from{{0}}, to2{{2}}, along{{1}}) }},
            else_branch = one () => (float[N,C,8] one) {{ one = Slice(r, from{{0}}, to1{{1}}, along{{1}}) }}
        > {VIEW}""",
}


def _model(name: str) -> onnx.ModelProto:
    return Topology(f"{HEAD} {{{GRAPHS[name]}}}", (), domains=("com.microsoft",)).model()


def _feeds(large: int, length: int = 16, samples: int = 2) -> dict[str, Array]:
    """Samples of which so many features are large, each in its own way."""
    x = np.random.default_rng(large).standard_normal((samples, length, 12)).astype(np.float32)
    x[:, :, :large] = 10.0 * np.arange(1, large + 1)
    return {"x": x}


def _agree(model: onnx.ModelProto, found: onnx.ModelProto) -> None:
    expected, got = (Session(p, optimize=False) for p in (model, found))
    sizes_seen = set()
    for large in (1, 2, 3, 5):
        for length in (16, 23):
            y, z = (s.run(_feeds(large, length))["y"] for s in (expected, got))
            assert z.shape == y.shape, (large, length)
            np.testing.assert_array_equal(z, y)
            sizes_seen.add(y.shape)
    assert len(sizes_seen) > 1


@pytest.mark.parametrize("name", GRAPHS)
def test_what_data_decide_is_no_constant(name: str):
    """Fails where a length that all measured samples share is taken for one of all samples."""
    model = _model(name)
    _agree(model, normalise(model, _feeds(1)).proto)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_comparison_sees_a_frozen_length(name: str, monkeypatch: pytest.MonkeyPatch):
    """Fails where the samples above do not tell: with data taken to decide nothing, the normal form must differ."""
    monkeypatch.setattr(sizes, "sizes_by_data", lambda *_: [])
    monkeypatch.setattr(sizes, "other_ways", lambda *_: ([], set()))
    monkeypatch.setattr(sizes, "limited", lambda *_: [])  # which sees some of the bodies too
    model = _model(name)
    with pytest.raises(AssertionError):
        _agree(model, normalise(model, _feeds(1)).proto)
