"""References to files, wherever in a model they stand: none outside the model's folder is followed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.graph import external
from onnxprune.intake.model_file import load
from tests.runtime.test_child import graph_of


def outside(location: str = "../secret") -> onnx.TensorProto:
    """A tensor whose values lie in a file beside the model's folder."""
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[6], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "24")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def constant(tensor: onnx.TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["k"], value=tensor)


def body(node: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph([node], "b", [], [helper.make_tensor_value_info("k", TensorProto.FLOAT, None)])


def branch(node: onnx.NodeProto) -> onnx.NodeProto:
    return helper.make_node("If", ["c"], ["z"], then_branch=body(node), else_branch=body(node))


def in_function(node: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function("f", "F", ["a"], ["k"], [node], [helper.make_opsetid("", 17)])


def _constant(model: onnx.ModelProto, t: onnx.TensorProto) -> None:
    model.graph.node.append(constant(t))


def _body(model: onnx.ModelProto, t: onnx.TensorProto) -> None:
    model.graph.node.append(branch(constant(t)))


def _weight_of_body(model: onnx.ModelProto, t: onnx.TensorProto) -> None:
    node = branch(helper.make_node("Identity", ["t"], ["k"]))
    node.attribute[0].g.initializer.append(t)
    model.graph.node.append(node)


def _function(model: onnx.ModelProto, t: onnx.TensorProto) -> None:
    model.functions.append(in_function(constant(t)))


def _body_of_function(model: onnx.ModelProto, t: onnx.TensorProto) -> None:
    model.functions.append(in_function(branch(constant(t))))


def _default_of_function(model: onnx.ModelProto, t: onnx.TensorProto) -> None:
    function = in_function(helper.make_node("Identity", ["a"], ["k"]))
    function.attribute_proto.append(helper.make_attribute("d", t))
    model.functions.append(function)


def _list(model: onnx.ModelProto, t: onnx.TensorProto) -> None:
    model.graph.node.append(helper.make_node("Foo", [], ["k"], several=[t, t]))


def _of_another_type(model: onnx.ModelProto, t: onnx.TensorProto) -> None:
    node = constant(t)
    node.attribute[0].type = onnx.AttributeProto.INT
    model.graph.node.append(node)


def _sparse(model: onnx.ModelProto, t: onnx.TensorProto) -> None:
    indices = helper.make_tensor("i", TensorProto.INT64, [6], range(6))
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=t, indices=indices, dims=[9]))


def _sparse_list(model: onnx.ModelProto, t: onnx.TensorProto) -> None:
    indices = helper.make_tensor("i", TensorProto.INT64, [6], range(6))
    sparse = onnx.SparseTensorProto(values=t, indices=indices, dims=[9])
    model.graph.node.append(helper.make_node("Foo", [], ["k"], several=[sparse]))


def _training(model: onnx.ModelProto, t: onnx.TensorProto) -> None:
    model.training_info.add().initialization.initializer.append(t)


PLACES = (
    _constant,
    _body,
    _weight_of_body,
    _function,
    _body_of_function,
    _default_of_function,
    _list,
    _of_another_type,
    _sparse,
    _sparse_list,
    _training,
)


@pytest.mark.parametrize("put", PLACES)
def test_nothing_outside_the_folder_is_read(
    put: Callable[[onnx.ModelProto, onnx.TensorProto], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "secret").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    (tmp_path / "in").mkdir()
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])])
    put(model, outside())
    (tmp_path / "in" / "model.onnx").write_bytes(model.SerializeToString())
    monkeypatch.setattr(
        "onnxprune.intake.model_file.check_file", lambda *_: pytest.fail("onnx opened it before it was checked")
    )
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(tmp_path / "in" / "model.onnx")


def test_every_tensor_is_met_once():
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])])
    for k, put in enumerate(PLACES):
        put(model, outside(f"file {k}"))
    met = [external.FileRange.of(t).location for t in external.stored_tensors(model) if external.is_external(t)]
    twice = {"file 1", "file 4", "file 6"}  # both branches, the body of a function likewise, a list of two
    assert sorted(met) == sorted([f"file {k}" for k in range(len(PLACES))] + list(twice))
