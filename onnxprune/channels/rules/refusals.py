"""Operators through which no channel can be followed exactly: each pins what it touches, with its own reason.

A reason is a sentence about the operator that also says what can be done, where anything can.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.channels.trace import Rule, Trace
from onnxprune.graph import Node

_SEQUENCE = "keeps tensors in a sequence, which is not traced: export with Split, Concat and Slice instead"
_OPTIONAL = "wraps it in an optional value, which is not traced: export the model with the input present"
_TEXT = "works on strings: it belongs in front of the network, not in it"
_LOSS = "is a training loss over all classes: prune the model without its loss"
_DRAWS = "draws a random number per element, so that fewer elements would get other numbers"
_MADE = "makes its values from it at run time, so its size is not the network's to change"

REFUSALS: Mapping[str, str] = {
    # Values made from sizes and scalars.
    **dict.fromkeys(
        "BlackmanWindow Constant EyeLike HammingWindow HannWindow MelWeightMatrix Range".split(),
        _MADE,
    ),
    **dict.fromkeys("Bernoulli RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split(), _DRAWS),
    "Multinomial": "draws from all entries of it: removing one would change what is drawn",
    # Positions that depend on the data.
    "NonZero": "lists the positions of its entries, whose number depends on the data",
    "NonMaxSuppression": "compares boxes and scores with each other: prune the model without its post-processing, or "
    "leave these layers",
    "Unique": "sorts its entries and merges equal ones, so a removed one would change the others",
    "MaxUnpool": "places values by indices that count over all channels: export with Resize or ConvTranspose instead",
    "AffineGrid": "reads each entry of it as a coefficient of the map",
    "STFT": "frames a signal, whose samples are no channels",
    # Sequences, optional values, bodies.
    **dict.fromkeys(
        "ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength "
        "SplitToSequence".split(),
        _SEQUENCE,
    ),
    "SequenceMap": "runs its body on every tensor of a sequence, which is not traced: export it unrolled instead",
    **dict.fromkeys("Optional OptionalGetElement OptionalHasElement".split(), _OPTIONAL),
    # What does not belong to a network's inside.
    **dict.fromkeys("RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer".split(), _TEXT),
    "ImageDecoder": "decodes a file: it belongs in front of the network, not in it",
    **dict.fromkeys("NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss".split(), _LOSS),
}


def refusal(reason: str) -> Rule:
    """A rule that pins all inputs; its outputs carry no channels."""

    def rule(node: Node, t: Trace) -> None:
        for name in node.inputs:
            if name:
                t.pin(name, t.of(name), node, f"{node.op} {reason}")
        for name in node.outputs:
            if name:
                t.factors[name] = ()

    return rule


TABLE: dict[str, Rule] = {op: refusal(reason) for op, reason in REFUSALS.items()}
