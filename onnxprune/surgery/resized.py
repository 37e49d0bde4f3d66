"""Inputs and outputs that change with the units: the last step, behind all checks that feed what the original takes.

Until then Gathers pick the units that stay out of inputs of the original's sizes, and put zeros into its outputs for
the others. Without them the model reads and gives what stays alone, and that is what it declares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.graph import bodies, external, protobuf
from onnxprune.graph.protobuf import copied
from onnxprune.graph.view import StateGather
from onnxprune.numerics.arrays import Array, Ints
from onnxprune.surgery.unread import drop_unread


@dataclass(frozen=True, eq=False)
class Resized:
    """An axis of an input or output that lost positions: those that stay, ascending, of so many."""

    name: str
    axis: int
    kept: Ints
    positions: int


def resize(proto: onnx.ModelProto, gathers: Sequence[StateGather]) -> tuple[onnx.ModelProto, tuple[Resized, ...]]:
    """A copy of a finished model without the Gathers at what may change its size, and what changed; itself for none."""
    at = {(g.port, g.written, g.axis): g for g in gathers if g.resized}
    stored = {t.name: t for t in proto.graph.initializer}
    by_output = {o: n for n in proto.graph.node for o in n.output if o}
    found: list[Resized] = []
    gone: set[str] = set()
    names: dict[str, str] = {}
    for tensor, port, written in dict.fromkeys((g.tensor, g.port, g.written) for g in at.values()):
        node = by_output.get(tensor)
        if node is None or node.op_type != "Gather" or node.input[1] not in stored:
            continue
        # Which axis it is of says the node: where the last of a row gave all that it read, another has its name.
        g = at[port, written, protobuf.int_attribute(node, "axis", 0)]
        indices = external.array_of(stored[node.input[1]]).ravel()
        gone.add(tensor)
        if not written:
            found.append(Resized(port, g.axis, indices, g.positions))
            names[tensor] = node.input[0]
            continue
        padding = by_output[node.input[0]]
        gone.add(padding.output[0])
        # Places beyond those of the units that stay are those of the zero.
        count = int(indices.max()) if indices.size else 0
        found.append(Resized(port, g.axis, np.flatnonzero(indices < count), g.positions))
        names[padding.input[0]] = tensor
    if not found:
        return proto, ()
    result = copied(proto)
    kept = [n for n in result.graph.node if not gone.intersection(n.output)]
    del result.graph.node[:]
    result.graph.node.extend(kept)
    ports = {v.name for v in (*result.graph.input, *result.graph.output)}
    bodies.rename(result.graph.node, {name: _end(name, names, ports) for name in names})
    drop_unread(result, {i for n in bodies.every_node(proto.graph) for i in n.input})
    infos = [v for v in result.graph.value_info if v.name not in names and v.name not in gone]
    del result.graph.value_info[:]
    result.graph.value_info.extend(infos)
    for v in (*result.graph.input, *result.graph.output):
        for r in found:
            if r.name == v.name and r.axis < len(v.type.tensor_type.shape.dim):
                v.type.tensor_type.shape.dim[r.axis].dim_value = int(r.kept.size)
    return result, tuple(found)


def _end(name: str, names: Mapping[str, str], ports: set[str]) -> str:
    """Where a row of Gathers begins, or ends."""
    while name in names and name not in ports:
        name = names[name]
    return name


def picked(values: Mapping[str, Array], resized: Sequence[Resized]) -> dict[str, Array]:
    """Inputs or outputs of the original's sizes as a model without these positions has them."""
    found = dict(values)
    for r in resized:
        if r.name in found:
            found[r.name] = np.take(found[r.name], r.kept, r.axis)
    return found


def said(resized: Sequence[Resized]) -> str:
    """For the report: every input and output that changed, those that changed alike together."""
    alike: dict[tuple[int, int, int], list[str]] = {}
    for r in resized:
        alike.setdefault((r.axis, r.positions, int(r.kept.size)), []).append(r.name)
    return "; ".join(
        f"axis {axis} of {', '.join(names)} has {after} of {before} positions"
        for (axis, before, after), names in alike.items()
    )
