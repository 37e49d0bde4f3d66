"""Weights in packed codes in standard operators: what onnxruntime's kernels compute, for every way of packing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import protobuf
from onnxprune.graph.packed_codes import packed, unpacked
from onnxprune.intake import older
from onnxprune.runtime.session import Session
from onnxprune.surgery.packed_codes import put_back
from tests.normalise.unfused.fusing import Case, assert_equal, standard

_RNG = np.random.default_rng(0)


def _bytes(*shape: int) -> Any:
    return _RNG.integers(0, 256, shape).astype(np.uint8)


def _real(*shape: int, kind: Any = np.float32) -> Any:
    return _RNG.standard_normal(shape).astype(kind)


def product(
    k: int = 64,
    n: int = 12,
    *,
    bits: int = 4,
    block: int = 16,
    zeros: bool = True,
    biased: bool = False,
    rows: tuple[int, ...] = (5,),
    kind: Any = np.float32,
    **attributes: int,
) -> Case:
    """A MatMulNBits with random codes, scales and zero points."""
    blocks = -(-k // block)
    given = (
        _real(*rows, k, kind=kind),
        _bytes(n, blocks, block * bits // 8),
        _RNG.uniform(0.01, 0.05, (n, blocks)).astype(kind),
        _bytes(n, -(-blocks * bits // 8)) if zeros else None,
        None,
        _real(n, kind=kind) if biased else None,
    )
    slots = tuple(s for s in range(1, 6) if given[s] is not None)
    sizes = {"K": k, "N": n, "bits": bits, "block_size": block}
    return Case("MatMulNBits", given[: max(slots) + 1], {**sizes, **attributes}, slots, opset=21)


PRODUCTS = {
    f"{bits} bits, {'zero points' if zeros else 'none'}, {k} by {block}": product(
        k, bits=bits, zeros=zeros, block=block, biased=zeros
    )
    for bits in (2, 4, 8)
    for zeros in (True, False)
    for k, block in ((64, 16), (40, 32), (48, 128))
} | {
    "a batch of matrices": product(rows=(2, 3)),
    "one row": product(rows=()),
    "one output": product(n=1, biased=True),
}


def look_up(
    shape: tuple[int, ...] = (7, 40),
    *,
    bits: int = 4,
    block: int = 16,
    kind: Any = np.uint8,
    zeros: bool = True,
    along: int = 1,
    picked: int = 0,
    scale: Any = np.float32,
) -> Case:
    """A GatherBlockQuantized with random codes: bytes of several, or codes of four bits that stand one by one."""

    def codes(*sizes: int) -> Any:
        if kind is np.uint8:
            return _bytes(*sizes[:-1], -(-sizes[-1] * bits // 8))
        info = ml_dtypes.iinfo(kind)
        return _RNG.integers(info.min, info.max + 1, sizes).astype(kind)

    blocks = tuple(-(-s // block) if a == along % len(shape) else s for a, s in enumerate(shape))
    given = (
        codes(*shape),
        _RNG.integers(0, shape[picked], (2, 3)),
        _RNG.uniform(0.01, 0.05, blocks).astype(scale),
        codes(*blocks) if zeros else None,
    )
    attributes = {"bits": bits, "block_size": block, "quantize_axis": along, "gather_axis": picked}
    return Case(
        "GatherBlockQuantized", given[: 4 if zeros else 3], attributes, (0, 2, 3) if zeros else (0, 2), opset=21
    )


LOOK_UPS = {
    **{
        f"rows of {bits} bits, {'zero points' if zeros else 'none'}": look_up(bits=bits, zeros=zeros)
        for bits in (2, 4, 8)
        for zeros in (True, False)
    },
    "rows of whole blocks": look_up((7, 32)),
    "codes one by one": look_up(kind=ml_dtypes.uint4),
    "signed codes": look_up(kind=ml_dtypes.int4),
    "signed codes without zero points": look_up(kind=ml_dtypes.int4, zeros=False),
    "blocks of rows": look_up((20, 6), kind=ml_dtypes.int4, along=0),
    "three axes": look_up((4, 20, 6), kind=ml_dtypes.uint4, along=-2, picked=2),
}


@pytest.mark.parametrize("name", LOOK_UPS)
def test_rows_are_those_of_the_kernel(name: str):
    """Fails where an axis, a block or a code is mistaken."""
    assert_equal(LOOK_UPS[name], rtol=1e-6, atol=1e-6)


def test_one_row():
    """Fails where the indices are one number, and the result has no axis for them."""
    case = look_up()
    assert_equal(replace(case, inputs=(case.inputs[0], np.array(-2), *case.inputs[2:])), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_those_of_the_kernel(name: str):
    """Fails where a code, a scale or a zero point goes to the wrong input, block or output."""
    proto = assert_equal(PRODUCTS[name], rtol=1e-5, atol=1e-5)
    assert next(n.name for n in proto.graph.node if n.op_type == "MatMul") == "it"


def test_half_precision():
    """Fails where the weight is no longer of the type of what it multiplies."""
    assert_equal(product(kind=np.float16, biased=True), rtol=1e-2, atol=1e-2)


def test_the_kernel_may_round_what_it_multiplies():
    """The standard form is that of the node at full accuracy; it stays within the kernel's own rounding to 8 bits."""
    case = product(accuracy_level=4)
    proto, _ = standard(case.model(), case.feeds())
    rounded, plain = (Session(p, optimize=False).run(case.feeds())["o0"] for p in (case.model(), proto))
    assert np.abs(rounded - plain).max() <= 0.02 * np.abs(plain).max()
    exact = product(accuracy_level=0)
    assert exact.attributes["accuracy_level"] == 0


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (product(weight_prepacked=1), "layout of one GPU"),
        (product(bits=4, K=80), "not of the size"),
        (replace(product(), inputs=(*product().inputs[:4], np.zeros(64, np.int32)), weights=(1, 2, 3, 4)), "g_idx"),
        (replace(product(), inputs=(*product().inputs[:3], _real(12, 4))), "no codes"),
        (replace(product(), weights=(1, 3)), "no weight of its own"),
        (replace(product(), opset=17), "opset 17"),
        (replace(look_up(), opset=17), "opset 17"),
        (replace(look_up(kind=ml_dtypes.int4), opset=17), "opset 17"),
        (replace(look_up(), attributes={**look_up().attributes, "block_size": 32}), "one scale for each block"),
    ],
)
def test_what_is_not_read_stays(case: Case, why: str):
    """Fails where a node is written anew whose codes mean something else."""
    proto, unfused = standard(case.model(), case.feeds())
    assert [n.op_type for n in proto.graph.node] == [case.operator]
    assert any(why in note for note in unfused.notes), unfused.notes


