"""A model without some experts of its mixtures: weights of the others alone, and a router that knows only these.

    MoE(x, r, W)  =  MoE(x, r[:, kept], W[kept])      where r is the lowest number at every expert that went

A mixture (MoE, QMoE) stores all its experts in one weight each, by their number, and sends each position to the k
experts with the greatest logits. Softmax gives nothing to the lowest number, so the mixture without an expert is the
one whose router never chooses it; at least k have to stay. The columns of the router are cut where all is understood
that stands behind its product (`surgery.routers`); else a Gather picks the logits of those that stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import bodies, external, tensor_files
from onnxprune.graph.names import tensors_of, unused
from onnxprune.graph.protobuf import copied, held_by, int_attribute
from onnxprune.numerics.arrays import Array, Ints
from onnxprune.surgery.routers import router_of
from onnxprune.surgery.stored_logits import StoredLogits
from onnxprune.surgery.stored_rows import FREE_SINCE, Edge, Rows

OPERATORS, DOMAIN = ("MoE", "QMoE"), "com.microsoft"
# Inputs with a row for each position, and in it an entry for each expert: what chooses, and what their answers count.
ROUTERS = (1, 14)
_WEIGHTS = 2


@dataclass(frozen=True)
class Mixture:
    """A node of the main graph that sends each position to some of its experts.

    node: its place in the graph. name: as options and reports call it. count: experts; chosen: to how many of them each
    position goes. compared: (node, input) of what compares logits: itself, and what chooses in front of it. width:
    products for each logit; 0 where the router keeps its columns. stays: why none of its experts may go; "" where some
    may. shares: the names of the others that read some of the same weights: where some of its experts go, the same have
    to go from these, or what is stored once would be stored twice.
    """

    node: int
    name: str
    count: int
    chosen: int
    compared: tuple[Edge, ...]
    width: int = 0
    stays: str = ""
    shares: tuple[str, ...] = ()


def mixtures_of(proto: onnx.ModelProto) -> tuple[Mixture, ...]:
    """The mixtures of the main graph, in its order."""
    graph = StoredLogits(proto)
    there = [k for k, n in enumerate(graph.nodes) if is_mixture(n) and len(n.input) > _WEIGHTS and n.output[0]]
    names = Counter(graph.nodes[k].name for k in there)
    found = []
    for k in there:
        n = graph.nodes[k]
        source = graph.source(n.input[_WEIGHTS], 0, (k, _WEIGHTS))
        count = 0 if source is None else source.count
        slots = _routers(n)
        router = router_of(graph, k, slots, count)
        chosen = max(int_attribute(n, "k", 1), 0 if router is None else router.chosen)
        stays = _why_all_stay(graph, k, count)
        if not stays and chosen >= count:
            stays = f"each position goes to {chosen} of its {count} experts, so that none can be spared"
        name = n.name if names[n.name] == 1 and n.name else n.output[0]
        compared = ((k, ROUTERS[0]), *(() if router is None else router.compared))
        width = 0 if router is None else router.width
        found.append(Mixture(k, name, count, chosen, compared, width, stays))
    return _that_share(graph, found)


def is_mixture(node: onnx.NodeProto) -> bool:
    """Whether a node is one."""
    return node.domain == DOMAIN and node.op_type in OPERATORS


def without_experts(proto: onnx.ModelProto, kept: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The model with these experts alone, ascending, of each mixture by its name; others keep all of theirs."""
    result = copied(proto)
    mixtures = [m for m in mixtures_of(result) if m.name in kept]
    graph = StoredLogits(result)
    taken = tensors_of(result) | {n.name for n in bodies.every_node(result.graph)}
    cut = _Cut(graph, taken)
    for m in mixtures:
        own = np.asarray(kept[m.name], np.int64)
        cut.router(m.node, own, m.count)
        for i, name in enumerate(graph.nodes[m.node].input):
            if name and i >= _WEIGHTS and i not in ROUTERS:
                cut.weight(m.node, i, own, m.count)
    cut.finish(result)
    return result


