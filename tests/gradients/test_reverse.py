"""The reverse pass itself: where terms meet, where they stop, and that none is lost without a word."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.gradients import Backward, backward
from onnxprune.graph import protobuf
from onnxprune.graph.view import Graph
from tests.calibrated import prepare_text
from tests.gradients.differences import run
from tests.prepared import Prepared

LINEAR = ("Conv", "Gemm", "MatMul")


def _taken(p: Prepared) -> tuple[Graph, Backward, list[int]]:
    """(graph, the reverse pass to the data of all linear layers, also those in bodies, their indices)."""
    n = p.normalised
    graph = protobuf.view(n.proto, n.shapes, n.known_values, n.binding)
    nodes = [x.index for x in graph.every_node if x.op in LINEAR and x.inputs[0] not in graph.constants]
    return graph, backward(n.proto, graph, n.types, uses=[(i, 0) for i in nodes]), nodes


def test_each_use_has_its_own_gradient_and_a_tensor_their_sum():
    """Fails where two readers of a tensor are mixed up, or one term is lost."""
    p = prepare_text("""(float[N,3] x) => (float[N,3] y) {
        a = Relu(x)
        b = Mul(a, a)
        y = Add(b, a)
    }""")
    n = p.normalised
    graph = protobuf.view(n.proto, n.shapes, n.known_values, n.binding)
    of = {node.op: node.index for node in graph.nodes}
    uses = [(of["Mul"], 0), (of["Mul"], 1), (of["Add"], 1)]
    back = backward(n.proto, graph, n.types, uses=uses, tensors=["a", "x"])
    x = np.array([[1.0, -2.0, 3.0]], np.float32)
    names = [*(back.of_use[u] for u in uses), back.of_tensor["a"], back.of_tensor["x"]]
    found = run(back.proto, {"x": x, back.seeds["y"]: np.ones_like(x)}, list(dict.fromkeys(names)))
    a = np.maximum(x, 0)
    for name, expected in zip(names, [a, a, np.ones_like(x), 2 * a + 1, (2 * a + 1) * (x > 0)], strict=True):
        np.testing.assert_allclose(found[name], expected)


def test_a_missing_term_makes_the_sum_missing():
    """Fails where the part of a gradient that a rule could give passes for the whole."""
    p = prepare_text("""(float[N,4,4] x) => (float[N,4,4] y, float[N] z) {
        a = MatMul(x, w1[4,4])
        b = Relu(a)
        z = Det(b)
        y = MatMul(b, w2[4,4])
    }""")
    _, back, (first, last) = _taken(p)
    assert "Det" in back.missing[first, 0]
    assert (last, 0) in back.of_use


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("bits", "bits are no numbers"),
        ("sequences", "sequences"),
        ("optionals", "optional"),
        ("unknown_operator", "no rule"),
        ("if_weights_outside", "bodies"),
        ("quantized", "without rounding"),
        ("quantized_float_weights", "without rounding"),
        ("codes_by_dynamic_range", "without rounding"),
        ("codes_summed", "without rounding"),
    ],
)
def test_what_passes_no_gradient_says_so(row: str, why: str, prepared: Callable[[str], Prepared]):
    """Fails where a gradient is zero only because an operator on the way was not understood."""
    _, back, nodes = _taken(prepared(row))
    assert any(why in reason for reason in back.missing.values())
    assert {(i, 0) for i in nodes} == {*back.missing, *back.of_use}


def test_uses_inside_bodies_are_missing(prepared: Callable[[str], Prepared]):
    """Fails where a use that the walk does not visit is taken for one that no output depends on."""
    graph, back, nodes = _taken(prepared("if_weights_inside"))
    inside = [i for i in nodes if i in graph.inside]
    assert inside
    assert all("body" in back.missing[i, 0] for i in inside)


def test_indices_stop_a_gradient():
    """Fails where what is picked by position is asked for a gradient of the positions."""
    p = prepare_text("""(float[N,4] x) => (int64[N,1] y) {
        a = MatMul(x, w1[4,4])
        y = ArgMax <axis=1> (a)
    }""")
    _, back, _ = _taken(p)
    assert not back.of_use
    assert not back.missing