def test_a_note_says_that_blocks_go_whole():
    """Fails where nobody is told why a layer has so few units."""
    model, feeds = tied()
    _, unfused = standard(model, feeds)
    [note] = unfused.notes
    assert note.endswith(
        "one scale for 16 numbers, and lose whole blocks of these: 1 GatherBlockQuantized, 1 MatMulNBits"
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_is_its_own_inverse(bits: int):
    """Fails where a code lands in the wrong bits: held against the sum of codes times powers of two."""
    codes = _RNG.integers(0, 2**bits, (3, 2, 7)).astype(np.uint8)
    stored = packed(codes, bits)
    assert stored.shape == (3, 2, -(-7 * bits // 8))
    for place in np.ndindex(3, 2):
        whole = sum(int(c) << (bits * i) for i, c in enumerate(codes[place]))
        assert int.from_bytes(stored[place].tobytes(), "little") == whole
    np.testing.assert_array_equal(unpacked(stored, bits, 7), codes)


@pytest.mark.parametrize("name", [*PRODUCTS, *LOOK_UPS])
def test_what_nothing_has_touched_is_as_it_was(name: str):
    """Fails where a node does not come back, or with other codes than it had."""
    case = {**PRODUCTS, **LOOK_UPS}[name]
    proto, unfused = standard(case.model(), case.feeds())
    assert put_back(proto, unfused.fused) == 1
    [node] = proto.graph.node
    [was] = case.model().graph.node
    assert (node.op_type, node.domain, node.name) == (was.op_type, was.domain, was.name)
    assert {a.name: a.i for a in node.attribute} == {a.name: a.i for a in was.attribute}
    assert [i.split("_")[0] for i in node.input] == list(was.input)
    expected, got = (Session(p, optimize=False).run(case.feeds())["o0"] for p in (case.model(), proto))
    np.testing.assert_array_equal(got, expected)


def test_an_older_opset_is_brought_up():
    """Fails where a model of which the standard form has no blocks stays as it is, or computes something else."""
    case = product(biased=True)
    model = replace(case, opset=17).model()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("o0", onnx.TensorProto.FLOAT, [None, 12]))
    newer, note = older.brought_up(model, case.feeds())
    assert protobuf.opset_of(newer) == 21
    assert "brought it to opset 21" in note
    np.testing.assert_array_equal(Session(newer).run(case.feeds())["o0"], Session(model).run(case.feeds())["o0"])
    assert {t.name: t for t in newer.graph.initializer} == {t.name: t for t in model.graph.initializer}
    plain = helper.make_model(helper.make_graph([], "none", [], []), opset_imports=[helper.make_opsetid("", 17)])
    assert older.brought_up(plain, {}) == (plain, "")


def test_what_cannot_be_brought_up_stays(monkeypatch: pytest.MonkeyPatch):
    """Fails where a converter that fails refuses a model that other layers of could be pruned."""

    def fails(*_: object) -> onnx.ModelProto:
        raise ModelError("no")

    monkeypatch.setattr(older, "converted", fails)
    case = product()
    model = replace(case, opset=17).model()
    assert older.brought_up(model, case.feeds()) == (model, "")


def test_packed_codes_are_counted_one_by_one():
    """Fails where a byte with several codes counts as one parameter."""
    for bits in (2, 4, 8):
        case = product(k=40, n=12, block=16, bits=bits, biased=True)
        assert protobuf.parameters(case.model()) == 40 * 12 + 2 * (3 * 12) + 12


def test_shared_weights_are_packed_once():
    """Fails where two nodes that read one weight get one each."""
    case = product()
    model = case.model()
    model.graph.node.append(
        helper.make_node("MatMulNBits", list(model.graph.node[0].input), ["o1"], domain="com.microsoft")
    )
    model.graph.node[1].attribute.extend(model.graph.node[0].attribute)
    model.graph.output.append(helper.make_empty_tensor_value_info("o1"))
    proto, unfused = standard(model, case.feeds())
    assert sum(t.data_type == onnx.TensorProto.UINT4 for t in proto.graph.initializer) == 2
    assert put_back(proto, unfused.fused) == 2
    assert len({tuple(n.input) for n in proto.graph.node}) == 1
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    for slot, name in enumerate(proto.graph.node[0].input[1:], start=1):
        np.testing.assert_array_equal(stored[name], case.inputs[slot])  # type: ignore[arg-type]


def tied(k: int = 64, n: int = 12) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A model whose first table is the weight of its last product in another shape."""
    case = product(k, n, zeros=False)
    model = case.model()
    node = model.graph.node[0]
    node.input[0] = "rows"
    sizes = numpy_helper.from_array(np.array([n, -1], np.int64), "sizes")
    model.graph.initializer.append(sizes)
    table = helper.make_node("Reshape", ["i1", "sizes"], ["table"])
    attributes = {"bits": 4, "block_size": 16, "quantize_axis": 1, "gather_axis": 0}
    names = ["table", "words", "i2"]
    rows = helper.make_node("GatherBlockQuantized", names, ["rows"], "rows", domain="com.microsoft", **attributes)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString())]
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend([table, rows, *nodes])
    model.graph.input.append(helper.make_tensor_value_info("words", onnx.TensorProto.INT64, ["N", "L"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("o0", onnx.TensorProto.FLOAT, ["N", "L", n]))
    return model, {"words": _RNG.integers(0, n, (2, 3))}


def test_a_table_and_a_product_share_their_weight():
    """Fails where the codes of a tied embedding are stored twice, in standard operators or in the result."""
    model, feeds = tied()
    proto, unfused = standard(model, feeds)
    assert [n.op_type for n in proto.graph.node] == [
        "Reshape",
        *("DequantizeLinear", "Gather", "Transpose"),
        *("DequantizeLinear", "MatMul"),
    ]
    assert sum(t.data_type == onnx.TensorProto.UINT4 for t in proto.graph.initializer) == 2
    expected = Session(model, optimize=False).run(feeds)["o0"]
    np.testing.assert_allclose(Session(proto, optimize=False).run(feeds)["o0"], expected, rtol=1e-5, atol=1e-5)
    del proto.graph.node[0]
    assert put_back(proto, unfused.fused) == 2
    assert [n.op_type for n in proto.graph.node] == ["Reshape", "GatherBlockQuantized", "MatMulNBits"]
    assert proto.graph.node[0].input[0] == proto.graph.node[2].input[1]
    assert proto.graph.node[1].input[2] == proto.graph.node[2].input[2]
    np.testing.assert_array_equal(Session(proto, optimize=False).run(feeds)["o0"], expected)
