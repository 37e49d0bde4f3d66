"""Branches that may go as a whole: groups of which no channel stays, and all that disappears with them.

Where a group keeps no unit, what carried it is *empty*: such tensors cannot be computed, and nothing needs them as long
as each layer that reads one computes nothing else. What that layer is left with is its bias, one number per output
channel: a tensor that is *constant*, with axes of size 1 where it was wide. Element-wise operators pass such a tensor
on, and one that has a full operand beside it, a residual Add above all, takes it in. What anything else makes of an
empty or a constant tensor is *lost*; a group may go where no output of the graph is lost or constant.

Of a decoder's layer the caches go with its attention, where these inputs and outputs may change: until they are taken
from what is declared, such an output is zeros of the size that another one's has, and the input is not read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from onnxprune.channels.groups import ChannelGraph
from onnxprune.channels.labels import as_ints
from onnxprune.channels.trace import Linear
from onnxprune.graph.operators import FIRST_ONLY, NARY, UNARY
from onnxprune.graph.quantized import stored
from onnxprune.graph.view import Graph, Node, Shape
from onnxprune.numerics.arrays import Mask, is_float

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What computes element by element from its first input and constants, or moves axes.
_PASSING = {*UNARY, *FIRST_ONLY, "BatchNormalization", "DequantizeLinear", "Dropout", "QuantizeLinear", "Transpose"}
# What takes the same from a tensor of constants, along axes on which these are as many as ever.
_REDUCING = {"ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"}
_NORMALIZING = {"LayerNormalization", "RMSNormalization"}
# What broadcasts any operand against any other.
_BROADCASTING = set(NARY) - {"PRelu", "SwiGLU"}


@dataclass(frozen=True, eq=False)
class Remains:
    """What is left of a graph without the empty tensors.

    gone: indices of the nodes that disappear. alone: by output, the layers of which the bias alone is left. constant:
    those outputs, and what is computed from them alone. joins: the nodes that take a constant in beside what they have
    computed. caches: outputs that go, each with another one of its size that stays; sizes: nodes that take the sizes of
    an input which goes, with that.
    """

    gone: frozenset[int]
    alone: Mapping[str, Linear]
    constant: frozenset[str] = frozenset()
    joins: frozenset[int] = frozenset()
    caches: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drop:
    """What goes with the last unit of `group`: nodes, by index, and other groups of which no weight is left.

    left: what is left of the graph then.
    """

    group: int
    nodes: frozenset[int]
    groups: frozenset[int]
    left: Remains


def remains(channels: ChannelGraph, empty: Collection[str]) -> Remains | None:
    """What is left without these tensors, which have lost all channels of an axis; None where the graph needs them."""
    graph = channels.graph
    if not empty:
        return Remains(frozenset(), {})
    alone: dict[str, Linear] = {}
    constant: dict[str, Shape] = {}
    lost = set(empty)
    if any(by is not None and by.index in graph.inside for by in map(graph.producer.get, empty)):
        return None
    queue = sorted({n.index for t in empty for n in _around(graph, t)})
    seen = set(queue)
    joins: set[int] = set()
    sizes: dict[int, str] = {}
    caches: set[str] = set()
    while queue:
        n = graph.node_at[heappop(queue)]
        outputs = [o for o in n.outputs if o]
        port = _port_of(n.inputs[0], graph) if n.op == "Shape" and n.domain == "" else ""
        if port:
            sizes[n.index] = port
            continue
        layer = next((x for x in reversed(channels.linears_at.get(n.index, ())) if n.op in _LAYERS), None)
        shape = _left_of(n, layer, graph, empty, lost, constant)
        if shape is None:
            lost.update(outputs)
        elif layer is not None:
            alone[outputs[0]], constant[outputs[0]] = layer, shape
        elif shape == graph.shape(outputs[0]) and _is_computed(n, constant, graph):
            joins.add(n.index)  # it takes the constant in
            continue
        else:
            constant[outputs[0]] = shape
        given = {o for o in outputs if o in graph.given_out}
        if given and (shape is not None or not given.issubset(graph.resized_outputs)):
            return None
        caches |= given
        for reader in {r.index for o in outputs for r in graph.reading(o)} - seen:
            heappush(queue, reader)
            seen.add(reader)
    stand_ins = {o: _of_same_size(o, graph, caches) for o in caches}
    if not all(stand_ins.values()):
        return None
    gone = _gone(graph, lost, alone)
    alone = {o: x for o, x in alone.items() if x.node.index not in gone}
    return Remains(gone, alone, frozenset(constant), frozenset(joins - gone), stand_ins, sizes)


def _port_of(tensor: str, graph: Graph) -> str:
    """The input that may change its size, and of whose units this tensor is all that nodes read; "" for none."""
    state = graph.states.get(tensor)
    return state.port if state is not None and state.resized and not state.written else ""


def _of_same_size(output: str, graph: Graph, gone: Collection[str]) -> str:
    """Another output that is as large as this one at any sizes of the inputs, as far as the names of sizes tell."""
    others = (o for o in graph.resized_outputs if o not in gone)
    alike = (o for o in others if graph.shape(o) == graph.shape(output))
    return next((o for o in alike if graph.free.get(o, frozenset()) == graph.free.get(output, frozenset())), "")


def _around(graph: Graph, tensor: str) -> list[Node]:
    """The node that computes a tensor, and those that read it."""
    by = graph.producer.get(tensor)
    return [*([] if by is None else [by]), *graph.reading(tensor)]


def _left_of(
    n: Node,
    layer: Linear | None,
    graph: Graph,
    empty: Collection[str],
    lost: Collection[str],
    constant: Mapping[str, Shape],
) -> Shape | None:
    """The shape of what a node still computes, None where that is lost."""
    reads = {i for i in (*n.inputs, *n.captures) if i}
    if any(o in lost for o in n.outputs):
        return None
    if not any(i in lost for i in reads):
        return _passed(n, constant, graph)
    if layer is None or layer.data not in empty or any(i in lost for i in reads - {layer.data, layer.weight}):
        return None
    return _width(layer, graph)


def _gone(graph: Graph, lost: Set[str], alone: Mapping[str, Linear]) -> frozenset[int]:
    """The nodes whose outputs are lost, and those before them that nothing else reads."""
    makers = (graph.producer.get(t) for t in lost)
    gone = {n.index for n in makers if n is not None and n.index in graph.node_at and not lost.isdisjoint(n.outputs)}
    waiting = [*gone, *(x.node.index for x in alone.values())]
    gone |= graph.unread

    def is_read(tensor: str) -> bool:
        return tensor in graph.given_out or any(
            n.index not in gone and (n.outputs[0] not in alone or tensor == bias_of(alone[n.outputs[0]]))
            for n in graph.reading(tensor)
        )

    while waiting:
        n = graph.node_at[waiting.pop()]
        for by in {graph.producer.get(t) for t in (*n.inputs, *n.captures)} - {None}:
            if by is not None and by.index not in gone and not any(is_read(o) for o in by.outputs if o):
                gone.add(by.index)
                waiting.append(by.index)
    return frozenset(gone)


def _width(layer: Linear, graph: Graph) -> Shape | None:
    """The shape of a layer's output when its bias alone is left; None where that cannot be said."""
    shape = graph.shape(layer.node.outputs[0])
    fixed = stored(graph, layer.weight) in graph.constants
    if shape is None or len(shape) < 2 or not fixed:
        return None
    axis = channel_axis(layer, len(shape))
    if bias_of(layer):
        b = graph.constants.get(layer.bias)
        own = len(graph.readers.get(layer.bias, ())) == 1 and layer.bias not in (*graph.captured, *graph.outputs)
        if b is None or not is_float(b.dtype) or not own or b.size != shape[axis] or max(b.shape) != b.size:
            return None
        if layer.node.op == "Gemm" and layer.node.attrs.get("beta", 1.0) != 1.0:
            return None
    return tuple(s if a == axis else 1 for a, s in enumerate(shape))


