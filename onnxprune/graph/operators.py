"""Names of operators by what they do to shapes, and constants of their definitions."""

from __future__ import annotations

from collections.abc import Mapping

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitCast BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid "
    "Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
).split()


NARY = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min "
    "Mod Mul Or Pow PRelu Sub Sum SwiGLU Where Xor"
).split()


# Only the first input is data; the others are scalars that say how.
FIRST_ONLY = ["Clip"]
# How many gates each operator has: W is (directions, gates * hidden units, inputs).
GATE_COUNT: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "RNN": 1}
# Of onnxruntime: LSTM with codes for weights, (directions, inputs, gates * hidden units).
QUANTIZED_LSTM = "DynamicQuantizeLSTM"
# Of onnxruntime: attention with everything but the projections inside, and with caches.
OWN_ATTENTION = ("GroupQueryAttention", "MultiHeadAttention", "DecoderMaskedMultiHeadAttention")
