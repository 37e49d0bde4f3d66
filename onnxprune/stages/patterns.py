"""What the patterns of options match: which groups they keep from being cut, or give a width of their own.

Names are those of the normal form, and of nodes of the model as it came whose tensors are still there: exporters give
numbers for names, and what is folded or written in other operators has names of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

import onnx

from onnxprune.channels import ChannelGraph
from onnxprune.channels.frozen import SINGLE, Cause, Frozen
from onnxprune.channels.names import called
from onnxprune.config import PruneConfig
from onnxprune.errors import UsageError
from onnxprune.graph.bodies import captured_names, every_node
from onnxprune.graph.view import Node
from onnxprune.options import nearest

_NEAREST = 3
INCLUDE, EXCLUDE, EXCLUDE_AFTER = "--include", "--exclude", "--exclude-after"
RATIO_OF, SAME_WIDTHS = "--ratio-of", "--same-widths"
_KEEPING = (EXCLUDE, EXCLUDE_AFTER)
_NOWHERE: Mapping[str, str] = {}


@dataclass(frozen=True)
class Matched:
    """What one pattern matched, by name: nodes, tensors, the layers among these nodes, and the groups that it means.

    Of --exclude-after the nodes are those behind the tensors. share: what --ratio-of says of them.
    """

    option: str
    pattern: str
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    layers: tuple[str, ...]
    groups: frozenset[int]
    share: float | None = None

    @property
    def text(self) -> str:
        """The pattern as it was given."""
        return self.pattern if self.share is None else f"{self.pattern}={self.share:g}"


def matched(
    channels: ChannelGraph, settings: PruneConfig, original: onnx.ModelProto, elsewhere: Mapping[str, str] = _NOWHERE
) -> tuple[Matched, ...]:
    """What each pattern of the options matches. Raises UsageError for one that matches nothing.

    elsewhere: of names that lie outside the part of a model that is pruned, what they are.
    """
    one = partial(_matched, channels, original, elsewhere)
    options = ((EXCLUDE, settings.exclude), (EXCLUDE_AFTER, settings.exclude_after), (INCLUDE, settings.include))
    alone = [one(option, p) for option, patterns in options for p in patterns]
    shares = [replace(one(RATIO_OF, p), share=share) for p, share in settings.shares_of]
    alike = [one(SAME_WIDTHS, p) for p in settings.same_widths]
    return (*alone, *shares, *alike)


def shares_of(found: Iterable[Matched], frozen: Mapping[int, Frozen]) -> dict[int, float]:
    """The share of its units that --ratio-of has each group lose, by index; of several the last counts.

    Raises UsageError for a pattern of which nothing may be cut.
    """
    shares: dict[int, float] = {}
    for m in found:
        if m.share is not None:
            _check_cut(m, m.groups - frozen.keys(), 1)
            shares.update(dict.fromkeys(m.groups - frozen.keys(), m.share))
    return shares


def alike_in(found: Iterable[Matched]) -> tuple[tuple[int, ...], ...]:
    """The sets of groups that --same-widths gives one width; those of patterns that meet are one set.

    Raises UsageError for a pattern that matches less than two groups.
    """
    wanted = [m for m in found if m.option == SAME_WIDTHS]
    for m in wanted:
        _check_cut(m, m.groups, 2)
    return merged(m.groups for m in wanted)


def merged(groups: Iterable[Collection[int]]) -> tuple[tuple[int, ...], ...]:
    """Sets that have nothing in common, of which those that meet are one."""
    sets: list[set[int]] = []
    for own in map(set, groups):
        met = [s for s in sets if s & own]
        sets = [s for s in sets if not s & own] + [own.union(*met)]
    return tuple(tuple(sorted(s)) for s in sets)


def _check_cut(m: Matched, groups: Collection[int], least: int) -> None:
    if len(groups) < least:
        few = "one group" if groups else "no group that can be cut"
        raise UsageError(
            f"{m.option} {m.pattern} matches {few}, so it does nothing; `onnxprune inspect` lists the names"
        )


def frozen_groups(channels: ChannelGraph, found: Iterable[Matched]) -> dict[int, Frozen]:
    """Groups that may not be cut, with the reason: a single unit, --exclude, --exclude-after, or not in --include."""
    frozen = {g.index: SINGLE for g in channels.groups if g.size < 2}
    included: set[int] | None = None
    for m in found:
        if m.option == INCLUDE:
            included = (included or set()) | m.groups
        if m.option not in _KEEPING:
            continue
        for index in sorted(m.groups):
            frozen.setdefault(index, Frozen(Cause.EXCLUDED, f"{m.option} {m.pattern}"))
    if included is not None:
        for g in channels.groups:
            if g.index not in included:
                frozen.setdefault(g.index, Frozen(Cause.NOT_INCLUDED, "not in --include"))
    return frozen


def kept_nodes(found: Iterable[Matched]) -> frozenset[str]:
    """The names of the nodes that --exclude and --exclude-after keep as they are."""
    return frozenset(name for m in found if m.option in _KEEPING for name in (*m.nodes, *m.tensors))


def _matched(
    channels: ChannelGraph, original: onnx.ModelProto, elsewhere: Mapping[str, str], option: str, pattern: str
) -> Matched:
    graph = channels.graph
    known = {*channels.factors, *graph.shapes, *(o for n in graph.every_node for o in n.outputs if o), *graph.inputs}
    old = [*every_node(original.graph)]
    if option == EXCLUDE_AFTER:
        names = known | {t for n in old for t in (*n.input, *n.output) if t}
        tensors = {t for t in names if fnmatchcase(t, pattern)}
        behind = tensors | _behind(original, tensors)
        nodes = _reading(graph.every_node, behind, behind - tensors)
        stays = {t for n in nodes for t in (*n.inputs, *n.outputs) if t} | (tensors & known)
        hit = bool(tensors)
    else:
        tensors = {t for t in channels.factors if fnmatchcase(t, pattern)}
        meant = {o for n in old if fnmatchcase(n.name, pattern) for o in n.output if o}
        nodes = [n for n in graph.every_node if fnmatchcase(n.name, pattern) or meant & set(n.outputs)]
        stays = tensors | {o for n in nodes for o in n.outputs if o}
        if option == EXCLUDE:
            stays |= {i for n in nodes for i in n.inputs if i}
        hit = bool(tensors or nodes)
    if not hit:
        name = next((k for k in elsewhere if fnmatchcase(k, pattern)), None)
        if name is not None:
            where = f"{name!r} is {elsewhere[name]}"
            raise UsageError(f"the pattern {pattern!r} matches nothing that can be pruned: {where}; leave it out")
        what = "tensor" if option == EXCLUDE_AFTER else "node and no tensor"
        possible = names if option == EXCLUDE_AFTER else {n.name for n in old} | channels.factors.keys()
        near = nearest(pattern.strip("*"), possible, _NEAREST)
        hint = f"did you mean {near}?" if near else "`onnxprune inspect` lists the names"
        raise UsageError(f"the pattern {pattern!r} matches no {what}; {hint}")
    groups = frozenset(g for t in stays for g in channels.groups_in(t))
    chosen = {n.index for n in nodes}
    layers = [called(x.node, x.weight) for x in channels.linears if x.node.index in chosen or x.weight in tensors]
    names_of = tuple(n.name for n in nodes)
    return Matched(option, pattern, names_of, tuple(sorted(tensors)), tuple(dict.fromkeys(layers)), groups)


def _behind(original: onnx.ModelProto, tensors: Iterable[str]) -> set[str]:
    """The tensors of the main graph that are computed from these in the model as it came."""
    behind = set(tensors)
    for n in original.graph.node:
        if behind & {*n.input, *captured_names(n)}:
            behind.update(o for o in n.output if o)
    return behind


def _reading(nodes: Iterable[Node], tensors: set[str], computed: set[str]) -> list[Node]:
    """The nodes that read one of these tensors, or give one that is `computed` from them, and those behind such."""
    behind = set(tensors)
    found: list[Node] = []
    for n in nodes:
        if behind & {*n.inputs, *n.captures} or computed & set(n.outputs):
            behind.update(o for o in n.outputs if o)
            found.append(n)
    return found
