"""Models of one node, for tests of gradient rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.gradients.differences import compare

Arrays = dict[str, np.ndarray]


def single(
    op: str,
    data: list[np.ndarray | tuple[int, ...] | None],
    weights: Arrays | None = None,
    *,
    opset: int = 17,
    order: list[str] | None = None,
    outputs: int = 1,
    seed: int = 0,
    **attrs: Any,
) -> tuple[onnx.ModelProto, Arrays]:
    """A model of one node and its feeds.

    data: graph inputs x0, x1, … as values, or as shapes of normal numbers. weights: initializers by name. order: the
    node's inputs ("" for an omitted one); by default the data, then the weights.
    """
    rng = np.random.default_rng(seed)
    feeds = {
        f"x{i}": rng.standard_normal(d).astype(np.float32) if isinstance(d, tuple) else np.asarray(d)
        for i, d in enumerate(data)
    }
    weights = weights or {}
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, order if order is not None else [*feeds, *weights], names, **attrs)
    types = {k: helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in feeds.items()}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(k, types[k], v.shape) for k, v in feeds.items()],
        [helper.make_tensor_value_info(n, 1, None) for n in names],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, ir_version=8 if opset < 21 else 10, opset_imports=opsets), feeds


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compare_any_batch(model: onnx.ModelProto, feeds: Arrays, batched: tuple[str, ...] = ("x0",)) -> None:
    """As `compare`, at more than twice the samples that the shapes were measured on."""
    for v in model.graph.input:
        if v.name in batched:
            v.type.tensor_type.shape.dim[0].dim_param = "batch"
    rng = np.random.default_rng(7)
    more = {
        k: rng.standard_normal((2 * len(v) + 1, *v.shape[1:])).astype(v.dtype) if k in batched else v
        for k, v in feeds.items()
    }
    compare(model, more, measured=feeds)
