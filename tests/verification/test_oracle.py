"""The oracle against plain numpy, and against oracles that are broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from scipy.signal import correlate
from scipy.special import erf

from onnxprune.runtime.session import Session
from tests.compare import assert_same, relative_error
from tests.external import refer
from tests.graphs import PRUNABLE, TABLE
from tests.prepared import Array, Prepared, masked, prepare, random_keep, sliced
from tests.topologies.text import Topology

Lookup = Callable[[str], Prepared]
Numbers = NDArray[np.float64]
Values = dict[str, Numbers]
Masks = dict[str, NDArray[np.bool_]]


def _convolve(x: Numbers, w: Numbers) -> Numbers:
    """(N, C, H, W) with (M, C, kh, kw), no padding: sums of scipy's plane correlations."""
    return np.stack(
        [
            np.stack([sum(correlate(x[n, c], w[o, c], mode="valid") for c in range(x.shape[1])) for o in range(len(w))])
            for n in range(len(x))
        ]
    )


def _case(text: str, seed: int, opset: int = 18) -> tuple[Values, Masks, Array, Array]:
    """Weights and input in float64, kept channels of every vector of weights, the oracle's and the slice's answer."""
    row = Topology(text, (), opset=opset, ir_version=8)
    feeds = row.feeds(2, seed)
    p = prepare(row.model(), feeds)
    keep = random_keep(p.channels, seed)
    values = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in row.model().graph.initializer}
    values["x"] = feeds["x"].astype(np.float64)
    masks: Masks = {}
    for name, factors in p.channels.factors.items():
        for f in factors:
            if values.get(name, np.zeros((1, 1))).ndim == 1 and name in p.channels.graph.constants:
                masks[name] = keep[f.ravel()]
    return values, masks, Session(masked(p, keep)).run(feeds)["y"], Session(sliced(p, keep)).run(feeds)["y"]


