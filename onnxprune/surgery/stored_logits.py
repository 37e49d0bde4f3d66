"""Logits that a stored product gives, an entry for each of something: the tokens of a vocabulary, or experts.

Behind the product a bias, scales, casts and softcapping may stand, and a Reshape that keeps the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from onnxprune.graph.protobuf import STANDARD, int_attribute
from onnxprune.surgery.stored_rows import Edge, Rows, Source, StoredRows

_WEIGHTED = {"MatMul": 1, "FusedMatMul": 1, "Gemm": 1, "MatMulNBits": 1}
_ALONE = ("Cast", "Identity", "Tanh")
_WITH_CONSTANT = ("Add", "Sub", "Mul", "Div")


@dataclass(frozen=True)
class Logits:
    """A product, and what stands between it and its logits.

    node: its place in the graph. tensor: its weight. rows: what is stored by entries. shapes: stored shapes that say
    how many there are. edges: (node, input) of all that reads these. width: products for each entry. between: the
    tensors from the product to the logits, these first.
    """

    node: int
    tensor: str
    rows: frozenset[Rows]
    shapes: frozenset[Rows]
    edges: frozenset[Edge]
    width: int
    between: tuple[str, ...]


class StoredLogits(StoredRows):
    """A graph in which logits are followed to the product that gives them."""

    def logits(self, name: str, count: int, why: str, *, sized: bool) -> Logits | str:
        """The product whose `count` outputs a tensor holds on its last axis, where nothing else reads them.

        sized: whether it is known to have as many. Else why they stay, behind the words of `why`; "" where they are
        none.
        """
        rows: set[Rows] = set()
        shapes: set[Rows] = set()
        edges: set[Edge] = set()
        between = [name]
        while True:
            name = between[-1]
            k = self.by_output.get(name)
            if k is None:
                return ""
            if len(self.readers.get(name, ())) + (name in self.outputs) != 1:
                return f"{why}: {name!r} is read elsewhere too" if sized else ""
            n = self.nodes[k]
            if n.op_type in _WEIGHTED:
                break
            step = self._step(k, count, sized=sized) if n.domain in STANDARD else None
            if step is None:
                return f"{why}: {n.op_type} is behind its product" if sized else ""
            follows, more, shaped = step
            between.append(follows)
            rows |= {r for r, _ in more}
            edges |= {e for _, e in more}
            shapes |= {r for r, _ in shaped}
            edges |= {e for _, e in shaped}
        product = self.product(k, count)
        if product is None:
            return f"{why}: its weight is none that is stored by tokens" if sized else ""
        source, width = product
        return Logits(
            k,
            source.name,
            source.rows | rows,
            source.shapes | shapes,
            source.edges | edges,
            width,
            tuple(between),
        )

    def _step(
        self, k: int, count: int, *, sized: bool
    ) -> tuple[str, Sequence[tuple[Rows, Edge]], Sequence[tuple[Rows, Edge]]] | None:
        """One operator back from the logits: what it reads, its constants by tokens, its shapes that count them."""
        n = self.nodes[k]
        if n.op_type in _ALONE:
            return n.input[0], (), ()
        if n.op_type == "Reshape" and n.input[1] in self.stored:
            shape = self.value(n.input[1])
            if shape is None or not shape.size:
                return None
            last = int(shape[-1])
            if last == count:
                return n.input[0], (), [((n.input[1], shape.size - 1), (k, 1))]
            return (n.input[0], (), ()) if last == -1 and sized else None
        if n.op_type in _WITH_CONSTANT:
            # Before an opset of 7 axes were no longer matched from the end where `axis` says so.
            if any(a.name == "axis" for a in n.attribute):
                return None
            for place, name in enumerate(n.input):
                other = n.input[1 - place]
                scalar = self.value(name)
                if scalar is not None and scalar.size == 1:
                    return other, (), ()
                if name in self.stored and other not in self.stored:
                    dims = tuple(self.stored[name].dims)
                    if dims[-1] == 1:
                        return other, (), ()
                    return (other, [((name, len(dims) - 1), (k, place))], ()) if dims[-1] == count else None
        return None

    def product(self, k: int, count: int) -> tuple[Source, int] | None:
        """The weight of a product whose outputs are tokens, and how many numbers each of them sums."""
        n = self.nodes[k]
        if n.op_type == "MatMulNBits":
            return self._packed(k, count)
        turned = int_attribute(n, "transB", 0)
        if len(n.input) < 2 or (n.op_type in ("MatMul", "Gemm") and n.domain not in STANDARD):
            return None
        axis = 0 if turned and n.op_type != "MatMul" else 1
        source = self.source(n.input[1], axis, (k, 1))
        if source is None or len(source.dims) != 2 or source.count != count:
            return None
        rows, edges = set(source.rows), set(source.edges)
        if n.op_type == "Gemm" and len(n.input) > 2 and n.input[2]:
            bias = n.input[2]
            dims = tuple(self.stored[bias].dims) if bias in self.stored else None
            if dims is None or (dims and dims[-1] not in (1, count)):
                return None
            if dims and dims[-1] == count:
                rows.add((bias, len(dims) - 1))
                edges.add((k, 2))
        width = prod(source.dims) // count
        return Source(source.name, source.dims, source.axis, frozenset(rows), source.shapes, frozenset(edges)), width

    def _packed(self, k: int, count: int) -> tuple[Source, int] | None:
        """MatMulNBits: codes, scales, zero points and bias, all of them with tokens first, some of them flat."""
        n = self.nodes[k]
        source = self.source(n.input[1], 0, (k, 1))
        if source is None or source.count != count or int_attribute(n, "N", 0) != count:
            return None
        rows, shapes, edges = set(source.rows), set(source.shapes), set(source.edges)
        for i in (2, 3, 5):
            if len(n.input) > i and n.input[i]:
                more = self.source(n.input[i], 0, (k, i))
                if more is None or prod(more.dims) % count or (len(more.dims) > 1 and more.count != count):
                    return None
                rows |= more.rows
                shapes |= more.shapes
                edges |= more.edges
        whole = Source(source.name, source.dims, 0, frozenset(rows), frozenset(shapes), frozenset(edges))
        return whole, int_attribute(n, "K", 0)
