"""The walk that writes fused operators in standard ones, through the main graph and all bodies.

A fused node is replaced where its row in the table gives standard nodes that compute the same, at every size and for
every value that callers may give; else it stays, and what it reads and gives keeps its channels. The whole is held
against the original like the rest of the normal form, at several sizes, before anything is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import onnx

from onnxprune.graph import bodies
from onnxprune.graph.names import tensors_of, unused
from onnxprune.graph.protobuf import copied, int_attribute, opset_of
from onnxprune.normalise.unfused.blocked import DOMAIN
from onnxprune.normalise.unfused.facts import Measured
from onnxprune.normalise.unfused.site import Refusal, Row, Site, Unknown
from onnxprune.normalise.unfused.table import EXPERTS, PACKED, TABLE
from onnxprune.runtime.session import Feeds

# For a model that imports no standard operators: the newest in which all that is written exists as it is written.
_OPSET = 17
_OWN = ("com.microsoft", "com.ms.")


@dataclass(frozen=True, eq=False)
class Fused:
    """A fused node as it was, and the nodes and weights that stand for it.

    origins: of its inputs that were weights in another shape, by the name of the input. roles: tensors and weights of
    the nodes that stand for it, by what they are for.
    """

    node: onnx.NodeProto
    nodes: tuple[onnx.NodeProto, ...]
    weights: tuple[onnx.TensorProto, ...]
    origins: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Unfused:
    """What was written anew, and what is to be said of it, of nodes that stay as well."""

    fused: tuple[Fused, ...] = ()
    notes: tuple[str, ...] = ()


def operator_of(node: onnx.NodeProto) -> str:
    """The name of an operator with its domain, as the tables have it."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def unfuse(
    proto: onnx.ModelProto,
    example: Feeds,
    replaceable: Collection[str] = (),
    table: Mapping[str, Row] = TABLE,
) -> Unfused:
    """Replace, in place, every fused node that can be written in standard operators.

    The model has no functions, its names are unique and bodies hold no weights. replaceable: weights that callers may
    override: nothing is written anew by their values.
    """
    there = [n for n in bodies.every_node(proto.graph) if operator_of(n) in table]
    if not there:
        return Unfused()
    in_blocks = any(n.domain == DOMAIN for n in there)
    before = copied(proto) if in_blocks else proto
    done, stays, anonymous = _replaced(proto, example, replaceable, table, there)
    if in_blocks and any(domain == DOMAIN for domain, _, _ in stays):
        # A part of what is computed in blocks is not in the plain layout: then all of it stays.
        proto.CopyFrom(before)
        others = {name: row for name, row in table.items() if not name.startswith(f"{DOMAIN}.")}
        there = [n for n in bodies.every_node(proto.graph) if operator_of(n) in others]
        done, more, anonymous = _replaced(proto, example, replaceable, others, there)
        stays = Counter({key: count for key, count in stays.items() if key[0] == DOMAIN}) + more
    _without_copies(proto, done, anonymous)
    if done:
        _drop_domains(proto)
    return Unfused(tuple(done), _notes(done, stays))


