"""Sums of products of codes as layers on numbers: the same numbers, whatever form the scales behind them have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.graph import bodies
from onnxprune.graph.protobuf import copied
from onnxprune.normalise.unfused.integers import real_products
from onnxprune.runtime.session import Session

Array = NDArray[Any]
_RNG = np.random.default_rng(0)
_X, _IMAGE = _RNG.standard_normal((3, 5, 8)).astype(np.float32), _RNG.standard_normal((2, 4, 7, 6)).astype(np.float32)


def _codes(kind: Any, *shape: int) -> Array:
    info = np.iinfo(kind)
    return _RNG.integers(info.min, info.max + 1, shape).astype(kind)


STORED: Mapping[str, Array] = {
    "w": _codes(np.uint8, 8, 6),
    "v": np.array(121, np.uint8),
    "vs": _RNG.integers(100, 140, 6).astype(np.uint8),
    "t": np.array(0.02, np.float32),
    "t1": np.array([0.02], np.float32),
    "ts": _RNG.uniform(0.01, 0.03, 6).astype(np.float32),
    "ts3": _RNG.uniform(0.01, 0.03, (1, 1, 6)).astype(np.float32),
    "column": _codes(np.uint8, 8),
    "five": _RNG.uniform(0.01, 0.03, 5).astype(np.float32),
    "ts2": _RNG.uniform(0.01, 0.03, (1, 6)).astype(np.float32),
    "rows": _RNG.uniform(0.01, 0.03, (5, 1)).astype(np.float32),
    "g": np.array(-0.5, np.float32),
    "kernel": _codes(np.uint8, 6, 2, 3, 3),
    "tk": _RNG.uniform(0.01, 0.03, (6, 1, 1)).astype(np.float32),
    "xs": np.array(0.03, np.float32),
    "xz": np.array(130, np.uint8),
    "xst": np.array(0.03 * 0.02, np.float32),
}
_STATIC = "q = QuantizeLinear(x, xs, xz)"
_DYNAMIC = "q, s, z = DynamicQuantizeLinear(x)"
_CAST = "c = Cast <to=1> (m)"
_SUM = "m = MatMulInteger(q, w, z, v)"
_CONV = "m = ConvInteger <group=2, pads=[1,0,1,1], strides=[2,1]> (q, kernel, z, v)"

# What the nodes are, and what is left of them.
LAYERS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "the product of the scales": ((_DYNAMIC, _SUM, _CAST, "k = Mul(s, t)", "y = Mul(c, k)"), ()),
    "turned round": ((_DYNAMIC, _SUM, _CAST, "k = Mul(t1, s)", "y = Mul(k, c)"), ()),
    "one by one": ((_DYNAMIC, _SUM, _CAST, "k = Mul(c, s)", "y = Mul(t, k)"), ()),
    "the other first": ((_DYNAMIC, _SUM, _CAST, "k = Mul(c, t)", "y = Mul(k, s)"), ()),
    "by channel": ((_DYNAMIC, "m = MatMulInteger(q, w, z, vs)", _CAST, "k = Mul(s, ts)", "y = Mul(c, k)"), ()),
    "one zero point": ((_DYNAMIC, _SUM, _CAST, "k = Mul(s, ts)", "y = Mul(c, k)"), ()),
    "scales that may add an axis": ((_DYNAMIC, _SUM, _CAST, "k = Mul(s, ts3)", "y = Mul(c, k)"), ("Mul", "Mul")),
    "one scale": ((_DYNAMIC, "m = MatMulInteger(q, w, z, vs)", _CAST, "k = Mul(s, t)", "y = Mul(c, k)"), ()),
    "without zero points": ((_DYNAMIC, "m = MatMulInteger(q, w)", _CAST, "k = Mul(s, t)", "y = Mul(c, k)"), ()),
    "no scale of the weight": ((_DYNAMIC, _SUM, _CAST, "y = Mul(c, s)"), ()),
    "no scale": ((_DYNAMIC, _SUM, "y = Cast <to=1> (m)"), ()),
    "a vector": (
        (_DYNAMIC, "m = MatMulInteger(q, column, z, v)", _CAST, "k = Mul(s, five)", "y = Mul(c, k)"),
        ("Mul", "Mul"),
    ),
    "a scale of two axes": ((_DYNAMIC, _SUM, _CAST, "k = Mul(s, ts2)", "y = Mul(c, k)"), ("Mul", "Mul")),
    "a given scale": (
        ("q = QuantizeLinear(x, xs, xz)", "m = MatMulInteger(q, w, xz, v)", _CAST, "y = Mul(c, xst)"),
        (),
    ),
    "two products": (
        (
            *(_DYNAMIC, _SUM, _CAST, "k = Mul(s, t)", "y1 = Mul(c, k)", "m2 = MatMulInteger(q, w, z, vs)"),
            *("c2 = Cast <to=1> (m2)", "y2 = Mul(c2, k)", "y = Sub(y1, y2)"),
        ),
        ("Sub",),
    ),
    "two activations": (
        (
            *(_DYNAMIC, "u = Transpose <perm=[0,2,1]> (x)", "q2, s2, z2 = DynamicQuantizeLinear(u)"),
            *("m = MatMulInteger(q, q2, z, z2)", _CAST, "k = Mul(s, s2)", "y = Mul(c, k)"),
        ),
        ("Transpose",),
    ),
    "a factor for each row": ((_DYNAMIC, _SUM, _CAST, "k = Mul(c, s)", "y = Mul(k, rows)"), ("Mul",)),
    "a negative factor": ((_DYNAMIC, _SUM, _CAST, "k = Mul(c, s)", "y = Mul(k, g)"), ("Mul",)),
    "another factor": ((_DYNAMIC, _SUM, _CAST, "k = Mul(s, t)", "p = Mul(c, k)", "y = Mul(p, t)"), ("Mul",)),
    "the square of the scale": ((_DYNAMIC, _SUM, _CAST, "k = Mul(s, s)", "y = Mul(c, k)"), ("Mul", "Mul")),
    "a cast that is read twice": ((_DYNAMIC, _SUM, _CAST, "k = Mul(c, s)", "y = Add(c, k)"), ("Add", "Mul")),
    "a convolution": ((_DYNAMIC, _CONV, _CAST, "k = Mul(s, t)", "y = Mul(c, k)"), ()),
    "a convolution by channel": ((_DYNAMIC, _CONV, _CAST, "k = Mul(s, tk)", "y = Mul(c, k)"), ()),
    "a convolution, one by one": ((_DYNAMIC, _CONV, _CAST, "k = Mul(c, s)", "y = Mul(k, tk)"), ()),
}
# And what stays as it is.
STAYS: Mapping[str, Sequence[str]] = {
    "sums of integers": (_DYNAMIC, _SUM, "n = Add(m, m)", "y = Cast <to=1> (n)"),
    "half precision": (_DYNAMIC, _SUM, "c = Cast <to=10> (m)", "y = Cast <to=1> (c)"),
    "sums that are read twice": (_DYNAMIC, _SUM, _CAST, "d = Cast <to=1> (m)", "y = Add(c, d)"),
}


def _model(lines: Sequence[str], opset: int = 17) -> onnx.ModelProto:
    rank = 4 if any("Conv" in line for line in lines) else 3
    ports = ", ".join("?" * rank).replace("?", "N0").split(", ")
    dims = ",".join(f"N{k}" for k in range(len(ports)))
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> main (float[{dims}] x) => (float[{dims}] y) {{'
    model = onnx.parser.parse_model(text + "\n".join(lines) + "}")
    read = {i for n in model.graph.node for i in n.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in STORED.items() if k in read)
    dims = model.graph.output[0].type.tensor_type.shape.dim
    del dims[2 if "column" in read else len(dims) :]  # a product with a vector has an axis less
    for d in dims:
        d.dim_param = f"{d.dim_param}_out"
    return model


def _numbers(model: onnx.ModelProto) -> Array:
    rank = len(model.graph.input[0].type.tensor_type.shape.dim)
    result: Array = Session(model, optimize=False).run({"x": _IMAGE if rank == 4 else _X})["y"]
    return result


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_give_the_numbers_of_the_sums(name: str, opset: int):
    """Fails where a scale is lost, counted twice, or given to the wrong operand or axis."""
    lines, left = LAYERS[name]
    model = _model(lines, opset)
    proto = copied(model)
    assert real_products(proto)
    onnx.checker.check_model(proto, full_check=opset > 12)
    known = {"MatMul", "Conv", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"}
    rest = sorted(n.op_type for n in proto.graph.node if n.op_type not in known)
    read = {i for n in proto.graph.node for i in n.input} | {"y"}
    unread = [n.op_type for n in proto.graph.node if n.op_type == "Mul" and n.output[0] not in read]
    assert rest == sorted([*left, *unread])
    expected = _numbers(model)
    np.testing.assert_allclose(_numbers(proto), expected, rtol=0.0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_layer_stays(name: str):
    """Fails where what reads the integers themselves is left without them."""
    model = _model(STAYS[name])
    proto = copied(model)
    assert not real_products(proto)
    assert proto == model


def test_weights_that_callers_may_override_stay():
    """Fails where a scale or a weight is written anew that a caller may give another value."""
    lines, _ = LAYERS["the product of the scales"]
    proto = _model(lines)
    assert real_products(proto, ("t",))
    assert "t" in {i for n in proto.graph.node if n.op_type == "Mul" for i in n.input}
    proto = _model(lines)
    assert not real_products(proto, ("w",))


def test_bodies_too():
    """Fails where a layer inside a branch keeps its codes, or a weight is looked for in the wrong graph."""
    lines, _ = LAYERS["by channel"]
    inside = "\n".join(line.replace("y =", "y0 =") for line in lines)
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> main (float[A,B,8] x, bool c) => (float[A,B,6] y) {{'
        f"y = If (c) <then_branch = one () => (float[A,B,6] y0) {{ {inside} }},"
        f" else_branch = other () => (float[A,B,6] y1) {{ f = Cast <to=1> (w) y1 = MatMul(x, f) }}> }}".replace(
            "c = Cast", "c0 = Cast"
        ).replace("Mul(c,", "Mul(c0,")
    )
    model.graph.initializer.extend(numpy_helper.from_array(STORED[k], k) for k in ("w", "vs", "ts"))
    proto = copied(model)
    assert real_products(proto)
    assert "MatMulInteger" not in {n.op_type for n in bodies.every_node(proto.graph)}
    for c in (True, False):
        got, expected = (Session(m).run({"x": _X, "c": np.array(c)})["y"] for m in (proto, model))
        np.testing.assert_allclose(got, expected, rtol=0.0, atol=2e-6 * np.abs(expected).max())
