"""Operators of onnxruntime's own domain that are neither written in standard ones nor followed, each with its reason.

`docs/operators.md` is made of this, of the rows that are written in standard operators and of the rules. A test holds
that every operator of the installed onnxruntime stands in one of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.channels.remedies import Reason, Remedy

DOMAIN = "com.microsoft"


def _rows(text: str, remedy: Remedy, names: str) -> dict[str, Reason]:
    return dict.fromkeys(names.split(), Reason(text, remedy))


# What language models are made of. Their heads and caches have rules of their own to follow, which are not written yet.
LANGUAGE: Mapping[str, Reason] = {
    **_rows(
        "is attention with its products inside, whose heads are not followed",
        Remedy.FUSED,
        "DecoderAttention DecoderMaskedSelfAttention LongformerAttention PackedAttention PackedMultiHeadAttention "
        "PagedAttention",
    ),
    **_rows(
        "attends to positions that it chooses, and its heads are not followed",
        Remedy.FUSED,
        "DynamicSparseAttention PackedSparseAttentionIndexer SparseAttention SparseAttentionIndexer "
        "SparsePagedAttention",
    ),
    **_rows(
        "carries a state from position to position, whose heads are not followed",
        Remedy.FUSED,
        "GatedDeltaNet LinearAttentionGate VarlenCausalConvWithState",
    ),
    **_rows(
        "turns queries and keys together, whose heads are not followed",
        Remedy.FUSED,
        "GemmaRotaryEmbedding MRotaryEmbedding",
    ),
    **_rows(
        "adds a bias for every head, and the heads are not followed",
        Remedy.FUSED,
        "GatedRelativePositionBias RelativePositionBias",
    ),
    **_rows(
        "is a gate or a mixer of streams of a language model, whose branches are not followed",
        Remedy.FUSED,
        "BranchwiseRMSNorm EngramGate GatedAdd GatedRMSNorm HyperConnectionPostMix HyperConnectionPreMix ScaledSiLU",
    ),
    **_rows(
        "multiplies with weights in packed codes, which are not read",
        Remedy.QUANTIZE_LATER,
        "MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight MatMulBnb4 MatMulFpQ4 "
        "MatMulNBitsMlp MatMulNBitsQkv",
    ),
    **_rows(
        "packs positions of several samples, or unpacks them, by their lengths",
        Remedy.FUSED,
        "RemovePadding RestorePadding",
    ),
    **_rows(
        "runs a whole network in its body again and again to choose words",
        Remedy.OUTSIDE,
        "BeamSearch BifurcationDetector GreedySearch NGramRepeatBlock Sampling WhisperBeamSearch",
    ),
    **_rows(
        "makes numbers of words, which have no channels", Remedy.OUTSIDE, "NGramHashMapping VarlenNGramHashMapping"
    ),
}
REFUSED: Mapping[str, Reason] = {
    **_rows("works on text, which has no channels", Remedy.OUTSIDE, "MurmurHash3 Tokenizer"),
    **_rows("is a recurrent net with attention inside, whose gates are not followed", Remedy.FUSED, "AttnLSTM"),
    **_rows("convolves over the letters of words that it looks up", Remedy.NO_RULE, "WordConvEmbedding"),
    **_rows(
        "drops numbers at random, as in training", Remedy.INFERENCE, "BiasDropout BitmaskBiasDropout BitmaskDropout"
    ),
    **_rows("sums exponentials over axes that its attributes describe, after a bias", Remedy.FUSED, "BiasSoftmax"),
    **_rows("measures the distances of all rows to all others", Remedy.COMPARED, "CDist"),
    **_rows("finds the cheapest path through all of it", Remedy.COMPARED, "DynamicTimeWarping"),
    **_rows("reads every entry of it as a coefficient of a matrix", Remedy.MEANING, "Inverse"),
    **_rows("multiplies pairs of real and imaginary parts", Remedy.MEANING, "ComplexMul ComplexMulConj"),
    **_rows("transforms a signal, whose samples are no channels", Remedy.POSITIONS, "Irfft Rfft"),
    **_rows("reads its pads from the data", Remedy.RUN_TIME, "ConvTransposeWithDynamicPads"),
    **_rows("cuts boxes out of images, which data decide", Remedy.NO_RULE, "CropAndResize"),
    **_rows("pools what a mask leaves", Remedy.NO_RULE, "MaxpoolWithMask"),
    **_rows("lays neighbours beside each other along an axis of positions", Remedy.POSITIONS, "UnfoldTensor"),
    **_rows("sorts its entries and merges equal ones", Remedy.COMPARED, "Unique"),
    **_rows("says of all entries at once whether they are finite", Remedy.COMPARED, "IsAllFinite"),
    **_rows("multiplies with a sparse matrix, whose rows are not followed", Remedy.NO_RULE, "SparseToDenseMatMul"),
    **_rows("looks up rows by its settings", Remedy.NO_RULE, "TorchEmbedding"),
    **_rows(
        "gives integers that are no numbers yet, as their scale stands elsewhere",
        Remedy.QUANTIZE_LATER,
        "MatMulInteger16 MulInteger ReduceSumInteger",
    ),
    **_rows("averages codes, for which no kernel is there to compare with", Remedy.QUANTIZE_LATER, "QLinearReduceMean"),
    **_rows(
        "stores numbers in a layout of the GPU's library, which is not read",
        Remedy.QUANTIZE_LATER,
        "DequantizeWithOrder QOrderedAttention QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention "
        "QOrderedMatMul QuantizeWithOrder",
    ),
    **_rows("shares an exponent among neighbours", Remedy.QUANTIZE_LATER, "DequantizeBFP QuantizeBFP"),
    **_rows("multiplies in eight bits, with scales of its own", Remedy.QUANTIZE_LATER, "GemmFloat8"),
    **_rows("holds a part of the network compiled for other hardware", Remedy.FUSED, "EPContext Snpe"),
    **_rows("has no channel rule, and only shows how an operator is registered", Remedy.FUSED, "SampleOp"),
}
REASONS: Mapping[str, Reason] = {f"{DOMAIN}.{name}": why for name, why in {**LANGUAGE, **REFUSED}.items()}
