"""What stands between the product of a router and the mixture that it is for: all that has an entry for each expert.

Most routers give logits, behind a bias and a Reshape at most. Others choose by themselves (sigmoids, a bias, TopK), and
scatter what they chose among numbers so low that the mixture chooses the same. From the product on every tensor is
followed that has an entry for each expert on its last axis, or that says which experts were chosen. Where all that
reads one of these is understood, and is for this mixture alone, the columns of the product can go.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx

from onnxprune.graph.protobuf import STANDARD, int_attribute
from onnxprune.surgery.stored_logits import StoredLogits
from onnxprune.surgery.stored_rows import Edge, Rows

_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "MatMulNBits")
# Each entry by itself.
_ALONE = frozenset("Abs Cast Clip Exp Identity LeakyRelu Log Neg Reciprocal Relu Sigmoid Softplus Sqrt Tanh".split())
_TOGETHER = frozenset("Add Div Max Min Mul Sub Where".split())
_BY_PLACES = ("GatherElements", "ScatterElements")
_BETWEEN = _ALONE | _TOGETHER | {*_BY_PLACES, "Softmax", "TopK", "Reshape", "Shape", "ConstantOfShape", "Constant"}
# Tensors have an entry for each expert, say which were chosen, or say how large one of the first kind is.
_WIDE, _PLACES, _SIZES = range(1, 4)


@dataclass(frozen=True)
class Router:
    """The product of a router, with what depends on the number of its columns.

    node: its place in the graph; width: products for each column. rows, shapes, edges: as of `stored_logits.Logits`.
    wide: the tensors with an entry for each expert. compared: (node, input) of the Softmax
    and TopK on the way that compare them. chosen: how many a TopK takes at most.
    """

    node: int
    width: int
    rows: frozenset[Rows]
    shapes: frozenset[Rows]
    edges: frozenset[Edge]
    wide: frozenset[str]
    compared: tuple[Edge, ...]
    chosen: int = 0


def router_of(graph: StoredLogits, mixture: int, slots: Collection[int], count: int) -> Router | None:
    """The router of the mixture at this place, which reads it at `slots`; None where its columns have to stay."""
    read = [graph.nodes[mixture].input[i] for i in slots]
    k = _product_behind(graph, read)
    product = None if k is None else graph.product(k, count)
    if k is None or product is None:
        return None
    source, width = product
    found = _Followed(graph, mixture, slots, count)
    if not found.follow(graph.nodes[k].output[0]) or any(found.kinds.get(t) != _WIDE for t in read):
        return None
    edges = frozenset(source.edges | found.edges)
    names = {graph.nodes[n].input[i] for n, i in source.edges} - graph.stored.keys()
    if names & graph.outputs or not all(graph.readers[name] <= edges for name in names):
        return None
    wide = frozenset(t for t, kind in found.kinds.items() if kind == _WIDE)
    rows, shapes = frozenset(source.rows | found.rows), frozenset(source.shapes | found.shapes)
    return Router(k, width, rows, shapes, edges, wide, tuple(found.compared), found.chosen)


def _product_behind(graph: StoredLogits, tensors: Collection[str]) -> int | None:
    """The one product from which tensors are computed, by what may stand between; None where there is more."""
    products: set[int] = set()
    waiting, seen = [*tensors], {*tensors, ""}
    while waiting:
        name = waiting.pop()
        k = graph.by_output.get(name)
        if k is None or name in graph.stored:
            if name not in graph.stored:
                return None
            continue
        n = graph.nodes[k]
        if n.op_type in _PRODUCTS:
            products.add(k)
            continue
        if n.domain not in STANDARD or n.op_type not in _BETWEEN:
            return None
        waiting += {*n.input} - seen
        seen.update(n.input)
    return products.pop() if len(products) == 1 else None


@dataclass
class _Followed:
    """The tensors behind a product, by what they have to do with experts, and what is cut with its columns."""

    graph: StoredLogits
    mixture: int
    slots: Collection[int]
    count: int
    kinds: dict[str, int] = field(default_factory=dict)
    rows: set[Rows] = field(default_factory=set)
    shapes: set[Rows] = field(default_factory=set)
    edges: set[Edge] = field(default_factory=set)
    compared: list[Edge] = field(default_factory=list)
    chosen: int = 0

    def follow(self, logits: str) -> bool:
        """Follow these to the mixture; whether all that reads them on the way is understood."""
        self.kinds[logits] = _WIDE
        if logits in self.graph.outputs:
            return False
        waiting = {k for k, _ in self.graph.readers.get(logits, ())}
        done: set[int] = set()
        while waiting:
            k = min(waiting)  # nodes stand behind what they read
            waiting.remove(k)
            done.add(k)
            if any(i < 0 for name in self.kinds for j, i in self.graph.readers.get(name, ()) if j == k):
                return False  # it is read inside a body
            if k == self.mixture:
                if any(i in self.kinds and s not in self.slots for s, i in enumerate(self.graph.nodes[k].input)):
                    return False
                continue
            given = self._of(k, self.graph.nodes[k])
            if given is None or given.keys() & self.graph.outputs:
                return False
            self.kinds |= given
            waiting |= {j for name in given for j, _ in self.graph.readers.get(name, ())} - done
        return True

    def _of(self, k: int, n: onnx.NodeProto) -> dict[str, int] | None:
        """What a node gives, of what has to do with experts; None where that cannot be told."""
        kinds = [self.kinds.get(i) for i in n.input]
        if n.domain not in STANDARD:
            return None
        if n.op_type == "Reshape" and kinds[0] == _WIDE:
            return self._reshaped(k, n)
        if n.op_type == "TopK" and kinds[0] == _WIDE:
            taken = self.graph.value(n.input[1]) if len(n.input) > 1 else None
            if taken is None or taken.size != 1 or not self._on_last(n.input[0], int_attribute(n, "axis", -1)):
                return None
            self.compared.append((k, 0))
            self.chosen = max(self.chosen, int(taken.ravel()[0]))
            return {n.output[1]: _PLACES} if int_attribute(n, "largest", 1) else None
        if (
            n.op_type in _BY_PLACES
            and kinds[:2] == [_WIDE, _PLACES]
            and self._on_last(n.input[0], int_attribute(n, "axis", 0))
        ):
            return {} if n.op_type == "GatherElements" else self._wide(n) if kinds[2] is None else None
        if n.op_type == "Shape" and kinds == [_WIDE] and not n.attribute:
            return {n.output[0]: _SIZES}
        if n.op_type == "ConstantOfShape" and kinds == [_SIZES]:
            return self._wide(n)
        if n.op_type == "Softmax" and kinds == [_WIDE] and self._on_last(n.input[0], int_attribute(n, "axis", 0)):
            self.compared.append((k, 0))
            return self._wide(n)
        if n.op_type in _ALONE and kinds[0] == _WIDE and not any(kinds[1:]):
            return self._wide(n)
        if n.op_type in _TOGETHER and _WIDE in kinds and {*kinds} <= {_WIDE, None}:
            return self._together(k, n)
        return None

    def _wide(self, n: onnx.NodeProto) -> dict[str, int]:
        return {n.output[0]: _WIDE}

    def _on_last(self, tensor: str, axis: int) -> bool:
        """Whether an axis of a wide tensor is that of experts: its last, or the second of the two that there are."""
        return axis == -1 or (axis == 1 and tensor in self._flat)

    @property
    def _flat(self) -> set[str]:
        """The tensors that are known to have two axes: those behind a Reshape to so many."""
        flat: set[str] = set()
        for k in sorted({j for t in self.kinds for j in [self.graph.by_output.get(t)] if j is not None}):
            n = self.graph.nodes[k]
            shape = self.graph.value(n.input[1]) if n.op_type == "Reshape" else None
            sources = {i for i in n.input if i in self.kinds}
            sized = shape is not None and shape.size == 2
            if sized or n.op_type == "Gemm" or (n.op_type != "Reshape" and sources and sources <= flat):
                flat.update(o for o in n.output if o)
        return flat

    def _reshaped(self, k: int, n: onnx.NodeProto) -> dict[str, int] | None:
        shape = self.graph.value(n.input[1])
        if shape is None or not shape.size or int(shape[-1]) not in (-1, self.count):
            return None
        if int(shape[-1]) == self.count:
            if n.input[1] not in self.graph.stored:
                return None
            self.shapes.add((n.input[1], shape.size - 1))
            self.edges.add((k, 1))
        elif -1 in shape[:-1]:
            return None
        return self._wide(n)

    def _together(self, k: int, n: onnx.NodeProto) -> dict[str, int] | None:
        """Of entries with those of constants, one for each expert or one for all of them."""
        for i, name in enumerate(n.input):
            if name in self.kinds:
                continue
            scalar = self.graph.value(name)
            if scalar is not None and scalar.size == 1:
                continue
            if name not in self.graph.stored or any(a.name == "axis" for a in n.attribute):
                return None
            dims = tuple(self.graph.stored[name].dims)
            if dims[-1] == self.count:
                self.rows.add((name, len(dims) - 1))
                self.edges.add((k, i))
            elif dims[-1] != 1:
                return None
        return self._wide(n)
