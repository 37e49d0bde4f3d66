"""The MACs of every operator that multiplies, against sums that are counted by hand; and what is not counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import cost, inspect, prune
from onnxprune.channels import build
from onnxprune.cost import operators
from onnxprune.cost.operators import MICROSOFT
from onnxprune.errors import BudgetUnreachable
from onnxprune.graph import protobuf
from onnxprune.graph.view import Shape
from tests import digits
from tests.graphs import TABLE

RNG = np.random.default_rng(0)
FLOATS = TensorProto.FLOAT
Shapes = dict[str, Shape]


def counted(op: str, domain: str, inputs: Shapes, outputs: Shapes, **attributes: Any) -> float:
    """What `cost.macs` counts for one node whose tensors have these shapes; a name that starts with _ is left out."""
    names = ["" if k[0] == "_" else k for k in inputs]
    node = helper.make_node(op, names, list(outputs), domain=domain, **attributes)
    given, made = (
        [helper.make_tensor_value_info(k, FLOATS, v) for k, v in shapes.items() if k[0] != "_"]
        for shapes in (inputs, outputs)
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(domain or "x", 1)]
    proto = helper.make_model(helper.make_graph([node], "g", given, made), opset_imports=opsets)
    return cost.macs(build(protobuf.view(proto, {**inputs, **outputs}, {}, {}))).at([])


S: Shape = ()
X64: Shapes = {"x": (7, 64), "w": (64, 256)}
CASES: dict[str, tuple[float, str, str, Shapes, Shapes, dict[str, Any]]] = {
    # 2 samples, 16 x 16 positions, 8 outputs, each a sum over 3 channels and 3 x 3 places.
    "QLinearConv": (
        2 * 256 * 8 * 27.0,
        *("QLinearConv", ""),
        {"x": (2, 3, 16, 16), "s": S, "z": S, "w": (8, 3, 3, 3), "ws": S, "wz": S, "os": S, "oz": S},
        {"y": (2, 8, 16, 16)},
        {},
    ),
    "ConvInteger": (
        2 * 256 * 8 * 27.0,
        "ConvInteger",
        "",
        {"x": (2, 3, 16, 16), "w": (8, 3, 3, 3)},
        {"y": (2, 8, 16, 16)},
        {},
    ),
    "FusedConv in groups": (
        2 * 64 * 8 * 4 * 9.0,
        *("FusedConv", MICROSOFT),
        {"x": (2, 16, 16, 16), "w": (8, 4, 3, 3)},
        {"y": (2, 8, 8, 8)},
        {"group": 4, "strides": [2, 2]},
    ),
    "NhwcFusedConv": (
        2 * 256 * 8 * 27.0,
        "NhwcFusedConv",
        MICROSOFT,
        {"x": (2, 16, 16, 3), "w": (8, 3, 3, 3)},
        {"y": (2, 16, 16, 8)},
        {},
    ),
    "ConvTranspose with pads": (
        2 * 64 * 3 * 8 * 16.0,
        *("ConvTransposeWithDynamicPads", MICROSOFT),
        {"x": (2, 3, 8, 8), "w": (3, 8, 4, 4)},
        {"y": (2, 8, 16, 16)},
        {},
    ),
    "MatMulInteger": (
        7 * 64 * 256.0,
        *("MatMulInteger", ""),
        X64,
        {"y": (7, 256)},
        {},
    ),
    "QLinearMatMul": (
        3 * 7 * 64 * 256.0,
        *("QLinearMatMul", ""),
        {"x": (3, 7, 64), "s": S, "z": S, "w": (64, 256), "ws": S, "wz": S, "os": S, "oz": S},
        {"y": (3, 7, 256)},
        {},
    ),
    "MatMulNBits": (
        7 * 64 * 256.0,
        *("MatMulNBits", MICROSOFT),
        {"x": (7, 64), "w": (256, 2, 16), "s": (512,)},
        {"y": (7, 256)},
        {"K": 64, "N": 256, "bits": 4, "block_size": 32},
    ),
    "DynamicQuantizeMatMul": (
        7 * 64 * 256.0,
        "DynamicQuantizeMatMul",
        MICROSOFT,
        {"x": (7, 64), "w": (64, 256)},
        {"y": (7, 256)},
        {},
    ),
    "MatMulIntegerToFloat": (
        7 * 64 * 256.0,
        "MatMulIntegerToFloat",
        MICROSOFT,
        {"x": (7, 64), "w": (64, 256)},
        {"y": (7, 256)},
        {},
    ),
    "FusedMatMul": (
        3 * 7 * 64 * 5.0,
        "FusedMatMul",
        MICROSOFT,
        {"x": (3, 64, 7), "w": (3, 64, 5)},
        {"y": (3, 7, 5)},
        {"transA": 1},
    ),
    "FusedMatMul by batches": (
        3 * 7 * 64 * 5.0,
        *("FusedMatMul", MICROSOFT),
        {"x": (64, 3, 7), "w": (3, 64, 5)},
        {"y": (3, 7, 5)},
        {"transA": 1, "transBatchA": 1},
    ),
    "FusedGemm": (
        7 * 64 * 5.0,
        *("FusedGemm", MICROSOFT),
        {"x": (64, 7), "w": (64, 5)},
        {"y": (7, 5)},
        {"transA": 1},
    ),
    "QGemm": (
        7 * 64 * 5.0,
        "QGemm",
        MICROSOFT,
        {"x": (7, 64), "s": S, "z": S, "w": (5, 64)},
        {"y": (7, 5)},
        {"transB": 1},
    ),
    # Both matrices, four gates, two directions, at each of 6 steps of 2 sequences.
    "DynamicQuantizeLSTM": (
        6 * 2 * 2 * 4 * 8 * (5 + 8.0),
        *("DynamicQuantizeLSTM", MICROSOFT),
        {"x": (6, 2, 5), "w": (2, 5, 32), "r": (2, 8, 32)},
        {"y": (6, 2, 2, 8)},
        {"hidden_size": 8, "direction": "bidirectional"},
    ),
    # Projections of 2 x 6 positions from 12 to 3 x 16, then 6 x 6 pairs for 16 of q·k and 16 of the values.
    "Attention": (
        2 * 6 * 12 * 48 + 2 * 36 * 32.0,
        *("Attention", MICROSOFT),
        {"x": (2, 6, 12), "w": (12, 48), "b": (48,)},
        {"y": (2, 6, 16)},
        {"num_heads": 4},
    ),
    "QAttention": (
        2 * 6 * 12 * 48 + 2 * 6 * 9 * 32.0,
        *("QAttention", MICROSOFT),
        {
            "x": (2, 6, 12),
            "w": (12, 48),
            "b": (48,),
            "s": S,
            "ws": S,
            "_m": S,
            "z": S,
            "wz": S,
            "past": (2, 2, 4, 3, 4),
        },
        {"y": (2, 6, 16)},
        {"num_heads": 4},
    ),
    "MultiHeadAttention": (
        2 * 6 * 9 * (16 + 24.0),
        *("MultiHeadAttention", MICROSOFT),
        {"q": (2, 6, 16), "k": (2, 9, 16), "v": (2, 9, 24)},
        {"y": (2, 6, 24)},
        {"num_heads": 4},
    ),
    "MultiHeadAttention of packed values": (
        2 * 36 * (16 + 16.0),
        *("MultiHeadAttention", MICROSOFT),
        {"q": (2, 6, 4, 3, 4)},
        {"y": (2, 6, 16)},
        {"num_heads": 4},
    ),
    "GroupQueryAttention": (
        2 * 6 * 10 * (16 + 16.0),
        *("GroupQueryAttention", MICROSOFT),
        {"q": (2, 6, 16), "k": (2, 6, 8), "v": (2, 6, 8), "pk": (2, 2, 4, 4), "pv": (2, 2, 4, 4)},
        {"y": (2, 6, 16), "nk": (2, 2, 10, 4), "nv": (2, 2, 10, 4)},
        {"num_heads": 4, "kv_num_heads": 2},
    ),
    # ij,jk gives (4, 6) of sums over 5; that with kl gives (4, 7) of sums over 6.
    "Einsum of three": (
        4 * 5 * 6 + 4 * 6 * 7.0,
        *("Einsum", ""),
        {"a": (4, 5), "b": (5, 6), "c": (6, 7)},
        {"y": (4, 7)},
        {"equation": "ij,jk,kl->il"},
    ),
    "Einsum that transposes": (
        0.0,
        *("Einsum", ""),
        {"a": (4, 5)},
        {"y": (5, 4)},
        {"equation": "ij->ji"},
    ),
    # Two heads of 4 × 3: each step writes k vᵀ and reads the state, by the delta rule twice.
    "LinearAttention": (
        2 * 9 * 2 * 4 * 3 * (2 + 1.0),
        *("LinearAttention", MICROSOFT),
        {"q": (2, 9, 8), "k": (2, 9, 8), "v": (2, 9, 6)},
        {"y": (2, 9, 6)},
        {"q_num_heads": 2, "kv_num_heads": 2, "update_rule": "delta"},
    ),
    # 2 x 7 positions by 2 of 4 experts: 8 to 10 and back.
    "MoE": (
        2 * 7 * 2 * (8 * 10 + 10 * 8.0),
        *("MoE", MICROSOFT),
        {"x": (2, 7, 8), "r": (14, 4), "u": (4, 10, 8), "b": (4, 10), "v": (4, 8, 10)},
        {"y": (2, 7, 8)},
        {"k": 2},
    ),
    # 16 to two gates' halves of 6, and 6 to 16.
    "QMoE": (
        7 * 1 * (16 * 12 + 6 * 16.0),
        *("QMoE", MICROSOFT),
        {"x": (7, 16), "r": (7, 4), "u": (4, 12, 8), "us": (4, 12), "_b": S, "v": (4, 16, 3), "vs": (4, 16)},
        {"y": (7, 16)},
        {"activation_type": "swiglu", "swiglu_fusion": 1},
    ),
    "MoE with a third weight": (
        7 * 2 * 3 * 8 * 10.0,
        *("MoE", MICROSOFT),
        {"x": (7, 8), "r": (7, 4), "u": (4, 10, 8), "_b": S, "v": (4, 8, 10), "_c": S, "t": (4, 10, 8)},
        {"y": (7, 8)},
        {"k": 2, "activation_type": "silu"},
    ),
    "CausalConvWithState": (
        2 * 9 * 8 * 4.0,
        "CausalConvWithState",
        "",
        {"x": (2, 8, 9), "w": (8, 1, 4)},
        {"y": (2, 8, 9), "p": (2, 8, 3)},
        {},
    ),
    "Relu": (
        0.0,
        *("Relu", ""),
        {"x": (4, 5)},
        {"y": (4, 5)},
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_products_of_one_operator(name: str):
    """Fails where an operator that multiplies counts as none, or by the wrong axis."""
    expected, op, domain, inputs, outputs, attributes = CASES[name]
    assert counted(op, domain, inputs, outputs, **attributes) == expected


def fused(op: str = "FusedConv", domain: str = MICROSOFT, width: int = 32) -> onnx.ModelProto:
    """An operator of another domain in front of two convolutions, whose channels can go."""
    weights = {"w1": (width, 3, 3, 3), "w3": (32, width, 1, 1), "w4": (5, 32, 1, 1)}
    attributes: dict[str, Any] = {"pads": [1] * 4, "activation": "Relu"} if op == "FusedConv" else {}
    nodes = [
        helper.make_node(op, ["x", "w1"], ["a"], domain=domain, **attributes),
        helper.make_node("Conv", ["a", "w3"], ["c"], "conv_c"),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Conv", ["s", "w4"], ["y"], "conv_y"),
    ]
    ports = [helper.make_tensor_value_info(k, FLOATS, ["N", c, 16, 16]) for k, c in (("x", 3), ("y", 5))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    graph.initializer.extend(
        numpy_helper.from_array((RNG.standard_normal(v) / 8).astype(np.float32), k) for k, v in weights.items()
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


QUICK: dict[str, Any] = {"method": "magnitude", "refit": "none", "round_to": 1}


def by_weights(proto: onnx.ModelProto) -> int:
    """MACs of one sample: every weight once at each of 16 x 16 positions."""
    return 256 * sum(int(np.prod(t.dims)) for t in proto.graph.initializer if len(t.dims) == 4)


def test_the_share_that_the_report_tells_is_that_of_the_weights():
    """Fails where "half of the MACs" is half of those that can be cut."""
    proto, data = fused(), {"x": RNG.standard_normal((8, 3, 16, 16)).astype(np.float32)}
    result = prune(proto, None, data, ratio=0.3, **QUICK)
    assert result.report.before.macs == by_weights(proto)
    assert result.report.after.macs == by_weights(result.model)
    assert result.report.achieved == 1.0 - by_weights(result.model) / by_weights(proto)
    with pytest.raises(BudgetUnreachable, match="of the MACs cannot go: at most"):
        prune(proto, None, data, ratio=0.99, **QUICK)


def floats(proto: onnx.ModelProto) -> int:
    """Entries of floating-point initializers: the digit models have no other weights."""
    return sum(int(np.prod(t.dims)) for t in proto.graph.initializer if t.data_type == FLOATS)


@pytest.mark.parametrize("name", digits.NAMES)
@pytest.mark.parametrize("refit", ["none", "least-squares"])
def test_one_count_of_parameters(name: str, refit: str):
    """Fails where the ratio, the table of sizes, `inspect` and the file count different things, or it is missed."""
    path = digits.path(name)
    options: dict[str, Any] = {"ratio": 0.3, "budget": "params", "method": "magnitude", "samples": 16, "fast": True}
    result = prune(path, None, digits.CALIB, refit=refit, **options)
    report = result.report
    assert report.before.parameters == inspect(path).parameters == floats(onnx.load(path))
    assert report.after.parameters == floats(result.model)
    assert report.achieved == 1.0 - report.after.parameters / report.before.parameters >= 0.3


def missing(op: str, domain: str, width: int = 64) -> list[tuple[str, int, bool]]:
    """What is not counted of the network with this operator in it."""
    spatial = (16, 16)
    shapes = {"x": (1, 3, *spatial), "y": (1, 5, *spatial), "a": (1, width, *spatial), "c": (1, 32, *spatial)}
    found = cost.uncounted(build(protobuf.view(fused(op, domain, width), shapes | {"s": shapes["c"]}, {}, {})))
    return [(x.operator, x.weights, x.surely) for x in found]


def test_operators_that_are_not_counted():
    """Fails where an operator that multiplies, or may, is passed over, or where one that only looks up is not."""
    assert missing("SparseAttention", MICROSOFT) == [("com.microsoft.SparseAttention", 64 * 27, True)]
    assert missing("Secret", "acme") == [("acme.Secret", 64 * 27, False)]
    assert missing("Secret", "acme", 2) == missing("RotaryEmbedding", MICROSOFT) == []
    assert missing("FusedConv", MICROSOFT) == []


def distances() -> onnx.ModelProto:
    """An operator of onnxruntime that stays as it is, with 64 x 16 numbers, between products."""
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17, "{MICROSOFT}" : 1]>
    g (float[N,8] x) => (float[N,5] y) {{
        a = MatMul(x, w1)
        r = Relu(a)
        d = {MICROSOFT}.CDist <metric = "sqeuclidean"> (r, w2)
        b = MatMul(d, w3)
        s = Relu(b)
        y = MatMul(s, w4)
    }}""")
    shapes = {"w1": (8, 16), "w2": (64, 16), "w3": (64, 32), "w4": (32, 5)}
    proto.graph.initializer.extend(
        numpy_helper.from_array((RNG.standard_normal(v) / 8).astype(np.float32), k) for k, v in shapes.items()
    )
    return proto


