"""Fused operators put back where the standard ones that stood for them are still there, as `--keep-fused` asks for.

Of each it is known which nodes were written for it. Where all of them are left, with the constants that they had and
with nothing else reading what is between them, the fused node takes their place, with what they read by now: narrower
weights, and the bias that a layer was given. Everything else stays in standard operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from onnxprune.graph import bodies, external
from onnxprune.graph.bodies import copy_node, main_output
from onnxprune.normalise.constants import returned
from onnxprune.normalise.unfused import Fused
from onnxprune.surgery.unread import drop_unread

# Layers that may have got a bias, or other groups, which the fused operator takes over; and the slot of the bias.
_LAYERS, _BIAS = ("Conv", "Gemm"), 2


@dataclass(frozen=True, eq=False)
class _Uses:
    """Of the whole model: how often each tensor is read, what graphs return, and the weights."""

    reads: Mapping[str, int]
    returned: Collection[str]
    stored: Mapping[str, onnx.TensorProto]


def put_back(proto: onnx.ModelProto, fused: Sequence[Fused]) -> int:
    """Put, in place, those of `fused` back that can be; how many. Bodies hold no weights, and names are unique."""
    if not fused:
        return 0
    reads = Counter(i for n in bodies.every_node(proto.graph) for i in n.input if i)
    uses = _Uses(reads, returned(proto), bodies.weights_of(proto))
    graphs = (proto.graph, *bodies.every_body(proto.graph))
    # The innermost first: a graph whose nodes are replaced has new bodies.
    done = sum(_in_graph(graph, fused, uses) for graph in reversed(graphs))
    imported = {o.domain for o in proto.opset_import}
    for domain in sorted({n.domain for n in bodies.every_node(proto.graph)} - imported - {"ai.onnx"}):
        proto.opset_import.add(domain=domain, version=1)
    drop_unread(proto, uses.reads)
    return done


def _in_graph(graph: onnx.GraphProto, fused: Sequence[Fused], uses: _Uses) -> int:
    places = {main_output(n): k for k, n in enumerate(graph.node)}
    instead: dict[int, onnx.NodeProto] = {}
    gone: set[int] = set()
    for f in fused:
        held = [places.get(main_output(n), -1) for n in f.nodes]
        if not held or min(held) < 0 or gone.intersection(held):
            continue
        node = _again(f, [graph.node[k] for k in held], uses)
        if node is not None:
            gone.update(held)
            instead[max(held)] = node
    if instead:
        nodes = [instead.get(k, n) for k, n in enumerate(graph.node) if k in instead or k not in gone]
        ordered = _sorted([copy_node(n) for n in nodes])
        del graph.node[:]
        graph.node.extend(ordered)
    return len(instead)


def _again(fused: Fused, nodes: Sequence[onnx.NodeProto], uses: _Uses) -> onnx.NodeProto | None:
    """The fused node for `nodes`, which stand where those that were written for it stood; None where they differ."""
    own = {o for n in fused.nodes for o in n.output if o}
    made = {t.name: t for t in fused.weights}
    names: dict[str, str] = {"": ""}
    node = copy_node(fused.node)
    for was, now in zip(fused.nodes, nodes, strict=True):
        if (was.op_type, was.domain, *was.output) != (now.op_type, now.domain, *now.output):
            return None
        if not _same_attributes(was, now, node):
            return None
        slots = max(len(was.input), len(now.input))
        for k, (a, b) in enumerate(zip(_filled(was.input, slots), _filled(now.input, slots), strict=True)):
            if a in own and a != b:
                return None
            if a in made and not _equal(made[a], uses.stored.get(b)):
                return None
            if not a and b:
                if was.op_type not in _LAYERS or k != _BIAS or any(node.input[_BIAS : _BIAS + 1]):
                    return None
                node.input.extend([""] * (_BIAS + 1 - len(node.input)))
                node.input[_BIAS] = b
                names[b] = b
            elif a not in own and a not in made and names.setdefault(a, b) != b:
                return None
    inside = own - set(fused.node.output)
    reads = Counter(i for n in nodes for i in n.input)
    if any(uses.reads.get(t, 0) != reads[t] or t in uses.returned for t in inside):
        return None
    if any(i not in names for i in node.input):
        return None
    node.input[:] = [names[i] for i in node.input]
    return node


def _same_attributes(was: onnx.NodeProto, now: onnx.NodeProto, node: onnx.NodeProto) -> bool:
    """Whether a node does what it did; what a layer does otherwise, and the fused `node` can say, is written there."""
    before, after = _attributes(was), _attributes(now)
    changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
    if not changed:
        return True
    if was.op_type not in _LAYERS or not changed <= after.keys() or not changed <= _attributes(node).keys():
        return False
    for a in node.attribute:
        if a.name in changed:
            a.CopyFrom(helper.make_attribute(a.name, after[a.name]))
    return True


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _filled(names: Sequence[str], count: int) -> list[str]:
    return [*names, *[""] * (count - len(names))]


def _equal(a: onnx.TensorProto, b: onnx.TensorProto | None) -> bool:
    if b is None or (a.data_type, tuple(a.dims)) != (b.data_type, tuple(b.dims)):
        return False
    return external.array_of(a).tobytes() == external.array_of(b).tobytes()


def _sorted(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes in an order in which each stands behind what it reads, close to the one that they are in."""
    maker = {o: k for k, n in enumerate(nodes) for o in n.output if o}

    def needed(k: int) -> Iterable[int]:
        return (maker[i] for i in (*nodes[k].input, *bodies.captured_names(nodes[k])) if i in maker)

    ordered: list[onnx.NodeProto] = []
    done: set[int] = set()
    stack = [(k, False) for k in reversed(range(len(nodes)))]
    while stack:
        k, ready = stack.pop()
        if k in done:
            continue
        if ready:
            done.add(k)
            ordered.append(nodes[k])
            continue
        stack.append((k, True))
        stack.extend((m, False) for m in needed(k) if m not in done)
    return ordered
