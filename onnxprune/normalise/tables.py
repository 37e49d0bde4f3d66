"""Tables that a model computes from little: how the original makes what folding turned into a large constant.

A matrix of cosines, a mask of positions or a window takes a few nodes and a kilobyte in the original. The other stages
read it as the constant that it is; `surgery.tables` puts the nodes back where that is smaller, so folding never makes
the result larger than the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import onnx

from onnxprune.graph import bodies, external
from onnxprune.normalise.carried import Carried, carried

# What is smaller is not worth a node.
_LEAST_BYTES = 1024
# These read of a graph input only what the model itself cannot change.
_SIZES = ("Shape", "Size")


@dataclass(frozen=True, eq=False)
class Table:
    """How a constant is made: nodes in their order, and the constants that these read.

    bytes: of both, as stored. generated: whether it is made from fewer numbers, as a table of cosines is, or of codes
    that only its nodes can place; else its own numbers are stored in another way. packed: whether that is as codes
    with scales (Cast, Sub, Mul) that cannot take up other numbers, and not in half precision behind a Cast, which can.
    carried: where its axes lie in the constants.
    """

    name: str
    nodes: tuple[onnx.NodeProto, ...]
    leaves: tuple[onnx.TensorProto, ...]
    bytes: int
    generated: bool
    packed: bool = False
    carried: Carried = field(default_factory=lambda: Carried(()))

    @property
    def fixed(self) -> bool:
        """Whether other numbers in its place would be stored in full."""
        return self.generated or self.packed

    @classmethod
    def of(cls, made: onnx.TensorProto, nodes: Sequence[onnx.NodeProto], leaves: Sequence[onnx.TensorProto]) -> Table:
        """The table of a folded constant."""
        size = sum(int(n.ByteSize()) for n in nodes) + sum(external.bytes_of(t) for t in leaves)
        few = 2 * sum(prod(t.dims) for t in leaves) <= prod(made.dims)
        half = [n.op_type for n in nodes] == ["Cast"] and leaves[0].data_type == onnx.TensorProto.FLOAT16
        places = carried(made, nodes, leaves)
        generated = few or not (half or len(places.lost) < len(made.dims))
        return cls(made.name, tuple(nodes), tuple(leaves), size, generated, not (generated or half), places)


def tables_of(source: onnx.ModelProto, folded: onnx.ModelProto) -> dict[str, Table]:
    """The constants of `folded` that nodes of `source`, its form before anything was folded, make from fewer bytes.

    Names are the same in both, and unique. What depends on a body, on other sizes than those of the graph's own inputs,
    or on what a node with bodies gives, is left out.
    """
    producer = {o: n for n in bodies.every_node(source.graph) for o in n.output if o}
    stored = {t.name: t for t in source.graph.initializer}
    inputs = {v.name for v in source.graph.input} - stored.keys()
    tables: dict[str, Table] = {}
    for t in folded.graph.initializer:
        size = external.bytes_of(t)
        if size < _LEAST_BYTES or t.name not in producer or t.name in stored:
            continue
        table = _made(t, producer, stored, inputs)
        if table is not None and table.bytes < size:
            tables[t.name] = table
    return tables


def _made(
    made: onnx.TensorProto,
    producer: Mapping[str, onnx.NodeProto],
    stored: Mapping[str, onnx.TensorProto],
    inputs: set[str],
) -> Table | None:
    nodes: dict[str, onnx.NodeProto] = {}
    leaves: dict[str, onnx.TensorProto] = {}
    # Depth first, a node behind those that it reads: (tensor, whether what it needs stands there already).
    stack = [(made.name, False)]
    while stack:
        tensor, ready = stack.pop()
        if tensor in stored:
            leaves[tensor] = stored[tensor]
            continue
        node = producer.get(tensor)
        if node is None or bodies.bodies_of(node):
            return None
        if ready:
            nodes.setdefault(node.output[0], node)
        elif node.output[0] not in nodes:
            stack.append((tensor, True))
            needed = [i for i in node.input if i and not (node.op_type in _SIZES and i in inputs)]
            stack.extend((i, False) for i in needed)
    return Table.of(made, [*nodes.values()], [*leaves.values()])
