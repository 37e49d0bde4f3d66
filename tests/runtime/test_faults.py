"""Models that end the process in some releases of onnxruntime: what breaks here takes the test run with it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.graph import protobuf
from onnxprune.numerics.arrays import Array
from onnxprune.runtime import faults
from onnxprune.runtime.saturation import DEPLOYED, EXACT
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.decoder import decoder, empty, prompts


def _model(
    node: onnx.NodeProto, x: Array, weights: dict[str, Array], output: int, overridable: bool = False
) -> onnx.ModelProto:
    ports = {"x": x} | (weights if overridable else {})
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in ports.items()
    ]
    y = helper.make_tensor_value_info("y", output, None)
    graph = helper.make_graph([node], "g", inputs, [y], [numpy_helper.from_array(v, k) for k, v in weights.items()])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, ir_version=8, opset_imports=imports)


def test_weights_in_float16_may_be_replaced():
    """Fails where a session with such inputs crashes, or computes with the values that they have in the file."""
    rng = np.random.default_rng(0)
    x, w, other = (rng.standard_normal(s).astype(np.float16) for s in ((5, 6), (6, 4), (6, 4)))
    model = _model(helper.make_node("MatMul", ["x", "w"], ["y"]), x, {"w": w}, onnx.TensorProto.FLOAT16, True)
    session = Session(model)
    for feeds, weight in (({"x": x}, w), ({"x": x, "w": other}, other)):
        expected = x.astype(np.float64) @ weight.astype(np.float64)
        np.testing.assert_allclose(session.run(feeds)["y"], expected, rtol=1e-2, atol=1e-2)


def test_only_what_needs_it_goes_without_an_optimizer():
    """Fails where models without such inputs, or releases that take them, lose speed."""
    x = np.ones((1, 2), np.float16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    half, plain = (
        _model(node, x, {"w": np.ones((2, 2), np.float16)}, onnx.TensorProto.FLOAT16, given) for given in (True, False)
    )
    assert faults.optimizers_left_out(half, (1, 28))
    assert not faults.optimizers_left_out(half, (1, 29))
    assert not faults.optimizers_left_out(plain, (1, 28))


def test_blocks_of_codes_outside_a_body():
    """Fails where onnxruntime is left to fuse what a body dequantizes with its product: it does not find the weight."""
    w = np.ones((32, 4), np.uint8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["r"], axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "r"], ["z"]),
    ]
    value = helper.make_tensor_value_info
    body = helper.make_graph(nodes, "body", [], [value("z", onnx.TensorProto.FLOAT, [1, 4])])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    stored = {"w": w, "s": np.ones((2, 4), np.float32)}
    ports = [value("x", onnx.TensorProto.FLOAT, [1, 32]), value("c", onnx.TensorProto.BOOL, [])]
    weights = [numpy_helper.from_array(v, k) for k, v in stored.items()]
    graph = helper.make_graph([choice], "g", ports, [value("y", onnx.TensorProto.FLOAT, [1, 4])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feeds = {"x": np.ones((1, 32), np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(Session(model).run(feeds)["y"], np.full((1, 4), 32, np.float32))
    assert faults.optimizers_left_out(model, (1, 31))
    inside = helper.make_graph(nodes, "body", [], list(body.output), weights)
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inside, else_branch=inside))
    assert not faults.optimizers_left_out(model, (1, 31))


ONE = np.array(1, np.float32)
SHORT = {
    "MatMulInteger": (["x", "w"], {}, ""),
    "DynamicQuantizeMatMul": (["x", "w", "one"], {"one": ONE}, "com.microsoft"),
    "MatMulIntegerToFloat": (["x", "w", "one", "one"], {"one": ONE}, "com.microsoft"),
    "QAttention": (
        ["x", "w", "bias", "one", "one"],
        {"one": ONE, "bias": np.zeros(24, np.float32)},
        "com.microsoft",
    ),
}


@pytest.mark.parametrize("op", SHORT)
def test_zero_points_may_be_left_out(op: str):
    """Fails where kernels that do not saturate crash, or change what numbers give that saturate nowhere."""
    names, weights, domain = SHORT[op]
    x = np.arange(48).reshape(2, 3, 8) % 7
    w = np.resize(np.arange(-3, 4), (8, 24)).astype(np.int8)
    x = x.astype(np.float32 if op == "DynamicQuantizeMatMul" else np.uint8)
    attributes = {"num_heads": 2} if op == "QAttention" else {}
    node = helper.make_node(op, names, ["y"], domain=domain, **attributes)
    output = onnx.TensorProto.INT32 if op == "MatMulInteger" else onnx.TensorProto.FLOAT
    model = _model(node, x, {"w": w, **weights}, output)
    before = protobuf.as_bytes(model)
    exact, deployed = (Session(model, kernels=k).run({"x": x})["y"] for k in (EXACT, DEPLOYED))
    np.testing.assert_allclose(exact, deployed, rtol=1e-6)
    assert protobuf.as_bytes(model) == before
    completed = faults.with_zero_points(model)
    assert faults.with_zero_points(completed) is completed


def test_present_keys_are_not_taken_for_as_long_as_those_of_the_past():
    """Fails where onnxruntime puts keys and values of all positions where those of the past had room."""
    model, feeds = decoder(), {**prompts(2), **empty(2)}
    expected = Session(model).run(feeds)
    assert faults.without_sizes_of_pasts(model) is model
    parts = (["normal0.0", "normal0.1", "normal1.0", "normal1.1"], ["logits"])
    for names in parts:
        part = protobuf.submodel(model, {}, names)
        mended = faults.without_sizes_of_pasts(part)
        sizes = [d for v in mended.graph.input if v.name.startswith("past") for d in v.type.tensor_type.shape.dim]
        assert sizes
        assert all(not d.dim_param for d in sizes[2::4])
        for optimize in (False, True):
            found = Session(part, optimize=optimize).run(feeds)
            assert_same(found.get("logits", expected["logits"]), expected["logits"], rtol=1e-5, atol=1e-6)
