"""Operators through which no channel can be followed exactly: each pins what it touches, with its own reason.

A reason is a sentence about the operator; its remedy says what can be done, where anything can.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.trace import Rule, Trace
from onnxprune.graph.view import Node

_SEQUENCE = Reason("keeps tensors in a sequence, which is not traced", Remedy.SEQUENCE)
_OPTIONAL = Reason("wraps it in an optional value, which is not traced", Remedy.OPTIONAL)
_TEXT = Reason("works on strings, which have no channels", Remedy.OUTSIDE)
_LOSS = Reason("is a training loss over all classes", Remedy.OUTSIDE)
_DRAWS = Reason("draws a random number per element, so that fewer elements would get other numbers", Remedy.INFERENCE)
_MADE = Reason("makes its values from it at run time, so its size is not the network's to change", Remedy.RUN_TIME)

REFUSALS: Mapping[str, Reason] = {
    # Values made from sizes and scalars.
    **dict.fromkeys(
        "BlackmanWindow Constant EyeLike HammingWindow HannWindow MelWeightMatrix Range".split(),
        _MADE,
    ),
    **dict.fromkeys("Bernoulli RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split(), _DRAWS),
    "Multinomial": Reason("draws from all entries of it", Remedy.COMPARED),
    # Positions that depend on the data.
    "NonZero": Reason("lists the positions of its entries, whose number depends on the data", Remedy.OUTSIDE),
    "NonMaxSuppression": Reason("compares boxes and scores with each other", Remedy.OUTSIDE),
    "Unique": Reason("sorts its entries and merges equal ones", Remedy.COMPARED),
    "MaxUnpool": Reason("places values by indices that count over all channels", Remedy.UNPOOL),
    "AffineGrid": Reason("reads each entry of it as a coefficient of the map", Remedy.MEANING),
    "STFT": Reason("frames a signal, whose samples are no channels", Remedy.POSITIONS),
    # Sequences, optional values, bodies.
    **dict.fromkeys(
        "ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength "
        "SplitToSequence".split(),
        _SEQUENCE,
    ),
    "SequenceMap": Reason("runs its body on every tensor of a sequence, which is not traced", Remedy.UNROLL),
    **dict.fromkeys("Optional OptionalGetElement OptionalHasElement".split(), _OPTIONAL),
    # What does not belong to a network's inside.
    **dict.fromkeys("RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer".split(), _TEXT),
    "ImageDecoder": Reason("decodes a file, which has no channels", Remedy.OUTSIDE),
    **dict.fromkeys("NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss".split(), _LOSS),
}


def refusal(reason: Reason) -> Rule:
    """A rule that pins all inputs; its outputs carry no channels."""

    def rule(node: Node, t: Trace) -> None:
        why = Reason(f"{node.op} {reason.text}", reason.remedy)
        for name in node.inputs:
            if name:
                t.pin(name, t.of(name), node, why)
        for name in node.outputs:
            if name:
                t.factors[name] = ()

    return rule


TABLE: dict[str, Rule] = {op: refusal(reason) for op, reason in REFUSALS.items()}