def _why_all_stay(graph: StoredLogits, k: int, count: int) -> str:
    """Why the experts of a mixture cannot be told apart in what it reads; "" where they can."""
    n = graph.nodes[k]
    for i, name in enumerate(n.input):
        if not name or i < _WEIGHTS or i in ROUTERS:
            continue
        source = graph.source(name, 0, (k, i))
        if source is None:
            return f"{name!r} is no weight of its own"
        if source.count != count and not (source.dims == (1,) and i > max(ROUTERS)):
            return f"{name!r} has no entry for each expert"
        if name not in graph.stored and not graph.only_read_by(source.edges, set(source.edges)):
            return f"the weight {source.name!r} is read elsewhere too"
    return ""


def _that_share(graph: StoredLogits, mixtures: Sequence[Mixture]) -> tuple[Mixture, ...]:
    """The mixtures, with those that share weights; all of these stay where one does, or where others read them too."""
    owners: dict[Rows, set[int]] = {}
    edges: dict[Rows, set[Edge]] = {}
    for place, m in enumerate(mixtures):
        for row, edge in _read_by_expert(graph, m):
            owners.setdefault(row, set()).add(place)
            edges.setdefault(row, set()).add(edge)
    together = [{place} for place in range(len(mixtures))]
    stays = [m.stays for m in mixtures]
    for (name, axis), own in owners.items():
        elsewhere = bool(graph.readers[name] - edges[name, axis]) or name in graph.outputs
        if (len(own) == 1 and not elsewhere) or _alike(external.array_of(graph.stored[name]), axis):
            continue
        if elsewhere:
            for place in own:
                stays[place] = stays[place] or f"the weight {name!r} is read elsewhere too"
        joined = set[int]().union(*(together[place] for place in own))
        for place in joined:
            together[place] = joined
    result = []
    for place, m in enumerate(mixtures):
        others = [p for p in sorted(together[place]) if p != place]
        other = next((p for p in others if stays[p]), None)
        why = stays[place]
        if not why and other is not None:
            why = f"it shares weights with {mixtures[other].name}, of which all experts stay: {stays[other]}"
        result.append(replace(m, stays=why, shares=tuple(mixtures[p].name for p in others)))
    return tuple(result)


def _read_by_expert(graph: StoredLogits, m: Mixture) -> list[tuple[Rows, Edge]]:
    """What a mixture reads as it is stored, with an entry for each expert, and by which input."""
    read = []
    for i, name in enumerate(graph.nodes[m.node].input):
        if i >= _WEIGHTS and i not in ROUTERS and name in graph.stored:
            dims = graph.stored[name].dims
            if dims and dims[0] == m.count:
                read.append(((name, 0), (m.node, i)))
    return read


def _alike(values: Array, axis: int) -> bool:
    """Whether all entries are the same, as of biases of zeros: then it matters to no other mixture which of them go."""
    entries = np.moveaxis(values, axis, 0)
    return bool((entries[1:] == entries[:1]).all())


def _routers(n: onnx.NodeProto) -> tuple[int, ...]:
    return tuple(i for i in ROUTERS if i < len(n.input) and n.input[i])


