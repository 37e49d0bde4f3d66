"""A read-only view of a normalised ONNX graph: what every stage before the cut works on.

Plain frozen data, keyed by tensor name. Nothing here knows protobuf or onnx-graphsurgeon; `protobuf.view` builds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from onnxprune.numerics.arrays import Array

Shape = tuple[int, ...]


def is_parameter(dtype: np.dtype[Any], readers: Iterable[str]) -> bool:
    """Whether a stored tensor counts among the parameters, given the operators that read it.

    int64, boolean and string tensors are sizes, indices and masks. int32 stores both: it counts as the bias of
    quantized layers, which QuantizeLinear's counterpart or an operator on integers reads.
    """
    if dtype in (np.dtype(np.int64), np.dtype(np.bool_)) or dtype.kind in "OSU":
        return False
    return dtype != np.dtype(np.int32) or any(op.startswith(("Dequantize", "QLinear", "QGemm")) for op in readers)


@dataclass(frozen=True, eq=False)
class Node:
    """One operator.

    `index` is unique over the whole model, bodies included. `inputs` holds "" for an omitted optional input. `captures`
    are the outer tensors that the bodies of an If, Loop or Scan read. `named`: whether the file gives the name, or it
    stands for none.
    """

    index: int
    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    captures: tuple[str, ...] = ()
    bodies: tuple[Body, ...] = ()
    named: bool = True

    def input(self, slot: int) -> str:
        """The name at `slot`, or "" where the optional input is absent."""
        return self.inputs[slot] if slot < len(self.inputs) else ""

    @property
    def keepdims(self) -> bool:
        """Whether a reduction leaves what it reduces as axes of size 1: 1 says so, and no other number."""
        return int(self.attrs.get("keepdims", 1)) == 1


@dataclass(frozen=True, eq=False)
class Body:
    """A graph inside a node, under the name of the attribute that holds it; its constants are the whole graph's."""

    attribute: str
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def entries(shape: Shape, batch: int) -> int:
    """Entries of one sample in a tensor that has this shape with `batch` samples, whichever axis they lie in."""
    return -(-prod(shape) // batch)


def sample_bytes(shapes: Mapping[str, Shape], batch: int, names: Iterable[str]) -> int:
    """What one sample of these tensors takes at four bytes an entry, by `entries`; those of unknown shape left out."""
    return sum(4 * entries(shapes[n], batch) for n in names if n in shapes)


def samples_in(inputs: Iterable[Shape]) -> int:
    """Samples in inputs of these shapes: the first axis of the first that has one, else 1."""
    return max(next((s[0] for s in inputs if s), 1), 1)


def depth_first(nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes and those inside their bodies; a node stands before what is inside it."""
    for n in nodes:
        yield n
        for body in n.bodies:
            yield from depth_first(body.nodes)


@dataclass(frozen=True)
class StateGather:
    """A Gather of all positions of an axis in their order, put between a state and the nodes that read or write it.

    A state is an output of one step that is an input of the next, or one of them that may change its size. `tensor` is
    the output of the Gather, `source` what it picks from along `axis`, and `indices` the constant that lists all
    `positions` of it, which no other node reads. state: the output and the input, "" for one that is not known. units:
    the tensor that has the units of the state, on `axes`: of several such Gathers in a row the last output where a
    state is read, the first source where it is written. read_as: of one that is written, the `units` of those that read
    the same entries. resized: what is declared loses the positions that go.
    """

    tensor: str
    source: str
    indices: str
    axis: int
    positions: int
    state: tuple[str, str]
    units: str
    axes: tuple[int, ...]
    written: bool = False
    read_as: tuple[str, ...] = ()
    resized: bool = False

    @property
    def port(self) -> str:
        """The input or output of the model that it stands at."""
        return self.state[0] if self.written else self.state[1]


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order, constants, and concrete shapes.

    nodes: of the main graph; `every_node` adds those of bodies. Names are unique over both.
    constants: all weights, also those that only bodies read.

    shapes: of every tensor whose shape is known when the symbolic dimensions are bound as in `binding`.
    known_values: integer tensors that the graph computes at run time from shapes only; an entry is None where it
    changes with a symbolic dimension. free: the axes of each tensor whose size changes with one. samples: in `binding`,
    where those who know the data have counted them. states: the Gathers between states and nodes, by their outputs.
    read_by: of outputs that are none of the model's, but read by operators outside the graph, the first of these (its
    type and name). balanced: sets of tensors of which all keep equally many channels on their last axes, whichever.
    alike: pairs of tensors that keep the same channels on their last axes, though nothing adds them.
    computed: by weight, the share of its positions at which a product is computed in use, where that is not all.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, Shape]
    opset: int
    known_values: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    binding: Mapping[str, Shape] = field(default_factory=dict)
    free: Mapping[str, frozenset[int]] = field(default_factory=dict)
    samples: int | None = None
    states: Mapping[str, StateGather] = field(default_factory=dict)
    read_by: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    balanced: tuple[tuple[str, ...], ...] = ()
    alike: tuple[tuple[str, str], ...] = ()
    computed: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def every_node(self) -> tuple[Node, ...]:
        """All nodes, those of bodies included, depth first."""
        return tuple(depth_first(self.nodes))

    @cached_property
    def inside(self) -> frozenset[int]:
        """Indices of the nodes that lie in a body."""
        return frozenset(n.index for n in self.every_node) - {n.index for n in self.nodes}

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """The node that computes each tensor; the inputs of a body are given by the node that holds it."""
        holders = {i: n for n in self.every_node for body in n.bodies for i in body.inputs}
        return holders | {o: n for n in self.every_node for o in n.outputs if o}

    @cached_property
    def readers(self) -> Mapping[str, tuple[tuple[Node, int], ...]]:
        """(node, input slot) of every use of each tensor, also inside bodies."""
        uses: dict[str, list[tuple[Node, int]]] = {}
        for n in self.every_node:
            for slot, name in enumerate(n.inputs):
                if name:
                    uses.setdefault(name, []).append((n, slot))
        return {k: tuple(v) for k, v in uses.items()}

    @cached_property
    def captured(self) -> frozenset[str]:
        """Tensors that some subgraph body reads from outside."""
        return frozenset(c for n in self.every_node for c in n.captures)

    @cached_property
    def node_at(self) -> Mapping[int, Node]:
        """The nodes of the main graph by their indices."""
        return {n.index: n for n in self.nodes}

    @cached_property
    def capturing(self) -> Mapping[str, tuple[Node, ...]]:
        """By tensor, the nodes of the main graph whose bodies read it from outside."""
        found: dict[str, list[Node]] = {}
        for n in self.nodes:
            for c in dict.fromkeys(n.captures):
                found.setdefault(c, []).append(n)
        return {k: tuple(v) for k, v in found.items()}

    @cached_property
    def given_out(self) -> frozenset[str]:
        """The outputs, for look-ups."""
        return frozenset(self.outputs)

    def reading(self, tensor: str) -> list[Node]:
        """The nodes of the main graph that read a tensor, themselves or in a body."""
        readers = [n for n, _ in self.readers.get(tensor, ()) if n.index not in self.inside]
        return [*readers, *self.capturing.get(tensor, ())]

    @cached_property
    def unread(self) -> frozenset[int]:
        """Nodes of the main graph that lead to no output."""
        found: set[int] = set()
        for n in reversed(self.nodes):
            own = [o for o in n.outputs if o]
            if not any(o in self.given_out or any(r.index not in found for r in self.reading(o)) for o in own):
                found.add(n.index)
        return frozenset(found)

    @cached_property
    def resized_outputs(self) -> tuple[str, ...]:
        """The outputs that may change their size with the units that are written there, sorted."""
        return tuple(sorted({s.port for s in self.states.values() if s.resized and s.written}))

    @property
    def batch(self) -> int:
        """Samples at `binding`: `samples`, where that is known, else by `samples_in`."""
        return self.samples or samples_in(self.binding.values())

    def shape(self, name: str) -> Shape | None:
        """Concrete shape at `binding`, or None where it is not known."""
        c = self.constants.get(name)
        return tuple(c.shape) if c is not None else self.shapes.get(name)

    def is_free(self, name: str, axis: int) -> bool:
        """Whether the size of this axis changes with a symbolic dimension, so that a position is no constant."""
        return axis in self.free.get(name, ())

    def ints(self, name: str) -> tuple[int, ...] | None:
        """The entries of a constant integer tensor, flattened; None where it is not constant."""
        c = self.constants.get(name)
        if c is None or not np.issubdtype(c.dtype, np.integer):
            return None
        return tuple(int(v) for v in c.ravel())

    def entries(self, name: str) -> tuple[int | None, ...] | None:
        """The entries of an integer vector; one that is None may change, and all of None means that nothing is known.

        Of a constant, of what is computed from shapes, and of what joins such vectors and others.
        """
        constant = self.ints(name)
        values: tuple[int | None, ...] | None = self.known_values.get(name) if constant is None else constant
        by = self.producer.get(name)
        if values is not None or by is None or by.domain != "":
            return values
        if by.op in ("Cast", "Identity"):
            return self.entries(by.inputs[0])
        if by.op != "Concat":
            return None
        joined: list[int | None] = []
        for i in by.inputs:
            part, shape = self.entries(i), self.shape(i)
            if part is None and (shape is None or len(shape) != 1):
                return None
            joined += part if part is not None else (None,) * (shape or (0,))[0]
        return tuple(joined)
