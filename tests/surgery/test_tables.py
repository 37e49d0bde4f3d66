"""Tables that the model computes from little: the result computes them too, and is no larger."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import inspect, prune
from onnxprune.errors import BudgetUnreachable
from onnxprune.graph import external, protobuf
from onnxprune.normalise import normalise
from onnxprune.normalise.carried import carried
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
# Nearly all weights are codes that nodes turn around, or give the axes of a kernel; and codes that two layers share.
TURNED = """(float[N,64] x) => (float[N,5] y) {
    a = Cast <to = 1> (q1)
    b = Mul (a, s1)
    one = Transpose <perm = [1,0]> (b)
    h = MatMul (x, one)
    r = Relu (h)
    c = Cast <to = 1> (q2)
    d = Mul (c, s2)
    two = Transpose (d)
    k = MatMul (r, two)
    l = Relu (k)
    y = MatMul (l, w3[48,5])
}"""
KERNELS = """(float[N,3,8,8] x) => (float[N,5] y) {
    a = Cast <to = 1> (q1)
    b = Mul (a, s1)
    one = Reshape (b, z1)
    h = Conv <pads = [1,1,1,1]> (x, one)
    r = Relu (h)
    c = Cast <to = 1> (q2)
    d = Mul (c, s2)
    two = Reshape (d, z2)
    k = Conv <pads = [1,1,1,1]> (r, two)
    l = Relu (k)
    g = GlobalAveragePool (l)
    f = Flatten (g)
    y = MatMul (f, w3[48,5])
}"""
TIED = """(int64[N,6] x) => (float[N,6,50] y) {
    a = Cast <to = 1> (q1)
    one = Mul (a, s1)
    e = Gather (one, x)
    two = Transpose <perm = [1,0]> (one)
    y = MatMul (e, two)
}"""
MERGED = KERNELS.replace("z2", "z3")
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    TURNED: {"q1": (96, 64), "s1": (96, 1), "q2": (48, 96), "s2": (48, 1)},
    KERNELS: {"q1": (64, 3, 9), "s1": (64, 1, 1), "q2": (48, 64, 9), "s2": (48, 1, 1)},
    MERGED: {"q1": (64, 27), "s1": (64, 1), "q2": (48, 576), "s2": (48, 1)},
    TIED: {"q1": (50, 64), "s1": (50, 1)},
}
SIZES_OF = {"z1": [64, -1, 3, 3], "z2": [0, 0, 3, 3], "z3": [48, 64, 3, 3]}


def coded(text: str) -> onnx.ModelProto:
    """The model with its codes, of one byte, their scales and sizes."""
    proto = Topology(text, ()).model()
    for name, shape in SHAPES[text].items():
        codes = RNG.integers(-128, 128, shape).astype(np.int8)
        values = codes if name.startswith("q") else RNG.uniform(0.001, 0.01, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    read = {i for n in proto.graph.node for i in n.input}
    proto.graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in SIZES_OF.items() if k in read)
    return proto


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
    assert all(a.size < 64 * 64 for a in codes)
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


@pytest.mark.parametrize("text", [TURNED, KERNELS], ids=["turned", "kernels"])
@pytest.mark.parametrize("options", [{"refit": "none"}, {}], ids=["sliced", "fitted"])
def test_codes_behind_transpose_and_reshape_are_cut_and_counted(text: str, options: dict[str, Any]):
    """Fails where codes stay whole behind a Gather, or count as none, so that half of the parameters cannot go."""
    proto = coded(text)
    result = prune(proto, None, data(proto), **OPTIONS | {"ratio": 0.5, "budget": "params"}, **options)
    assert result.model is not None
    report, before, after = result.report, stored(proto), stored(result.model)
    assert report.after.parameters == protobuf.parameters(result.model) <= 0.51 * protobuf.parameters(proto)
    assert external.model_bytes(result.model) < 0.6 * external.model_bytes(proto)
    codes = {k: a for k, a in after.items() if a.dtype == np.int8}
    assert codes.keys() == {"q1", "q2"}
    assert all(a.size < before[k].size for k, a in codes.items() if k == "q2" or "refit" in options)
    assert not any(n.op_type == "Gather" for n in result.model.graph.node)
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize("text", [TURNED, KERNELS], ids=["turned", "kernels"])
def test_turned_codes_that_are_cut_are_the_original_s(text: str):
    """Fails where other channels are taken of the codes than of what they make: each is held against the whole one."""
    proto = coded(text)
    result = prune(proto, None, data(proto), refit="none", **OPTIONS | {"ratio": 0.5})
    assert result.model is not None
    kept = {g.units: list(g.kept) for g in result.plan.groups}
    first = kept[96 if text == TURNED else 64]
    for name, inner, outer in (("one", None, first), ("two", first, kept[48])):
        whole, made = (Session(protobuf.submodel(m, {}, [name])).run({})[name] for m in (proto, result.model))
        axes = (1, 0) if text == TURNED else (0, 1)
        expected = np.take(whole, outer, axis=axes[0])
        expected = expected if inner is None else np.take(expected, inner, axis=axes[1])
        assert_same(made, expected, rtol=TOLERANCE, atol=0.0)


def test_codes_of_two_layers_are_stored_once():
    """Fails where codes that an embedding and the layer of its scores share are written for each."""
    proto = coded(TIED)
    feeds = {"x": RNG.integers(0, 50, (96, 6))}
    result = prune(proto, None, feeds, refit="none", **OPTIONS | {"ratio": 0.5, "budget": "params"})
    assert result.model is not None
    (codes,) = (a for a in stored(result.model).values() if a.dtype == np.int8)
    assert codes.shape == (50, 31)
    assert result.report.after.parameters == protobuf.parameters(result.model) == 50 * 31 + 50


def test_codes_whose_axes_are_merged_stay_whole():
    """Fails where channels are said to go of codes in which they have no axis: the result computes them all."""
    proto = coded(MERGED)
    with pytest.raises(BudgetUnreachable, match="of the parameters cannot go"):
        prune(proto, None, data(proto), **OPTIONS | {"ratio": 0.5, "budget": "params"})
    result = prune(proto, None, data(proto), refit="none", **OPTIONS | {"ratio": 0.5})
    assert result.model is not None
    assert result.report.after.parameters == protobuf.parameters(result.model)


@pytest.mark.parametrize(
    ("nodes", "shapes", "axes"),
    [
        # Another layout of the same tensor meets it: no axis is cut in one and stays in the other.
        (["t = Transpose (q)", "w = Mul (q, t)"], {"q": (32, 32)}, [None, None]),
        (["t = Transpose (q)", "w = Mul (q, t)"], {"q": (64, 1)}, [None, None]),
        (["a = Sub (q, z)", "w = Mul (a, s)"], {"q": (32, 48), "z": (48,), "s": (32, 1)}, ["q0 s0", "q1 z0"]),
        (["w = Transpose <perm = [2,0,1]> (q)"], {"q": (4, 8, 64)}, ["q2", "q0", "q1"]),
        (["w = Unsqueeze (q, axes)"], {"q": (32, 48), "axes": [1]}, ["q0", "", "q1"]),
        (["w = Squeeze (q, axes)"], {"q": (32, 1, 48), "axes": [-2]}, ["q0", "q2"]),
        (["w = Flatten <axis = 1> (q)"], {"q": (32, 4, 12)}, ["q0", None]),
        (["w = Reshape (q, sizes)"], {"q": (32, 4, 12), "sizes": [2, 16, -1]}, [None, None, None]),
        (["w = Reshape (q, sizes)"], {"q": (32, 4, 12), "sizes": [0, 48]}, ["q0", None]),
        (["w = Cos (q)"], {"q": (32, 48)}, [None, None]),
    ],
)
def test_where_axes_lie(nodes: list[str], shapes: dict[str, Any], axes: list[str | None]):
    leaves = [
        numpy_helper.from_array(np.array(v, np.int64) if isinstance(v, list) else np.ones(v, np.float32), k)
        for k, v in shapes.items()
    ]
    text = f"g (float[N] x) => (float[N] y) {{ {'; '.join(nodes)} }}".replace(";", "\n")
    graph = onnx.parser.parse_graph(text)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    proto.graph.initializer.extend(leaves)
    del proto.graph.input[:], proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info("w"))
    made = numpy_helper.from_array(Session(proto).run({})["w"], "w")
    found = carried(made, list(proto.graph.node), leaves)
    told = [None if p is None else " ".join(f"{k}{a}" for k, a in sorted(p.items())) for p in found.axes]
    assert told == axes


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
