"""What onnxruntime puts right when it opens a model, put right in the same way: order, names, versions, doubles.

onnx's checker refuses such models, and what reads graphs here wants a node behind those that it reads. Nothing of this
changes what a model computes.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

import onnx

from onnxprune.errors import ModelError
from onnxprune.graph import external
from onnxprune.graph.bodies import captured_names, every_body, every_node
from onnxprune.graph.protobuf import copied

_STANDARD = ("", "ai.onnx")
# Domains that onnxruntime knows in one version, whether a model names it or not.
_ASSUMED = {"com.microsoft": 1}
# Before it, every initializer has to be an input as well.
_UNLISTED_SINCE = 4
_NAME = "graph"


def put_right(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Change a model, in place, to what onnxruntime makes of it as it opens it; what to say of it."""
    notes = (*_ordered(proto), *_without_doubles(proto))
    for step in (_named, _one_standard_domain, _domains_imported, _unlisted_allowed):
        step(proto)
    return notes


def with_all_right(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """(the model as `put_right` makes it, what to say of it): a copy where that changes anything."""
    before = external.rebuilt(proto, _without_values)
    after = copied(before)
    put_right(after)
    if after == before:
        return proto, ()
    result = copied(proto)
    return result, put_right(result)


def _without_values(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """All that of an initializer says whether something is to be done."""
    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0])


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield proto.graph
    yield from every_body(proto.graph)
    for f in proto.functions:
        yield from every_body(f)


# order


def _ordered(proto: onnx.ModelProto) -> list[str]:
    """Those of bodies and functions have to be in order for onnxruntime, too."""
    return ["nodes stood before those that they read, and were put in order"] if _order(proto.graph) else []


def _order(graph: onnx.GraphProto) -> bool:
    """Put, in place, every node behind those whose outputs it reads, as early as it stood; whether any had to move.

    Not where nodes read each other in a circle, or give the same tensor: no order would do.
    """
    producer: dict[str, int] = {}
    for i, n in enumerate(graph.node):
        for o in filter(None, n.output):
            if o in producer:
                return False
            producer[o] = i
    needs = [{producer[name] for name in (*n.input, *captured_names(n)) if name in producer} for n in graph.node]
    if all(max(needed, default=-1) < i for i, needed in enumerate(needs)):
        return False
    readers: list[list[int]] = [[] for _ in needs]
    for i, needed in enumerate(needs):
        for k in needed:
            readers[k].append(i)
    missing = [len(needed) for needed in needs]
    ready = [i for i, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for i in readers[order[-1]]:
            missing[i] -= 1
            if not missing[i]:
                heapq.heappush(ready, i)
    if len(order) < len(needs):
        return False
    nodes = []
    for i in order:
        node = onnx.NodeProto()
        node.CopyFrom(graph.node[i])
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return True


# doubles


def _without_doubles(proto: onnx.ModelProto) -> list[str]:
    """Of equal initializers with the same name one stays, in place.

    Raises ModelError for those that differ: which one onnxruntime takes depends on their size.
    """
    doubled: list[str] = []
    for graph in _graphs(proto):
        count = Counter(t.name for t in graph.initializer)
        first: dict[str, onnx.TensorProto] = {}
        extra: list[int] = []
        for i, t in enumerate(graph.initializer):
            if count[t.name] > 1 and first.setdefault(t.name, t) is not t:
                if not external.equal(t, first[t.name]):
                    raise ModelError(f"initializer {t.name!r} is stored twice, with other values; rename one of them")
                extra.append(i)
                doubled.append(t.name)
        for i in reversed(extra):
            del graph.initializer[i]
    return [f"initializer {name!r} is stored more than once, with the same values" for name in dict.fromkeys(doubled)]


# names and versions


def _named(proto: onnx.ModelProto) -> None:
    for graph in _graphs(proto):
        graph.name = graph.name or _NAME


def _one_standard_domain(proto: onnx.ModelProto) -> None:
    """Spell the standard domain as "" in lists of versions and in nodes, where it is not spelled in both ways."""
    if {o.domain for o in proto.opset_import if o.domain in _STANDARD} == set(_STANDARD):
        return
    for part in (proto, *proto.functions):
        for o in part.opset_import:
            if o.domain in _STANDARD and o.domain:
                o.ClearField("domain")
        for n in every_node(proto.graph if part is proto else part):
            if n.domain in _STANDARD and n.domain:
                n.ClearField("domain")


def _domains_imported(proto: onnx.ModelProto) -> None:
    used = {n.domain for n in every_node(proto.graph)} & _ASSUMED.keys()
    for domain in sorted(used - {o.domain for o in proto.opset_import}):
        proto.opset_import.add(domain=domain, version=_ASSUMED[domain])


def _unlisted_allowed(proto: onnx.ModelProto) -> None:
    listed = {v.name for v in proto.graph.input}
    if 0 < proto.ir_version < _UNLISTED_SINCE and any(t.name not in listed for t in proto.graph.initializer):
        proto.ir_version = _UNLISTED_SINCE
