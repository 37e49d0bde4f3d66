"""Products of two activations that sum over positions inside heads, as queries and keys meet in attention.

No layer reads these positions: what they are worth is what they say of the product. The logits of a head with queries
and keys q, k (S, d) are q kᵀ, a sum over its d positions. The product is a MatMul, or inside an operator for attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.groups import ChannelGraph
from onnxprune.channels.labels import Labels
from onnxprune.channels.rules.attention import head_count
from onnxprune.graph.quantized import stored
from onnxprune.graph.view import Graph, Node, Shape
from onnxprune.numerics.arrays import Array

# (samples, heads, places, positions), and the same where heads lie with positions on the last axis.
_RANK, _PACKED = 4, 3
# More are no heads: another product has places there.
_MOST_HEADS = 512


@dataclass(frozen=True)
class Operand:
    """A tensor (B, h, S, d) by name; (B, S, h d) where `packed` is h, or (B, h, d, S) where `exchanged`."""

    tensor: str
    packed: int = 0
    exchanged: bool = False

    def by_head(self, x: Array) -> Array:
        """An array of that shape as (B, h, S, d)."""
        if self.packed:
            return x.reshape(*x.shape[:2], self.packed, x.shape[2] // self.packed).transpose(0, 2, 1, 3)
        return x.swapaxes(2, 3) if self.exchanged else x

    def sizes(self, shape: Shape) -> tuple[int, int]:
        """(h, d) of a tensor of that shape."""
        if self.packed:
            return self.packed, shape[2] // self.packed
        return shape[1], shape[2 if self.exchanged else 3]

    def places(self, shape: Shape) -> int:
        """S of a tensor of that shape."""
        return shape[1] if self.packed else shape[3 if self.exchanged else 2]


@dataclass(frozen=True, eq=False)
class Product:
    """A sum over positions of a group: of queries and keys, or of values, that weights multiply, and what that gives.

    units: the class of each position, (d,). Of keys and values there may be fewer heads, that serve several queries in
    a row each.
    """

    node: Node
    first: Operand
    second: Operand
    group: int
    units: Labels


def products_of(channels: ChannelGraph) -> Iterator[Product]:
    """Queries and keys of all products in the main graph, in its order."""
    for node in channels.graph.nodes:
        found = _operands(node, channels)
        if found is not None:
            queries, keys, _, _ = found
            yield from _product(node, queries, keys, queries, channels)


def weighted_sums(channels: ChannelGraph) -> Iterator[Product]:
    """Values, and what attention makes of them, of all products in the main graph, in its order."""
    for node in channels.graph.nodes:
        found = _operands(node, channels)
        if found is not None:
            _, _, values, sums = found
            yield from _product(node, values, sums, values, channels)


def any_product(graph: Graph) -> bool:
    """Whether there may be such products in the main graph: without them no positions have to be looked for."""
    return any(_multiplies_activations(node, graph) for node in graph.nodes)


def keeps_states(node: Node) -> bool:
    """Whether an operator for attention takes or gives keys and values of other steps, or gives its scores."""
    past = (4, 5) if node.domain == "" else (3, 6, 7)
    return node.op != "MatMul" and (any(map(node.input, past)) or any(node.outputs[1:]))


def _operands(node: Node, channels: ChannelGraph) -> tuple[Operand, Operand, Operand, Operand] | None:
    """Queries, keys, values and sums of a node; of a MatMul one or the other may have no positions that go."""
    graph = channels.graph
    if not _multiplies_activations(node, graph):
        return None
    shapes = [graph.shape(i) for i in (*node.inputs[:3], node.outputs[0])]
    if any(s is None for s in shapes):
        return None
    ranks = {len(s) for s in shapes if s is not None}
    if node.op == "MatMul":
        left, right, _ = (s or () for s in shapes)
        if ranks != {_RANK} or left[:2] != right[:2]:
            return None
        a, b = node.inputs
        return Operand(a), Operand(b, exchanged=True), Operand(b), Operand(node.outputs[0])
    if len(shapes) < 4 or not ranks <= {_RANK, _PACKED}:
        return None
    names = (*node.inputs[:3], node.outputs[0])
    heads = [_heads(node, min(i % 3, 1), shape or ()) for i, shape in enumerate(shapes)]
    q, k, v, o = (Operand(n, h) for n, h in zip(names, heads, strict=True))
    return q, k, v, o


def _multiplies_activations(node: Node, graph: Graph) -> bool:
    known = (node.domain, node.op) in _ATTENTION
    return known and not any(stored(graph, i) in graph.constants for i in node.inputs[:3])


_ATTENTION = {("", "MatMul"), ("", "Attention"), ("com.microsoft", "MultiHeadAttention")}


def _heads(node: Node, slot: int, shape: Shape) -> int:
    """Heads of a packed tensor, 0 where they have an axis."""
    if len(shape) == _RANK:
        return 0
    return int(node.attrs["num_heads"]) if node.domain else head_count(node, slot, len(shape), shape[1])


def _product(node: Node, first: Operand, second: Operand, read: Operand, channels: ChannelGraph) -> Iterator[Product]:
    """The product, where the positions inside the heads of `read` are units of one group."""
    graph = channels.graph
    own = [f for f in channels.factors.get(read.tensor, ()) if f.shape[-1] > 1]
    shape = graph.shape(read.tensor)
    if any(not x.packed and graph.is_free(x.tensor, 1) for x in (first, second)):
        return
    if len(own) != 1 or own[0].size != own[0].shape[-1] or shape is None:
        return
    heads, size = read.sizes(shape)
    if heads > _MOST_HEADS:
        return
    units = own[0].reshape(-1, size) if read.packed else own[0].reshape(1, -1)
    if not (units == units[:1]).all() or (read.packed and units.shape[0] != heads):
        return
    groups = np.unique(channels.group_of[units])
    if groups.size == 1 and groups[0] >= 0:
        yield Product(node, first, second, int(groups[0]), units[0])
