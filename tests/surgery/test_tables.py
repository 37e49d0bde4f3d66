"""Tables that the model computes from little: the result computes them too, and is no larger."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import inspect, prune
from onnxprune.graph import external, protobuf
from onnxprune.normalise import normalise
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session
from onnxprune.surgery import tables
from onnxprune.verification.checks import largest_difference
from tests.compare import assert_same
from tests.topologies.text import Topology

RNG = np.random.default_rng(0)
OPTIONS: dict[str, Any] = {"ratio": 0.3, "round_to": 1, "method": "magnitude"}
TOLERANCE = 1e-6

# A transform by a table of 64 x 64 cosines, which the graph makes of two vectors.
COSINES = """(float[N,64] x) => (float[N,5] y) {
    angle = Mul (col[64,1], row[1,64])
    dct = Cos (angle)
    f = MatMul (x, dct)
    g = Abs (f)
    a = MatMul (g, w1[64,32])
    r = Relu (a)
    y = MatMul (r, w2[32,5])
}"""
# The same angles make sines as well, and only a part of the transform is read further on.
BOTH = """(float[N,64] x) => (float[N,5] y) {
    angle = Mul (col[64,1], row[1,64])
    c = Cos (angle)
    s = Sin (angle)
    fc = MatMul (x, c)
    fs = MatMul (x, s)
    p = Add (fc, fs)
    t = Tanh (p)
    a = MatMul (t, w1[64,32])
    y = MatMul (a, w2[32,5])
}"""
# The vector that makes the table is a weight of the network, too.
SHARED = """(float[N,64] x) => (float[N,5] y) {
    angle = Mul (col[64,1], row[1,64])
    dct = Cos (angle)
    f = MatMul (x, dct)
    z = Mul (f, row)
    g = Relu (z)
    a = MatMul (g, w1[64,32])
    r = Relu (a)
    y = MatMul (r, w2[32,5])
}"""
# Positions are computed from the size of the input, and stand in the branch of an If.
INSIDE = """(float[N,40] x, bool flag) => (float[N,5] y) {
    a = MatMul (x, w1[40,32])
    z = If (flag) <
        then_branch = t () => (t_out) {
            angle = Mul (col[32,1], row[1,32])
            m = Sin (angle)
            t_out = MatMul (a, m)
        },
        else_branch = e () => (e_out) { e_out = Identity (a) }
    >
    r = Relu (z)
    y = MatMul (r, w2[32,5])
}"""
SIZES = """(float[N,3,16,16] x) => (float[N,5,16,16] y) {
    shape = Shape (x)
    h = Gather (shape, two{:2})
    i = Range (zero{:0}, h, one{:1})
    fi = Cast <to = 1> (i)
    col = Unsqueeze (fi, last{1})
    row = Unsqueeze (fi, first{0})
    d = Sub (col, row)
    s = Cos (d)
    b = Conv (x, w1[24,3,1,1])
    p = Add (b, s)
    r = Relu (p)
    c = Conv <pads = [1,1,1,1]> (r, w2[24,24,3,3])
    y = Conv (c, w3[5,24,1,1])
}"""
# Numbers that are stored in half precision are no generated table.
HALVES = """(float[N,16] x) => (float[N,5] y) {
    wide = Cast <to = 1> (half)
    a = MatMul (x, wide)
    r = Relu (a)
    b = MatMul (r, w2[32,64])
    s = Relu (b)
    y = MatMul (s, w3[64,5])
}"""

# Codes of a byte with a scale and a zero point for each column, for each row, and in groups of 16 rows.
COLUMNS = """(float[N,64] x) => (float[N,5] y) {
    wide = Cast <to = 1> (codes)
    centred = Sub (wide, zero)
    table = Mul (centred, scale)
    f = MatMul (x, table)
    g = Abs (f)
    a = MatMul (g, w1[64,32])
    r = Relu (a)
    y = MatMul (r, w2[32,5])
}"""
ROWS = """(float[N,64] x) => (float[N,5] y) {
    h = MatMul (x, w0[64,64])
    k = Relu (h)
    wide = Cast <to = 1> (codes)
    table = Mul (wide, rows)
    f = MatMul (k, table)
    g = Abs (f)
    y = MatMul (g, w2[64,5])
}"""
TWICE = """(float[N,64] x) => (float[N,5] y) {
    wide = Cast <to = 1> (codes)
    one = Mul (wide, scale)
    two = Mul (wide, rows)
    f = MatMul (x, one)
    g = Abs (f)
    k = MatMul (g, two)
    h = Relu (k)
    y = MatMul (h, w2[64,5])
}"""
GROUPED = """(float[N,64] x) => (float[N,5] y) {
    wide = Cast <to = 1> (grouped)
    scaled = Mul (wide, steps)
    table = Reshape (scaled, shape)
    f = MatMul (x, table)
    g = Abs (f)
    a = MatMul (g, w1[64,32])
    r = Relu (a)
    y = MatMul (r, w2[32,5])
}"""
PACKED = {"columns": COLUMNS, "rows": ROWS, "twice": TWICE, "grouped": GROUPED}


def packed(text: str) -> onnx.ModelProto:
    """The model with its codes."""
    proto = Topology(text, ()).model()
    codes = RNG.integers(-128, 128, (64, 64)).astype(np.int8)
    scales = RNG.uniform(0.001, 0.01, 64).astype(np.float32)
    known = {
        "codes": codes,
        "grouped": codes.reshape(4, 16, 64),
        "zero": np.full(64, 3, np.float32),
        "scale": scales,
        "rows": scales[:, None],
        "steps": scales.reshape(4, 16, 1)[:, :1],
        "shape": np.array([64, 64]),
    }
    read = {i for n in proto.graph.node for i in n.input}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in known.items() if k in read)
    return proto


def data(proto: onnx.ModelProto, count: int = 96) -> dict[str, Array]:
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][1:] for v in proto.graph.input}
    found: dict[str, Array] = {"x": RNG.standard_normal((count, *shapes["x"])).astype(np.float32)}
    return found | ({"flag": np.array(True)} if "flag" in shapes else {})


def model(text: str) -> onnx.ModelProto:
    proto = Topology(text, ()).model()
    if "half" in text:
        half = RNG.standard_normal((16, 32)).astype(np.float16)
        proto.graph.initializer.append(numpy_helper.from_array(half, "half"))
    return proto


def stored(proto: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in external.stored_tensors(proto)}


@pytest.mark.parametrize("text", [COSINES, BOTH, SHARED, INSIDE, SIZES])
@pytest.mark.parametrize("options", [{"refit": "none"}, {"recover": 2}], ids=["sliced", "recovered"])
def test_the_result_is_no_larger(text: str, options: dict[str, Any]):
    """Fails where a table is written out, or what is made in its place is another one."""
    proto = model(text)
    result = prune(proto, None, data(proto), **OPTIONS, **options)
    assert result.model is not None
    assert external.model_bytes(result.model) < external.model_bytes(proto)
    assert max(a.size for a in stored(result.model).values()) <= max(a.size for a in stored(proto).values())
    assert result.report.after.parameters == protobuf.parameters(result.model) < protobuf.parameters(proto)
    assert result.report.before.parameters == inspect(proto).parameters == protobuf.parameters(proto)
    onnx.checker.check_model(result.model, full_check=True)


def test_a_table_that_is_cut_is_gathered():
    """Fails where the positions that stay are others, or their order is."""
    proto = model(COSINES)
    result = prune(proto, None, data(proto), refit="none", **OPTIONS | {"ratio": 0.6})
    assert result.model is not None
    (gather,) = (n for n in result.model.graph.node if n.op_type == "Gather")
    (kept,) = (g.kept for g in result.plan.groups if g.units == 64)
    assert stored(result.model)[gather.input[1]].tolist() == list(kept)
    made = Session(protobuf.submodel(result.model, {}, ["dct"])).run({})["dct"]
    vectors = stored(proto)
    assert_same(made, np.cos(vectors["col"] * vectors["row"])[:, list(kept)], rtol=TOLERANCE, atol=TOLERANCE)


def test_each_node_comes_back_once():
    proto = model(BOTH)
    result = prune(proto, None, data(proto), refit="none", **OPTIONS)
    assert result.model is not None
    operators = [n.op_type for n in result.model.graph.node]
    assert (operators.count("Mul"), operators.count("Cos"), operators.count("Sin")) == (1, 1, 1)
    # What both lose is said once.
    assert len({n.input[1] for n in result.model.graph.node if n.op_type == "Gather"}) <= 1


@pytest.mark.parametrize("cut", [False, True])
def test_numbers_that_are_stored_in_another_way(cut: bool):
    """Fails where what was removed of them stays in the file, or where they are written wider than they were."""
    proto = model(HALVES)
    known = normalise(proto, {"x": data(proto, 2)["x"]}).tables
    assert [(k, t.generated) for k, t in known.items()] == [("wide", False)]
    result = prune(proto, None, data(proto), **OPTIONS, refit="none", exclude=() if cut else ("wide",))
    assert result.model is not None
    sizes = {k: (a.dtype.name, a.shape) for k, a in stored(result.model).items() if a.ndim == 2 and len(a) == 16}
    ((name, (dtype, shape)),) = sizes.items()
    assert (name, dtype) == ("half", "float16")
    assert (shape[1] < 32) == cut
    assert external.model_bytes(result.model) < external.model_bytes(proto)


def test_fitted_numbers_are_stored_as_they_were():
    """Fails where a fitted weight is written wider than the original's, or in a type that cannot hold it."""
    proto = model(HALVES)
    result = prune(proto, None, data(proto), **OPTIONS, fast=True)
    assert result.model is not None
    assert "float16" in {a.dtype.name for a in stored(result.model).values()}
    assert np.isfinite(Session(result.model).run(data(proto, 8))["y"]).all()
    table = normalise(proto, {"x": data(proto, 2)["x"]}).tables["wide"]
    assert tables._narrowed(table, np.float32([[1e6]])) is None
    assert tables._narrowed(table, np.float32([[0.5]])).dtype == np.float16


