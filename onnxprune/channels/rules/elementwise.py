"""Element-wise operators and activations: labels pass; several operands unify under broadcasting."""

from __future__ import annotations

from onnxprune.channels.trace import Rule, Trace
from onnxprune.graph import Node

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
).split()
NARY = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min "
    "Mod Mul Or Pow PRelu Sub Sum Where Xor"
).split()
# Only the first input is data; the others are scalars that say how.
FIRST_ONLY = "CastLike Clip Dropout".split()


def same_shape(node: Node, t: Trace) -> None:
    """Every output of the first input's shape carries its labels."""
    x = node.input(0)
    for out in node.outputs:
        if out:
            t.set(out, t.of(x) if t.shape(out) == t.shape(x) else ())


def broadcast(node: Node, t: Trace) -> None:
    """Several operands, broadcast against each other."""
    operands = [(i, t.of(i), t.shape(i)) for i in node.inputs if i]
    t.set(node.outputs[0], t.merge(operands, node))


TABLE: dict[str, Rule] = {
    **dict.fromkeys(UNARY, same_shape),
    **dict.fromkeys(NARY, broadcast),
    **dict.fromkeys(FIRST_ONLY, same_shape),
}
