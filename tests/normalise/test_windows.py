"""Windows: an axis of one position at every size that is measured is not taken for one at others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune import pipeline
from onnxprune.errors import CheckFailed, RunError
from onnxprune.normalise import normalise, windows
from onnxprune.normalise.windows import Window, reach
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session
from onnxprune.stages import rewrite
from tests.topologies.text import Topology

IMAGE = "(float[N,3,H,W] x) => (float[N,5,P] y)"
ROWS = "(float[N,T,12] x) => (float[N,P,5] y)"
# The positions of an image q in a row, by sizes that are read at run time.
IN_A_ROW = """
        s = Shape(q)
        n = Gather(s, i0{0})
        h = Gather(s, i2{2})
        w = Gather(s, i3{3})
        l = Mul(h, w)
        t = Concat <axis=0> (n, five{5}, l)"""
# The head of a detector.
VIEW = f"""
        q = Conv(p, wq[5,8,1,1]){IN_A_ROW}
        y = Reshape(q, t)"""
# The rest of an If, from what its first branch pools on.
POOLED_OR_ALL = f"""
        q = Conv(m, wq[5,8,1,1]){IN_A_ROW}
        ty = Reshape(q, t)
    }},
    else_branch = all () => (float[N,5,B] ey) {{
        q2 = Conv(r, wq2[5,8,1,1])
        ey = Reshape(q2, t2{{0,5,-1}})
    }}
