"""Tensors that flow into an operator which is only defined for some numbers: Log, Sqrt, a root, a divisor, Acos.

A layer in front of a Log gives positive numbers because its weights and what it reads are never negative, as with the
filter bank of a spectrogram. No sample can promise that fitted weights keep to that: least squares knows no signs, and
what is finite on all calibration samples may still be NaN on the next. So such layers keep the weights that they have.

The walk goes backwards from those operators, also into the bodies of If, Loop and Scan and out of them, through what
keeps or only shifts a sign (sums, products, layouts, means, linear layers). It ends at what makes numbers positive by
itself: Relu, Abs, Exp, Sigmoid, Softmax, Clip from 0 on, a square or any other even power. So a normalization that is
written out, x / sqrt(mean(x²)), limits nothing. What has to stay small, as for Acos, is not helped by a Relu: there
the walk ends at what has bounds, Tanh or Sigmoid. An operator that `FLOWS` does not know passes everything on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum

import numpy as np

from onnxprune.graph.view import Graph, Node


class Limit(Enum):
    """What a tensor has to keep to. SIGN: no negative numbers, or no zero; SIZE: none that is beyond some bound."""

    SIGN = "sign"
    SIZE = "size"


class Flow(Enum):
    """How the numbers that an operator gives depend on those that it reads.

    PASSES: in sign and size. POSITIVE: they are never negative (or never positive), but as large as what comes in.
    BOUNDED: at most 1 in size, and of either sign. ENDS: at most 1 and never negative, or no numbers that are read.
    """

    PASSES = "passes"
    POSITIVE = "positive"
    BOUNDED = "bounded"
    ENDS = "ends"


# Operator → the input slots that take limited numbers only. Pow also takes any base to an integer power (`_limits`).
LIMITED: Mapping[str, Mapping[int, Limit]] = {
    **{k: {0: Limit.SIGN} for k in "Log Pow Reciprocal ReduceLogSum Sqrt".split()},
    **{k: {1: Limit.SIGN} for k in "Div Mod QuantizeLinear com.microsoft.QuantizeLinear".split()},  # divisors
    "BatchNormalization": {4: Limit.SIGN},  # the variance
    **{k: {0: Limit.SIZE} for k in "Acos Acosh Asin Atanh Bernoulli".split()},
}


def _each(flow: Flow, slots: tuple[int, ...] | None, names: str) -> dict[str, tuple[Flow, tuple[int, ...] | None]]:
    return dict.fromkeys(names.split(), (flow, slots))


# Operator → what its results depend on, and on which input slots, None for all.
FLOWS: Mapping[str, tuple[Flow, tuple[int, ...] | None]] = {
    **_each(
        Flow.PASSES,
        None,
        "Add Sub Mul Div Mod Mean Sum Concat Max Min PRelu Pow SwiGLU Einsum BitShift BitwiseAnd BitwiseOr BitwiseXor "
        "CausalConvWithState Attention LinearAttention LSTM GRU RNN Range AffineGrid If Loop Scan SequenceMap "
        "ConcatFromSequence SequenceAt SequenceConstruct SequenceErase SequenceInsert SplitToSequence Optional "
        "OptionalGetElement QLinearConv QLinearMatMul ConvInteger MatMulInteger "
        "com.microsoft.CausalConvWithState com.microsoft.LinearAttention "
        "com.microsoft.DecoderMaskedMultiHeadAttention com.microsoft.DynamicQuantizeLSTM "
        "com.microsoft.GroupQueryAttention com.microsoft.MultiHeadAttention "
        "com.microsoft.DynamicQuantizeMatMul com.microsoft.MatMulBnb4 com.microsoft.MatMulInteger16 "
        "com.microsoft.MatMulIntegerToFloat com.microsoft.MatMulNBits com.microsoft.QAttention "
        "com.microsoft.QEmbedLayerNormalization com.microsoft.QGemm com.microsoft.QLinearAdd "
        "com.microsoft.QLinearAveragePool com.microsoft.QLinearConcat com.microsoft.QLinearConv "
        "com.microsoft.QLinearGlobalAveragePool com.microsoft.QLinearLeakyRelu com.microsoft.QLinearMul "
        "com.microsoft.QLinearReduceMean com.microsoft.QLinearWhere com.microsoft.QMoE com.microsoft.QOrderedAttention "
        "com.microsoft.QOrderedGelu com.microsoft.QOrderedLayerNormalization "
        "com.microsoft.QOrderedLongformerAttention com.microsoft.QOrderedMatMul",
    ),
    **_each(
        Flow.PASSES,
        (0,),
        "Acosh Asin Asinh Atan Atanh AveragePool BitCast BitwiseNot Cast CastLike Ceil Celu CenterCropPad Clip Col2Im "
        "Compress CumProd CumSum DFT DepthToSpace Det Dropout DynamicQuantizeLinear Elu Expand Flatten Floor Gather "
        "GatherElements GatherND Gelu GlobalAveragePool GlobalMaxPool GridSample HardSwish Identity LRN LeakyRelu Log "
        "MaxPool MaxRoiPool MaxUnpool MeanVarianceNormalization Mish Neg NegativeLogLikelihoodLoss QuantizeLinear "
        "Reciprocal ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Reshape Resize "
        "ReverseSequence RoiAlign RotaryEmbedding Round Selu Shrink Sinh Slice SpaceToDepth Split Squeeze Swish Tan "
        "ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample com.microsoft.QuantizeLinear",
    ),
    **_each(Flow.PASSES, (0, 1), "DequantizeLinear MatMul TensorScatter com.microsoft.DequantizeLinear"),
    **_each(Flow.PASSES, (0, 1, 2), "Conv ConvTranspose Gemm LayerNormalization RMSNormalization"),
    **_each(Flow.PASSES, (0, 1, 2), "GroupNormalization InstanceNormalization"),
    **_each(Flow.PASSES, (0, 1, 2, 3), "BatchNormalization"),
    **_each(Flow.PASSES, (0, 1, 3, 4), "DeformConv"),
    **_each(Flow.PASSES, (0, 2), "Pad STFT Scatter ScatterElements ScatterND"),
    **_each(Flow.PASSES, (1, 2), "Where"),
    **_each(Flow.PASSES, (2,), "OneHot"),
    **_each(
        Flow.POSITIVE,
        (0,),
        "Abs Acos Cosh Exp GlobalLpPool LogSoftmax LpPool ReduceL1 ReduceL2 ReduceSumSquare Relu Softplus "
        "SoftmaxCrossEntropyLoss Sqrt",
    ),
    **_each(Flow.BOUNDED, (0,), "Cos Erf LpNormalization Sign Sin Softsign Tanh"),
    **_each(
        Flow.ENDS,
        (),
        "HardSigmoid Hardmax Sigmoid Softmax com.microsoft.QLinearSigmoid com.microsoft.QLinearSoftmax "
        # Truth, places, sizes, text, and what is made from sizes or by chance.
        "And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Xor OptionalHasElement RegexFullMatch "
        "ArgMax ArgMin NonMaxSuppression NonZero Shape Size SequenceLength Multinomial "
        "StringConcat StringNormalizer StringSplit TfIdfVectorizer ImageDecoder SequenceEmpty "
        "BlackmanWindow Constant ConstantOfShape EyeLike HammingWindow HannWindow MelWeightMatrix "
        "Bernoulli RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
    ),
}
_UNKNOWN = (Flow.PASSES, None)
# What ends at which kind of result.
_ENDS_AT = {Flow.PASSES: (), Flow.POSITIVE: (Limit.SIGN,), Flow.BOUNDED: (Limit.SIZE,), Flow.ENDS: tuple(Limit)}

_Asked = dict[tuple[str, Limit], str]


def limited_by(graph: Graph) -> dict[str, str]:
    """Tensor → the operator behind it that is only defined for some numbers, in words."""
    asked: _Asked = {}
    _walk(graph.nodes, graph, asked)
    return {name: why for (name, _), why in reversed(asked.items())}


def _walk(nodes: Sequence[Node], graph: Graph, asked: _Asked) -> None:
    """Add what these nodes and their bodies ask of tensors, given what is asked behind them."""

    def ask(name: str, limit: Limit, why: str) -> None:
        if name and name not in graph.constants:
            asked.setdefault((name, limit), why)

    for node in reversed(nodes):
        for slot, limit in _limits(node, graph):
            ask(node.input(slot), limit, f"{node.op} {node.name}".strip())
        before = -1
        while node.bodies and before != len(asked):  # what one iteration asks is asked of the one before
            before = len(asked)
            _cross(_borders(node), asked, ask)
            for body in node.bodies:
                _walk(body.nodes, graph, asked)
        if node.bodies:
            continue
        for limit in Limit:
            behind = next((asked[o, limit] for o in node.outputs if (o, limit) in asked), None)
            if behind is not None:
                for name in _passed(node, limit, graph):
                    ask(name, limit, behind)


def _operator(node: Node) -> str:
    return f"{node.domain}.{node.op}" if node.domain else node.op


def _limits(node: Node, graph: Graph) -> Iterator[tuple[int, Limit]]:
    if node.op != "Pow" or node.domain or _is_root(node, graph):
        yield from LIMITED.get(_operator(node), {}).items()


def _passed(node: Node, limit: Limit, graph: Graph) -> Iterator[str]:
    """What has to keep to a limit that the outputs of a node have."""
    flow, slots = FLOWS.get(_operator(node), _UNKNOWN)
    ends = _ENDS_AT[flow]
    if limit in ends or (not node.domain and _by_settings(node, limit, graph)):
        return
    for slot, name in enumerate(node.inputs):
        if slots is None or slot in slots:
            yield name


def _borders(node: Node) -> list[tuple[str, str]]:
    """(behind, in front) of each tensor that goes into the bodies of a node, from one iteration to the next, or out."""
    pairs: list[tuple[str, str]] = []
    for body in node.bodies:
        given, inside = node.inputs, body.inputs
        results = body.outputs
        carried: list[tuple[str, str]] = []
        if node.op == "Loop":
            results = results[1:]
            carried = list(zip(inside[2:], results, strict=False))
        elif node.op == "Scan":
            states = len(given) - int(node.attrs.get("num_scan_inputs", len(given)))
            carried = list(zip(inside[:states], results, strict=False))
        elif node.op != "If":
            results = ()
        pairs += [*zip(node.outputs, results, strict=False), *carried]
        pairs += [] if node.op == "If" else list(zip(inside, given, strict=False))
        if node.op == "Loop":  # no iteration at all: the states as they came
            pairs += list(zip(node.outputs, given[2:], strict=False))
    return pairs


def _cross(pairs: Sequence[tuple[str, str]], asked: _Asked, ask: Callable[[str, Limit, str], None]) -> None:
    for behind, front in pairs:
        for limit in Limit:
            if (behind, limit) in asked:
                ask(front, limit, asked[behind, limit])


def _exponents(node: Node, graph: Graph) -> list[float] | None:
    """The exponents of a Pow; None where they are computed."""
    values = graph.constants.get(node.inputs[1])
    return None if values is None else [float(v) for v in values.ravel()]


def _is_root(node: Node, graph: Graph) -> bool:
    exponents = _exponents(node, graph)
    return exponents is None or any(e != round(e) or e < 0 for e in exponents)


def _by_settings(node: Node, limit: Limit, graph: Graph) -> bool:
    """Whether its constants or attributes let a node keep to a limit, whatever it reads."""
    if node.op == "Clip":
        low, high = (_bound(node, side, slot, graph) for side, slot in (("min", 1), ("max", 2)))
        return low >= 0.0 if limit is Limit.SIGN else low > -np.inf and high < np.inf
    if limit is Limit.SIZE:
        return False
    if node.op == "Mul":
        return node.inputs[0] == node.inputs[1]
    if node.op == "Pow":
        exponents = _exponents(node, graph)
        return bool(exponents) and all(e % 2 == 0 for e in exponents or ())
    if node.op == "ThresholdedRelu":
        return float(node.attrs.get("alpha", 1.0)) >= 0.0
    if node.op == "Max":
        return any((graph.constants[i] >= 0).all() for i in node.inputs if i in graph.constants)
    return False


def _bound(node: Node, side: str, slot: int, graph: Graph) -> float:
    """The `side` of a Clip; infinite where there is none that is known."""
    none = -np.inf if side == "min" else np.inf
    given = graph.constants.get(node.input(slot))
    return float(node.attrs.get(side, none)) if given is None or not given.size else float(given.ravel()[0])
