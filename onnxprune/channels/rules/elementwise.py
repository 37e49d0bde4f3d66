"""Element-wise operators and activations: labels pass; several operands unify under broadcasting."""

from __future__ import annotations

from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.trace import Rule, Trace
from onnxprune.graph.operators import FIRST_ONLY, NARY, UNARY
from onnxprune.graph.view import Node


def same_shape(node: Node, t: Trace) -> None:
    """Every output of the first input's shape carries its labels."""
    x = node.input(0)
    for out in node.outputs:
        if not out:
            continue
        if t.shape(out) != t.shape(x):
            t.pin(x, t.of(x), node, Reason(f"{node.op} changes the shape of what it reads", Remedy.SHAPES))
        t.set(out, t.of(x) if t.shape(out) == t.shape(x) else ())


def cast_like(node: Node, t: Trace) -> None:
    """CastLike: of its second input only the type counts."""
    t.of(node.inputs[1])
    same_shape(node, t)


def dropout(node: Node, t: Trace) -> None:
    """Dropout: nothing in inference; in training it draws a number per element."""
    mode = node.input(2)
    if mode and (mode not in t.graph.constants or bool(t.graph.constants[mode].any())):
        x = node.inputs[0]
        why = Reason("Dropout in training mode draws a random number per element", Remedy.INFERENCE)
        t.pin(x, t.of(x), node, why)
        for out in node.outputs:
            t.set(out, ())
        return
    same_shape(node, t)


def broadcast(node: Node, t: Trace) -> None:
    """Several operands, broadcast against each other."""
    operands = [(i, t.of(i), t.shape(i)) for i in node.inputs if i]
    t.set(node.outputs[0], t.merge(operands, node))


TABLE: dict[str, Rule] = {
    **dict.fromkeys(UNARY, same_shape),
    **dict.fromkeys(NARY, broadcast),
    **dict.fromkeys(FIRST_ONLY, same_shape),
    "CastLike": cast_like,
    "Dropout": dropout,
}