>"""
FIRST = """
    a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3])
    r = Relu(a)"""
DEEP = "".join(
    f"""
    a{k} = Conv <pads=[1,1,1,1], strides=[2,2]> ({"x" if k == 1 else f"r{k - 1}"}, w{k}[8,{3 if k == 1 else 8},3,3])
    r{k} = Relu(a{k})"""
    for k in range(1, 7)
)
# A layer at every position of a row, and one at every position that is left in m.
POSITIONS = """
        a = MatMul(x, w1[12,8])
        r = Relu(a)"""
POOLED = """
        ps = Shape <start=2, end=3> (m)
        b = Transpose <perm=[0,2,1]> (m)
        q = MatMul(b, w2[8,5])
        t = Concat <axis=0> (rest{-1}, ps, five{5})
        y = Reshape(q, t)"""
# Positions in windows of 64: the last window is filled up by an index into the others.
PADDED = (
    POSITIONS
    + """
        t = Shape <start=1, end=2> (x)
        up = Add(t, less{63})
        nb = Div(up, by{64})
        lp = Mul(nb, by)
        l = Squeeze(lp)
        ts = Squeeze(t)
        range = Range(zero{:0}, l, step{:1})
        %s
        p = Gather <axis=1> (r, i)
        n = Shape <start=0, end=1> (x)
        nw = Mul(n, nb)
        t1 = Concat <axis=0> (nw, by, eight{8})
        windows = Reshape(p, t1)
        q = MatMul(windows, w2[8,5])
        full = Shape <start=1, end=2> (p)
        t2 = Concat <axis=0> (n, full, five{5})
        y = Reshape(q, t2)"""
)
GRAPHS = {
    "strided_convolutions": (IMAGE, f"{DEEP} p = Identity(r6) {VIEW}"),
    "max_pool": (IMAGE, f"{FIRST} p = MaxPool <kernel_shape=[3,3], strides=[60,60], pads=[1,1,1,1]> (r) {VIEW}"),
    "average_pool_ceil": (
        IMAGE,
        f"{FIRST} p = AveragePool <kernel_shape=[2,2], strides=[50,50], ceil_mode=1> (r) {VIEW}",
    ),
    "lp_pool": (IMAGE, f"{FIRST} p = LpPool <kernel_shape=[3,3], strides=[50,50], pads=[1,1,1,1]> (r) {VIEW}"),
    "resize": (
        IMAGE,
        f"""{FIRST}
            m = MaxPool <kernel_shape=[3,3], strides=[12,12], pads=[1,1,1,1]> (r)
            p = Resize <mode="nearest"> (m, , by{{.,1,1,0.5,0.5}}) {VIEW}""",
    ),
    "resize_by_a_computed_factor": (
        IMAGE,
        f"""{FIRST}
            m = MaxPool <kernel_shape=[3,3], strides=[12,12], pads=[1,1,1,1]> (r)
            xs = Shape(x)
            xf = Cast <to=1> (xs)
            half = Mul(xf, part{{.,0.5,0.5,0.5,0.5}})
            f = Div(half, xf)
            b = Mul(f, by{{.,2,2,1,1}})
            p = Resize <mode="nearest"> (m, , b) {VIEW}""",
    ),
    "strided_slice": (
        IMAGE,
        f"{FIRST} p = Slice(r, from{{0,0}}, to{{1000,1000}}, along{{2,3}}, by{{50,60}}) {VIEW}",
    ),
    "upsampled": (
        IMAGE,
        f"""{FIRST}
            m = MaxPool <kernel_shape=[3,3], strides=[60,60], pads=[1,1,1,1]> (r)
            p = ConvTranspose <strides=[2,2]> (m, wt[8,8,2,2]) {VIEW}""",
    ),
    "joined_at_two_scales": (
        IMAGE,
        f"""{FIRST}
            f = MaxPool <kernel_shape=[3,3], strides=[40,40], pads=[1,1,1,1]> (r)
            c = MaxPool <kernel_shape=[2,2], strides=[2,2], ceil_mode=1> (f)
            u = Resize <mode="nearest"> (c, , twice{{.,1,1,2,2}})
            fs = Shape(f)
            z = Gather(fs, spatial{{2,3}})
            cut = Slice(u, at{{0,0}}, z, on{{2,3}})
            p = Add(f, cut) {VIEW}""",
    ),
    "time": (
        ROWS,
        POSITIONS
        + """
        c = Transpose <perm=[0,2,1]> (r)
        m = MaxPool <kernel_shape=[3], strides=[70], pads=[1,1]> (c)"""
        + POOLED,
    ),
    "behind_a_step": (
        ROWS,
        POSITIONS
        + """
        l = Shape <start=1, end=2> (x)
        k = Div(l, fifty{50})
        k1 = Add(k, one{1})
        cut = Slice(r, from{0}, k1, along{1})
        c = Transpose <perm=[0,2,1]> (cut)
        m = MaxPool <kernel_shape=[3], strides=[3], pads=[1,1]> (c)"""
        + POOLED,
    ),
    "behind_a_clamp": (
        ROWS,
        POSITIONS
        + """
        first = Slice(r, from{0}, most{90}, along{1})
        c = Transpose <perm=[0,2,1]> (first)
        m = MaxPool <kernel_shape=[3], strides=[70], pads=[1,1]> (c)"""
        + POOLED,
    ),
    "a_clamp_behind_a_step": (
        ROWS,
        POSITIONS
        + """
        l = Shape <start=1, end=2> (x)
        k = Div(l, fifty{50})
        k1 = Add(k, one{3})
        cut = Slice(r, from{0}, k1, along{1})
        last = Slice(cut, end{-4}, all{1000}, along{1})
        ps = Shape <start=1, end=2> (last)
        q = MatMul(last, w2[8,5])
        t = Concat <axis=0> (rest{-1}, ps, five{5})
        y = Reshape(q, t)""",
    ),
    "padded_around": (
        ROWS,
        PADDED % "i = Mod(range, ts)",
    ),
    "padded_at_the_edge": (
        ROWS,
        PADDED % "last = Sub(ts, one{:1})\n i = Min(range, last)",
    ),
    "padded_clipped": (
        ROWS,
        PADDED % "last = Sub(ts, one{:1})\n i = Clip(range, zero, last)",
    ),
    "padded_nearest": (
        ROWS,
        PADDED % "there = Mul(range, ts)\n i = Div(there, l)",
    ),
    "padded_by_a_remainder": (
        ROWS,
        PADDED % "f = Div(range, ts)\n b = Mul(f, ts)\n i = Sub(range, b)",
    ),
    "time_first": (
        "(float[T,1,12] x) => (float[P,5] y)",
        """
        a = MatMul(x, w1[12,8])
        r = Relu(a)
        c = Transpose <perm=[1,2,0]> (r)
        m = MaxPool <kernel_shape=[3], strides=[70], pads=[1,1]> (c)
        ps = Shape <start=2, end=3> (m)
        b = Transpose <perm=[2,0,1]> (m)
        q = MatMul(b, w2[8,5])
        t = Concat <axis=0> (ps, five{5})
        y = Reshape(q, t)""",
    ),
    "inside_a_branch": (
        IMAGE,
        f"""{FIRST}
        top = ReduceMax <keepdims=0> (x)
        yes = Greater(top, low{{:-100.0}})
        y = If (yes) <
            then_branch = pooled () => (float[N,5,A] ty) {{
                m = MaxPool <kernel_shape=[3,3], strides=[60,60], pads=[1,1,1,1]> (r)
                {POOLED_OR_ALL}""",
    ),
    "read_by_a_branch": (
        IMAGE,
        f"""{FIRST}
        m = MaxPool <kernel_shape=[3,3], strides=[60,60], pads=[1,1,1,1]> (r)
        top = ReduceMax <keepdims=0> (x)
        yes = Greater(top, low{{:-100.0}})
        y = If (yes) <
            then_branch = pooled () => (float[N,5,A] ty) {{
                {POOLED_OR_ALL}""",
    ),
}
LENGTHS = (1, 9, 16, 41, 64, 65, 121, 128, 150, 200)


def _row(name: str) -> Topology:
    head, body = GRAPHS[name]
    return Topology(f"{head} {{{body}}}", ())


def _feeds(name: str, length: int, other: int = 16) -> dict[str, Any]:
    rng = np.random.default_rng(length)
    head = GRAPHS[name][0]
    shape: tuple[int, ...] = (2, 3, length, other)
    if head == ROWS:
        shape = (2, length, 12)
    elif head != IMAGE:
        shape = (length, 1, 12)
    return {"x": rng.standard_normal(shape).astype(np.float32)}


def _same_everywhere(name: str, model: onnx.ModelProto, found: onnx.ModelProto, tolerance: float = 0.0) -> None:
    """Hold two models against each other where one axis alone grows, then the other, and where both do."""
    sessions = [Session(p, optimize=False) for p in (model, found)]
    compared = 0
    for length, other in [(n, k) for n in LENGTHS for k in (16, 70, n)] + [(16, n) for n in LENGTHS]:
        feeds = _feeds(name, length, other)
        try:
            expected = sessions[0].run(feeds)["y"]
        except RunError:
            continue
        y = sessions[1].run(feeds)["y"]
        assert y.shape == expected.shape, (length, other)
        np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance, err_msg=f"sizes {length}, {other}")
        compared += 1
    assert compared >= 10


@pytest.mark.parametrize("beyond", [False, True], ids=["reached", "beyond_reach"])
@pytest.mark.parametrize("name", GRAPHS)
def test_windows_are_no_constants(name: str, beyond: bool, monkeypatch: pytest.MonkeyPatch):
    """Fails where the normal form holds that there is one position, with larger sizes measured or none."""
    if beyond:
        monkeypatch.setattr(windows, "_MOST_ENTRIES", 0)
    model = _row(name).model()
    _same_everywhere(name, model, normalise(model, _feeds(name, 16)).proto)


@pytest.mark.parametrize("name", ["strided_convolutions", "time", "read_by_a_branch"])
def test_the_comparison_sees_a_frozen_window(name: str, monkeypatch: pytest.MonkeyPatch):
    """Fails where the sizes above stop short of a second position: without any window, the normal form must differ."""
    monkeypatch.setattr(windows, "standing", lambda *_: {})
    model = _row(name).model()
    found = normalise(model, _feeds(name, 16)).proto
    with pytest.raises((AssertionError, RunError)):
        _same_everywhere(name, model, found)


def test_sizes_out_of_reach_are_never_made(monkeypatch: pytest.MonkeyPatch):
    """Fails where inputs of many gigabytes are made to find out that they are too large: a kernel as large as the image
    leaves one position at every size, so that each dimension grows as far as it may."""
    text = "(float[N,3,H,W] x) => (float[N,N,P,Q] y) { a = Conv (x, w1[4,3,1,1]) r = Relu (a) y = Conv (r, r) }"
    with_sizes = windows.with_sizes

    def checked(example: Any, sizes: Any) -> Any:
        shape = windows.shapes_with(example, sizes)["x"]
        assert np.prod(shape) <= 1 << 26, shape
        return with_sizes(example, sizes)

    monkeypatch.setattr(windows, "with_sizes", checked)
    found = normalise(Topology(text, ()).model(), _feeds("max_pool", 8, 8))
    # Nothing is to be seen at any of these sizes, so that none is compared either.
    assert found.reached == ()


def test_one_position_at_every_size_is_constant():
    """Fails where caution goes so far that the size of what is pooled to one position is computed at run time."""
    row = Topology(
        f"""(float[N,3,H,W] x) => (float[N,8] y) {{
            {FIRST}
            p = GlobalAveragePool(r)
            s = Shape(p)
            n = Gather(s, i0{{0}})
            h = Gather(s, i2{{2}})
            w = Gather(s, i3{{3}})
            c = Gather(s, i1{{1}})
            k = Mul(c, h)
            l = Mul(k, w)
            t = Concat <axis=0> (n, l)
            y = Reshape(p, t)
        }}""",
        (),
    )
    found = normalise(row.model(), _feeds("max_pool", 16)).proto
    assert not {"Shape", "Concat", "Mul"} & {n.op_type for n in found.graph.node}


def test_a_flat_layer_that_takes_one_position_keeps_its_channels():
    """Fails where a model that refuses a second position loses what is known of its flattened channels."""
    text = """(float[N,3,H,W] x) => (float[N,5] y) {
        a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3])
        r = Relu(a)
        p = MaxPool <kernel_shape=[3,3], strides=[60,60], pads=[1,1,1,1]> (r)
        s = Shape(p)
        n = Gather(s, i0{0})
        c = Gather(s, i1{1})
        t = Concat <axis=0> (n, rest{-1})
        f = Reshape(p, t)
        y = Gemm(f, wg[8,5])
    }"""
    model = Topology(text, (8,)).model()
    x = np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32)
    found = pipeline.prune(model, None, {"x": x}, ratio=0.3, recover=0, refit="none").model
    assert found is not None
    assert next(t.dims[0] for t in found.graph.initializer if t.name == "w1") < 8


def _frozen(step: Any) -> Any:
    """`step` of the run, after which there is one position at every size, and any number of samples."""

    def with_one(*given: Any) -> onnx.ModelProto:
        result: onnx.ModelProto = step(*given)
        result.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 5, 1]), "one_position"))
        next(n for n in result.graph.node if n.op_type == "Reshape").input[1] = "one_position"
        return result

    return with_one


def _pruned(name: str) -> onnx.ModelProto:
    """The row's model without some of its channels, nothing fitted."""
    x = np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32)
    found = pipeline.prune(_row(name).model(), None, {"x": x}, ratio=0.2, recover=0, refit="none")
    assert found.model is not None
    return found.model


def test_frozen_positions_never_reach_the_output(monkeypatch: pytest.MonkeyPatch):
    """Fails where what is compared stops short of the size at which the last layer gives a second position."""
    monkeypatch.setattr(rewrite, "cut", _frozen(rewrite.cut))
    with pytest.raises(CheckFailed, match=r"sliced model (differs|does not run).* with inputs of x"):
        _pruned("strided_convolutions")


@pytest.mark.parametrize("name", ["strided_convolutions", "lp_pool", "joined_at_two_scales"])
def test_pruned_models_give_every_position(name: str):
    """Fails where the pruned model gives another number of samples or positions, at any size."""
    before, after = (Session(p, optimize=False) for p in (_row(name).model(), _pruned(name)))
    for length in LENGTHS:
        feeds = _feeds(name, length, 70)
        try:
            expected = before.run(feeds)["y"]
        except RunError:
            continue
        assert after.run(feeds)["y"].shape == expected.shape, length


def test_what_is_empty_grows_too():
    """Fails where twice nothing is tried again and again."""
    row = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["p"])
    proto = helper.make_model(helper.make_graph([], "g", [row], [row]))
    runs: list[Mapping[str, Array]] = [{"x": np.zeros(n, np.float32)} for n in (0, 1)]
    shapes: list[Mapping[str, tuple[int, ...]]] = [{"x": (n,), "y": (3,)} for n in (0, 1)]
    asked: list[int] = []

    def measure(feeds: Mapping[str, Array]) -> Mapping[str, tuple[int, ...]] | None:
        asked.append(feeds["x"].size)
        assert len(asked) < 99
        return {"x": feeds["x"].shape, "y": (3,)} if asked[-1] < 64 else None

    reach(proto, [Window("x", "y")], runs, shapes, measure)
    assert max(asked) >= 64
    assert len(runs) == len(shapes) == 2
