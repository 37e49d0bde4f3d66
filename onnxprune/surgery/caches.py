"""Caches of layers that went: their inputs and outputs are no longer declared, and the others are numbered anew.

A runtime finds caches by their names, with a number for each layer from 0 on without a gap
("past_key_values.3.key"). So those behind a layer that went move up by one. Like all that changes what is declared,
this is done at the end, behind the checks that feed what the original takes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from onnxprune.channels import ChannelGraph
from onnxprune.errors import CheckFailed
from onnxprune.graph import bodies
from onnxprune.graph.numbered_names import family, number_in
from onnxprune.graph.protobuf import copied
from onnxprune.graph.view import StateGather
from onnxprune.numerics.arrays import Array, Mask
from onnxprune.surgery.unread import drop_unread


@dataclass(frozen=True, eq=False)
class CachesGone:
    """gone: inputs and outputs that went with their layers; layers: the numbers in their names, ascending. names: of
    those that are numbered anew, old → new."""

    gone: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def left_of(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs or outputs of a model with all caches as the one without these has them."""
        return {self.names.get(k, k): v for k, v in values.items() if k not in self.gone}

    @property
    def said(self) -> str:
        """For the report."""
        moved = ", ".join(f"{old} is {new}" for old, new in self.names.items())
        return f"{', '.join(self.gone)} went with their layers" + (f"; {moved} now" if moved else "")


def caches_gone(channels: ChannelGraph, states: Sequence[StateGather], keep: Mask) -> tuple[str, ...]:
    """The inputs and outputs that may change, and of whose units none stays; keep: the classes that do, (classes,)."""
    gone = []
    for s in states:
        factor = channels.axis_factor(s.units, s.axis) if s.resized else None
        if factor is not None and not keep[factor].any():
            gone.append(s.port)
    return tuple(dict.fromkeys(gone))


def without_caches(proto: onnx.ModelProto, gone: Collection[str]) -> tuple[onnx.ModelProto, CachesGone]:
    """A copy of a finished model without these inputs and outputs, which it does not compute with; itself for none.

    Raises CheckFailed where something reads one of the inputs all the same, or there is no telling which number the
    others get.
    """
    if not gone:
        return proto, CachesGone()
    result = copied(proto)
    graph = result.graph
    inputs, outputs = ([v.name for v in values] for values in (graph.input, graph.output))
    before = {i for n in bodies.every_node(graph) for i in n.input}
    for values in (graph.input, graph.output):
        kept = [v for v in values if v.name not in gone]
        del values[:]
        values.extend(kept)
    _take_sizes_elsewhere(graph, set(gone) & set(inputs), [i for i in inputs if i not in gone])
    _drop_unread_nodes(graph, set(gone) & set(outputs))
    read = {i for n in bodies.every_node(graph) for i in n.input} & set(gone)
    if read:
        raise CheckFailed(
            f"the layer of the cache {min(read)!r} went, and something else reads that: leave it with --exclude, or "
            "without --drop-layers"
        )
    drop_unread(result, before)
    names = {**_numbered_anew(inputs, gone), **_numbered_anew(outputs, gone)}
    numbers = {k for each in (inputs, outputs) for n in gone for k, other in family(n, each) if other == n}
    bodies.rename(graph.node, names)
    infos = [v for v in graph.value_info if v.name not in gone and v.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(infos)
    for v in (*graph.input, *graph.output):
        v.name = names.get(v.name, v.name)
    return result, CachesGone(tuple(n for n in (*inputs, *outputs) if n in gone), tuple(sorted(numbers)), names)


def _take_sizes_elsewhere(graph: onnx.GraphProto, gone: Collection[str], left: Sequence[str]) -> None:
    """Have what takes the sizes of an input that went take those of another of its family, in place."""
    others = {name: next((o for _, o in family(name, (name, *left)) if o != name), "") for name in gone}
    for n in bodies.every_node(graph):
        if n.op_type == "Shape" and n.domain in ("", "ai.onnx") and others.get(n.input[0]):
            n.input[0] = others[n.input[0]]


def _drop_unread_nodes(graph: onnx.GraphProto, outputs: Collection[str]) -> None:
    """Remove, in place, the nodes that give these outputs, and those that nothing else needs then."""
    wanted = {v.name for v in graph.output}
    suspects = set(outputs)
    while True:
        read = {i for n in graph.node for i in (*n.input, *bodies.captured_names(n))} | wanted
        dead = [n for n in graph.node if suspects.intersection(n.output) and not read.intersection(n.output)]
        if not dead:
            return
        suspects.update(i for n in dead for i in n.input)
        for n in dead:
            graph.node.remove(n)


def _numbered_anew(names: Sequence[str], gone: Collection[str]) -> dict[str, str]:
    """Of names with a number that has lost some before it: old → new. Raises CheckFailed for numbers with gaps."""
    found: dict[str, str] = {}
    for lost in (n for n in names if n in gone):
        own = family(lost, names)
        numbers = [k for k, name in own if name in gone]
        if own and [k for k, _ in own] != list(range(own[0][0], own[0][0] + len(own))):
            raise CheckFailed(
                f"the cache {lost!r} went with its layer, and there is no telling how runtimes would call the others, "
                "as their numbers have gaps: leave out --drop-layers"
            )
        for k, name in own:
            fewer = sum(n < k for n in numbers)
            if name not in gone and fewer:
                start, end = number_in(lost, names)
                found[name] = f"{lost[:start]}{k - fewer}{lost[end:]}"
    return found
