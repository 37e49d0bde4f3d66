"""Names of tensors: those that a model has, and new ones that nothing has yet."""

from __future__ import annotations

import onnx

from onnxprune.graph import bodies


def tensors_of(proto: onnx.ModelProto) -> set[str]:
    """The names of all tensors of the main graph and of all bodies: fed, stored, computed or read."""
    graphs = (proto.graph, *bodies.every_body(proto.graph))
    names = {v.name for g in graphs for v in (*g.input, *g.output, *g.initializer)}
    return names.union(p for n in bodies.every_node(proto.graph) for p in (*n.input, *n.output))


def unused(wanted: str, taken: set[str]) -> str:
    """`wanted`, or with a number behind it the first that is not `taken`; it is taken from now on."""
    name, k = wanted, 0
    while name in taken:
        k += 1
        name = f"{wanted}_{k}"
    taken.add(name)
    return name
