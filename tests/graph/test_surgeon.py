"""Editing by onnx-graphsurgeon: what is not used goes, and no input is searched for among all tensors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.graph import surgeon
from onnxprune.normalise import normalise
from onnxprune.runtime.session import Session

_INPUTS = 50


def _summed() -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(f"i{k}", 1, ["N", 2]) for k in range(_INPUTS)]
    nodes = [
        helper.make_node("Relu", ["i0"], ["unused"]),
        helper.make_node("Sum", [v.name for v in ports[1:]], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", ports, [helper.make_tensor_value_info("y", 1, ["N", 2])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_unused_nodes_go_and_inputs_stay(monkeypatch: pytest.MonkeyPatch):
    """Fails where each input is compared with all of the others: fifty inputs then cost some 1,200 comparisons."""
    compared = 0
    model = _summed()
    graph = surgeon.to_gs(model)

    def equal(one: surgeon.Variable, other: surgeon.Variable) -> bool:
        nonlocal compared
        compared += 1
        return bool(one.name == other.name)

    with monkeypatch.context() as patched:
        patched.setattr(surgeon.Variable.__mro__[1], "__eq__", equal)
        surgeon.remove_unused(graph)
    assert compared < 5 * _INPUTS
    found = surgeon.from_gs(graph, model)
    assert [n.op_type for n in found.graph.node] == ["Sum"]
    assert [v.name for v in found.graph.input] == [f"i{k}" for k in range(_INPUTS)]


@pytest.mark.parametrize("kind", ["value_strings", "folded"])
def test_constant_texts(kind: str):
    """Fails where names of classes that a node holds, or that are joined of constants, cannot be written."""
    names = ["Käfer", "", "dog"]
    parts = [names] if kind == "value_strings" else [names[:1], names[1:]]
    nodes = [helper.make_node("Constant", [], [f"p{k}"], value_strings=part) for k, part in enumerate(parts)]
    nodes.append(helper.make_node("Concat", [f"p{k}" for k in range(len(parts))], ["names"], axis=0))
    nodes.append(helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0))
    nodes.append(helper.make_node("Gather", ["names", "best"], ["y"]))
    x = helper.make_tensor_value_info("x", 1, ["N", 3])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.STRING, ["N"])
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    feeds = {"x": np.eye(3, dtype=np.float32)[[2, 0, 1]]}
    assert Session(normalise(model, feeds).proto).run(feeds)["y"].tolist() == ["dog", "Käfer", ""]
