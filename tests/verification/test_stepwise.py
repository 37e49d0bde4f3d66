"""Models that compute with codes against what stands for them: steps of rounding pass, anything else does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.errors import CheckFailed
from onnxprune.graph.protobuf import copied
from onnxprune.normalise import normalise
from onnxprune.runtime.session import Session
from onnxprune.verification import checks

Array = NDArray[Any]

_RNG = np.random.default_rng(0)
_LAYERS, _WIDTH = 6, 16


def _on_codes() -> onnx.ModelProto:
    """Layers on codes with sums between them, whose kernel rounds in a way of its own."""
    stored: dict[str, Array] = {
        "s": np.array(0.05, np.float32),
        "z": np.array(117, np.uint8),
        "sw": np.array(0.006, np.float32),
        "zw": np.array(0, np.int8),
    }
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["c0"])]
    for k in range(_LAYERS):
        stored[f"w{k}"] = _RNG.integers(-120, 121, (_WIDTH, _WIDTH)).astype(np.int8)
        nodes += [
            helper.make_node("QLinearMatMul", [f"c{k}", "s", "z", f"w{k}", "sw", "zw", "s", "z"], [f"p{k}"]),
            helper.make_node(
                "QLinearAdd", [f"c{k}", "s", "z", f"p{k}", "s", "z", "s", "z"], [f"c{k + 1}"], domain="com.microsoft"
            ),
        ]
    nodes.append(helper.make_node("DequantizeLinear", [f"c{_LAYERS}", "s", "z"], ["y"]))
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", _WIDTH]) for n in ("x", "y")]
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in stored.items()]
    graph = helper.make_graph(nodes, "codes", ports[:1], ports[1:], weights)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


MODEL = _on_codes()
FEEDS = {"x": _RNG.standard_normal((64, _WIDTH)).astype(np.float32)}


def _differs(proto: onnx.ModelProto) -> float:
    """What the check finds where nothing is cut."""
    return checks.exactness(MODEL, proto, proto, proto, FEEDS).normalised


def test_steps_of_rounding_pass():
    """Fails where a sum that falls between two codes has a sound model refused."""
    proto = normalise(MODEL, FEEDS).proto
    assert {n.op_type for n in proto.graph.node} == {"QuantizeLinear", "DequantizeLinear", "MatMul", "Add"}
    got, expected = (Session(m, optimize=False).run(FEEDS)["y"] for m in (proto, MODEL))
    # Here they do: as a whole the two differ by steps.
    assert np.abs(got - expected).max() > 1e-2
    assert _differs(proto) <= 1e-6


Change = Callable[[Array], Array]


def _turned(w: Array) -> Array:
    """A matrix with one row of the other sign."""
    return np.where(np.arange(len(w))[:, None] == 5, -w, w).astype(w.dtype)


def _changed(kind: str, name: str, slot: int, change: Change) -> onnx.ModelProto:
    """The normalised model in which the node of this kind behind `name` reads another constant at a slot."""
    proto = copied(normalise(MODEL, FEEDS).proto)
    [node] = [n for n in proto.graph.node if n.op_type == kind and name in (*n.input[:1], *n.output)]
    old = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == node.input[slot])
    proto.graph.initializer.append(numpy_helper.from_array(change(old), "other"))
    node.input[slot] = "other"
    return proto


@pytest.mark.parametrize(
    ("kind", "name", "slot", "change"),
    [
        ("QuantizeLinear", "p3", 2, lambda z: (z + 1).astype(z.dtype)),
        ("QuantizeLinear", "c3", 1, lambda s: (s * 1.05).astype(s.dtype)),
        ("DequantizeLinear", "w4", 1, lambda s: (s * 1.05).astype(s.dtype)),
        ("DequantizeLinear", "w4", 2, lambda z: (z + 1).astype(z.dtype)),
        (
            "DequantizeLinear",
            "w4",
            0,
            _turned,
        ),
        ("DequantizeLinear", f"c{_LAYERS}", 2, lambda z: (z + 1).astype(z.dtype)),
    ],
)
def test_anything_else_is_found(kind: str, name: str, slot: int, change: Change):
    """Fails where another scale, zero point or weight passes for rounding."""
    with pytest.raises(CheckFailed, match="normalised model"):
        _differs(_changed(kind, name, slot, change))
