"""Sizes in steps: what is constant at every size that is measured, and is not at others, is never folded."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import RunError
from onnxprune.normalise import normalise
from onnxprune.runtime.session import Session
from tests.topologies.text import Topology

# Measured are lengths of at most a dozen; the steps lie beyond.
LENGTHS = (1, 3, 8, 31, 32, 33, 49, 50, 51, 63, 64, 65, 99, 100, 128)
CUT = "y = Slice (x, from{0}, %s, along{1})"
# At most fifty positions, and the rest filled up again.
LIMITS = {
    "from_the_start": "cut = Slice(x, from{0}, to{50}, along{1})",
    "from_the_end": "cut = Slice(x, from{-50}, to{9223372036854775807}, along{1})",
    "of_a_condition": f"""first = Cast <to=9> (ones{{{",".join(["1"] * 50)}}})
        cut = Compress <axis=1> (x, first)""",
    "of_a_sequence": """parts = SplitToSequence <axis=1> (x, fifty{:50})
        cut = SequenceAt(parts, first{:0})""",
    "in_a_branch": """top = ReduceMax <keepdims=0> (x)
        yes = Greater(top, low{:-100.0})
        cut = If (yes) <
            then_branch = short () => (float[N,A,4] a) { a = Slice(x, from{0}, to{50}, along{1}) },
            else_branch = all () => (float[N,B,4] b) { b = Identity(x) }
        >""",
    "of_a_loop": """up = Squeeze(l)
        yes = Cast <to=9> (one{:1})
        rows = Loop (up, yes) <
            body = row (int64 i, bool c) => (bool go, float[N,4] r) {
                go = Less(i, last{:49})
                r = Gather <axis=1> (x, i)
            }
        >
        cut = Transpose <perm=[1,0,2]> (rows)""",
}
STEPS = {
    "vector_min": """
        s = Shape(x)
        e = Min(s, most{1000,50,1000})
        y = Slice(x, from{0,0,0}, e)""",
    "vector_max": f"""
        s = Shape(x)
        m = Max(s, least{{1,50,1}})
        e = Gather(m, one{{1}})
        {CUT % "e"}""",
    "vector_floor": f"""
        s = Shape(x)
        f = Cast <to=1> (s)
        q = Mul(f, part{{.,1.0,0.02,1.0}})
        down = Floor(q)
        d = Gather(down, one{{1}})
        w = Cast <to=7> (d)
        more = Add(w, eight{{8}})
        {CUT % "more"}""",
    "cast": """
        l = Shape <start=1, end=2> (x)
        f = Cast <to=1> (l)
        q = Mul(f, part{.,0.02})
        w = Cast <to=7> (q)
        y = Slice(x, w, end{1000}, along{1})""",
    "reduce_min": f"""
        l = Shape <start=1, end=2> (x)
        both = Concat <axis=0> (l, fifty{{50}})
        k = ReduceMin <keepdims=1> (both)
        {CUT % "k"}""",
    "relu": """
        l = Shape <start=1, end=2> (x)
        over = Sub(l, fifty{50})
        f = Cast <to=1> (over)
        r = Relu(f)
        p = Cast <to=7> (r)
        pads = Concat <axis=0> (none{0,0,0,0}, p, no{0})
        y = Pad(x, pads)""",
    "modulus": """
        l = Shape <start=1, end=2> (x)
        rest = Mod(l, fifty{50})
        whole = Sub(l, rest)
        y = Slice(x, whole, end{1000}, along{1})""",
    "table": f"""
        l = Shape <start=1, end=2> (x)
        k = Gather(lengths{{{",".join(["8"] * 50 + ["3"] * 100)}}}, l)
        {CUT % "k"}""",
    "sign": """
        l = Shape <start=1, end=2> (x)
        f = Cast <to=1> (l)
        d = Sub(f, limit{.,50.5})
        g = Sign(d)
        w = Cast <to=7> (g)
        two = Add(w, more{2})
        y = Slice(x, two, end{1000}, along{1})""",
    "blocks": """
        b = Shape <start=0, end=1> (x)
        l = Shape <start=1, end=2> (x)
        size = Min(l, most{32})
        count = Div(l, size)
        t = Concat <axis=0> (b, count, size, rest{-1})
        r = Reshape(x, t)
        y = ReduceMax <keepdims=0> (r, along{1})""",
    "copied": """
        b = Shape <start=0, end=1> (x)
        l = Shape <start=1, end=2> (x)
        k = Min(l, most{32})
        t = Concat <axis=0> (b, k, rest{-1})
        y = Reshape(x, t)""",
    "first_positions": """
        cut = Slice(x, from{0}, to{8}, along{1})
        s = Shape(cut)
        k = Gather(s, one{1})
        e = Add(k, k)
        y = Slice(x, from2{0}, e, along2{1})""",
    "last_positions": """
        cut = Slice(x, from{-8}, to{1000}, along{1})
        k = Shape <start=1, end=2> (cut)
        e = Add(k, k)
        y = Slice(x, from2{0}, e, along2{1})""",
    **{
        f"limit_{k}": f"""
        l = Shape <start=1, end=2> (x)
        {cut}
        kept = Shape <start=1, end=2> (cut)
        gone = Sub(l, kept)
        pads = Concat <axis=0> (none{{0,0,0,0}}, gone, no{{0}})
        y = Pad(cut, pads)"""
        for k, cut in LIMITS.items()
    },
    "nothing_left": """
        rest = Slice(x, from{50}, end{9223372036854775807}, along{1})
        k = Shape <start=1, end=2> (rest)
        y = Slice(x, k, end2{1000}, along2{1})""",
    "blocks_of_a_range": """
        l = Shape <start=1, end=2> (x)
        up = Squeeze(l)
        starts = Range(zero{:0}, up, fifty{:50})
        k = Shape(starts)
        y = Slice(x, k, end{1000}, along{1})""",
    "sum_of_a_range": """
        l = Shape <start=1, end=2> (x)
        up = Squeeze(l)
        starts = Range(zero{:0}, up, fifty{:50})
        k = ReduceSum <keepdims=1> (starts)
        y = Slice(x, k, end{1000}, along{1})""",
    "far_from_the_diagonal": """
        l = Shape <start=1, end=2> (x)
        square = Concat <axis=0> (l, l)
        ones = ConstantOfShape <value=int64[1] {1}> (square)
        part = Trilu(ones, far{:50})
        k = ReduceSum <keepdims=0> (part)
        from = Unsqueeze(k, first{0})
        y = Slice(x, from, end{1000}, along{1})""",
    "bytes": """
        l = Shape <start=1, end=2> (x)
        wrapped = Cast <to=3> (l)
        back = Cast <to=7> (wrapped)
        gone = Sub(l, back)
        y = Slice(x, gone, end{1000}, along{1})""",
    "broken_numbers": """
        l = Shape <start=1, end=2> (x)
        f = Cast <to=1> (l)
        up = Add(f, large{.,536870912.0})
        down = Sub(up, large2{.,536870912.0})
        w = Cast <to=7> (down)
        y = Slice(x, w, end{1000}, along{1})""",
    "step_behind_a_step": """
        s = Shape(x)
        long = Greater(s, limits{1000,50,1000})
        whole = Cast <to=7> (long)
        any = ReduceMax <keepdims=0> (whole)
        yes = Cast <to=9> (any)
        y = If (yes) <
            then_branch = short () => (float[N,A,4] a) { a = Slice(x, from{0}, to{50}, along{1}) },
            else_branch = all () => (float[N,B,4] b) { b = Identity(x) }
        >""",
    "inside_a_branch": """
        l = Shape <start=1, end=2> (x)
        k = Div(l, fifty{50})
        top = ReduceMax <keepdims=0> (x)
        yes = Greater(top, low{:-100.0})
        y = If (yes) <
            then_branch = later () => (float[N,A,4] a) {
                more = Add(k, one{1})
                a = Slice(x, more, to{1000}, along{1})
            },
            else_branch = all () => (float[N,B,4] b) { b = Identity(x) }
        >""",
    "a_sum_that_cancels": """
        l = Shape <start=1, end=2> (x)
        up = Max(l, least{50})
        down = Min(l, most{50})
        both = Add(up, down)
        rest = Sub(both, l)
        k = Sub(rest, fifty{50})
        hundreds = Div(l, hundred{100})
        w = Add(k, hundreds)
        y = Slice(x, w, to{1000}, along{1})""",
}
STATE = """
    l = Shape <start=0, end=1> (x)
    d = Sub(l, fifty{50})
    f = Cast <to=1> (d)
    r = Relu(f)
    b = Shape <start=1, end=2> (x)
    t = Concat <axis=0> (one{1}, b, width{3})
    h = Expand(r, t)
    y = LSTM <hidden_size=3> (x, w[1,12,4], r2[1,12,3], , , h, h)"""
ROWS = {
    **{k: Topology(f"(float[N,L,4] x) => (float[N,M,K] y) {{{body}}}", ()) for k, body in STEPS.items()},
    "state": Topology(f"(float[L,N,4] x) => (float[L,D,N,3] y) {{{STATE}}}", ()),
}


@pytest.mark.parametrize("name", ROWS)
def test_steps_are_no_constants(name: str):
    """Fails where the normal form holds what is so at the measured sizes only: they stop short of these."""
    row = ROWS[name]
    model = row.model()
    original, found = (Session(p, optimize=False) for p in (model, normalise(model, row.feeds(2)).proto))
    compared = 0
    for length in LENGTHS:
        x = np.random.default_rng(length).standard_normal((2, length, 4)).astype(np.float32)
        x = x.swapaxes(0, 1) if name == "state" else x
        try:
            expected = original.run({"x": x})["y"]
        except RunError:
            continue
        y = found.run({"x": x})["y"]
        assert y.shape == expected.shape, length
        np.testing.assert_array_equal(y, expected, err_msg=f"length {length}")
        compared += 1
    assert compared >= 3


def test_what_cancels_out_is_constant():
    """Fails where caution goes so far that sizes which do not change are computed at run time."""
    row = Topology(
        """(float[N,L,4] x) => (float[N,L,4] y) {
            s = Shape(x)
            n = Size(x)
            b = Gather(s, zero{:0})
            l = Gather(s, one{:1})
            rows = Mul(b, l)
            width = Div(n, rows)
            same = Equal(s, keep{-1,-1,-1})
            t = Where(same, ones{1,1,1}, s)
            e = Expand(x, t)
            column = Unsqueeze(width, ax{0})
            f = Cast <to=1> (column)
            y = Mul(e, f)
        }""",
        (),
    )
    found = normalise(row.model(), row.feeds(2)).proto
    assert not {"Div", "Size", "Unsqueeze"} & {n.op_type for n in found.graph.node}


def test_sizes_of_a_difference_are_no_differences():
    """Fails where an input that is centred makes every size behind it one that may be below zero."""
    row = Topology(
        """(float[N,L,4] x) => (float[N,L,4] y) {
            centred = Sub(x, mean{.,0.5})
            l = Shape <start=1, end=2> (centred)
            same = Equal(l, keep{-1})
            f = Cast <to=1> (same)
            y = Add(centred, f)
        }""",
        (),
    )
    proto = normalise(row.model(), row.feeds(2)).proto
    assert not {"Equal", "Shape"} & {n.op_type for n in proto.graph.node}
