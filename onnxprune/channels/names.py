"""What a layer is called wherever people read of it."""

from __future__ import annotations

import re

from onnxprune.graph.view import Node

# Names that PyTorch's exporters make up: of nodes an operator and a number, of weights a number.
_MADE_UP_NODE = re.compile(r"node_[A-Za-z0-9]+(?:_\d+)?")
_MADE_UP_WEIGHT = re.compile(r"(?:onnx::)?[A-Za-z]+_\d+")


def called(node: Node, weight: str = "") -> str:
    """The node's name where it says more than an operator or a number; else that of its weight, where that does.

    Exporters number nodes, or leave them without a name, where weights keep the names that they had in training. Where
    neither says more, the node's is taken if it has a letter in it, and of a node without a name the weight's, or what
    it computes.
    """
    own = node.name if node.named else ""
    names = [own] * _node_says_something(own, node.op) + [weight] * (not _MADE_UP_WEIGHT.fullmatch(weight))
    names = [n for n in (*names, own, weight) if any(c.isalpha() for c in n)]
    return next(iter(names), "") or own or weight or next(filter(None, node.outputs), "") or node.name


def _node_says_something(name: str, op: str) -> bool:
    numbered = re.fullmatch(rf"{re.escape(op)}(?:_\d+)?", name)
    return numbered is None and _MADE_UP_NODE.fullmatch(name) is None
