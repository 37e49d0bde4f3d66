"""Bodies that no sample runs: nothing is measured in them, so their channels stay unless asked for.

A cut shows no error there, a fit sees none of what such a branch computes, and every figure of the report is about the
others. A branch that only passes values on (reshapes them, picks among them, computes sizes) is no matter: what it
gives is as good as what it gets. Exporters write many of these, for shapes that the data never has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from onnxprune.channels import ChannelGraph
from onnxprune.graph.protobuf import SIZE_TYPES
from onnxprune.graph.view import Body, Node, depth_first

# Element types of sizes, indices and conditions.
_PASS_ON = frozenset(
    (
        "Cast Concat Constant ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Pad "
        "Reshape Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze"
    ).split()
)


_BODY = "body"


@dataclass(frozen=True)
class Untried:
    """A branch ("then" or "else") of the If called `node`, or the body of a Loop or Scan, and the groups on what it
    touches.

    nodes: indices of what it holds. seen: whether it could be seen that no sample runs it; else nothing is known.
    """

    node: str
    branch: str
    groups: frozenset[int]
    nodes: frozenset[int]
    seen: bool = True

    @property
    def text(self) -> str:
        """Says that no sample runs it, or that this cannot be seen, as a clause."""
        if not self.seen:
            return f"it cannot be seen what the samples do inside {self.node}"
        return f"no sample takes the {self.branch}{'' if self.branch == _BODY else ' branch'} of {self.node}"


def untried_branches(
    channels: ChannelGraph,
    taken: Mapping[str, bool],
    types: Mapping[str, int],
    idle: Set[str] = frozenset(),
    unseen: Set[str] = frozenset(),
) -> tuple[Untried, ...]:
    """The branches that compute something and that no sample takes, and bodies that none turns.

    taken: main output of an If that always takes the same branch → whether that is the first. types: of tensors. idle:
    main outputs of the Loops and Scans that no sample turns. unseen: of the nodes in which nothing could be seen.
    """
    untried: list[Untried] = []
    for node in channels.graph.every_node:
        main = next((o for o in node.outputs if o), "")
        if main in unseen or main in idle:
            names = {body.attribute: _BODY for body in node.bodies}
        elif node.op == "If" and not node.domain and main in taken:
            names = {"else_branch": "else"} if taken[main] else {"then_branch": "then"}
        else:
            continue
        for body in node.bodies:
            inside = tuple(depth_first(body.nodes))
            if body.attribute in names and not all(_passes_on(n, types) for n in inside):
                touched, nodes = _touched(node, body, channels), frozenset(n.index for n in inside)
                untried.append(Untried(node.name, names[body.attribute], touched, nodes, main not in unseen))
    return tuple(untried)


def unread(channels: ChannelGraph, untried: Iterable[Untried]) -> frozenset[int]:
    """The groups whose weights nothing reads but what no sample runs."""
    inside = frozenset(i for u in untried if u.seen for i in u.nodes)
    if not inside:
        return frozenset()
    readers = channels.graph.readers
    return frozenset(
        g.index
        for g in channels.groups
        if all(n.index in inside for r in (*g.producers, *g.consumers, *g.parameters) for n, _ in readers[r.tensor])
    )


def _passes_on(node: Node, types: Mapping[str, int]) -> bool:
    """Whether a node gives entries of what it reads, or sizes."""
    return node.op in _PASS_ON or all(types.get(o) in SIZE_TYPES for o in node.outputs if o)


def _touched(node: Node, body: Body, channels: ChannelGraph) -> frozenset[int]:
    """The groups on any tensor that the nodes of a branch read or write, and on the outputs of the If."""
    names = {t for n in depth_first(body.nodes) for t in (*n.inputs, *n.outputs) if t}
    names.update(t for t in (*body.outputs, *node.outputs) if t)
    return frozenset(g for t in names for g in channels.groups_in(t))


def why_kept(untried: Iterable[Untried]) -> str:
    """Why nothing is left to cut."""
    every = "; ".join(dict.fromkeys(u.text for u in untried))
    return f"{every}, and the channels reach that; give data that does, or --untried-branches cut"


def warnings_of(untried: tuple[Untried, ...], *, cut: bool) -> list[str]:
    """What to say of them. cut: whether their channels may go all the same."""
    kept = (
        "its channels were open to cuts that nothing has measured"
        if cut
        else "the channels that it reads or writes stay (--untried-branches cut takes them all the same)"
    )
    every = dict.fromkeys(
        f"{u.text}: no figure of the report holds for it, and {kept}{'; give data that takes it' if u.seen else ''}"
        for u in untried
    )
    return list(every)