def test_no_share_of_macs_that_nobody_knows(monkeypatch: pytest.MonkeyPatch):
    """Fails where a share of the MACs is told that leaves out a layer; by another budget the report says which."""
    proto, data = distances(), {"x": RNG.standard_normal((8, 8)).astype(np.float32)}
    assert not any("MACs" in n for n in prune(proto, None, data, ratio=0.2, **QUICK).report.notes)
    monkeypatch.setattr(operators, "TABLE", {k: v for k, v in operators.TABLE.items() if not k.endswith("CDist")})
    with pytest.raises(BudgetUnreachable, match=r"share of the MACs cannot be told.*com\.microsoft\.CDist"):
        prune(proto, None, data, ratio=0.2, **QUICK)
    for options in ({"ratio": 0.2, "budget": "params"}, {"uniform": 0.5}):
        notes = prune(proto, None, data, **options, **QUICK).report.notes
        assert any(n.startswith("the MACs leave out") and "CDist" in n for n in notes)


def test_bodies_that_run_again_are_named():
    """Fails where a share of the MACs passes for one of all that a loop multiplies."""
    row = TABLE["loop"]
    notes = prune(row.model(), None, row.feeds(8), dry_run=True, **QUICK | {"ratio": 0.1}).report.notes
    (said,) = (n for n in notes if n.startswith("in the MACs the bodies of"))
    assert said.endswith("count once, however often they run")
    flat = TABLE["residual"]
    notes = prune(flat.model(), None, flat.feeds(8), dry_run=True, **QUICK | {"ratio": 0.1}).report.notes
    assert not any("MACs" in n for n in notes)
