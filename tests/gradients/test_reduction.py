"""Gradients of reductions against central differences, with axes as an attribute and as an input."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.numerics.arrays import Array
from tests.gradients.differences import compare, one_node, reverse_of, run

REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
).split()
SHAPE = (2, 3, 4)


def _x(op: str) -> Array:
    """Distinct numbers away from 0, positive where a logarithm is taken."""
    values = np.random.default_rng(0).permutation(np.linspace(0.5, 2.0, 24)).reshape(SHAPE)
    if op != "ReduceLogSum":
        values[:, ::2] *= -1
    return values.astype(np.float32)


@pytest.mark.parametrize("axes", [None, [1], [0, -1], [2]])
@pytest.mark.parametrize("keepdims", [None, 0])
@pytest.mark.parametrize("opset", [9, 11, 13, 18])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions(op: str, opset: int, keepdims: int | None, axes: list[int] | None):
    """Fails where an element's share of the gradient is not its partial derivative."""
    if opset < 11 and axes is not None:
        axes = [a % 3 for a in axes]
    attrs: dict[str, object] = {} if keepdims is None else {"keepdims": keepdims}
    values: dict[str, Array | None] = {"x": _x(op)}
    if axes is not None and opset >= (13 if op == "ReduceSum" else 18):
        values["axes"] = np.array(axes)
    elif axes is not None:
        attrs["axes"] = axes
    compare(*one_node(op, values, opset=opset, constant=list(values)[1:], **attrs), step=2e-3)


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions_over_no_axes(op: str):
    """Fails where a reduction that does nothing has another gradient than the identity."""
    proto, feeds = one_node(op, {"x": _x(op)}, noop_with_empty_axes=1)
    if reverse_of(proto, feeds, ["x"]).missing:
        assert op in {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"}
    else:
        compare(proto, feeds)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_ties_share(op: str):
    """Fails where equal extrema get more than one gradient together."""
    x = np.array([[1, 1, 0], [2, 2, 2]], np.float32) * (1 if op == "ReduceMax" else -1)
    proto, feeds = one_node(op, {"x": x}, opset=13, axes=[1])
    back = reverse_of(proto, feeds, ["x"])
    found = run(back.proto, {**feeds, back.seeds["y"]: np.array([[3], [6]], np.float32)}, [back.of_tensor["x"]])
    np.testing.assert_allclose(found[back.of_tensor["x"]], [[1.5, 1.5, 0], [2, 2, 2]])


def test_norms_at_zero():
    """Fails where the norm of nothing makes the gradient no number."""
    proto, feeds = one_node("ReduceL2", {"x": np.array([[0, 0], [3, 4]], np.float32)}, opset=13, axes=[1])
    back = reverse_of(proto, feeds, ["x"])
    found = run(back.proto, {**feeds, back.seeds["y"]: np.ones((2, 1), np.float32)}, [back.of_tensor["x"]])
    np.testing.assert_allclose(found[back.of_tensor["x"]], [[0, 0], [0.6, 0.8]], rtol=1e-6)


def test_products_with_zeros():
    """Fails where the product of the other elements is taken by division by 0."""
    x = np.array([[2, 3, 4], [0, 3, 4], [0, 0, 4]], np.float32)
    proto, feeds = one_node("ReduceProd", {"x": x}, opset=13, axes=[1])
    compare(proto, feeds)
    back = reverse_of(proto, feeds, ["x"])
    found = run(back.proto, {**feeds, back.seeds["y"]: np.ones((3, 1), np.float32)}, [back.of_tensor["x"]])
    np.testing.assert_allclose(found[back.of_tensor["x"]], [[12, 8, 6], [12, 0, 0], [0, 0, 0]], rtol=1e-6)


def test_computed_axes_are_refused():
    """Fails where axes that only the run knows are guessed."""
    back = reverse_of(*one_node("ReduceSum", {"x": _x("ReduceSum"), "axes": np.array([1])}, opset=13), ["x"])
    assert "run time" in back.missing["x"]
