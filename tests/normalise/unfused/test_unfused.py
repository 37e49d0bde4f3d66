"""Fused operators in standard ones: equal to what onnxruntime's kernels compute, or left as they are with a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.errors import RunError
from onnxprune.graph import bodies
from onnxprune.normalise import normalise
from onnxprune.normalise.unfused import TABLE, attention, codes, experts, packed_codes, unfuse
from onnxprune.normalise.unfused.blocked import DOMAIN
from onnxprune.runtime.session import Session
from tests.normalise.unfused.fusing import Case, assert_equal, standard

_RNG = np.random.default_rng(0)


def _real(*shape: int, kind: Any = np.float32) -> Any:
    return _RNG.standard_normal(shape).astype(kind)


X, W, B = _real(2, 4, 9, 8), _real(6, 2, 3, 3), _real(6)
Z = _real(2, 6, 5, 4)
_CONV = {"group": 2, "strides": [2, 2], "pads": [1, 0, 1, 1]}
_M, _N = _real(2, 3, 4, 5), _real(2, 3, 5, 6)

CONVOLUTIONS = {
    "plain": Case("FusedConv", (X, W), _CONV),
    "relu": Case("FusedConv", (X, W, B), {**_CONV, "activation": "Relu"}, weights=(1, 2)),
    "sum": Case("FusedConv", (X, W, B, Z), {**_CONV, "activation": "Relu"}),
    "sum without a bias": Case("FusedConv", (X, W, None, Z), _CONV),
    "tanh": Case("FusedConv", (X, W, B), {"group": 2, "auto_pad": "SAME_UPPER", "activation": "Tanh"}),
    "leaky": Case("FusedConv", (X, W, B), {**_CONV, "activation": "LeakyRelu", "activation_params": [0.3]}),
    "clip": Case("FusedConv", (X, W, B), {**_CONV, "activation": "Clip", "activation_params": [-0.5, 1.5]}),
    "clip in opset 10": Case(
        "FusedConv", (X, W, B), {**_CONV, "activation": "Clip", "activation_params": [-0.5, 1.5]}, opset=10
    ),
    "hard sigmoid": Case("FusedConv", (X, W), {**_CONV, "activation": "HardSigmoid", "activation_params": [0.1, 0.6]}),
    "hard swish": Case("FusedConv", (X, W), {**_CONV, "activation": "HardSwish"}),
    "in one dimension": Case("FusedConv", (X[..., 0], W[..., 0]), {"group": 2, "activation": "Sigmoid"}),
}
_FURTHER = {"activation_alpha": 0.3, "activation_beta": 0.6, "activation_gamma": 1.2}
GEMMS = {
    **{
        name: Case("FusedGemm", (_M[0, 0], _N[0, 0]), {"activation": name, **_FURTHER})
        for name in "Relu Sigmoid Tanh Softplus Softsign LeakyRelu Elu Celu ThresholdedRelu HardSigmoid Selu".split()
    },
    "ScaledTanh": Case("FusedGemm", (_M[0, 0], _N[0, 0]), {"activation": "ScaledTanh", **_FURTHER}),
    "turned": Case(
        "FusedGemm",
        (_M[0, 0].T.copy(), _N[0, 0].T.copy(), B),
        {"activation": "Relu", "transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
    ),
    "opset 10": Case("FusedGemm", (_M[0, 0], _N[0, 0]), {"activation": "Relu"}, opset=10),
}
PRODUCTS = {
    "scaled": Case("FusedMatMul", (_M, _N), {"alpha": 0.25}),
    "left": Case("FusedMatMul", (_M.swapaxes(2, 3).copy(), _N), {"transA": 1, "alpha": 0.25}),
    "right": Case("FusedMatMul", (_M, _N.swapaxes(2, 3).copy()), {"transB": 1}),
    "both": Case("FusedMatMul", (_M.swapaxes(2, 3).copy(), _N.swapaxes(2, 3).copy()), {"transA": 1, "transB": 1}),
    "batch of the left": Case("FusedMatMul", (_real(4, 2, 3, 5), _N), {"transBatchA": 1}),
    "batch of the right": Case("FusedMatMul", (_M, _real(5, 2, 3, 6)), {"transBatchB": 1}),
    "all of the left": Case("FusedMatMul", (_real(5, 2, 3, 4), _N), {"transBatchA": 1, "transA": 1}),
    "all of the right": Case("FusedMatMul", (_M, _real(6, 2, 3, 5)), {"transBatchB": 1, "transB": 1}),
    "a vector": Case("FusedMatMul", (_real(5), _N), {"transA": 1, "alpha": 2.0}),
    "another name": Case("TransposeMatMul", (_M, _N.swapaxes(2, 3).copy()), {"transB": 1, "alpha": 3.0}),
    "a weight": Case("FusedMatMul", (_M, _N[0, 0].T.copy()), {"transB": 1}, weights=(1,)),
    "double": Case("FusedMatMul", (_M.astype("d"), _N.astype("d")), {"alpha": 0.1}),
}
ACTIVATIONS = {
    "gelu": Case("Gelu", (3 * X,)),
    "gelu in opset 20": Case("Gelu", (3 * X,), opset=20),
    "bias": Case("BiasGelu", (3 * _M, _real(5))),
    "fast": Case("FastGelu", (3 * _M,)),
    "fast with a bias": Case("FastGelu", (3 * _M, _real(5)), opset=20),
    "fast with a bias before": Case("FastGelu", (3 * _M, _real(5)), opset=9),
    "quick": Case("QuickGelu", (3 * X,)),
    "swish": Case("QuickGelu", (3 * X,), {"alpha": 1.0}),
    "quick by another factor": Case("QuickGelu", (3 * X,), {"alpha": -0.7}),
}
_S, _T = _real(2, 3, 8), _real(2, 3, 8)
_G, _H, _K = _real(8), _real(8), _real(8)
NORMS = {
    f"{what} in opset {opset}": Case(operator, inputs, attributes, outputs=outputs, unasked=unasked, opset=opset)
    for opset in (9, 12, 17, 18, 23)
    for what, operator, inputs, attributes, outputs, unasked in (
        ("skip", "SkipLayerNormalization", (_S, _T, _G), {}, 1, ()),
        ("skip with all", "SkipLayerNormalization", (_S, _T, _G, _H, _K), {"epsilon": 0.1}, 4, ()),
        ("skip of one sample", "SkipLayerNormalization", (_S, _T[0], _G, None, _K), {}, 4, (1, 2)),
        ("skip without a mean", "SkipLayerNormalization", (_S, _T[:1], _G, _H), {}, 4, (1,)),
        ("skip in two axes", "SkipLayerNormalization", (_S[0], _T[0], _G, _H), {}, 1, ()),
        ("simple skip", "SkipSimplifiedLayerNormalization", (_S, _T, _G), {"epsilon": 0.1}, 1, ()),
        ("simple skip with all", "SkipSimplifiedLayerNormalization", (_S, _T, _G, _H), {}, 4, (1,)),
    )
} | {
    f"{what} in opset {opset}": Case(
        "SimplifiedLayerNormalization", inputs, attributes, outputs=outputs, domain="", opset=opset
    )
    for opset in (9, 17, 23)
    for what, inputs, attributes, outputs in (
        ("simple", (_S, _G), {}, 1),
        ("simple with all", (_S, _G), {"epsilon": 0.1}, 2),
        ("simple over two axes", (_S, _real(3, 8)), {"axis": 1}, 2),
        ("simple over the last axis but one", (_S, _real(3, 8)), {"axis": -2}, 1),
    )
}
_IDS = np.array([[1, 4, 0], [2, 2, 3]], np.int32)
_KINDS, _MASK = np.array([[0, 1, 1], [1, 0, 0]], np.int32), np.array([[1, 1, 0], [1, 2, 0]], np.int32)
_TABLES = (_real(5, 8), _real(6, 8), _real(2, 8))
_WORDS = (_IDS, _KINDS, *_TABLES, _G, _H)
EMBEDDINGS = {
    name: Case("EmbedLayerNormalization", inputs, attributes, stored, outputs, unasked, opset=opset)
    for name, inputs, attributes, stored, outputs, unasked, opset in (
        ("all", (*_WORDS, _MASK), {"epsilon": 0.1}, (2, 3, 4, 5, 6), 3, (), 17),
        ("no mask", _WORDS, {}, (2, 3, 4, 5, 6), 3, (), 13),
        ("no segments", (_IDS, None, *_TABLES[:2], None, _G, _H), {}, (2, 3, 5, 6), 3, (1,), 18),
        ("positions", (*_WORDS, None, _IDS), {}, (2, 3, 4, 5, 6), 2, (1,), 13),
        ("positions of all", (*_WORDS, _MASK, _IDS[:1]), {}, (2, 3, 4, 5, 6), 2, (), 17),
    )
}
_PLACES = np.array([[3, 4, 5], [0, 1, 2]], np.int64)
_FLAT, _HEADS = _real(2, 3, 12), _real(2, 4, 3, 6)


def _angles(*shape: int) -> tuple[Any, Any]:
    return _real(*shape), _real(*shape)


ROTARY = {
    "flat": Case("RotaryEmbedding", (_FLAT, _PLACES, *_angles(9, 2))),
    "flat, from one place on": Case("RotaryEmbedding", (_FLAT, _PLACES[0, :1], *_angles(9, 3)), opset=18),
    "flat, a part": Case(
        "RotaryEmbedding", (_FLAT, _PLACES, *_angles(9, 1)), {"num_heads": 3, "rotary_embedding_dim": 2}, weights=(2, 3)
    ),
    "heads": Case("RotaryEmbedding", (_HEADS, _PLACES, *_angles(9, 3))),
    "heads, interleaved": Case("RotaryEmbedding", (_HEADS, _PLACES, *_angles(9, 3)), {"interleaved": 1}, opset=13),
    "heads, from one place on": Case("RotaryEmbedding", (_HEADS, _PLACES[0, :1], *_angles(9, 3)), {"interleaved": 1}),
    "heads, a part": Case(
        "RotaryEmbedding",
        (_HEADS, _PLACES, *_angles(9, 2)),
        {"num_heads": 4, "rotary_embedding_dim": 4, "interleaved": 1},
    ),
}
_PAIRS = np.array([[0, 1], [1, 0]], np.int32)
NAMESAKES = {
    "triangle": Case("Trilu", (_M, np.array(1, np.int64)), {"upper": 0}),
    "triangle above": Case("Trilu", (_M,)),
    "places": Case("GatherND", (_M, _PAIRS), weights=(1,)),
    "places of 64 bits": Case("GatherND", (_M, _PAIRS.astype(np.int64)), opset=11),
    "range": Case("Range", (np.array(1.0, "f"), np.array(9.0, "f"), np.array(2.0, "f"))),
    "range by one": Case("Range", (np.array(1, np.int64), np.array(5, np.int64))),
    "pads": Case("Pad", (_M[0], np.array([0, 1, 0, 0, 0, 2], np.int64), np.array(0.5, "f"))),
    "pads in a row": Case("Pad", (_M[0], np.array([[0, 1, 0, 0, 0, 2]], np.int64)), {"mode": "edge"}, weights=(1,)),
    "axis": Case("ExpandDims", (_M, np.array(-1, np.int32)), weights=(1,)),
    **{
        f"grid, {mode} in opset {opset}": Case(
            "GridSample", (X, _real(2, 5, 6, 2)), {"mode": mode, "padding_mode": "border"}, opset=opset
        )
        for mode in ("bilinear", "nearest", "bicubic")
        for opset in (16, 20)
    },
    "grid": Case("GridSample", (X, _real(2, 5, 6, 2)), {"align_corners": 1}),
}
EXACT = {
    f"{family}: {name}": case
    for family, rows in (
        ("FusedConv", CONVOLUTIONS),
        ("FusedGemm", GEMMS),
        ("FusedMatMul", PRODUCTS),
        ("activations", ACTIVATIONS),
        ("normalizations", NORMS),
        ("embeddings", EMBEDDINGS),
        ("rotary", ROTARY),
        ("namesakes", NAMESAKES),
    )
    for name, case in rows.items()
}


@pytest.mark.parametrize("name", EXACT)
def test_standard_operators_compute_the_same(name: str):
    """Fails where a fused operator and what stands for it differ by more than rounding."""
    assert_equal(EXACT[name], rtol=1e-5, atol=1e-5)


# Those without a kernel on the CPU, and what they compute by their documentation.


def _transposed(y: Any) -> Any:
    return np.moveaxis(y, 1, -1)


def _conv(x: Any, w: Any, b: Any, **attributes: Any) -> Any:
    case = Case("Conv", (x, w, b), attributes, domain="")
    return Session(case.model()).run(case.feeds())["o0"]


def _gelu_of(x: Any) -> Any:
    return Session(Case("Gelu", (x,)).model()).run({"i0": x})["o0"]


def _groups(x: Any, gamma: Any, beta: Any, groups: int, epsilon: float, *, swish: bool) -> Any:
    """GroupNorm of (N, H, W, C)."""
    n, h, w, c = x.shape
    rows = x.astype(np.float64).reshape(n, h * w, groups, c // groups)
    mean, variance = rows.mean(axis=(1, 3), keepdims=True), rows.var(axis=(1, 3), keepdims=True)
    y = ((rows - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta
    return y / (1 + np.exp(-y)) if swish else y


_IMAGE, _SKIPPED = _real(2, 4, 5, 8), _real(2, 4, 5, 8)
_LAST, _KERNELS = np.ascontiguousarray(_transposed(X)), np.ascontiguousarray(_transposed(W))
_CONVOLVED = _conv(X, W, B, **_CONV)
DOCUMENTED = {
    "BiasAdd": (Case("BiasAdd", (_M, _real(5), _M)), lambda x, b, s: x + b + s),
    "BiasSplitGelu": (
        Case("BiasSplitGelu", (_S, _G)),
        lambda x, b: (x + b)[..., :4] * _gelu_of(np.ascontiguousarray((x + b)[..., 4:])),
    ),
    "BiasSplitGelu in opset 18": (
        Case("BiasSplitGelu", (_S, _G), opset=18),
        lambda x, b: (x + b)[..., :4] * _gelu_of(np.ascontiguousarray((x + b)[..., 4:])),
    ),
    "GroupNorm": (
        Case("GroupNorm", (_IMAGE, _G, _H), {"groups": 2, "activation": 1, "epsilon": 0.01}),
        lambda x, g, b: _groups(x, g, b, 2, 0.01, swish=True),
    ),
    "GroupNorm, channels first": (
        Case("GroupNorm", (_IMAGE.transpose(0, 3, 1, 2), _G, _H), {"groups": 4, "activation": 0, "channels_last": 0}),
        lambda x, g, b: _groups(x.transpose(0, 2, 3, 1), g, b, 4, 1e-5, swish=False).transpose(0, 3, 1, 2),
    ),
    "SkipGroupNorm": (
        Case("SkipGroupNorm", (_IMAGE, _G, _H, _SKIPPED, _K), {"groups": 2, "activation": 0}, outputs=2),
        lambda x, g, b, s, k: (_groups(x + s + k, g, b, 2, 1e-5, swish=False), x + s + k),
    ),
    "SkipGroupNorm of one number for each channel": (
        Case("SkipGroupNorm", (_IMAGE, _G, _H, _SKIPPED[:, 0, 0]), {"groups": 2, "activation": 1}, outputs=2),
        lambda x, g, b, s: (_groups(x + s[:, None, None], g, b, 2, 1e-5, swish=True), x + s[:, None, None]),
    ),
    "NhwcConv": (Case("NhwcConv", (_LAST, _KERNELS, B), _CONV), lambda *_: _transposed(_CONVOLVED)),
    "NhwcFusedConv": (
        Case("NhwcFusedConv", (_LAST, W, B, _transposed(Z).copy()), {**_CONV, "activation": "Relu"}),
        lambda *_: _transposed(np.maximum(_CONVOLVED + Z, 0)),
    ),
    "FusedMatMulActivation": (
        Case(
            "FusedMatMulActivation",
            (_M, _N.swapaxes(2, 3).copy()),
            {"transB": 1, "alpha": 0.5, "activation": "LeakyRelu", "activation_alpha": 0.2},
        ),
        lambda a, b: np.where(a @ b.swapaxes(2, 3) > 0, 0.5, 0.1) * (a @ b.swapaxes(2, 3)),
    ),
    "GemmFastGelu": (
        Case("GemmFastGelu", (_M, _N[0, 0], B)),
        lambda x, w, b: Session(Case("FastGelu", (x,)).model()).run({"i0": x @ w + b})["o0"],
    ),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_has_no_kernel_here_is_as_documented(name: str):
    """Fails where an operator that only other providers run is written as something else than its documentation."""
    case, formula = DOCUMENTED[name]
    proto, unfused = standard(case.model(), case.feeds())
    assert len(unfused.fused) == 1, unfused.notes
    expected = formula(*case.inputs)
    for k, y in enumerate(expected if isinstance(expected, tuple) else (expected,)):
        got = Session(proto).run(case.feeds())[f"o{k}"]
        assert got.shape == y.shape
        np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-5)


def test_every_row_has_a_case():
    """Fails where a row of the table is held against nothing."""
    cases = [*EXACT.values(), *(c for c, _ in DOCUMENTED.values())]
    elsewhere = {*codes.TABLE, *attention.TABLE, *experts.TABLE, *packed_codes.TABLE}
    elsewhere.add("com.microsoft.QEmbedLayerNormalization")
    others = {name for name in TABLE if name not in elsewhere and not name.startswith(DOMAIN)}
    assert others == {f"{c.domain}.{c.operator}" if c.domain else c.operator for c in cases}


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (Case("FusedConv", (X, W), {**_CONV, "activation": "Mish"}), "Mish"),
        (Case("FusedConv", (X, W), {**_CONV, "activation": "Clip"}), "needs 2 parameters, and has 0"),
        (Case("FusedGemm", (_M[0, 0], _N[0, 0]), {"activation": "Elu"}), "lacks parameters"),
        (Case("SkipSimplifiedLayerNormalization", (_S, _T, _G), outputs=2), "does not compute"),
        (Case("SimplifiedLayerNormalization", (_S, _G), {"stash_type": 11}, domain=""), "precision"),
        (
            Case("EmbedLayerNormalization", (_IDS, _KINDS, *_TABLES[:2], None, _G, _H), {}, (2, 3, 5, 6), 2),
            "segments without a table",
        ),
        (Case("RotaryEmbedding", (_HEADS, _PLACES, *_angles(9, 3)), {"scale": 2.0}), "scales"),
        (Case("RotaryEmbedding", (_HEADS, _PLACES, *_angles(9, 3)), {"is_packed_batching": 1}), "packs"),
        (Case("RotaryEmbedding", (_FLAT, _PLACES, *_angles(9, 1)), {"rotary_embedding_dim": 2}), "how long a head is"),
        (Case("NhwcConv", (_LAST, W, B), {**_CONV, "kernel_shape": [3, 3]}), "input channels last"),
        (Case("Trilu", (_M,), opset=13), "from opset 14 on"),
        (Case("FusedMatMulActivation", (_M, _N), {"activation": "Softmax"}), "Softmax"),
        (Case("FusedGemm", (_M[0, 0], _N[0, 0]), {"activation": "Celu", "activation_alpha": 1.0}, opset=11), "opset"),
    ],
)
def test_what_is_not_understood_stays(case: Case, why: str):
    """Fails where something else stands for a node whose meaning is not known, or nobody is told."""
    proto, unfused = standard(case.model(), case.feeds())
    assert [n.op_type for n in proto.graph.node] == [case.operator]
    assert not unfused.fused
    assert len(unfused.notes) == 1
    assert why in unfused.notes[0]


def _inside() -> onnx.ModelProto:
    """A branch, in the body of a Loop, with fused nodes that read what is outside."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    main (float[N,4] x, bool yes) => (float[N,4] y) {
        turns = Constant <value_int=2> ()
        y = Loop (turns, , x) <body = step (int64 i, bool going, float[N,4] h) => (bool on, float[N,4] next) {
            on = Identity (going)
            b = com.microsoft.QuickGelu (h)
            next = If (yes) <
                then_branch = one () => (float[N,4] a) { a = com.microsoft.FusedMatMul <transB=1, alpha=0.5> (b, w) },
                else_branch = two () => (float[N,4] c) { c = com.microsoft.Gelu (b) }
            >
        }>
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(_real(4, 4), "w"))
    return model