class _Cut:
    """What is changed in a graph, in place: weights get entries of the experts that stay, or stand beside the old."""

    def __init__(self, graph: StoredLogits, taken: set[str]) -> None:
        self._graph, self._taken = graph, taken
        self._made: dict[str, TensorProto] = {}
        self._copies: dict[tuple[str, int | None, bytes], str] = {}
        self._in_front: dict[int, list[onnx.NodeProto]] = {}
        self._changed: set[str] = set()

    def weight(self, k: int, slot: int, kept: Ints, count: int) -> None:
        """Cut what a mixture reads of each expert at a slot."""
        source = self._graph.source(self._graph.nodes[k].input[slot], 0, (k, slot))
        if source is not None and source.count == count:
            self._rows(source.edges, source.rows, source.shapes, kept, count)

    def router(self, k: int, kept: Ints, count: int) -> None:
        """Cut the columns of the product behind the logits of a mixture, or pick these."""
        graph, n = self._graph, self._graph.nodes[k]
        found = router_of(graph, k, _routers(n), count)
        if found is not None:
            self._rows(found.edges, found.rows, found.shapes, kept, count)
            for a in graph.nodes[found.node].attribute:
                if graph.nodes[found.node].op_type == "MatMulNBits" and a.name == "N":
                    a.i = kept.size
            self._changed |= found.wide
            return
        for slot in _routers(n):
            name = n.input[slot]
            indices = self._stored(numpy_helper.from_array(kept, unused(f"{name}__experts", self._taken)))
            picked = unused(f"{name}__kept", self._taken)
            node = helper.make_node("Gather", [name, indices], [picked], name=unused(picked, self._taken), axis=1)
            self._in_front.setdefault(k, []).append(node)
            n.input[slot] = picked

    def finish(self, proto: onnx.ModelProto) -> None:
        """Put new weights and nodes into the graph; what nothing reads any more goes, and sizes that have changed."""
        nodes = [n for k, own in enumerate(self._graph.nodes) for n in (*self._in_front.get(k, ()), own)]
        read = {i for n in nodes for i in (*n.input, *bodies.captured_names(n))} | self._graph.outputs
        nodes = [n for n in nodes if held_by(n) is None or n.output[0] in read]
        before, made = set(self._graph.readers), dict(self._made)
        weights = [made.pop(t.name, t) for t in proto.graph.initializer if t.name in read or t.name not in before]
        gone = {t.name for t in proto.graph.initializer} - {t.name for t in weights}
        weights += made.values()
        listed = {v.name for v in proto.graph.input}
        inputs = [v for v in proto.graph.input if v.name not in gone | self._made.keys()]
        inputs += [
            helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in self._made.values()
            if t.name in listed or proto.ir_version < FREE_SINCE
        ]
        infos = [v for v in proto.graph.value_info if v.name not in self._changed]
        del proto.graph.initializer[:], proto.graph.node[:], proto.graph.value_info[:], proto.graph.input[:]
        proto.graph.initializer.extend(weights)
        proto.graph.node.extend(nodes)
        proto.graph.value_info.extend(infos)
        proto.graph.input.extend(inputs)

    def _rows(
        self, edges: Collection[Edge], rows: Collection[Rows], shapes: Collection[Rows], kept: Ints, count: int
    ) -> None:
        """Have these read tensors with the entries of experts that stay, and shapes that count them."""
        axes, places = dict(rows), dict(shapes)
        own, made = set(edges), dict[str, str]()
        for k, i in sorted(edges):
            node = self._graph.nodes[k]
            name = node.input[i]
            if name not in axes and name not in places:
                self._changed.add(name)  # computed from weights
                continue
            copy = name, axes.get(name), kept.tobytes()
            if name not in made and copy in self._copies:
                made[name] = self._copies[copy]  # another mixture that shares it has lost the same experts
            if name not in made:
                stored = self._graph.stored[name]
                free = self._graph.readers[name] <= own and name not in {*self._graph.outputs, *self._graph.by_output}
                new = name if free else unused(f"{name}__kept", self._taken)
                if name in axes:
                    values = _of_experts(external.array_of(stored), axes[name], kept, count)
                else:
                    values = external.array_of(stored).copy()
                    values[places[name]] = kept.size
                made[name] = self._stored(tensor_files.tensor_of(values, new, outside=True))
                if not free:
                    self._copies[copy] = new
            node.input[i] = made[name]

    def _stored(self, tensor: TensorProto) -> str:
        self._made[tensor.name] = tensor
        return tensor.name


def _of_experts(values: Array, axis: int, kept: Ints, count: int) -> Array:
    """The entries of these experts; of a flat weight the several that each has, one expert behind another."""
    if values.shape[axis] == count:
        return np.ascontiguousarray(np.take(values, kept, axis))
    return np.ascontiguousarray(values.reshape(count, -1)[kept].reshape(-1))
