"""Where a graph input goes: the places that read its values, also behind operators that only pass them on."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from onnxprune.data.places import ENTRIES, LISTS, OF_INTEGERS, is_integer
from onnxprune.graph import bodies

# What hands on the values of an input, by operator: its places. Entries may move, repeat, or be left out.
_PASS: Mapping[str, tuple[int, ...] | None] = {
    **dict.fromkeys("Identity Cast CastLike Unsqueeze Squeeze Reshape Flatten Transpose".split(), (0,)),
    **dict.fromkeys("Expand Tile Slice Gather Split GatherElements GatherND Optional OptionalGetElement".split(), (0,)),
    "Concat": None,
    "Max": None,
    "Min": None,
    "Where": (1, 2),
}
# Handed on by these the values are others, but not far from them: an offset of positions.
_SHIFT = frozenset("Add Sub".split())
# Of operators that keep every entry in its place: a list is what its reader wants as it is.
_SAME = frozenset("Identity Cast CastLike Unsqueeze Squeeze Reshape Flatten".split())
_MOST_VISITS = 4000
_MOST_PLACES = 32


@dataclass(frozen=True)
class Place:
    """A node that reads the values of an input at one of its places.

    whole: all of them, in their order. offset: what is added to them on the way.
    """

    node: onnx.NodeProto
    place: int
    whole: bool
    offset: int = 0

    @property
    def of_list(self) -> bool:
        """Whether what is read there is a list, a size or a step of the whole run."""
        return (self.node.op_type, self.place) in LISTS


def places(proto: onnx.ModelProto) -> dict[str, list[Place]]:
    """The places of the tables, by graph input, the nearest first."""
    weights = {t.name for t in proto.graph.initializer}
    known = _Consumers(proto)
    found: dict[str, list[Place]] = {}
    for v in proto.graph.input:
        if v.name not in weights:
            whole = is_integer(v.type.tensor_type.elem_type)
            reading = list(known.reading(v.name, whole))
            if reading:
                found[v.name] = reading
    return found


class _Consumers:
    """Who reads which tensor, in the graph, its bodies and its functions."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._functions = {(f.domain, f.name): f for f in proto.functions}
        self._top = self._index(bodies.every_node(proto.graph))
        self._inside: dict[tuple[str, str], dict[str, list[tuple[onnx.NodeProto, int]]]] = {}
        self._scalars = {
            t.name: int(onnx.numpy_helper.to_array(t).reshape(-1)[0])
            for t in proto.graph.initializer
            if is_integer(t.data_type) and list(t.dims) in ([], [1]) and not t.external_data
        }
        for node in proto.graph.node:
            if node.op_type == "Constant" and node.output:
                t = next((a.t for a in node.attribute if a.name == "value"), None)
                if t is not None and is_integer(t.data_type) and list(t.dims) in ([], [1]):
                    self._scalars[node.output[0]] = int(onnx.numpy_helper.to_array(t).reshape(-1)[0])

    @staticmethod
    def _index(nodes: Iterator[onnx.NodeProto]) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
        index: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        for n in nodes:
            for place, name in enumerate(n.input):
                index[name].append((n, place))
        return index

    def reading(self, name: str, integer: bool) -> Iterator[Place]:
        """The places that read an input, breadth first."""
        queue = deque([(name, self._top, True, 0)])
        seen: set[tuple[str, int]] = {(name, id(self._top))}
        visits = found = 0
        while queue and visits < _MOST_VISITS and found < _MOST_PLACES:
            current, index, whole, offset = queue.popleft()
            for node, place in index.get(current, ()):
                visits += 1
                spot = (node.op_type, place)
                if spot in LISTS or spot in ENTRIES or (integer and spot in OF_INTEGERS):
                    found += 1
                    yield Place(node, place, whole, offset)
                for behind, inside, same, more in self._onward(node, place, index):
                    if (behind, id(inside)) not in seen:
                        seen.add((behind, id(inside)))
                        queue.append((behind, inside, whole and same, offset + more))

    def _onward(
        self, node: onnx.NodeProto, place: int, index: dict[str, list[tuple[onnx.NodeProto, int]]]
    ) -> Iterator[tuple[str, dict[str, list[tuple[onnx.NodeProto, int]]], bool, int]]:
        """(tensor, its consumers, whether all entries are where they were, what was added) behind a node."""
        kind = node.op_type
        if kind in _PASS and (_PASS[kind] is None or place in (_PASS[kind] or ())):
            alone = kind in _SAME or (kind == "Concat" and len(node.input) == 1)
            yield from ((o, index, alone, 0) for o in node.output if o)
        elif kind in _SHIFT and place < 2 and len(node.input) == 2:
            other = self._scalars.get(node.input[1 - place])
            if other is not None and not (kind == "Sub" and place == 1):
                yield node.output[0], index, True, other if kind == "Add" else -other
        for _, body in bodies.bodies_of(node):
            inner = self._port(kind, place, len(node.input), body)
            if inner is not None:
                yield inner, index, True, 0
        function = self._functions.get((node.domain, kind))
        if function is not None and place < len(function.input):
            key = (node.domain, kind)
            if key not in self._inside:
                self._inside[key] = self._index(iter(function.node))
            yield function.input[place], self._inside[key], True, 0

    @staticmethod
    def _port(kind: str, place: int, count: int, body: onnx.GraphProto) -> str | None:
        """The input of a body that stands for an input of its node: of a Loop those behind count and condition."""
        at = place if kind == "Loop" and place >= 2 else len(body.input) - count + place if kind == "Scan" else -1
        return body.input[at].name if 0 <= at < len(body.input) else None
