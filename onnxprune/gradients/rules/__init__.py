"""The table of gradients: ONNX operator → rule. A new operator is a new row in its family's file.

A rule gets the builder, the node, the gradients of its outputs (None where nothing depends on one) and the input slots
whose gradients are asked for; it returns the gradients that it can give by slot, or raises NoGradient. A slot that it
leaves out has a gradient of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnxprune.channels.rules.quantization import TABLE as QUANTIZED
from onnxprune.gradients.build import Builder, Gradients
from onnxprune.gradients.rules import (
    attention,
    contraction,
    contributed_attention,
    contributed_states,
    elementwise,
    indexing,
    layout,
    normalization,
    pooling,
    recurrent,
    reduction,
    sampling,
)
from onnxprune.graph.view import Node

Rule = Callable[[Builder, Node, Sequence[str | None], Sequence[int]], Gradients]

# Piecewise constant in every input, or the output is no floating-point value.
NO_DERIVATIVE = frozenset(
    """
    And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Ceil ConstantOfShape Equal
    EyeLike Floor Greater GreaterOrEqual HammingWindow HannWindow Hardmax IsInf IsNaN Less LessOrEqual MelWeightMatrix
    Multinomial NonMaxSuppression NonZero Not OneHot OptionalHasElement Or RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range Round SequenceLength Shape Sign Size Xor
    """.split()
)

_CODES = "it computes on codes; differentiate the model without rounding"
_BODY = "its bodies are not differentiated"
_SEQUENCE = "sequences and optional values are not differentiated"
_RARE = "its gradient is not written, as no network needed it yet"
_TEXT = "it works on text or files"

# Operators without a rule → why.
WITHOUT: Mapping[str, str] = {
    **dict.fromkeys((*QUANTIZED, "com.microsoft.DynamicQuantizeLSTM"), _CODES),
    **dict.fromkeys("If Loop Scan SequenceMap".split(), _BODY),
    **dict.fromkeys(
        "ConcatFromSequence Optional OptionalGetElement SequenceAt SequenceConstruct SequenceEmpty SequenceErase "
        "SequenceInsert SplitToSequence".split(),
        _SEQUENCE,
    ),
    **dict.fromkeys(
        "AffineGrid Col2Im CumProd DFT DeformConv Det GridSample MaxRoiPool MaxUnpool RoiAlign STFT TensorScatter "
        "Unique".split(),
        _RARE,
    ),
    **dict.fromkeys("NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss".split(), "it is a training loss"),
    **dict.fromkeys(
        "ImageDecoder RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer".split(), _TEXT
    ),
    "com.microsoft.DecoderMaskedMultiHeadAttention": "it decodes one position at a time, with a buffer for all",
    "Bernoulli": "it draws random numbers with these chances",
    "BitCast": "bits are no numbers",
    **dict.fromkeys(
        "CausalConvWithState LinearAttention SwiGLU".split(),
        "no runtime computes it yet, so that a rule could not be tested",
    ),
    "Constant": "it has no inputs",
}

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
    **contributed_attention.TABLE,
    **contributed_states.TABLE,
}
