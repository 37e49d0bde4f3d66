"""The layers of a transformer: the residual branches of one after the other that together are one.

Of a decoder or encoder each layer is an attention block and a feed-forward block, which are two residual branches; one
with cross-attention has three. Which branches belong together is read from the graph: they join the same stream, one
right behind the other or side by side, the attention before the feed-forward block. Names only say what it is called.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxprune.channels.branches import Drop, Remains, dead, left_without
from onnxprune.channels.groups import ChannelGraph
from onnxprune.channels.names import called
from onnxprune.graph.quantized import stored
from onnxprune.graph.view import Graph, Node

ATTENTION, FEED_FORWARD = "attention", "feed-forward"
_SUMS = ("Add", "Sum")
_PRODUCTS = ("MatMul", "Einsum", "Gemm")


@dataclass(frozen=True)
class WholeLayer:
    """A layer whose branches may go together.

    number: from 0 on, in the order of the graph. name: the scope that its weights and nodes share, "" where they share
    none. groups: one for each branch, in their order, of `kinds`. nodes: those that disappear when no unit of these
    groups stays; dead: the other groups of which no weight is left then.
    """

    number: int
    name: str
    groups: tuple[int, ...]
    kinds: tuple[str, ...]
    nodes: frozenset[int]
    dead: frozenset[int] = frozenset()

    @property
    def called(self) -> str:
        """Its number, with the name where it has one."""
        return f"layer {self.number}" + (f" = {self.name}" if self.name else "")


@dataclass(frozen=True, eq=False)
class _Branch:
    """One residual branch. joins: the nodes that add it to the stream. beside: what they add it to."""

    drop: Drop
    kind: str
    joins: frozenset[int]
    beside: frozenset[str]


def whole_layers(channels: ChannelGraph, drops: Mapping[int, Drop]) -> tuple[WholeLayer, ...]:
    """The layers of a network, in the order of the graph; what has a branch that cannot go is none.

    drops: the branches that may go, as `branches.drops` has them.
    """
    layers: list[WholeLayer] = []
    for row in _rows(channels, _branches(channels.graph, drops)):
        groups = tuple(b.drop.group for b in row)
        left = left_without(channels, groups)
        if left is not None:
            kinds, gone = tuple(b.kind for b in row), dead(channels, groups, left)
            layers.append(WholeLayer(len(layers), _name(channels, left), groups, kinds, left.gone, gone))
    # Where layers share weights, as files store equal ones once, no name can be told from these.
    names = Counter(x.name for x in layers)
    return tuple(x if names[x.name] == 1 else replace(x, name="") for x in layers)


def vanishing(drops: Mapping[int, Drop], layers: Sequence[WholeLayer]) -> list[tuple[tuple[int, ...], frozenset[int]]]:
    """Sets of groups with the nodes that disappear where nothing is kept of all of them.

    Of a layer only what does not go with one of its branches already: a norm that both read.
    """
    alone = [((d.group,), d.nodes) for d in drops.values()]
    more = [(x.groups, x.nodes.difference(*(drops[g].nodes for g in x.groups if g in drops))) for x in layers]
    return alone + [(groups, nodes) for groups, nodes in more if nodes]


def _branches(graph: Graph, drops: Mapping[int, Drop]) -> list[_Branch]:
    """The branches in the order in which they join; of those inside each other the widest."""
    nodes = graph.node_at
    widest: dict[tuple[frozenset[int], str], Drop] = {}
    for drop in drops.values():
        if drop.left.joins:
            kind = ATTENTION if any(_attends(graph, nodes[i]) for i in drop.nodes if i in nodes) else FEED_FORWARD
            key = drop.left.joins, kind
            if key not in widest or len(widest[key].nodes) < len(drop.nodes):
                widest[key] = drop
    found = []
    for (joins, kind), drop in widest.items():
        onto, own = _onto_stream(graph, drop, joins)
        read = {t for i in onto for t in nodes[i].inputs if t} - own
        found.append(_Branch(drop, kind, onto, frozenset(read - drop.left.constant - graph.constants.keys())))
    return sorted(found, key=lambda b: (max(b.joins), b.kind != ATTENTION))


def _onto_stream(graph: Graph, drop: Drop, joins: frozenset[int]) -> tuple[frozenset[int], set[str]]:
    """The nodes that add a branch to the stream, and the tensors of the branch from where its constants joined on.

    Mostly those are one node. Where what is constant joins something that the branch still computes, as the biases of
    experts by the shares that a router gives them, the stream is what is added behind that.
    """
    if len(joins) != 1:
        return joins, set()
    nodes, (join,) = graph.node_at, joins
    behind = _read_by_one(graph, nodes[join])
    if not any(n.op in _SUMS for n in behind[1:]):
        return joins, set()
    given = {o for i in drop.nodes if i in nodes for o in nodes[i].outputs}
    entries = {t for i in drop.nodes if i in nodes for t in nodes[i].inputs if t and t not in given}
    computed = _computed_from(graph, entries - graph.constants.keys(), behind[-1].index)
    own: set[str] = set()
    for n in behind:
        beside = {t for t in n.inputs if t} - own - drop.left.constant - graph.constants.keys()
        if n.op in _SUMS and not beside <= computed:
            return frozenset({n.index}), own
        own.add(n.outputs[0])
    return joins, set()


def _read_by_one(graph: Graph, node: Node) -> list[Node]:
    """A node, and those behind it as long as one node alone reads what the one before gives."""
    found = [node]
    while True:
        given = found[-1].outputs[0]
        readers = {r.index for r, _ in graph.readers.get(given, ())}
        if len(readers) != 1 or given in graph.given_out or not readers <= graph.node_at.keys():
            return found
        found += [graph.node_at[i] for i in readers]


def _computed_from(graph: Graph, tensors: Collection[str], last: int) -> set[str]:
    """The tensors that are computed from these, without these themselves, by nodes up to the index `last`."""
    found: set[str] = set()
    waiting, met = [*tensors], set[int]()
    while waiting:
        for n in graph.reading(waiting.pop()):
            if n.index <= last and n.index not in met:
                met.add(n.index)
                made = {o for o in n.outputs if o}
                found |= made
                waiting += made
    return found


def _attends(graph: Graph, node: Node) -> bool:
    """Whether a node has attention inside, or multiplies what is computed with what is computed."""
    if node.op.endswith("Attention"):
        return True
    factors = [i for i in node.inputs[:2] if i]
    return node.op in _PRODUCTS and len(factors) == 2 and all(stored(graph, i) not in graph.constants for i in factors)


def _rows(channels: ChannelGraph, branches: Sequence[_Branch]) -> list[list[_Branch]]:
    """The branches that make a layer: one of attention, or self-attention and cross-attention, and a feed-forward one.

    Where both read the same and are added one after the other, the feed-forward branch may come first.
    """
    graph = channels.graph
    before = _joins_before(channels, branches)
    rows: list[list[_Branch]] = []
    used: set[int] = set()
    for place, branch in enumerate(branches[1:], 1):
        previous = branches[place - 1]
        if {place, place - 1} & used or branch.kind == previous.kind or not _adjoin(previous, branch, before[place]):
            continue
        if branch.kind == ATTENTION:
            if _reads_behind(graph, branch, previous):
                continue
            rows.append([branch, previous])
        else:
            rows.append([previous, branch])
            first = place - 2
            if first >= 0 and first not in used and _crosses(channels, branches[first], previous, before[place - 1]):
                rows[-1].insert(0, branches[first])
                used.add(first)
        used |= {place, place - 1}
    return rows


def _adjoin(previous: _Branch, branch: _Branch, before: Collection[int]) -> bool:
    return previous.joins == branch.joins or bool(previous.joins & set(before))


def _crosses(channels: ChannelGraph, first: _Branch, second: _Branch, before: Collection[int]) -> bool:
    """Whether the second is cross-attention behind the first: some layer of it reads what is not in the stream."""
    if first.kind != ATTENTION or not _adjoin(first, second, before):
        return False
    behind = _behind(channels.graph, first.joins, second.drop.nodes)
    own = [x for i in second.drop.nodes for x in channels.linears_at.get(i, ())]
    return any(x.data not in behind for x in own) and any(x.data in behind for x in own)


def _joins_before(channels: ChannelGraph, branches: Sequence[_Branch]) -> list[set[int]]:
    """For each branch, the nodes behind which it is the next to join: only norms and the like stand in between."""
    graph = channels.graph
    joins = {i for b in branches for i in b.joins}
    layers = {x.node.index for x in channels.linears}
    found: list[set[int]] = []
    for b in branches:
        met: set[int] = set()
        waiting, seen = list(b.beside), set(b.beside)
        while waiting:
            by = graph.producer.get(waiting.pop())
            if by is None or by.index in layers:
                continue
            if by.index in joins and by.index not in b.joins:
                met.add(by.index)
                continue
            more = {*by.inputs, *by.captures} - seen - {""}
            seen |= more
            waiting += more
        found.append(met)
    return found


def _reads_behind(graph: Graph, branch: _Branch, previous: _Branch) -> bool:
    """Whether a branch computes with what another one has been added to."""
    behind = _behind(graph, previous.joins, branch.drop.nodes)
    own = (graph.node_at[i] for i in branch.drop.nodes if i in graph.node_at)
    return any(not behind.isdisjoint((*n.inputs, *n.captures)) for n in own)


def _behind(graph: Graph, joins: Collection[int], readers: Collection[int]) -> set[str]:
    """The tensors that these nodes give, and what is computed from them, as far as `readers` may read it."""
    given = {o for i in joins if i in graph.node_at for o in graph.node_at[i].outputs if o}
    return given | _computed_from(graph, given, max(readers, default=-1))


def _name(channels: ChannelGraph, left: Remains) -> str:
    """The scope that the layers which go, or leave their bias, have in common: "/model/layers.3".

    Where exporters number nodes and weights, that of the weights which keep the names that they had in training.
    """
    graph = channels.graph
    ends = {x.node.index for x in left.alone.values()}
    own = left.gone | ends
    scope = common_scope(called(x.node, x.weight) for i in own for x in channels.linears_at.get(i, ()))
    if scope:
        return scope
    read = {t for i in own for t in graph.node_at[i].inputs if t in graph.constants}
    alone = {i for i in read if all(n.index in own for n, _ in graph.readers[i])}
    return common_scope(i for i in alone if set(i) & {"/", "."})


def common_scope(names: Iterable[str]) -> str:
    """What names have in common, in whole words between slashes and dots; "" where that has no letter."""
    words = [re.findall(r"[^/.]+|[/.]", name) for name in names]
    shared: list[str] = []
    for column in zip(*words, strict=False):  # as far as the shortest goes
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    while shared and shared[-1] in ("/", "."):
        shared.pop()
    return "".join(shared) if any(c.isalpha() for word in shared for c in word) else ""
