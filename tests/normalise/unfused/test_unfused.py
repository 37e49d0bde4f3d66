"""Fused operators in standard ones: equal to what onnxruntime's kernels compute, or left as they are with a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.graph import bodies
from onnxprune.normalise import normalise
from onnxprune.normalise.unfused import TABLE, unfuse
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
EXACT = {
    f"{family}: {name}": case
    for family, rows in (
        ("FusedConv", CONVOLUTIONS),
        ("FusedGemm", GEMMS),
        ("FusedMatMul", PRODUCTS),
        ("activations", ACTIVATIONS),
    )
    for name, case in rows.items()
}


@pytest.mark.parametrize("name", EXACT)
def test_standard_operators_compute_the_same(name: str):
    """Fails where a fused operator and what stands for it differ by more than rounding."""
    assert_equal(EXACT[name], rtol=1e-5, atol=1e-5)


def test_every_row_has_a_case():
    """Fails where a row of the table is held against nothing."""
    tried = {f"{c.domain}.{c.operator}" if c.domain else c.operator for c in EXACT.values()}
    assert set(TABLE) == tried


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (Case("FusedConv", (X, W), {**_CONV, "activation": "Mish"}), "Mish"),
        (Case("FusedConv", (X, W), {**_CONV, "activation": "Clip"}), "needs 2 parameters, and has 0"),
        (Case("FusedGemm", (_M[0, 0], _N[0, 0]), {"activation": "Elu"}), "lacks parameters"),
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


def test_half_precision():
    """Fails where a constant has another type than what it is added to."""
    case = Case("Gelu", (X.astype(np.float16),))
    proto, _ = standard(case.model(), case.feeds())
    assert {t.data_type for t in proto.graph.initializer} == {onnx.TensorProto.FLOAT16}
    y = Session(proto).run(case.feeds())["o0"].astype(np.float32)
    expected = Session(Case("Gelu", (X,)).model()).run({"i0": X.astype(np.float16).astype(np.float32)})["o0"]
    np.testing.assert_allclose(y, expected, rtol=1e-2, atol=1e-2)


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