def channel_axis(layer: Linear, rank: int) -> int:
    """The axis of a layer's output that carries its output channels."""
    return 1 if layer.node.op in ("Conv", "ConvTranspose") else rank - 1


def bias_of(layer: Linear) -> str:
    """The bias that the operator itself adds, "" for none."""
    return layer.bias if layer.node.op != "Gemm" or layer.node.attrs.get("beta", 1.0) != 0.0 else ""


def _passed(n: Node, constant: Mapping[str, Shape], graph: Graph) -> Shape | None:
    """The shape of what a node computes from constant tensors and others; None where it is no such node."""
    if n.domain != "" or len([o for o in n.outputs if o]) != 1:
        return None
    shapes = {i: constant.get(i, graph.shape(i)) for i in n.inputs if i}
    x = n.input(0)
    if n.op in _BROADCASTING:
        known_shapes = [s for s in shapes.values() if s is not None]
        return np.broadcast_shapes(*known_shapes) if len(known_shapes) == len(shapes) else None
    fixed = all(stored(graph, i) in graph.constants for i in shapes if i != x)
    if x not in constant or not fixed:
        return None
    shape = constant[x]
    if n.op in (*_REDUCING, *_NORMALIZING):
        return _over_axes(n, shape, graph)
    if n.op not in _PASSING:
        return None
    if n.op == "Transpose":
        order = as_ints(n.attrs["perm"]) if "perm" in n.attrs else tuple(reversed(range(len(shape))))
        return tuple(shape[a] for a in order)
    return shape


