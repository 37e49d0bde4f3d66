"""Gradients of softmax and of what attention is made of. Oracle: central differences (tests)."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.gradients.build import Builder, Gradients, axis_of, given
from onnxprune.graph import Node


def softmax(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """dx = y ⊙ (dy - Σ dy ⊙ y)."""
    y, g = node.outputs[0], given(grads)
    along = b.total(b.op("Mul", g, y), _axes(b, node), keepdims=True)
    return {0: b.op("Mul", y, b.op("Sub", g, along))}


def log_softmax(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """dx = dy - exp(y) Σ dy."""
    y, g = node.outputs[0], given(grads)
    return {0: b.op("Sub", g, b.op("Mul", b.op("Exp", y), b.total(g, _axes(b, node), keepdims=True)))}


def _axes(b: Builder, node: Node) -> list[int]:
    """The axes that sum to one: before opset 13, all from `axis` on."""
    rank = b.rank(node.inputs[0])
    if b.graph.opset >= 13:
        return [axis_of(node, rank, -1)]
    return list(range(axis_of(node, rank, 1), rank))


TABLE = {
    "LogSoftmax": log_softmax,
    "Softmax": softmax,
}