@pytest.mark.parametrize("text", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("options", [{"refit": "none"}, {}], ids=["sliced", "fitted"])
def test_codes_stay_codes(text: str, options: dict[str, Any]):
    """Fails where codes are written out as numbers of four bytes, or are cut where their scales are not."""
    proto = packed(text)
    feeds = data(proto)
    result = prune(proto, None, feeds, **OPTIONS | {"ratio": 0.5}, **options)
    assert result.model is not None
    assert external.model_bytes(result.model) < external.model_bytes(proto)
    codes = [a for a in stored(result.model).values() if a.dtype == np.int8]
    assert codes
    assert all(a.size < 64 * 64 for a in codes) == (text != GROUPED)
    assert result.report.after.parameters == protobuf.parameters(result.model) < protobuf.parameters(proto)
    onnx.checker.check_model(result.model, full_check=True)


def test_codes_that_are_cut_are_the_original_s():
    """Fails where the numbers that the codes give are others than those that stay, with columns as with rows."""
    proto = packed(TWICE)
    result = prune(proto, None, data(proto), refit="none", **OPTIONS | {"ratio": 0.5})
    assert result.model is not None
    values, kept = stored(proto), {g.name: list(g.kept) for g in result.plan.groups}
    made = {k: Session(protobuf.submodel(result.model, {}, [k])).run({})[k] for k in ("one", "two")}
    sides = {made["one"].shape[1], made["two"].shape[0]}
    assert len(sides) == 1 < 64 - sides.pop()
    whole = {"one": values["codes"] * values["scale"], "two": values["codes"] * values["rows"]}
    (inner,) = (k for k in kept.values() if np.shape(whole["one"][:, k]) == made["one"].shape)
    assert_same(made["one"], whole["one"][:, inner], rtol=TOLERANCE, atol=0.0)
    outer = next((k for k in kept.values() if k is not inner), list(range(64)))
    assert_same(made["two"], whole["two"][np.ix_(inner, outer)], rtol=TOLERANCE, atol=0.0)


def test_few_of_many_codes_are_numbers():
    """Fails where numbers that take fewer bytes than the codes did are not fitted: of a layer that loses inputs."""
    proto = packed(ROWS)
    result = prune(proto, None, data(proto), **OPTIONS | {"ratio": 0.9}, fast=True)
    assert result.model is not None
    assert external.model_bytes(result.model) < external.model_bytes(proto)
    assert not any(a.dtype == np.int8 for a in stored(result.model).values())


def test_a_wrong_table_would_be_found(monkeypatch: pytest.MonkeyPatch):
    """The mutation check: a table in place of what only looks like it makes another model."""
    proto, feeds = model(COSINES), data(model(COSINES), 8)
    right = prune(proto, None, feeds, refit="none", **OPTIONS | {"ratio": 0.6}).model
    real = np.flatnonzero
    monkeypatch.setattr(tables.np, "flatnonzero", lambda a: real(a)[::-1])
    monkeypatch.setattr(tables, "_only_cut", lambda *args: True)
    with pytest.raises(Exception, match="differs from the masked original"):
        prune(proto, None, feeds, refit="none", **OPTIONS | {"ratio": 0.6})
    assert right is not None
    assert largest_difference(Session(right).run(feeds), Session(right).run(feeds)) == 0.0
