"""What a layer is called wherever people read of it."""

from __future__ import annotations

from onnxprune.graph.view import Node


def called(node: Node, weight: str = "") -> str:
    """The node's name where the file gives one with a letter in it; else that of its weight, or of what it computes.

    Exporters number nodes, or leave them without a name, where weights keep the names that their training had.
    """
    own = node.name if node.named else ""
    said = next((n for n in (own, weight) if any(c.isalpha() for c in n)), "")
    return said or own or weight or next(filter(None, node.outputs), "") or node.name
