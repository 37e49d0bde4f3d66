"""Gradients of convolutions and matrix products.

With Y = A B: dA = dY Bᵀ, dB = Aᵀ dY, summed over the batch axes along which an operand was broadcast. A convolution's
data gets the transposed convolution of `windows`, and its weight the sums over positions there. Oracle: central
differences, and torch (tests).
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np

from onnxprune.gradients.build import Builder, Gradients, NoGradient, given
from onnxprune.gradients.windows import correlated, gathered, geometry, spread
from onnxprune.graph.view import Node, Shape


def conv(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Conv of any rank: data, weight and bias."""
    x, w = node.inputs[:2]
    g, groups = given(grads), int(node.attrs.get("group", 1))
    input_grads = _bias(b, node, g) if 2 in slots else {}
    if 0 in slots or 1 in slots:
        geo = geometry(b, node, b.shape(w)[2:])
    if 0 in slots:
        weight = b.array(w)
        input_grads[0] = spread(b, g, w if weight is None else weight, geo, groups, x)
    if 1 in slots:
        input_grads[1] = correlated(b, g, x, (b.shape(w)[0], b.shape(x)[1]), geo, groups, x)
    return input_grads


def conv_transpose(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """ConvTranspose of any rank: data, weight and bias. Its weight is that of the Conv which is its transpose."""
    x, w = node.inputs[:2]
    g, groups = given(grads), int(node.attrs.get("group", 1))
    input_grads = _bias(b, node, g) if 2 in slots else {}
    if 0 in slots or 1 in slots:
        geo = geometry(b, node, b.shape(w)[2:])
    if 0 in slots:
        input_grads[0] = gathered(b, g, w, geo, groups, x)
    if 1 in slots:
        input_grads[1] = correlated(b, x, g, (b.shape(x)[1], b.shape(w)[1] * groups), geo, groups, x)
    return input_grads


def _bias(b: Builder, node: Node, g: str) -> dict[int, str]:
    """The gradient of a convolution's bias."""
    axes = [a for a in range(b.rank(node.outputs[0])) if a != 1]
    return {2: b.total(g, axes, keepdims=False)}


def gemm(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """alpha A' B' + beta C, where ' transposes if transA, transB say so."""
    x, w = node.inputs[:2]
    g, attrs = given(grads), node.attrs
    ta, tb = int(attrs.get("transA", 0)), int(attrs.get("transB", 0))
    # Before opset 11, C cannot be left out.
    rest = (b.number([0.0], x),) if b.graph.opset < 11 else ()

    def product(left: str, right: str, trans_left: int, trans_right: int) -> str:
        alpha = float(attrs.get("alpha", 1.0))
        return b.op("Gemm", left, right, *rest, alpha=alpha, transA=trans_left, transB=trans_right)

    input_grads = {}
    if 0 in slots:
        input_grads[0] = product(w, g, tb, 1) if ta else product(g, w, 0, 1 - tb)
    if 1 in slots:
        input_grads[1] = product(g, x, 1, ta) if tb else product(x, g, 1 - ta, 0)
    if 2 in slots:
        beta = float(attrs.get("beta", 1.0))
        scaled = g if beta == 1.0 else b.op("Mul", g, b.number(beta, x))
        input_grads[2] = b.sum_to(scaled, node.outputs[0], node.inputs[2])
    return input_grads


def matmul(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """MatMul as numpy defines it: vectors, matrices, and stacks of them that broadcast."""
    left, right = node.inputs
    shapes = [b.shape(left), b.shape(right)]
    rank = b.rank(node.outputs[0])
    g = given(grads)
    row, column = len(shapes[0]) == 1, len(shapes[1]) == 1
    # A vector takes part as a matrix of one row or one column; so does its gradient.
    if row and column:
        g = b.unsqueeze(g, [0, 1])
    elif row or column:
        g = b.unsqueeze(g, [rank - 1 if row else rank])
    matrices = [(1, *shapes[0]) if row else shapes[0], (*shapes[1], 1) if column else shapes[1]]
    batch = np.broadcast_shapes(*(s[:-2] for s in matrices))
    input_grads = {}
    if 0 in slots:
        other = b.unsqueeze(right, [1]) if column else right
        full = b.op("MatMul", g, _transposed(b, other, len(matrices[1])))
        input_grads[0] = b.squeeze(_summed(b, full, batch, matrices[0][:-2]), [0] if row else [])
    if 1 in slots:
        other = b.unsqueeze(left, [0]) if row else left
        if len(matrices[1]) == 2 and len(matrices[0]) > 2:  # one product over all rows rather than a sum of products
            axis = len(matrices[0]) - 1
            full = b.op("MatMul", _transposed(b, b.op("Flatten", other, axis=axis), 2), b.op("Flatten", g, axis=axis))
        else:
            full = b.op("MatMul", _transposed(b, other, len(matrices[0])), g)
            full = _summed(b, full, batch, matrices[1][:-2])
        input_grads[1] = b.squeeze(full, [1] if column else [])
    return input_grads


def _transposed(b: Builder, x: str, rank: int) -> str:
    return b.op("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])


def _summed(b: Builder, full: str, batch: Shape, own: Shape) -> str:
    """Sum a gradient with leading axes `batch` over those that an operand with leading axes `own` lacks."""
    lead = len(batch) - len(own)
    axes = [lead + a for a, (n, s) in enumerate(zip(batch[lead:], own, strict=True)) if s == 1 and n != 1]
    return b.total(b.total(full, axes, keepdims=True), range(lead), keepdims=False)


def einsum(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """The Einsum of the gradient with the other operands, its letters being those of the operand."""
    terms, result = _letters(str(node.attrs["equation"]), [b.rank(i) for i in node.inputs])
    if any(len(set(t)) < len(t) for t in (*terms, result)):
        raise NoGradient("an operand has the same letter twice")
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.inputs, strict=True):
        for letter, n in zip(term, b.shape(name), strict=True):
            sizes[letter] = max(sizes.get(letter, 1), n)
    input_grads = {}
    for slot in slots:
        name, term = node.inputs[slot], terms[slot]
        others = [(t, i) for k, (t, i) in enumerate(zip(terms, node.inputs, strict=True)) if k != slot]
        shared = set(result).union(*(t for t, _ in others))
        kept = "".join(c for c in term if c in shared)
        equation = f"{','.join([result, *(t for t, _ in others)])}->{kept}"
        full = b.op("Einsum", given(grads), *(i for _, i in others), equation=equation)
        own = dict(zip(term, b.shape(name), strict=True))
        full = b.total(full, [a for a, c in enumerate(kept) if own[c] == 1 and sizes[c] != 1], keepdims=True)
        if kept != term:  # letters that it alone has are summed over: each entry gets the same
            full = b.expand_as(b.unsqueeze(full, [a for a, c in enumerate(term) if c not in shared]), name)
        input_grads[slot] = full
    return input_grads


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, the ellipsis spelled out and the result given."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [c for c in string.ascii_letters if c not in equation]
    widths = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True)]
    dots = "".join(free[: max((w for t, w in zip(terms, widths, strict=True) if "..." in t), default=0)])
    if not arrow:
        once = sorted(c for c in set(left) - set(".,") if left.count(c) == 1)
        result = ("..." if "..." in left else "") + "".join(once)
    spelled = [t.replace("...", dots[len(dots) - w :]) for t, w in zip(terms, widths, strict=True)]
    return spelled, result.replace("...", dots)


TABLE = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": matmul,
}
