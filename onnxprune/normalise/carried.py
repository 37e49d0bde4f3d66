"""Where the axes of a constant lie in what it is made of: codes are cut as they are stored where that can be told.

Nodes that make every entry from entries of the same position (Cast, Sub, Mul) keep an axis in its place, aligned at the
last axis; Transpose moves it; a Reshape keeps it where it splits and merges others alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph import external

Shape = tuple[int, ...]
_ENTRYWISE = frozenset(("Add", "Cast", "Div", "Identity", "Mul", "Sub"))
_RESHAPING = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))
_KNOWN = _ENTRYWISE | _RESHAPING | {"Transpose"}


class _Lost(Exception):
    """Nobody can tell where an axis lies."""


@dataclass(frozen=True)
class Carried:
    """axes: for each axis of the constant, the constants it is made of that have it, and which of their axes that is;
    None where the nodes leave it no place of its own. sizes: by name, constants that say the shape of a tensor on the
    way: that shape, and for each axis of the constant which of its axes that is, -1 for none.
    """

    axes: tuple[Mapping[str, int] | None, ...]
    sizes: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)

    @property
    def lost(self) -> frozenset[int]:
        """The axes that have no place of their own."""
        return frozenset(a for a, places in enumerate(self.axes) if places is None)


def carried(made: onnx.TensorProto, nodes: Sequence[onnx.NodeProto], leaves: Sequence[onnx.TensorProto]) -> Carried:
    """Where the axes of `made` lie in `leaves`, of which `nodes`, in their order, make it."""
    every_lost = Carried((None,) * len(made.dims))
    if not all(n.op_type in _KNOWN and n.domain in ("", "ai.onnx") for n in nodes):
        return every_lost
    stored = {t.name: t for t in leaves}
    try:
        shapes = _shapes(nodes, stored)
    except (_Lost, ValueError):
        return every_lost
    if shapes[made.name] != tuple(made.dims):
        return every_lost
    says = [n.input[1] for n in nodes if n.op_type == "Reshape"]
    reshaped = {n.input[1]: n.output[0] for n in nodes if n.op_type == "Reshape"}
    places: list[dict[str, int | None] | None] = []
    for axis in range(len(made.dims)):
        try:
            places.append(_places(made.name, axis, nodes, shapes))
        except _Lost:
            places.append(None)
    if len(says) > len(set(says)):  # one constant is the shape of several tensors
        places = [None] * len(places)
    axes = tuple(
        None if p is None else {k: own for k, own in p.items() if own is not None and k in stored} for p in places
    )
    where = {
        leaf: (shapes[t], tuple(-1 if p is None or p.get(t) is None else int(p[t] or 0) for p in places))
        for leaf, t in reshaped.items()
    }
    return Carried(axes, where)


def _shapes(nodes: Sequence[onnx.NodeProto], stored: Mapping[str, onnx.TensorProto]) -> dict[str, Shape]:
    """The shapes of all tensors. Raises _Lost where one cannot be told, ValueError where two do not fit."""
    shapes: dict[str, Shape] = {k: tuple(t.dims) for k, t in stored.items()}
    for n in nodes:
        attributes = {a.name: helper.get_attribute_value(a) for a in n.attribute}
        own = [shapes[i] for i in n.input if i]
        if n.op_type in _ENTRYWISE:
            shapes[n.output[0]] = tuple(np.broadcast_shapes(*own))
        elif n.op_type == "Transpose":
            order = attributes.get("perm", range(len(own[0]))[::-1])
            shapes[n.output[0]] = tuple(own[0][a] for a in order)
        elif n.op_type == "Flatten":
            axis = int(attributes.get("axis", 1))
            shapes[n.output[0]] = (prod(own[0][:axis]), prod(own[0][axis:]))
        else:
            said = attributes.get("axes")
            if len(n.input) > 1:
                if n.input[1] not in stored:
                    raise _Lost
                said = external.array_of(stored[n.input[1]]).tolist()
            if said is None:
                raise _Lost
            shapes[n.output[0]] = _of_other_rank(n.op_type, own[0], [int(s) for s in said])
    return shapes


def _of_other_rank(op: str, shape: Shape, said: Sequence[int]) -> Shape:
    """The shape behind a Reshape, a Squeeze or an Unsqueeze by what these say."""
    if op == "Reshape":
        sizes = [shape[i] if s == 0 else s for i, s in enumerate(said)]
        rest = prod(s for s in sizes if s >= 0)
        return tuple(prod(shape) // max(rest, 1) if s < 0 else s for s in sizes)
    rank = len(shape) + (len(said) if op == "Unsqueeze" else 0)
    axes = {a % max(rank, 1) for a in said}
    if op == "Squeeze":
        return tuple(s for a, s in enumerate(shape) if a not in axes)
    others = iter(shape)
    return tuple(1 if a in axes else next(others) for a in range(rank))


def _places(
    made: str, axis: int, nodes: Sequence[onnx.NodeProto], shapes: Mapping[str, Shape]
) -> dict[str, int | None]:
    """By tensor, which of its axes is `axis` of `made`, None where it has no such axis.

    Raises _Lost where it is none of its own, or another one for another reader.
    """
    places: dict[str, int | None] = {made: axis if shapes[made][axis] > 1 else None}
    for n in reversed(nodes):
        output_axis = places[n.output[0]]
        for i, name in enumerate(n.input):
            if not name:
                continue
            own = None if output_axis is None else _behind(n, i, output_axis, shapes)
            if places.setdefault(name, own) != own:
                raise _Lost
    return places


def _behind(n: onnx.NodeProto, position: int, output_axis: int, shapes: Mapping[str, Shape]) -> int | None:
    """Which axis of a node's input is `output_axis` of what it gives."""
    shape, made = shapes[n.input[position]], shapes[n.output[0]]
    if n.op_type in _ENTRYWISE:
        own = output_axis - (len(made) - len(shape))
        return own if own >= 0 and shape[own] > 1 else None
    if position:  # what a Reshape, say, is told
        return None
    if n.op_type == "Transpose":
        order = next((list(a.ints) for a in n.attribute if a.name == "perm"), [*range(len(shape))[::-1]])
        return int(order[output_axis])
    before = prod(made[:output_axis])
    for own, size in enumerate(shape):
        if size == made[output_axis] and prod(shape[:own]) == before:
            return own
    raise _Lost
