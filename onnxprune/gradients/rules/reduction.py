"""Gradients of reductions: y = f(x_1 ... x_n) along some axes gives each element its partial derivative times dy.

Oracle: central differences (tests).
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.channels.rules.reduction import reduced_axes
from onnxprune.gradients.build import Builder, Gradients, NoGradient, given
from onnxprune.graph.view import Node

LINEAR = {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"}


def reduce(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """All reductions, with constant axes."""
    x, g = node.inputs[0], given(grads)
    axes = reduced_axes(node, b.rank(x), b.graph.ints)
    if axes is None:
        raise NoGradient("the reduced axes are computed at run time")
    if not axes and b.rank(x):
        if node.op in LINEAR:
            return {0: g}
        raise NoGradient(f"{node.op} over no axes has no rule")
    y, wide = (t if node.keepdims else b.unsqueeze(t, sorted(axes)) for t in (node.outputs[0], g))
    return {0: _partial(b, node, x, y, wide, axes)}


def _partial(b: Builder, node: Node, x: str, y: str, g: str, axes: Sequence[int]) -> str:
    """The gradient of x; y and g have the rank of x."""
    match node.op:
        case "ReduceSum":
            return b.expand_as(g, x)
        case "ReduceMean":
            count = b.op("Div", b.op("Size", x), b.op("Size", node.outputs[0]))
            return b.expand_as(b.op("Div", g, b.cast(count, x)), x)
        case "ReduceMax" | "ReduceMin":
            hits = b.cast(b.equal(x, y), x)
            return b.product(hits, b.op("Div", g, b.total(hits, axes, keepdims=True)))
        case "ReduceProd":
            return _product(b, x, g, axes)
        case "ReduceL1":
            return b.product(b.op("Sign", x), g)
        case "ReduceL2":
            zero = b.number(0.0, x)
            return b.product(x, b.op("Where", b.op("Greater", y, zero), b.op("Div", g, y), zero))
        case "ReduceSumSquare":
            return b.product(x, b.product(g, b.number(2.0, x)))
        case "ReduceLogSum":
            return b.expand_as(b.product(g, b.op("Exp", b.op("Neg", y))), x)
        case _:
            assert node.op == "ReduceLogSumExp"
            return b.product(b.op("Exp", b.op("Sub", x, y)), g)


def _product(b: Builder, x: str, g: str, axes: Sequence[int]) -> str:
    """Each element gets the product of the others, also where elements are 0."""
    one, zero = b.number(1.0, x), b.number(0.0, x)
    nothing = b.equal(x, zero)
    filled = b.op("Where", nothing, one, x)
    zeros = b.total(b.cast(nothing, x), axes, keepdims=True)
    product = b.product(g, b.reduce("ReduceProd", filled, axes, keepdims=True))
    half = b.number(0.5, x)
    none = b.op("Where", b.op("Less", zeros, half), product, zero)
    single = b.op("Where", b.op("Less", zeros, b.number(1.5, x)), product, zero)
    return b.op("Where", nothing, single, b.op("Div", none, filled))


TABLE = dict.fromkeys(
    (
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
        "ReduceSumSquare"
    ).split(),
    reduce,
)
