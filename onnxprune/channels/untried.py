"""Branches of an If that no sample takes: nothing is measured in them, so their channels stay unless asked for.

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
    """A branch ("then" or "else") of the If called `node`, or the body of a Loop, and the groups on what it touches."""

    node: str
    branch: str
    groups: frozenset[int]

    @property
    def text(self) -> str:
        """What a reader calls the branch."""
        return f"the {self.branch}{'' if self.branch == _BODY else ' branch'} of {self.node}"


def untried_branches(
    channels: ChannelGraph, taken: Mapping[str, bool], types: Mapping[str, int], idle: Set[str] = frozenset()
) -> tuple[Untried, ...]:
    """The branches that compute something and that no sample takes, and bodies that none turns.

    taken: first output of an If that always takes the same branch → whether that is the first. types: of tensors. idle:
    outputs of the Loops that no sample turns.
    """
    found: list[Untried] = []
    for node in channels.graph.every_node:
        if node.op == "Loop" and not node.domain and not idle.isdisjoint(node.outputs):
            for body in node.bodies:
                if not all(_passes_on(n, types) for n in depth_first(body.nodes)):
                    found.append(Untried(node.name, _BODY, _touched(node, body, channels)))
        if node.op != "If" or node.domain or node.outputs[0] not in taken:
            continue
        other = "else_branch" if taken[node.outputs[0]] else "then_branch"
        for body in node.bodies:
            if body.attribute == other and not all(_passes_on(n, types) for n in depth_first(body.nodes)):
                found.append(Untried(node.name, other.removesuffix("_branch"), _touched(node, body, channels)))
    return tuple(found)


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
    every = ", ".join(u.text for u in untried)
    return f"no sample takes {every}, which the channels reach; give data that does, or --untried-branches cut"


def warnings_of(untried: tuple[Untried, ...], *, cut: bool) -> list[str]:
    """What to say of them. cut: whether their channels may go all the same."""
    kept = (
        "its channels were open to cuts that nothing has measured"
        if cut
        else "the channels that it reads or writes stay (--untried-branches cut takes them all the same)"
    )
    return [
        f"no sample takes {u.text}: no figure of the report holds for it, and {kept}; give data that takes it"
        for u in untried
    ]