@pytest.mark.parametrize("yes", [True, False])
def test_bodies(yes: bool):
    """Fails where a fused node inside the branch of a body stays, or what it captures is lost."""
    model = _inside()
    feeds = {"x": _real(3, 4), "yes": np.array(yes)}
    normal_form = normalise(model, feeds)
    assert {n.domain for n in bodies.every_node(normal_form.proto.graph)} == {""}
    assert [o.domain for o in normal_form.proto.opset_import] == [""]
    y = Session(normal_form.proto).run(feeds)["y"]
    np.testing.assert_allclose(y, Session(model).run(feeds)["y"], rtol=1e-5, atol=1e-6)


def _half(case: Case) -> Case:
    halves = [v.astype(np.float16) if v is not None and v.dtype == np.float32 else v for v in case.inputs]
    return replace(case, inputs=halves)


@pytest.mark.parametrize(
    "name",
    [
        "activations: gelu",
        "activations: fast with a bias before",
        "normalizations: skip with all in opset 12",
        "normalizations: simple skip with all in opset 17",
        "normalizations: simple with all in opset 9",
        "normalizations: simple in opset 23",
        "rotary: flat",
    ],
)
def test_half_precision(name: str):
    """Fails where a constant has another type than what it is added to, or an output another one than before."""
    case = _half(EXACT[name])
    proto, unfused = standard(case.model(), case.feeds())
    assert len(unfused.fused) == 1
    got = Session(proto, optimize=False).run(case.feeds())
    full = Session(EXACT[name].model()).run(
        {k: v.astype("f") if v.dtype == "e" else v for k, v in case.feeds().items()}
    )
    for k, y in full.items():
        np.testing.assert_allclose(got[k].astype(np.float32), y, rtol=2e-2, atol=2e-2)
    try:
        expected = Session(case.model()).run(case.feeds())
    except RunError:
        return  # no kernel for this type
    assert {k: v.dtype for k, v in got.items()} == {k: v.dtype for k, v in expected.items()}