def _over_axes(n: Node, shape: Shape, graph: Graph) -> Shape | None:
    """The shape of what a reduction or a norm makes of a constant tensor, where that is as long as ever on its axes."""
    whole = graph.shape(n.input(0))
    if whole is None or len(whole) != len(shape):
        return None
    rank = len(shape)
    if n.op in _NORMALIZING:
        axes: Sequence[int] = range(int(n.attrs.get("axis", -1)) % rank, rank)
    else:
        given = as_ints(n.attrs["axes"]) if "axes" in n.attrs else graph.ints(n.input(1))
        if not given:  # of all axes, or of none, as the node says
            return None
        axes = [a % rank for a in given]
    if any(shape[a] != whole[a] for a in axes):
        return None
    if n.op in _NORMALIZING:
        return shape
    return tuple(1 if a in axes else s for a, s in enumerate(shape) if n.keepdims or a not in axes)


def _is_computed(n: Node, constant: Mapping[str, Shape], graph: Graph) -> bool:
    """Whether some operand is computed from the inputs, and has their sizes at run time."""
    computed = [i for i in n.inputs if i and i not in constant and stored(graph, i) not in graph.constants]
    return bool(computed)


def drops(channels: ChannelGraph) -> dict[int, Drop]:
    """By index, the groups of which no unit need stay. What takes its statistics over channels keeps one."""
    alone: dict[int, set[str]] = {}
    for (tensor, _), f in channels.tracked():
        owners = np.unique(channels.group_of[f])
        if owners.size == 1 and owners[0] >= 0:
            alone.setdefault(int(owners[0]), set()).add(tensor)
    drop_by_group: dict[int, Drop] = {}
    for g in channels.groups:
        left = None if g.mixing or not alone.get(g.index) else remains(channels, alone[g.index])
        if left is not None:
            drop_by_group[g.index] = Drop(g.index, left.gone, dead(channels, (g.index,), left), left)
    return drop_by_group


def dead(channels: ChannelGraph, groups: Collection[int], left: Remains) -> frozenset[int]:
    """The groups beside these whose weights no node reads any more."""
    graph = channels.graph
    ends = {x.node.index for x in left.alone.values()}
    touched = {t for i in left.gone | ends for t in graph.node_at[i].inputs}

    def is_read(tensor: str) -> bool:
        readers = (n for n, _ in graph.readers.get(tensor, ()) if n.index not in left.gone)
        return any(n.index not in ends or tensor == bias_of(left.alone[n.outputs[0]]) for n in readers)

    maybe = {g for t in touched for g in channels.groups_on.get(t, ())} | channels.unread_groups
    return frozenset(g for g in maybe.difference(groups) if not any(map(is_read, channels.weights_of[g])))


def dead_groups(drop_by_group: Mapping[int, Drop], kept: Mapping[int, Mask]) -> frozenset[int]:
    """The groups that disappear with those of which `kept`, masks over units, leaves nothing."""
    return frozenset(
        d for g, mask in kept.items() if not mask.any() and g in drop_by_group for d in drop_by_group[g].groups
    )


def together(channels: ChannelGraph, groups: Sequence[int]) -> tuple[int, ...]:
    """Those of the groups, the first ones first, of which no unit need stay at the same time.

    Of two branches whose sum nothing else joins, either may go, and not both.
    """
    if left_without(channels, groups) is not None:
        return tuple(groups)
    chosen: list[int] = []
    for g in groups:
        if left_without(channels, [*chosen, g]) is not None:
            chosen.append(g)
    return tuple(chosen)


def left_of(channels: ChannelGraph, keep: Mask) -> Remains | None:
    """What is left where these classes, (classes,), stay; None where a tensor would be left without a channel."""
    return remains(channels, {tensor for tensor, _ in channels.emptied(keep)})


def left_without(channels: ChannelGraph, groups: Iterable[int]) -> Remains | None:
    """What is left where no unit of these groups stays; None where the graph needs some."""
    return remains(channels, channels.emptied_without(set(groups)))
