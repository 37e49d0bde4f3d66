"""Gradients of element-wise operators."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.gradients.build import Builder, Gradients
from onnxprune.graph import Node


def relu(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """The subgradient at 0 is 0."""
    (x,), (g,) = node.inputs, grads
    assert g is not None
    return {0: b.masked(g, b.op("Greater", node.outputs[0], b.number(0.0, x)), x)}


def add(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Each operand gets the gradient, summed over the axes along which it was broadcast."""
    g = grads[0]
    assert g is not None
    return {s: b.sum_to(g, node.outputs[0], node.inputs[s]) for s in slots}


TABLE = {"Relu": relu, "Add": add}
