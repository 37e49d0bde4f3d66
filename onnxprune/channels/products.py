"""Products of two activations that sum over positions inside heads, as queries and keys meet in attention.

No layer reads these positions: what they are worth is what they say of the product. The logits of a head with queries
and keys q, k (S, d) are q kᵀ, a sum over its d positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.groups import ChannelGraph
from onnxprune.channels.labels import Labels, tracked_axes
from onnxprune.graph.quantized import stored
from onnxprune.graph.view import Node

# (samples, heads, places, positions), of the second operand with the last two exchanged.
_RANK = 4


@dataclass(frozen=True, eq=False)
class Product:
    """A product of queries (B, h, S, d) and keys (B, h, d, T), by name, whose d positions are units of one group.

    units: the class of each position, (d,).
    """

    node: Node
    queries: str
    keys: str
    group: int
    units: Labels


def products_of(channels: ChannelGraph) -> Iterator[Product]:
    """All of them in the main graph, in its order."""
    return _products(channels, 0)


def weighted_sums(channels: ChannelGraph) -> Iterator[Product]:
    """Products of weights (B, h, S, T) and values (B, h, T, d), whose d positions are units of one group; here the
    weights stand as `queries`, the values as `keys`."""
    return _products(channels, 1)


def _products(channels: ChannelGraph, slot: int) -> Iterator[Product]:
    """Products of which the last axis of one operand is one of positions that may go."""
    graph = channels.graph
    for node in graph.nodes:
        if node.op != "MatMul" or node.domain or any(stored(graph, i) in graph.constants for i in node.inputs):
            continue
        shapes = [graph.shape(i) for i in node.inputs]
        if any(s is None or len(s) != _RANK for s in shapes) or shapes[0][:2] != shapes[1][:2]:  # type: ignore[index]
            continue
        units = channels.axis_factor(node.inputs[slot], _RANK - 1)
        if units is None or tracked_axes(units) != (_RANK - 1,) or (channels.group_of[units] < 0).any():
            continue
        groups = np.unique(channels.group_of[units])
        if groups.size == 1:
            yield Product(node, node.inputs[0], node.inputs[1], int(groups[0]), units.ravel())
