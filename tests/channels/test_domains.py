"""What flows into operators that are only defined for some numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.channels.domains import FLOWS, LIMITED, Flow, limited_by
from onnxprune.channels.rules import TABLE
from onnxprune.runtime.session import Session
from tests.calibrated import prepare_text

HEAD = "(float[N,6] x) => (float[N,4] y) { a = MatMul (x, w1[6,8]) "
TAIL = " y = MatMul (z, w2[8,4]) }"


def limited(between: str) -> set[str]:
    """Which tensors are limited where this makes z of a."""
    return set(limited_by(prepare_text(HEAD + between + TAIL).channels.graph))


@pytest.mark.parametrize(
    "between",
    [
        "z = Log (a)",
        "b = Add (a, e{0.001}) z = Log (b)",
        "b = Add (a, e[8]) c = Mul (b, f{:0.5}) z = Sqrt (c)",
        "z = Pow (a, p{:0.33})",
        "z = Pow (a, p{:-1.0})",
        "z = Div (e[8], a)",
        "b = Reciprocal (a) z = Tanh (b)",
        "b = MatMul (a, v[8,8]) c = Transpose (b) d = Transpose (c) z = Log (d)",
        "m = ReduceMean <keepdims = 1> (a) z = Div (a, m)",
        "b = Clip (a, low{:-2.0}) z = Log (b)",
    ],
)
def test_limited(between: str):
    """Fails where a layer in front of such an operator is fitted without regard to it."""
    assert "a" in limited(between)


@pytest.mark.parametrize(
    "between",
    [
        "b = Relu (a) c = Add (b, e{0.001}) z = Log (c)",
        "b = Clip (a, low{:0.001}) z = Log (b)",
        "b = Max (a, low{:0.001}) z = Log (b)",
        "b = Mul (a, a) m = ReduceMean <keepdims = 1> (b) r = Sqrt (m) z = Div (a, r)",
        "b = Pow (a, p{:2.0}) z = Sqrt (b)",
        "b = Softmax (a) z = Log (b)",
        "b = Sigmoid (a) z = Div (a, b)",
        "b = Exp (a) s = ReduceSum <keepdims = 1> (b) z = Div (b, s)",
        "z = Pow (a, p{:3.0})",
        "n = ReduceL2 <keepdims = 1> (a) z = Div (a, n)",
    ],
)
def test_free(between: str):
    """Fails where a guard, or a normalization that is written out, keeps a layer from being fitted."""
    assert "a" not in limited(between)


@pytest.mark.parametrize(
    "between",
    [
        "c = ReduceLogSum <keepdims = 1> (a, i{1}) z = Add (a, c)",
        "c = Tanh (a) b = Pow (a, c) z = Tanh (b)",
        'b = Einsum <equation = "ni,ij->nj"> (a, v[8,8]) z = Log (b)',
        "b = Elu (a) z = Sqrt (b)",
        "b = Selu (a) z = Sqrt (b)",
        "b = GatherElements <axis = 1> (a, i{2x8:7,6,5,4,3,2,1,0,7,6,5,4,3,2,1,0}) z = Log (b)",
        "b = Relu (a) z = Acosh (b)",
        "b = Abs (a) z = Asin (b)",
        "b = Mul (a, a) z = Acos (b)",
    ],
)
def test_more_that_is_limited(between: str):
    assert "a" in limited(between)


IN_BODIES = {
    "a Log in a branch": """
        z = If (flag) < then_branch = t () => (p) { p = Log (a) }, else_branch = e () => (q) { q = Tanh (a) } >""",
    "a Log behind an If": """
        b = If (flag) < then_branch = t () => (p) { p = Identity (a) }, else_branch = e () => (q) { q = Abs (k[2,8]) } >
        z = Log (b)""",
    "a Log on what the iteration before gave": """
        l = Loop (i{:2}, on, k[2,8]) <body = s (int64 n, bool g, float[2,8] c) => (gg, cc) {
            gg = Identity (g) p = Log (c) q = Abs (p) cc = Add (a, q)
        } >
        z = Tanh (l)""",
    "a Log behind a Loop": """
        b = Loop (i{:2}, on, a) <body = s (int64 n, bool g, float[N,8] c) => (gg, cc) {
            gg = Identity (g) cc = Add (c, e{0.5})
        } >
        z = Log (b)""",
    "a Log inside a Scan": """
        r = Reshape (a, s{2,1,8})
        l, m = Scan <num_scan_inputs = 1, body = s (float[1,8] c, float[1,8] d) => (cc, dd) {
            cc = Identity (c) dd = Log (d)
        } > (k[1,8], r)
        z = Reshape (m, u{2,8})""",
}


@pytest.mark.parametrize("case", IN_BODIES)
def test_limited_across_the_borders_of_bodies(case: str):
    """Fails where the walk does not cross from a body to what it captures, carries, is given or returns."""
    head = HEAD.replace("x)", "x, bool flag, bool on)")
    graph = prepare_text(head + IN_BODIES[case] + TAIL).channels.graph
    assert "a" in limited_by(graph)


def test_free_in_a_body():
    text = HEAD.replace("x)", "x, bool flag)") + IN_BODIES["a Log in a branch"].replace("Log", "Exp") + TAIL
    assert "a" not in limited_by(prepare_text(text).channels.graph)


def test_every_operator_is_judged():
    """Fails where an operator that channels are followed through is in no list of what its results depend on."""
    assert TABLE.keys() - FLOWS.keys() == set()
    assert LIMITED.keys() <= FLOWS.keys()


NUMBERS = np.concatenate([-np.geomspace(4, 1e-3, 23), [0.0], np.geomspace(1e-3, 4, 23)]).astype(np.float32)[None, None]
# They read sizes, need a second input, draw, or take more than one number.
NOT_RUN = frozenset(
    (
        "BlackmanWindow ConstantOfShape EyeLike HammingWindow HannWindow MeanVarianceNormalization Multinomial "
        "RandomNormalLike RandomUniformLike Resize Split"
    ).split()
)


def unary() -> list[str]:
    """Standard operators of the table that run on one floating-point tensor and nothing else."""
    found = []
    for name in TABLE:
        if "." in name or name in NOT_RUN or not onnx.defs.has(name):
            continue
        schema = onnx.defs.get_schema(name, 18) if onnx.defs.has(name, 18) else None
        if schema is not None and schema.min_input == 1 and not any(a.required for a in schema.attributes.values()):
            floats = {t for c in schema.type_constraints for t in c.allowed_type_strs}
            if "tensor(float)" in floats:
                found.append(name)
    return found


@pytest.mark.parametrize("name", unary())
def test_the_lists_hold(name: str):
    """What each operator gives for numbers of both signs, one at a time, against what is said of it."""
    schema = onnx.defs.get_schema(name, 18)
    node = onnx.helper.make_node(name, ["x"], [f"y{i}" for i in range(schema.min_output)])
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 1])
    out = onnx.helper.make_empty_tensor_value_info("y0")
    graph = onnx.helper.make_graph([node], "g", [info], [out])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    session = Session(proto)
    found = [np.asarray(session.run({"x": NUMBERS[..., i : i + 1]})["y0"]) for i in range(NUMBERS.shape[-1])]
    flow, _ = FLOWS[name]
    y = np.concatenate([f.ravel() for f in found])
    if y.dtype.kind != "f":
        return
    assert np.isfinite(y).all() or name in LIMITED
    y = y[np.isfinite(y)]
    one_sign = bool((y >= 0).all() or (y <= 0).all())
    if flow in (Flow.POSITIVE, Flow.ENDS):
        assert one_sign
    if flow in (Flow.BOUNDED, Flow.ENDS):
        assert np.abs(y).max() <= 1 + 1e-6