@pytest.mark.parametrize("seed", range(3))
def test_convolution_without_a_channel(seed: int):
    """Fails where a removed channel still contributes, by its bias after the Relu for one."""
    v, masks, oracle, small = _case(
        """(float[N,3,7,7] x) => (float[N,5,3,3] y) {
            a = Conv (x, w1[8,3,3,3], b1[8])
            r = Relu(a)
            n = BatchNormalization <epsilon=0.00001> (r, s1[8], o1[8], m1[8], var1[8])
            y = Conv (n, w2[5,8,3,3], b2[5])
        }""",
        seed,
    )
    kept = masks["b1"]
    assert 0 < kept.sum() < kept.size
    a = np.maximum(_convolve(v["x"], v["w1"][kept]) + v["b1"][kept][:, None, None], 0)
    scale = v["s1"] / np.sqrt(v["var1"] + 1e-5)
    n = (a - v["m1"][kept][:, None, None]) * scale[kept][:, None, None] + v["o1"][kept][:, None, None]
    y = _convolve(n, v["w2"][:, kept]) + v["b2"][:, None, None]
    assert_same(oracle, y.astype(np.float32), rtol=1e-5, atol=0.0)
    assert_same(small, y.astype(np.float32), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("seed", range(3))
def test_layer_norm_over_kept_channels(seed: int):
    """Fails where the statistics still count what is gone, in the sum or in the divisor."""
    v, masks, oracle, small = _case(
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul(x, w1[6,8])
            b = Add(a, b1[8])
            n = LayerNormalization <axis=-1, epsilon=0.01> (b, s1[8], o1[8])
            y = MatMul(n, w2[8,5])
        }""",
        seed,
    )
    kept = masks["b1"]
    assert 0 < kept.sum() < kept.size
    b = v["x"] @ v["w1"][:, kept] + v["b1"][kept]
    n = (b - b.mean(-1, keepdims=True)) / np.sqrt(b.var(-1, keepdims=True) + 0.01) * v["s1"][kept] + v["o1"][kept]
    y = (n @ v["w2"][kept]).astype(np.float32)
    assert_same(oracle, y, rtol=1e-5, atol=0.0)
    assert_same(small, y, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("seed", range(3))
def test_group_norm_over_kept_channels(seed: int):
    """Fails where a norm's group takes in a channel of another one after the cut."""
    v, masks, oracle, small = _case(
        """(float[N,3,4,4] x) => (float[N,5,4,4] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            n = GroupNormalization <num_groups=2, epsilon=0.01> (a, s1[8], o1[8])
            y = Conv (n, w2[5,8,1,1])
        }""",
        seed,
        opset=21,
    )
    kept = masks["b1"]
    assert 0 < kept.sum() < kept.size
    a = _convolve(v["x"], v["w1"][kept]) + v["b1"][kept][:, None, None]
    rows = a.reshape(len(a), 2, -1)
    n = ((rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 0.01)).reshape(a.shape)
    n = n * v["s1"][kept][:, None, None] + v["o1"][kept][:, None, None]
    y = _convolve(n, v["w2"][:, kept]).astype(np.float32)
    assert_same(oracle, y, rtol=1e-5, atol=0.0)
    assert_same(small, y, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("seed", range(3))
def test_flattened_and_split_channels(seed: int):
    """Fails where the columns of a product, or the halves of a gate, are matched with the wrong channels."""
    v, masks, oracle, small = _case(
        """(float[N,3,4,4] x) => (float[N,5] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u, g = Split <axis=1> (a, parts{4,4})
            e = Erf(g)
            m = Mul(u, e)
            f = Flatten(m)
            y = Gemm <transB=1, alpha=0.5, beta=2.0> (f, w2[5,64], b2[5])
        }""",
        seed,
    )
    kept = masks["b1"]
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(kept[:4], kept[4:])
    a = _convolve(v["x"], v["w1"]) + v["b1"][:, None, None]
    m = (a[:, :4] * erf(a[:, 4:]))[:, kept[:4]].reshape(len(a), -1)
    y = (0.5 * m @ v["w2"].reshape(5, 4, 16)[:, kept[:4]].reshape(5, -1).T + 2.0 * v["b2"]).astype(np.float32)
    assert_same(oracle, y, rtol=1e-5, atol=0.0)
    assert_same(small, y, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("seed", range(3))
def test_reductions_over_kept_channels(seed: int):
    """Fails where the place of a removed channel counts as a zero in a mean or a maximum."""
    v, masks, oracle, small = _case(
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul(x, w1[6,8])
            b = Sub(a, b1[8])
            m = ReduceMean <keepdims=1> (b, ax{-1})
            k = ReduceMax <keepdims=1> (b, ax)
            l = ReduceL2 <keepdims=1> (b, ax)
            s = Sum(b, m, k, l)
            y = MatMul(s, w2[8,5])
        }""",
        seed,
    )
    kept = masks["b1"]
    assert 0 < kept.sum() < kept.size
    b = v["x"] @ v["w1"][:, kept] - v["b1"][kept]
    s = b + b.mean(-1, keepdims=True) + b.max(-1, keepdims=True) + np.linalg.norm(b, axis=-1, keepdims=True)
    y = (s @ v["w2"][kept]).astype(np.float32)
    assert_same(oracle, y, rtol=1e-5, atol=0.0)
    assert_same(small, y, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("seed", range(3))
def test_weights_contracted_with_each_other(seed: int):
    """Fails where nothing masks what no activation carries: an index of weights alone."""
    text = """(float[N,6] x) => (float[N,5] y) {
        a = Einsum <equation="bi,ij,jk->bk"> (x, w1[6,9], w2[9,8])
        r = Relu(a)
        y = MatMul(r, w3[8,5])
    }"""
    row = Topology(text, ())
    feeds = row.feeds(2, seed)
    p = prepare(row.model(), feeds)
    keep = random_keep(p.channels, seed)
    w1, w2, w3 = (p.channels.graph.constants[f"w{i}"].astype(np.float64) for i in (1, 2, 3))
    inner, outer = (keep[p.channels.axis_factor(name, 0)].ravel() for name in ("w2", "w3"))
    assert 0 < inner.sum() < inner.size and 0 < outer.sum() < outer.size
    a = feeds["x"].astype(np.float64) @ w1[:, inner] @ w2[np.ix_(inner, outer)]
    y = (np.maximum(a, 0) @ w3[outer]).astype(np.float32)
    assert_same(Session(masked(p, keep)).run(feeds)["y"], y, rtol=1e-5, atol=0.0)
    assert_same(Session(sliced(p, keep)).run(feeds)["y"], y, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    "product",
    [
        "z = MatMul(w[4,9], v[9,3])",
        "z = Gemm <transA=1, transB=1> (w[9,4], v[3,9])",
        "z = Einsum <equation='ij,jk->ik'> (w[4,9], v[9,3])",
        "z = Conv (w[1,9,4], v[3,9,1])",
        "z = ReduceL2 <keepdims=0> (w[4,3,9], axes{2})",
    ],
)
def test_an_output_of_weights_alone(product: str, tmp_path: Path):
    """Fails where an operand is taken for masked by an activation that there is not: weights in files stay products."""
    sizes = "P,Q,R" if "Conv" in product else "P,Q"
    text = f"""(float[N,6] x) => (float[N,5] y, float[{sizes}] z) {{
        a = MatMul(x, w1[6,8])
        y = MatMul(a, w2[8,5])
        {product.replace("'", '"')}
    }}"""
    row = Topology(text, ())
    model, feeds = row.model(), row.feeds(2)
    for t in model.graph.initializer:
        if t.name in ("w", "v"):
            (tmp_path / t.name).write_bytes(onnx.numpy_helper.to_array(t).tobytes())
            refer(t, str(tmp_path / t.name))
    p = prepare(model, feeds)
    assert sorted(g.size for g in p.channels.groups) == [8, 9]
    for seed in range(3):
        keep = random_keep(p.channels, seed)
        expected = Session(masked(p, keep)).run(feeds)
        for name, value in Session(sliced(p, keep)).run(feeds).items():
            assert_same(value, expected[name], rtol=1e-5, atol=0.0)


def _sigmoid(x: Numbers) -> Numbers:
    return 1.0 / (1.0 + np.exp(-x))


def _lstm(x: Numbers, w: Numbers, r: Numbers, b: Numbers, p: Numbers) -> Numbers:
    """(T, B, I) with W (4, H, I), R (4, H, H), the bias (8, H) and peepholes (3, H), gates in the order i, o, f, c."""
    h = c = np.zeros((x.shape[1], r.shape[2]))
    steps = []
    for step in x:
        i, o, f, new = (step @ w[k].T + h @ r[k].T + b[k] + b[k + 4] for k in range(4))
        c = _sigmoid(f + p[2] * c) * c + _sigmoid(i + p[0] * c) * np.tanh(new)
        h = _sigmoid(o + p[1] * c) * np.tanh(c)
        steps.append(h)
    return np.stack(steps)


def _gru(x: Numbers, w: Numbers, r: Numbers, b: Numbers, *, linear_before_reset: bool) -> Numbers:
    """(T, B, I) with W (3, H, I), R (3, H, H) and the bias (6, H), gates in the order z, r, h."""
    h = np.zeros((x.shape[1], r.shape[2]))
    steps = []
    for step in x:
        update, reset = (_sigmoid(step @ w[k].T + h @ r[k].T + b[k] + b[k + 3]) for k in range(2))
        state = reset * (h @ r[2].T + b[5]) if linear_before_reset else (reset * h) @ r[2].T + b[5]
        h = (1.0 - update) * np.tanh(step @ w[2].T + b[2] + state) + update * h
        steps.append(h)
    return np.stack(steps)


@pytest.mark.parametrize("name", ["lstm", "gru", "gru_linear_before_reset"])
@pytest.mark.parametrize("seed", range(3))
def test_recurrent_net_without_a_hidden_unit(name: str, seed: int):
    """Fails where the state of a removed unit still reaches a gate, or a gate's rows are mistaken for another's."""
    kind, gates, peepholes = ("LSTM", 4, ", , , , p[2,18]") if name.startswith("lstm") else ("GRU", 3, "")
    before = int(name == "gru_linear_before_reset")
    attribute = f", linear_before_reset={before}" if kind == "GRU" else ""
    row = Topology(
        f"""(float[L,N,4] x) => (float[L,N,5] y) {{
            s = {kind} <hidden_size=6, direction="bidirectional"{attribute}>
                (x, w[2,{6 * gates},4], r[2,{6 * gates},6], b[2,{12 * gates}]{peepholes})
            t = Transpose <perm=[0,2,1,3]> (s)
            f = Reshape(t, to{{0,0,-1}})
            y = MatMul(f, v[12,5])
        }}""",
        (),
    )
    feeds = row.feeds(2, seed)
    p = prepare(row.model(), feeds)
    keep = random_keep(p.channels, seed)
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in row.model().graph.initializer}
    kept = keep[p.channels.factors["v"][0]].reshape(2, 6)
    assert 0 < kept.sum() < kept.size
    states = []
    for d, mine in enumerate(kept):
        x = feeds["x"].astype(np.float64)[:: -1 if d else 1]
        w = weights["w"][d].reshape(gates, 6, 4)[:, mine]
        r = weights["r"][d].reshape(gates, 6, 6)[:, mine][:, :, mine]
        b = weights["b"][d].reshape(2 * gates, 6)[:, mine]
        if kind == "LSTM":
            h = _lstm(x, w, r, b, weights["p"][d].reshape(3, 6)[:, mine])
        else:
            h = _gru(x, w, r, b, linear_before_reset=bool(before))
        states.append(h[:: -1 if d else 1])
    y = (np.concatenate(states, axis=2) @ weights["v"][kept.ravel()]).astype(np.float32)
    assert_same(Session(masked(p, keep)).run(feeds)["y"], y, rtol=1e-5, atol=0.0)
    assert_same(Session(sliced(p, keep)).run(feeds)["y"], y, rtol=1e-5, atol=0.0)


def test_oracle_keeps_every_shape(prepared: Lookup):
    """Fails where the oracle slices: then it would share the mistakes of what it judges."""
    for name in PRUNABLE:
        p = prepared(name)
        oracle = masked(p, random_keep(p.channels, 0))
        before = {t.name: t for t in p.normalised.proto.graph.initializer}
        after = {t.name: t for t in oracle.graph.initializer}
        assert all(after[k] == t for k, t in before.items())


def test_oracle_of_nothing_is_the_model(prepared: Lookup):
    """Fails where the oracle masks although nothing is removed."""
    for name in PRUNABLE:
        p = prepared(name)
        nodes = masked(p, np.ones(p.channels.classes.pinned.size, bool)).graph.node
        assert list(nodes) == list(p.normalised.proto.graph.node)


def _masks(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [
        t for t in model.graph.initializer if t.name.startswith("__oracle") and t.data_type == onnx.TensorProto.BOOL
    ]


@pytest.mark.parametrize("damage", ["dropped", "shifted"])
@pytest.mark.parametrize(
    "name",
    ["plain", "batch_norm", "dense_concat", "flatten_gemm", "layer_norm", "lp_normalization", "lstm_bidirectional"],
)
def test_a_damaged_mask_is_seen(name: str, damage: str, prepared: Lookup):
    """Fails where a mask of the oracle could be wrong without anyone noticing."""
    p = prepared(name)
    keep = random_keep(p.channels, 1, shares=(0.5,))
    small = Session(sliced(p, keep))
    feeds = TABLE[name].feeds(2)
    count = len(_masks(masked(p, keep)))
    assert count
    for which in range(count):
        oracle = masked(p, keep)
        mask = _masks(oracle)[which]
        values = onnx.numpy_helper.to_array(mask)
        axis = int(np.argmax(values.shape))
        wrong = np.ones_like(values) if damage == "dropped" else np.roll(values, 1, axis)
        assert not np.array_equal(wrong, values)
        mask.CopyFrom(onnx.numpy_helper.from_array(wrong, mask.name))
        expected = Session(oracle).run(feeds)
        assert max(relative_error(y, expected[k]) for k, y in small.run(feeds).items()) > 1e-3


def test_a_mask_at_the_producer_is_not_the_oracle(prepared: Lookup):
    """Fails where zeroing a producer's output passes for removal: the shift of a normalization behind it stays."""
    p = prepared("batch_norm")
    keep = random_keep(p.channels, 1, shares=(0.5,))
    wrong = onnx.ModelProto()
    wrong.CopyFrom(p.normalised.proto)
    for t in wrong.graph.initializer:
        for f in p.channels.factors.get(t.name, ()):
            producer = any(
                (r.tensor, r.axis) == (t.name, int(np.argmax(f.shape))) for g in p.channels.groups for r in g.producers
            )
            if producer:
                t.CopyFrom(
                    onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t) * keep[f].astype(np.float32), t.name)
                )
    feeds = TABLE["batch_norm"].feeds(2)
    small, zeroed = Session(sliced(p, keep)).run(feeds)["y"], Session(wrong).run(feeds)["y"]
    assert relative_error(small, zeroed) > 1e-2


def test_nothing_but_zeros_are_normalized_to_zeros():
    """Fails where the oracle divides by a norm of 0 that LpNormalization, by definition, does not."""
    row = Topology(
        """(float[N,6] x) => (float[N,3] y) {
            a = MatMul(x, w1[6,8])
            r = Relu(a)
            n = LpNormalization(r)
            y = MatMul(n, w2[8,3])
        }""",
        (8,),
    )
    feeds = {"x": np.zeros((2, 6), np.float32)}
    p = prepare(row.model(), feeds)
    keep = random_keep(p.channels, 0)
    found, expected = (Session(model).run(feeds)["y"] for model in (sliced(p, keep), masked(p, keep)))
    np.testing.assert_array_equal(expected, 0.0)
    np.testing.assert_array_equal(found, expected)
