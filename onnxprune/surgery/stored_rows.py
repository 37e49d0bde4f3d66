"""Weights of which an axis has an entry for each of something, such as the tokens of a vocabulary, and who reads them.

A weight may be read as it is stored, cast, transposed, dequantized, or in another shape: each step is followed to what
is stored, an initializer or what a Constant node holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import onnx
from onnx import TensorProto

from onnxprune.graph import bodies, external
from onnxprune.graph.protobuf import STANDARD, held_by, int_attribute
from onnxprune.numerics.arrays import Array

# From this version of the format on a weight need not be an input as well.
FREE_SINCE = 4
# Constants up to this size are read.
_SMALL = 64
# A tensor that is stored with one entry, or a block of them, for each row along an axis; of a shape that says how
# many rows there are, the place where it does.
Rows = tuple[str, int]
# A node's place in the graph, and which of its inputs.
Edge = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """The stored tensors behind one: the first of them with its sizes, the axis of rows, and the way there."""

    name: str
    dims: tuple[int, ...]
    axis: int
    rows: frozenset[Rows]
    shapes: frozenset[Rows] = frozenset()
    edges: frozenset[Edge] = frozenset()

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.dims[self.axis]


@dataclass
class StoredRows:
    """A graph's nodes, weights and readers by name. across: stored weights of which a block holds entries of several
    rows, so that none of these can go alone."""

    proto: onnx.ModelProto
    nodes: list[onnx.NodeProto] = field(init=False)
    stored: dict[str, TensorProto] = field(init=False)
    across: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        graph = self.proto.graph
        self.nodes = list(graph.node)
        self.stored = {t.name: t for t in graph.initializer}
        listed = {v.name for v in graph.input} & self.stored.keys()
        if self.proto.ir_version >= FREE_SINCE and len(listed) < len(self.stored):
            for name in listed:  # a default, which whoever runs the model may replace; all are listed by habit alone
                del self.stored[name]
        self.inputs = {v.name: v for v in graph.input if v.name not in self.stored}
        self.stored |= {n.output[0]: t for n in self.nodes if (t := held_by(n)) is not None}
        self.outputs = {v.name for v in graph.output}
        self.by_output = {o: k for k, n in enumerate(self.nodes) for o in n.output if o}
        self.readers: dict[str, set[Edge]] = {}
        for k, n in enumerate(self.nodes):
            for i, name in enumerate(n.input):
                self.readers.setdefault(name, set()).add((k, i))
            for name in bodies.captured_names(n):
                self.readers.setdefault(name, set()).add((k, -1))

    # the weights

    def source(self, name: str, axis: int, edge: Edge) -> Source | None:
        """What is stored behind a tensor that is computed from weights alone, by rows along an axis of it."""
        edges = {edge}
        if name in self.stored:
            dims = tuple(self.stored[name].dims)
            return (
                Source(name, dims, axis, frozenset({(name, axis)}), edges=frozenset(edges))
                if axis < len(dims)
                else None
            )
        k = self.by_output.get(name)
        if k is None or self.nodes[k].domain not in STANDARD:
            return None
        n = self.nodes[k]
        if n.op_type in ("Cast", "Identity"):
            found = self.source(n.input[0], axis, (k, 0))
        elif n.op_type == "Transpose":
            perm = next((list(a.ints) for a in n.attribute if a.name == "perm"), [1, 0])
            found = self.source(n.input[0], perm[axis], (k, 0)) if axis < len(perm) else None
        elif n.op_type == "DequantizeLinear":
            found = self._dequantized(k, axis)
        elif n.op_type == "Reshape":
            found = self._reshaped(k, axis)
        else:
            return None
        return (
            None
            if found is None
            else Source(found.name, found.dims, found.axis, found.rows, found.shapes, found.edges | edges)
        )

    def _dequantized(self, k: int, axis: int) -> Source | None:
        n = self.nodes[k]
        found = self.source(n.input[0], axis, (k, 0))
        if found is None or any(i and i not in self.stored for i in n.input[1:]):
            return None
        own, block = int_attribute(n, "axis", 1) % len(found.dims), int_attribute(n, "block_size", 0)
        rows, edges = set(found.rows), set(found.edges)
        for i, name in enumerate(n.input[1:], 1):
            dims = tuple(self.stored[name].dims) if name else ()
            if not name or prod(dims) == 1 or (len(dims) == 1 and own != axis):
                continue
            if block and own == axis:
                self.across.add(found.name)
                return None
            rows.add((name, 0 if len(dims) == 1 else axis))
            edges.add((k, i))
        return Source(found.name, found.dims, found.axis, frozenset(rows), found.shapes, frozenset(edges))

    def _reshaped(self, k: int, axis: int) -> Source | None:
        """Codes of a tied weight, which two operators read in two shapes, tokens first in both."""
        n = self.nodes[k]
        found = self.source(n.input[0], 0, (k, 0)) if axis == 0 else None
        shape = self.value(n.input[1])
        if found is None or shape is None or not shape.size:
            return None
        if int(shape[0]) == -1 and prod(shape[1:]) * found.count == prod(found.dims):
            return found
        if int(shape[0]) != found.count:
            return None
        shapes, edges = found.shapes | {(n.input[1], 0)}, found.edges | {(k, 1)}
        return Source(found.name, found.dims, found.axis, found.rows, shapes, edges)

    def only_read_by(self, edges: frozenset[Edge], every: set[Edge], shapes: frozenset[Rows] = frozenset()) -> bool:
        """Whether what these read is read by nothing but `every`, and no output. shapes: of these others may read, too,
        as their readers can get shapes of their own."""
        names = {self.nodes[k].input[i] for k, i in edges} - {name for name, _ in shapes}
        return not names & self.outputs and all(self.readers[name] <= every for name in names)

    def value(self, name: str) -> Array | None:
        """A small constant: a weight, or what a Constant node gives."""
        if name not in self.stored or prod(self.stored[name].dims) > _SMALL:
            return None
        return external.array_of(self.stored[name])
