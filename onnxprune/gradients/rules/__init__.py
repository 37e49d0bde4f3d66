"""The table of gradients: ONNX operator → rule. A new operator is a new row in its family's file.

A rule gets the builder, the node, the gradients of its outputs (None where nothing depends on one) and the input slots
whose gradients are asked for; it returns the gradients that it can give by slot, or raises NoGradient. A slot that it
leaves out has a gradient of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnxprune.gradients.build import Builder, Gradients
from onnxprune.gradients.rules import (
    attention,
    contraction,
    elementwise,
    indexing,
    layout,
    normalization,
    pooling,
    recurrent,
    reduction,
    sampling,
)
from onnxprune.graph import Node

Rule = Callable[[Builder, Node, Sequence[str | None], Sequence[int]], Gradients]

# Piecewise constant in every input, or the output is no floating-point value.
NO_DERIVATIVE = frozenset(
    """
    And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil ConstantOfShape Equal EyeLike Floor
    Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual NonZero Not OneHot Or Range Round Shape Sign Size Xor
    """.split()
)

TABLE: Mapping[str, Rule] = {
    **elementwise.TABLE,
    **layout.TABLE,
    **indexing.TABLE,
    **reduction.TABLE,
    **recurrent.TABLE,
    **contraction.TABLE,
    **pooling.TABLE,
    **sampling.TABLE,
    **normalization.TABLE,
    **attention.TABLE,
}
