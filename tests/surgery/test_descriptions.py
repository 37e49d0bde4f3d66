"""What a model says of its parts is said of what is left of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import prune
from tests.compare import assert_same
from tests.topologies.text import Topology

ROW = Topology(
    """(float[N,6] x, bool[1] c) => (float[N,4] y) {
        a = MatMul(x, w1[6,8])
        b = Relu(a)
        d = MatMul(b, w2[8,8])
        e = If(c) <
            then_branch = t () => (float[N,8] p) { p = Relu(d) },
            else_branch = f () => (float[N,8] q) { q = Tanh(d) }
        >
        y = MatMul(e, w3[8,4])
    }""",
    (8, 8),
)
PARAMETERS = {"each": np.arange(1, 9, dtype=np.float32), "one": np.float32(3), "odd": np.ones((2, 3), np.float32)}


def _pruned(proto: onnx.ModelProto) -> Any:
    return prune(proto, None, ROW.feeds(64), uniform=0.5, round_to=1, fast=True, untried_branches="cut")


def _noted(part: Any, text: str) -> None:
    part.doc_string = f"of {text}"
    part.metadata_props.add(key="note", value=text)


def _places(m: onnx.ModelProto) -> dict[str, Any]:
    places = {t.name: t for t in m.graph.initializer if t.name in ("w1", "w2", "w3")}
    places |= {n.output[0]: n for n in m.graph.node}
    places |= {f"tensor {v.name}": v for v in m.graph.value_info if v.name in ("a", "b")}
    body = next(a.g for n in m.graph.node if n.op_type == "If" for a in n.attribute if a.name == "then_branch")
    return {"model": m, "graph": m.graph, "input": m.graph.input[0], "p": body.node[0], **places}


def test_metadata_and_documentation_are_kept():
    """Fails where a part that is cut, fitted or measured no longer says what it was said to be."""
    proto = ROW.model()
    for name, sizes in (("a", ["N", 8]), ("b", [1, 1])):  # the second one is false
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes))
    for name, place in _places(proto).items():
        _noted(place, name)
    result = _pruned(proto)
    onnx.checker.check_model(result.model, full_check=True)
    found = _places(result.model)
    assert found.keys() == _places(proto).keys()
    for name, place in found.items():
        assert place.doc_string == f"of {name}"
        assert [(p.key, p.value) for p in place.metadata_props] == [("note", name)]


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_quantization_annotations_are_kept_as_far_as_they_are_true(parameter: str):
    """Fails where one names a parameter that is gone, or has as many as there were channels, or is lost in silence."""
    proto = ROW.model()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(PARAMETERS[parameter], "scale"))
    for tensor in ("b", "y"):
        annotation = proto.graph.quantization_annotation.add(tensor_name=tensor)
        if parameter == "one" or tensor == "b":
            annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    result = _pruned(proto)
    found = {
        a.tensor_name: [p.value for p in a.quant_parameter_tensor_names]
        for a in result.model.graph.quantization_annotation
    }
    values = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    if parameter == "odd":
        assert found == {"y": []}
        assert any("annotations of b were left out" in n for n in result.report.notes)
        return
    assert found == {"b": ["scale"], "y": ["scale"] if parameter == "one" else []}
    kept = result.plan.groups[0].kept
    expected = PARAMETERS[parameter][list(kept)] if parameter == "each" else PARAMETERS[parameter]
    assert_same(values["scale"], expected, rtol=0, atol=0)
