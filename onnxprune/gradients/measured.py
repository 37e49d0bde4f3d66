"""What a node computes on given numbers: for rules of operators whose coefficients are measured, not modelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.errors import RunError
from onnxprune.gradients.build import Builder, NoGradient
from onnxprune.graph.view import Node
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session


def outcome(b: Builder, node: Node, x: Array, constants: Sequence[Array | None] = (), **attrs: Any) -> Array:
    """The first output of the operator of `node`, in float32, at the model's opset.

    x: first input. constants: the other inputs, None for an omitted one. attrs: override the node's attributes; None
    drops one. Raises NoGradient where onnxruntime does not run it.
    """
    names = [f"c{i}" if c is not None else "" for i, c in enumerate(constants)]
    own = {k: v for k, v in {**node.attrs, **attrs}.items() if v is not None}
    graph = helper.make_graph(
        [helper.make_node(node.op, ["x", *names], ["y"], **own)],
        "measured",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(constants) if c is not None],
    )
    opsets = [helper.make_opsetid("", b.graph.opset)]
    model = helper.make_model(graph, ir_version=8 if b.graph.opset < 21 else 10, opset_imports=opsets)
    try:
        return Session(model, optimize=False).run({"x": x.astype(np.float32)})["y"]
    except RunError as e:
        raise NoGradient(f"it could not be measured: {e}") from e