def test_the_layer_keeps_the_name():
    """Fails where a pattern for --exclude no longer finds the layer, or two nodes have one name."""
    for case, operator in ((EXACT["FusedConv: sum"], "Conv"), (EXACT["FusedMatMul: both"], "MatMul")):
        proto, _ = standard(case.model(), case.feeds())
        names = {n.name: n.op_type for n in proto.graph.node}
        assert names["it"] == operator
        assert len(names) == len(proto.graph.node)


def test_what_is_there_already_keeps_its_name():
    """Fails where a new tensor takes the name of another one."""
    model = EXACT["FusedMatMul: left"].model()
    proto, _ = standard(model, EXACT["FusedMatMul: left"].feeds())
    new = next(n.output[0] for n in proto.graph.node if n.op_type == "Transpose")
    model.graph.node.append(helper.make_node("Identity", ["i0"], [new]))
    model.graph.output.append(helper.make_empty_tensor_value_info(new))
    proto, _ = standard(model, EXACT["FusedMatMul: left"].feeds())
    assert new in [n.output[0] for n in proto.graph.node if n.op_type == "Identity"]
    outputs = [o for n in proto.graph.node for o in n.output]
    assert len(outputs) == len(set(outputs))


def test_a_model_without_any_is_left_alone():
    """Fails where a model that has nothing fused costs a run, or is changed."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    )
    before = model.SerializeToString()
    found = unfuse(model, {})
    assert not found.fused
    assert not found.notes
    assert model.SerializeToString() == before
