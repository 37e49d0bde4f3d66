"""Gradients of convolutions and matrix products with respect to their data."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.gradients.build import Builder, Gradients
from onnxprune.graph import Node


def identity(b: Builder, node: Node, grads: Sequence[str | None], slots: Sequence[int]) -> Gradients:
    """Identity."""
    assert grads[0] is not None
    return {0: grads[0]}


TABLE = {"Identity": identity}