def _replaced(
    proto: onnx.ModelProto,
    example: Feeds,
    replaceable: Collection[str],
    table: Mapping[str, Row],
    there: Sequence[onnx.NodeProto],
) -> tuple[list[Fused], Counter[tuple[str, str, str]], Collection[str]]:
    """What was replaced in place; how many nodes stay, by domain, operator and reason; tensors that were in blocks.

    there: the nodes that may be replaced.
    """
    asked = dict.fromkeys(i for n in there for i in n.input if i)
    facts = Measured(proto, example, asked, replaceable)
    if not any(o.domain in ("", "ai.onnx") for o in proto.opset_import):
        proto.opset_import.add().version = _OPSET
    opset, unused_by_tensors = opset_of(proto), partial(unused, taken=tensors_of(proto))
    unused_by_nodes = partial(unused, taken={n.name for n in bodies.every_node(proto.graph)})
    layout = facts.layout if any(n.domain == DOMAIN for n in there) else None
    done: list[Fused] = []
    shared: dict[object, str] = {}
    stays: Counter[tuple[str, str, str]] = Counter()

    def replaced(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        row = table.get(operator_of(node))
        if layout is not None and node.output and node.output[0] in layout.views:
            row = _copied
        if row is None:
            return [bodies.copy_node(node)]
        site = Site(node, facts, opset, unused_by_tensors, shared)
        try:
            refusal = row(site)
        except Unknown as e:
            refusal = Refusal(str(e))
        if refusal is not None:
            stays[node.domain, node.op_type, refusal.why] += 1
            return [bodies.copy_node(node)]
        nodes = site.named(unused_by_nodes)
        copies = tuple(bodies.copy_node(n) for n in nodes)
        done.append(Fused(bodies.copy_node(node), copies, tuple(site.weights), dict(site.origins), dict(site.roles)))
        return nodes

    _rewrite(proto.graph, replaced)
    for f in done:
        proto.graph.initializer.extend(f.weights)
    imported = {o.domain for o in proto.opset_import}
    for domain in sorted({n.domain for f in done for n in f.nodes} - imported):
        proto.opset_import.add(domain=domain, version=1)
    return done, stays, () if layout is None else layout.channels


def _copied(site: Site) -> None:
    site.op("Identity", site.input(0), to=site.output())


def _without_copies(proto: onnx.ModelProto, done: Collection[Fused], anonymous: Collection[str]) -> None:
    """Take out, in place, each Identity that was built: what it reads and what it gives get one name.

    anonymous: tensors with names that onnxruntime made, which give way to others.
    """
    built = {n.output[0]: n.input[0] for f in done for n in f.nodes if n.op_type == "Identity"}
    if not built:
        return
    outer = {v.name for g in (proto.graph, *bodies.every_body(proto.graph)) for v in (*g.input, *g.output)}
    outer |= {t.name for t in proto.graph.initializer}
    names: dict[str, str] = {}

    def name_of(tensor: str) -> str:
        while tensor in names:
            tensor = names[tensor]
        return tensor

    gone: set[str] = set()
    for output, source in built.items():
        a, b = name_of(source), name_of(output)
        if a == b:
            gone.add(output)
        elif a in anonymous and a not in outer:
            names[a] = b
            gone.add(output)
        elif b not in outer:
            names[b] = a
            gone.add(output)
    kept = {k: name_of(k) for k in names}

    def without(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [] if node.op_type == "Identity" and node.output[0] in gone else [bodies.copy_node(node)]

    _rewrite(proto.graph, without)
    bodies.rename(proto.graph.node, kept)
    for f in done:
        bodies.rename((f.node, *f.nodes), kept)


def _rewrite(graph: onnx.GraphProto, replaced: Callable[[onnx.NodeProto], list[onnx.NodeProto]]) -> None:
    """Put, in place, what `replaced` gives into the place of every node, the innermost bodies first."""
    for node in graph.node:
        for _, body in bodies.bodies_of(node):
            _rewrite(body, replaced)
    nodes = [n for node in graph.node for n in replaced(node)]
    del graph.node[:]
    graph.node.extend(nodes)


def _drop_domains(proto: onnx.ModelProto) -> None:
    """Import, in place, no domain of onnxruntime's own of which no node is left: it lists all when it saves one."""
    left = {n.domain for n in bodies.every_node(proto.graph)}
    kept = [o for o in proto.opset_import if o.domain in left or not o.domain.startswith(_OWN)]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _notes(done: Collection[Fused], stays: Mapping[tuple[str, str, str], int]) -> tuple[str, ...]:
    notes: list[str] = []
    counted = Counter(f.node.op_type for f in done if operator_of(f.node) in TABLE.keys() - PACKED - EXPERTS)
    if counted:
        what = ", ".join(f"{count} {name}" for name, count in sorted(counted.items()))
        notes.append(f"operators that onnxruntime had fused are written in standard ones: {what}")
    in_blocks: dict[int, Counter[str]] = {}
    for f in done:
        block = int_attribute(f.node, "block_size", 0) if operator_of(f.node) in PACKED | EXPERTS else 0
        if block:
            in_blocks.setdefault(block, Counter())[f.node.op_type] += 1
    for block, counted in sorted(in_blocks.items()):
        what = ", ".join(f"{count} {name}" for name, count in sorted(counted.items()))
        notes.append(f"weights in codes have one scale for {block} numbers, and lose whole blocks of these: {what}")
    notes += [f"{count} {name} stays fused: {why}" for (_, name, why), count in sorted(stays.items())]
    return tuple(notes)
