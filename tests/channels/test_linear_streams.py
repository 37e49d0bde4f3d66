"""Which streams may be turned, and that turning them changes nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.channels.linear_streams import LinearStream, linear_streams
from onnxprune.graph import external
from onnxprune.runtime.session import Session
from onnxprune.surgery.rotate import rotated
from tests.calibrated import prepare_text
from tests.compare import assert_same
from tests.prepared import Prepared

# A linear bottleneck and one around it with a sum: a and c write the stream, d and the Gemm read it.
BOTTLENECKS = """(float[N,3,8,8] x) => (float[N,5] y) {
    r = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
    s = Relu(r)
    a = Conv (s, w2[6,8,1,1], b2[6])
    t = Conv <pads=[1,1,1,1]> (a, w3[12,6,3,3], b3[12])
    u = Relu(t)
    v = Conv <pads=[1,1,1,1], group=12> (u, w4[12,1,3,3], b4[12])
    w = Relu(v)
    c = Conv (w, w5[6,12,1,1], b5[6])
    d = Add(a, c)
    BETWEEN
    p = GlobalAveragePool(e)
    f = Flatten(p)
    y = Gemm <transB=1> (f, w6[5,6], b6[5])
}"""
PLAIN = BOTTLENECKS.replace("BETWEEN", "e = Identity(d)")


def found(p: Prepared, fixed: tuple[str, ...] = ()) -> list[LinearStream]:
    return linear_streams(p.channels, (), fixed)


def turned(p: Prepared, streams: list[LinearStream], seed: int = 0) -> onnx.ModelProto:
    """The normal form with each stream turned at random."""
    rng = np.random.default_rng(seed)
    turns = [(s, np.linalg.qr(rng.standard_normal((s.units.size,) * 2))[0]) for s in streams]
    return rotated(p.normalised.proto, p.channels.linears, turns)


def assert_unchanged(p: Prepared, proto: onnx.ModelProto) -> None:
    """The same outputs as the original, up to the rounding of float32; not by weights that are the same."""
    before, after = ({t.name: external.array_of(t) for t in m.graph.initializer} for m in (p.normalised.proto, proto))
    assert any(not np.array_equal(before[k], after[k]) for k in after)
    now, then = Session(proto).run(p.example), Session(p.original).run(p.example)
    for name, value in then.items():
        assert_same(now[name], value, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize(
    "between",
    [
        "e = Identity(d)",
        "e = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (d)",
        "e = Pad (d, pads{0,0,1,1,0,0,1,1})",
        "e = Mul (d, half{:0.5})",
        "g = Add (d, k[1,6,1,1]) e = Neg(g)",
        "g = Sub (d, k[6,1,1]) e = Sum(a, g, d)",
        "g = ReduceMean <keepdims=1> (x, axes{1}) e = Mul (g, d)",
        "g = Transpose <perm=[0,2,3,1]> (d) h = MatMul (g, v2[6,6]) i = Add (h, k[6]) "
        "e = Transpose <perm=[0,3,1,2]> (i)",
        "g = ConvTranspose <strides=[2,2]> (d, v2[6,6,2,2], k[6]) e = Slice (g, i{1,1}, j{7,7}, l{2,3})",
        "g = Conv (d, v2[6,6,1,1], k[6]) h = BatchNormalization (g, m1[6], m2[6], m3[6], var1[6]) e = Add (h, d)",
        "g = Conv (d, v2[6,6,1,1], k[6]) h = Conv (a, v2, k) e = Sum (g, h, d)",
    ],
)
def test_turned_is_the_same(between: str):
    """Fails where a layer, a constant or a normalization on the way is turned on the wrong axis, or not at all."""
    p = prepare_text(BOTTLENECKS.replace("BETWEEN", between))
    streams = found(p)
    assert any({"w2", "w3", "w5"} <= {name for name, _ in s.axes} for s in streams)
    assert_unchanged(p, turned(p, streams))


def test_turned_is_what_numpy_turns():
    """The oracle: W → Q W for what writes, W → W Qᵀ for what reads, b → Q b, and nothing else."""
    p = prepare_text(PLAIN)
    (stream,) = found(p)
    assert [len(x) for x in (stream.units, stream.folded)] == [6, 0]
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    proto = rotated(p.normalised.proto, p.channels.linears, [(stream, q)])
    old, new = ({t.name: external.array_of(t) for t in m.graph.initializer} for m in (p.normalised.proto, proto))
    wanted = {
        "w2": np.einsum("ij,jckl->ickl", q, old["w2"]),
        "w5": np.einsum("ij,jckl->ickl", q, old["w5"]),
        "b2": q @ old["b2"],
        "b5": q @ old["b5"],
        "w3": np.einsum("mjkl,ij->mikl", old["w3"], q),
        "w6": old["w6"] @ q.T,
    }
    for name, array in old.items():
        assert_same(
            new[name], wanted.get(name, array).astype(np.float32), rtol=1e-7 if name in wanted else 0.0, atol=0.0
        )


def test_a_folded_normalization_is_gone():
    """Fails where its constants stay, or the layer in front gives anything else than it gave."""
    between = "g = Conv (d, v2[6,6,1,1]) e = BatchNormalization <epsilon=0.01> (g, m1[6], m2[6], m3[6], var1[6])"
    p = prepare_text(BOTTLENECKS.replace("BETWEEN", between))
    proto = turned(p, found(p))
    assert "BatchNormalization" not in {n.op_type for n in proto.graph.node}
    assert not {"m1", "m2", "m3", "var1"} & {t.name for t in proto.graph.initializer}
    onnx.checker.check_model(proto, full_check=True)
    assert_unchanged(p, proto)


@pytest.mark.parametrize(
    "between",
    [
        "e = Relu(d)",
        "e = Add (d, half{:0.5})",
        "e = MaxPool <kernel_shape=[2,2]> (d)",
        "e = Pad (d, pads{0,0,1,1,0,0,1,1}, one{:1.0})",
        "e = Mul (d, k[1,6,1,1])",
        "e = Conv <group=6> (d, v2[6,1,3,3])",
        "g = GlobalAveragePool(d) h = Sigmoid(g) e = Mul (d, h)",
        "e = InstanceNormalization (d, k[6], l[6])",
        "g = Mul (d, d) e = Add (g, d)",
        "e = Gather <axis=1> (d, i{5,4,3,2,1,0})",
        "e = BatchNormalization (d, m1[6], m2[6], m3[6], var1[6])",
        "g = Conv <group=2> (d, v2[6,3,1,1]) e = Add (g, d)",
        "g = ReduceMax <keepdims=1> (d, axes{1}) e = Mul (g, d)",
        "g = Relu(x) h = Conv (g, v2[6,3,1,1]) i = Relu(h) e = Add (d, i)",
    ],
)
def test_left_alone(between: str):
    """Fails where a stream is turned that something reads, or adds to, channel by channel."""
    p = prepare_text(BOTTLENECKS.replace("BETWEEN", between))
    assert [s for s in found(p) if "w2" in {name for name, _ in s.axes}] == []


def test_outputs_and_fixed_tensors_are_left_alone():
    """Fails where what a caller sees, or what something else holds as it is, is turned."""
    p = prepare_text(PLAIN.replace("(float[N,5] y)", "(float[N,5] y, float[N,6,8,8] d)"))
    assert found(p) == []
    plain = prepare_text(PLAIN)
    assert len(found(plain)) == 1
    assert found(plain, ("w2",)) == []
    assert found(plain, ("d",)) == []
    assert linear_streams(plain.channels, found(plain)[0].groups, ()) == []


def test_a_normalization_is_folded_where_nothing_else_reads_its_input():
    """Fails where a layer takes up a normalization, and what reads the layer's own output gets that too."""
    normalized = "g = Conv (d, v2[6,6,1,1], k[6]) h = BatchNormalization (g, m1[6], m2[6], m3[6], var1[6]) "
    for end, folds in (("e = Neg (h)", True), ("e = Add (h, g)", False)):
        p = prepare_text(BOTTLENECKS.replace("BETWEEN", normalized + end))
        assert any(("v2", 0) in s.axes for s in found(p)) == folds
