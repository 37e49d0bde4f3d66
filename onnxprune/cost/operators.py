"""Which operators multiply, and how much: one row per operator, as the layer that it stands for.

A multiply-accumulate (MAC) is a product that is added to a sum over channels, positions or keys. Contractions have
them: convolutions, matrix products, recurrent nets and attention, also those that compute with integers or that
onnxruntime has fused with what follows. What works entry by entry (activations, normalizations, scales), pools, looks
up, resamples or transforms to frequencies has none by that convention, which is the usual one.

A count is made of the shapes at which the model was traced. Attention counts every pair of query and key, also those
that a mask leaves out; an Einsum of several operands is contracted from left to right, as onnxruntime does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from onnxprune.channels import ChannelGraph
from onnxprune.channels.rules.contraction import einsum_indices
from onnxprune.cost.terms import Length, Term, length_of_axis
from onnxprune.graph.operators import GATE_COUNT
from onnxprune.graph.view import Node, Shape, depth_first

MICROSOFT = "com.microsoft"
# Weights from which on an operator that nobody knows is taken for one that multiplies.
_LARGE = 1024


class _Unknown(Exception):  # no error: an operator whose products cannot be counted
    """A shape or a form of the operator that the count would need is not known."""


Count = Callable[[Node, ChannelGraph], Sequence[Term]]


def _shape(name: str, channels: ChannelGraph) -> Shape:
    shape = channels.graph.shape(name) if name else None
    if shape is None:
        raise _Unknown
    return shape


def _axis(name: str, axis: int, channels: ChannelGraph) -> Length:
    shape = _shape(name, channels)
    return length_of_axis(channels, name, axis % len(shape), shape[axis])


def _convolution(node: Node, channels: ChannelGraph, *, weight: int) -> list[Term]:
    """Every entry of the weight (M, C / group, *K) once for each position of the output, whatever its layout."""
    w, out = _shape(node.input(weight), channels), _shape(node.outputs[0], channels)
    return [Term(float(prod(w[1:])) * prod(out) / w[0], (_axis(node.input(weight), 0, channels),))]


def _transposed(node: Node, channels: ChannelGraph) -> list[Term]:
    """Every entry of the weight (C, M / group, *K) once for each position of the input (N, C, *S)."""
    w, x = _shape(node.input(1), channels), _shape(node.input(0), channels)
    return [Term(float(prod(w) * x[0] * prod(x[2:])), ())]


def _product(node: Node, channels: ChannelGraph, *, flag: str = "", batch_flag: str = "") -> list[Term]:
    """Every entry of the output is a sum along one axis of the first operand: its last, or with `flag` another.

    batch_flag: FusedMatMul's, which moves the first axis to the last but one before that.
    """
    a, out = _shape(node.input(0), channels), _shape(node.outputs[0], channels)
    axis = len(a) - 1
    if flag and node.attrs.get(flag, 0) and len(a) > 1:
        axis = len(a) - 2
        if batch_flag and node.attrs.get(batch_flag, 0):
            axis = 0
    lengths = [_axis(node.outputs[0], i, channels) for i in range(len(out))]
    return [Term(1.0, (_axis(node.input(0), axis, channels), *lengths))]


def _einsum(node: Node, channels: ChannelGraph) -> list[Term]:
    """One product for each combination of the indices of two operands; what is left goes on to the next operand."""
    shapes = [_shape(i, channels) for i in node.inputs]
    terms, output = einsum_indices(str(node.attrs["equation"]), [len(s) for s in shapes])
    lengths: dict[str, Length] = {}
    for name, indices, shape in zip(node.inputs, terms, shapes, strict=True):
        for axis, index in enumerate(indices):
            length = _axis(name, axis, channels)
            # An axis of size 1 broadcasts, and one without channels of its own may meet one that has them.
            if index not in lengths or lengths[index].constant == 1 or (length.groups and shape[axis] > 1):
                lengths[index] = length
    products: list[Term] = []
    left = set(terms[0])
    for k in range(1, len(terms)):
        together = left | set(terms[k])
        products.append(Term(1.0, tuple(lengths[i] for i in sorted(together))))
        left = together & {*output, *(i for t in terms[k + 1 :] for i in t)}
    return products


def _recurrent(node: Node, channels: ChannelGraph) -> list[Term]:
    """Every step of every sequence multiplies W (D, G H, I) and R (D, G H, H), in all directions."""
    steps, sequences, _ = _shape(node.inputs[0], channels)
    w, r = node.inputs[1:3]
    directions, _, _ = _shape(w, channels)
    hidden = _axis(r, 2, channels)
    each = float(steps * sequences * directions * GATE_COUNT[node.op])
    return [Term(each, (hidden, _axis(w, 2, channels))), Term(each, (hidden, hidden))]


def _quantized_recurrent(node: Node, channels: ChannelGraph) -> list[Term]:
    """As `_recurrent`, with W (D, I, G H) and R (D, H, G H)."""
    steps, sequences, _ = _shape(node.inputs[0], channels)
    w, r = node.inputs[1:3]
    hidden = _axis(r, 1, channels)
    each = float(steps * sequences * _shape(w, channels)[0] * GATE_COUNT["LSTM"])
    return [Term(each, (hidden, _axis(w, 1, channels))), Term(each, (hidden, hidden))]


def _attention(node: Node, channels: ChannelGraph) -> list[Term]:
    """Q·Kᵀ and the sum over the values: queries × keys for each entry of q and of the output."""
    keys = _shape(node.inputs[1], channels)
    past = _shape(node.input(4), channels) if node.input(4) else None
    total = keys[-2] + (past[2] if past else 0)
    return [_paired(name, total, channels) for name in (node.inputs[0], node.outputs[0])]


def _paired(name: str, keys: int, channels: ChannelGraph) -> Term:
    """Every entry of (B, S, heads · d) or (B, heads, S, d) meets every key."""
    shape = _shape(name, channels)
    if len(shape) not in (3, 4):
        raise _Unknown
    wide = (2,) if len(shape) == 3 else (1, 3)
    return Term(float(shape[0] * shape[-2] * keys), tuple(_axis(name, a, channels) for a in wide))


def _with_projection(node: Node, channels: ChannelGraph, *, past: int) -> list[Term]:
    """Attention of onnxruntime: x (B, S, I), a weight (I, Q + K + V) for all three, past keys (2, B, heads, P, d)."""
    b, s, _ = _shape(node.input(0), channels)
    weight = _shape(node.input(1), channels)
    keys = s + (_shape(node.input(past), channels)[3] if node.input(past) else 0)
    sizes = node.attrs.get("qkv_hidden_sizes")
    q = int(sizes[0]) if sizes else weight[1] // 3
    values = _shape(node.outputs[0], channels)[-1]
    return [Term(float(b * s * prod(weight)), ()), Term(float(b * s * keys * (q + values)), ())]


def _multi_head(node: Node, channels: ChannelGraph, *, past: int = 6) -> list[Term]:
    """MultiHeadAttention of onnxruntime: query (B, S, D), key (B, L, D) or (B, heads, L, d), past key in its slot.

    Keys and values may come packed into (B, L, heads, 2, d), all three into (B, S, heads, 3, d), or side by side.
    """
    query, out = _shape(node.input(0), channels), _shape(node.outputs[0], channels)
    keys = query[1]
    if len(query) != 5 and node.input(1):
        key = _shape(node.input(1), channels)
        keys = key[1] if len(key) in (3, 5) else key[2]
    keys += _shape(node.input(past), channels)[2] if node.input(past) else 0
    each = float(out[0] * out[1] * keys)
    rows = Term(each, (_axis(node.outputs[0], 2, channels),))
    if len(query) == 5:
        return [Term(each, tuple(_axis(node.input(0), a, channels) for a in (2, 4))), rows]
    return [Term(each, (_axis(node.input(0), 2, channels),)) if node.input(1) else rows, rows]


def _grouped_query(node: Node, channels: ChannelGraph) -> list[Term]:
    """GroupQueryAttention of onnxruntime: output (B, S, heads · d), all keys so far in the present (B, kv, T, d)."""
    out = _shape(node.outputs[0], channels)
    present = node.outputs[1] if len(node.outputs) > 1 and node.outputs[1] else node.input(3)
    keys = _shape(present, channels)[2] if present else out[1]
    return [Term(2.0 * out[0] * out[1] * keys, (_axis(node.outputs[0], 2, channels),))]


def _linear_attention(node: Node, channels: ChannelGraph) -> list[Term]:
    """Each step writes k vᵀ into a state (d, e) of each head and reads it with q; a delta rule reads it once more."""
    b, steps = _shape(node.input(0), channels)[:2]
    e = _shape(node.input(2), channels)[2] // int(node.attrs["kv_num_heads"])
    times = 2.0 if "delta" in str(node.attrs.get("update_rule", "gated_delta")) else 1.0
    written = Term(times * b * steps * e, (_axis(node.input(1), 2, channels),))
    return [Term(float(b * steps * e), (_axis(node.input(0), 2, channels),)), written]


def _mixture(node: Node, channels: ChannelGraph, *, second: int, third: int) -> list[Term]:
    """MoE of onnxruntime: each position (..., H) by k experts, of weights (E, F, H), (E, H, I) and perhaps (E, F, H).

    Of F outputs half are inner units where two in turns are a gate; of codes the last axis of a weight is packed.
    """
    x, wide = _shape(node.input(0), channels), _shape(node.input(2), channels)[1]
    _shape(node.input(second), channels)
    gated = str(node.attrs.get("activation_type", "relu")).lower() == "swiglu" and not node.input(third)
    own = 2 * wide if node.input(third) else wide
    each = own + (wide // 2 if gated else wide)
    return [Term(float(prod(x[:-1]) * int(node.attrs.get("k", 1)) * each), (_axis(node.input(0), -1, channels),))]


def _rows(count: Count, *names: str, domain: str = MICROSOFT) -> dict[str, Count]:
    return {f"{domain}.{n}" if domain else n: count for n in names}


_conv = partial(_convolution, weight=1)
_qlinear_conv = partial(_convolution, weight=3)
TABLE: Mapping[str, Count] = {
    **_rows(_conv, "Conv", "DeformConv", "ConvInteger", "CausalConvWithState", domain=""),
    **_rows(_conv, "FusedConv", "NhwcConv", "NhwcFusedConv", "CausalConvWithState"),
    **_rows(_conv, "Conv", domain="com.microsoft.nchwc"),
    **_rows(_conv, "Conv", domain="com.ms.internal.nhwc"),
    **_rows(_qlinear_conv, "QLinearConv", domain=""),
    **_rows(_qlinear_conv, "QLinearConv"),
    **_rows(_qlinear_conv, "QLinearConv", domain="com.ms.internal.nhwc"),
    **_rows(_transposed, "ConvTranspose", domain=""),
    **_rows(_transposed, "ConvTransposeWithDynamicPads"),
    **_rows(_product, "MatMul", "MatMulInteger", "QLinearMatMul", domain=""),
    **_rows(
        _product,
        *(
            "DynamicQuantizeMatMul",
            "MatMulInteger16",
            "MatMulIntegerToFloat",
            "GemmFastGelu",
            "QOrderedMatMul",
            "CDist",
        ),
        *("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "MatMulBlockQuantizedFp4Weight", "MatMulBlockQuantizedFp8Weight"),
    ),
    **_rows(partial(_product, flag="transA"), "Gemm", domain=""),
    **_rows(partial(_product, flag="transA"), "FusedGemm", "GemmFloat8", "QGemm"),
    **_rows(
        partial(_product, flag="transA", batch_flag="transBatchA"),
        *("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation"),
    ),
    **_rows(_einsum, "Einsum", domain=""),
    **_rows(_recurrent, "LSTM", "GRU", "RNN", domain=""),
    **_rows(_quantized_recurrent, "DynamicQuantizeLSTM"),
    **_rows(_attention, "Attention", domain=""),
    **_rows(partial(_with_projection, past=4), "Attention"),
    **_rows(partial(_with_projection, past=8), "QAttention"),
    **_rows(_multi_head, "MultiHeadAttention"),
    **_rows(partial(_multi_head, past=5), "DecoderMaskedMultiHeadAttention"),
    **_rows(_grouped_query, "GroupQueryAttention"),
    **_rows(_linear_attention, "LinearAttention", domain=""),
    **_rows(_linear_attention, "LinearAttention"),
    **_rows(partial(_mixture, second=4, third=6), "MoE"),
    **_rows(partial(_mixture, second=5, third=8), "QMoE"),
}

# Of onnxruntime: these multiply, by sizes that lie in values, or inside operators of their own.
UNCOUNTED = frozenset(
    (
        "AttnLSTM BeamSearch DecoderAttention DecoderMaskedSelfAttention "
        "DynamicSparseAttention EPContext GatedDeltaNet GatedRelativePositionBias GreedySearch "
        "LongformerAttention MatMulNBitsMlp MatMulNBitsQkv PackedAttention PackedMultiHeadAttention "
        "PackedSparseAttentionIndexer PagedAttention QOrderedAttention QOrderedLongformerAttention Sampling Snpe "
        "SparseAttention SparseAttentionIndexer SparsePagedAttention SparseToDenseMatMul VarlenCausalConvWithState "
        "WhisperBeamSearch WordConvEmbedding"
    ).split()
)
# Of onnxruntime: these read large constants and multiply none of them with sums over it.
_LOOK_UP = frozenset(
    (
        "BiasAdd BiasGelu BiasSoftmax BiasSplitGelu DequantizeBFP DequantizeLinear DequantizeWithOrder "
        "EmbedLayerNormalization ExpandDims FastGelu GatherBlockQuantized GatherND Gelu GemmaRotaryEmbedding "
        "MRotaryEmbedding MulInteger NGramHashMapping Pad QEmbedLayerNormalization QLinearAdd QLinearConcat QLinearMul "
        "QLinearWhere QuantizeBFP QuantizeLinear QuantizeWithOrder QuickGelu RelativePositionBias RotaryEmbedding "
        "SkipLayerNormalization SkipSimplifiedLayerNormalization TorchEmbedding Trilu Unique"
    ).split()
)


@dataclass(frozen=True)
class Uncounted:
    """A node that multiplies, or may: its name, its operator, why it is not counted, and entries of its weights.

    surely: whether it is known to multiply, however few its weights.
    """

    node: str
    operator: str
    why: str
    weights: int
    surely: bool


def key_of(node: Node) -> str:
    """The row of the table that a node would have."""
    return f"{node.domain}.{node.op}" if node.domain else node.op


def terms_of(node: Node, channels: ChannelGraph) -> Sequence[Term] | None:
    """The products of a node; nothing where it has none, None where they cannot be told."""
    count = TABLE.get(key_of(node))
    if count is None:
        return []
    try:
        return count(node, channels)
    except (_Unknown, ValueError, IndexError, KeyError):  # a rank that the operator does not have by its definition
        return None


def repeated(channels: ChannelGraph) -> tuple[str, ...]:
    """The Loops and Scans whose bodies multiply: these products count once, however often a body runs."""
    return tuple(
        n.name
        for n in channels.graph.nodes
        if n.op in ("Loop", "Scan") and any(terms_of(i, channels) for b in n.bodies for i in depth_first(b.nodes))
    )


def _is_foreign(node: Node) -> bool:
    """Whether nothing here says if the operator multiplies."""
    listed = key_of(node) in TABLE or (node.domain == MICROSOFT and node.op in _LOOK_UP)
    return bool(node.domain) and node.domain != "ai.onnx.ml" and not listed


def uncounted(channels: ChannelGraph) -> tuple[Uncounted, ...]:
    """Every node whose products are not in `macs`."""
    missing: list[Uncounted] = []
    for n in channels.graph.every_node:
        constants = [channels.graph.constants[i] for i in n.inputs if i in channels.graph.constants]
        weights = sum(c.size for c in constants if c.ndim > 1)
        why = ""
        if terms_of(n, channels) is None:
            why = "its shapes are not known"
        elif n.domain == MICROSOFT and n.op in UNCOUNTED:
            why = "how much it multiplies depends on values"
        elif weights >= _LARGE and _is_foreign(n):
            why = "it is an operator that onnxprune does not know"
        if why:
            missing.append(Uncounted(n.name, key_of(n), why, weights, n.domain == MICROSOFT and n.op in UNCOUNTED))
    return tuple(missing)
