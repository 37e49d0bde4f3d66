from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.gradients.differences import compare


def _model(op: str, shapes: list[tuple[int, ...]]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    feeds = {f"x{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, list(feeds), ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info(k, 1, v.shape) for k, v in feeds.items()],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
    )
    return onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]), feeds


@pytest.mark.parametrize("shapes", [[(3, 4), (3, 4)], [(3, 4), (1, 4)], [(2, 3, 4), (4,)], [(3, 1), (2, 1, 5)]])
def test_add_sums_over_what_was_broadcast(shapes: list[tuple[int, ...]]):
    compare(*_model("Add", shapes))
