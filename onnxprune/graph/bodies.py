"""The bodies of If, Loop and Scan, in protobuf: names, weights, and a body as a model of its own.

One namespace for the whole model makes the rest simple. `name_uniquely` renames what sibling bodies call the same, and
`hoist` moves the weights of the bodies to the main graph (`return_to_bodies` takes them back at the end), so that a
tensor's name alone says which tensor is meant, and there is one list of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

_KINDS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def subgraphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """The bodies that an attribute of an If, Loop or Scan holds."""
    if attribute.type == onnx.AttributeProto.GRAPH:
        return [attribute.g]
    return list(attribute.graphs) if attribute.type == onnx.AttributeProto.GRAPHS else []


def bodies_of(node: onnx.NodeProto) -> list[tuple[str, onnx.GraphProto]]:
    """(attribute name, body) of each body of a node."""
    return [(a.name, body) for a in node.attribute if a.type in _KINDS for body in subgraphs(a)]


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, depth first: a node stands before those of its bodies."""
    for node in graph.node:
        yield node
        for _, body in bodies_of(node):
            yield from every_node(body)


def every_body(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """All bodies, an outer one before those inside it."""
    for node in graph.node:
        for _, body in bodies_of(node):
            yield body
            yield from every_body(body)


def captured_names(node: onnx.NodeProto) -> tuple[str, ...]:
    """Outer tensors that the bodies of `node` read, in order of appearance."""
    captured: dict[str, None] = {}
    for _, body in bodies_of(node):
        local = {i.name for i in body.input} | {i.name for i in body.initializer}
        for inner in body.node:
            for name in (*inner.input, *captured_names(inner)):
                if name and name not in local:
                    captured[name] = None
            local.update(inner.output)
        captured.update((o.name, None) for o in body.output if o.name not in local)
    return tuple(captured)


def captured(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Tensors that bodies of these nodes read from outside."""
    return {name for n in nodes for name in captured_names(n)}


def main_output(node: onnx.NodeProto) -> str:
    """The first named output, which identifies a node."""
    return next((o for o in node.output if o), "")


def copy_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """A copy: a node that is taken from one list of protobuf's cannot be put into another."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


# names


def name_uniquely(proto: onnx.ModelProto) -> None:
    """Rename, in place, the tensors of the bodies so that no name is used twice in the model.

    The main graph's names stay. Declared shapes of the bodies' inner tensors are dropped: inference finds them again.
    """
    taken = {o for n in every_node(proto.graph) for o in (*n.input, *n.output)} | set(_given(proto.graph))
    for body in every_body(proto.graph):
        taken.update(_given(body))
        taken.update(v.name for v in body.output)
    met = {*_given(proto.graph), *(o for n in proto.graph.node for o in n.output)}
    _rename_bodies(proto.graph, {}, taken, met, {})


def _given(graph: onnx.GraphProto) -> list[str]:
    """What a graph defines beside its nodes' outputs."""
    return [v.name for v in graph.input] + [t.name for t in graph.initializer]


def _rename_bodies(
    graph: onnx.GraphProto, outer: Mapping[str, str], taken: set[str], met: set[str], last: dict[str, int]
) -> None:
    for node in graph.node:
        for _, body in bodies_of(node):
            names = dict(outer)
            for old in dict.fromkeys((*_given(body), *(o for n in body.node for o in n.output if o))):
                names.pop(old, None)
                if old in met:
                    names[old] = _unused(old, taken, last)
                met.add(names.get(old, old))
            for v in (*body.input, *body.output, *body.initializer):
                v.name = names.get(v.name, v.name)
            del body.value_info[:]
            for n in body.node:
                _rename_ports(n, names)
            _rename_bodies(body, names, taken, met, last)


def _rename_ports(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    for ports in (node.input, node.output):
        for i, name in enumerate(ports):
            ports[i] = names.get(name, name)


def _unused(name: str, taken: set[str], last: dict[str, int]) -> str:
    """The next free name; last: the number that each name was given last, below which none is free."""
    n = last.get(name, 0) + 1
    while f"{name}__{n}" in taken:
        n += 1
    last[name] = n
    taken.add(f"{name}__{n}")
    return f"{name}__{n}"


def rename(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Rename tensors, in place, in these nodes and in their bodies; names must be unique."""
    for node in nodes:
        _rename_ports(node, names)
        for _, body in bodies_of(node):
            for v in (*body.input, *body.output, *body.initializer):
                v.name = names.get(v.name, v.name)
            rename(body.node, names)


# weights


def hoist(proto: onnx.ModelProto) -> None:
    """Move, in place, every weight of the bodies to the main graph; Constant nodes become weights. Names are unique.

    A body may not return what lies outside it, so a weight that is an output of its body is returned by an Identity.
    """
    outputs = {o.name for o in proto.graph.output}
    for n in [n for n in proto.graph.node if n.op_type == "Constant" and n.domain in ("", "ai.onnx")]:
        value = None if n.output[0] in outputs else _value(n)
        if value is not None:
            proto.graph.initializer.append(value)
            proto.graph.node.remove(n)
    for body in every_body(proto.graph):
        values = [_value(n) if n.op_type == "Constant" and n.domain in ("", "ai.onnx") else None for n in body.node]
        stored = [*body.initializer, *(v for v in values if v is not None)]
        if not stored:
            continue  # each level of bodies would copy all that are inside it
        nodes = [copy_node(n) for n, v in zip(body.node, values, strict=True) if v is None]
        returned = {o.name for o in body.output}
        for t in stored:
            weight = proto.graph.initializer.add()
            weight.CopyFrom(t)
            if t.name in returned:
                weight.name = f"{t.name}__stored"
                nodes.append(helper.make_node("Identity", [weight.name], [t.name]))
        del body.initializer[:], body.node[:]
        body.node.extend(nodes)


def _value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node; None for the kinds that no weight is made of (sparse ones, strings)."""
    a = node.attribute[0] if len(node.attribute) == 1 else None
    if a is None or a.ref_attr_name:
        return None
    if a.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(a.t)
        tensor.name = node.output[0]
        return tensor
    numbers: dict[str, object] = {"value_float": a.f, "value_floats": list(a.floats)}
    numbers |= {"value_int": a.i, "value_ints": list(a.ints)}
    if a.name not in numbers:
        return None
    kind = np.float32 if "float" in a.name else np.int64
    return numpy_helper.from_array(np.array(numbers[a.name], kind), node.output[0])


def return_to_bodies(proto: onnx.ModelProto, outside: Collection[str]) -> None:
    """Move, in place, every weight that is not called `outside` into the innermost body that holds all its uses."""
    held: dict[str, tuple[onnx.GraphProto, ...]] = {}

    def visit(graph: onnx.GraphProto, path: tuple[onnx.GraphProto, ...]) -> None:
        names = [i for n in graph.node for i in n.input] + [o.name for o in graph.output]
        for name in names:
            before = held.get(name, path)
            shared = [a for a, b in zip(before, path, strict=False) if a is b]
            held[name] = tuple(shared)
        for node in graph.node:
            for _, body in bodies_of(node):
                visit(body, (*path, body))

    visit(proto.graph, ())
    stays: list[onnx.TensorProto] = []
    for t in proto.graph.initializer:
        path = held.get(t.name, ())
        if t.name in outside or not path:
            stays.append(t)
        else:
            path[-1].initializer.add().CopyFrom(t)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(stays)


def replace_ifs(
    graph: onnx.GraphProto, taken: Callable[[onnx.NodeProto], bool | None], *, rename_inner: bool = True
) -> int:
    """Put, in place, the branch in the place of each If for which `taken` says which; the number replaced.

    Names are unique and bodies hold no weights. rename_inner: let the branch's last nodes give the outputs of the If;
    otherwise every tensor keeps its name, and an Identity gives them.
    """
    done = 0
    nodes: list[onnx.NodeProto] = []
    for n in graph.node:
        choice = taken(n) if n.op_type == "If" and n.domain in ("", "ai.onnx") else None
        if choice is None:
            for _, body in bodies_of(n):
                done += replace_ifs(body, taken, rename_inner=rename_inner)
            nodes.append(copy_node(n))
            continue
        branch = dict(bodies_of(n))["then_branch" if choice else "else_branch"]
        done += replace_ifs(branch, taken, rename_inner=rename_inner)
        inner = [copy_node(i) for i in branch.node]
        own = {o for i in inner for o in i.output}
        pairs = [(out, v.name) for out, v in zip(n.output, branch.output, strict=False) if out]
        names = {inside: out for out, inside in reversed(pairs) if inside in own} if rename_inner else {}
        rename(inner, names)
        nodes += inner
        nodes += [
            helper.make_node("Identity", [names.get(inside, inside)], [out])
            for out, inside in pairs
            if names.get(inside) != out
        ]
        done += 1
    if done:
        del graph.node[:]
        graph.node.extend(nodes)
    return done


# a body as a model


def weights_of(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The stored tensors of the main graph by name: found once for all of a model's bodies, which may be thousands."""
    return {t.name: t for t in proto.graph.initializer}


def as_model(
    proto: onnx.ModelProto,
    body: onnx.GraphProto,
    stored: Mapping[str, onnx.TensorProto],
    types: Mapping[str, onnx.TypeProto] | None = None,
) -> onnx.ModelProto:
    """The body as a model of its own: what it captures of `proto` becomes an input, or a weight where it is one.

    stored: the `weights_of` the model. types: of inputs, where they are known from elsewhere than the body's own
    declarations.
    """
    input_types = types or {}
    holder = helper.make_node("If", [], [])
    holder.attribute.append(helper.make_attribute("body", body))
    captured = captured_names(holder)
    weights = {c: stored[c] for c in captured if c in stored}
    ports = [v.name for v in body.input] + [c for c in captured if c not in weights]
    declared = {v.name: v for v in body.input}
    inputs = [
        helper.make_value_info(p, input_types[p]) if p in input_types else declared.get(p, onnx.ValueInfoProto(name=p))
        for p in ports
    ]
    graph = helper.make_graph(body.node, body.name or "body", inputs, body.output, list(weights.values()))
    return helper.make_model(graph, opset_imports=proto.opset_import, ir_version=max(proto.ir_version, 4))


def put_back(
    proto: onnx.ModelProto, body: onnx.GraphProto, edited: onnx.ModelProto, stored: dict[str, onnx.TensorProto]
) -> None:
    """Take the nodes of `edited`, a model made by `as_model`, into the body, and its new weights into `proto`.

    stored: the `weights_of` the model, which gains those. A body may not return what lies outside it: a weight that
    came out for an output is returned by an Identity.
    """
    nodes = list(edited.graph.node)
    returned = {o.name for o in body.output}
    for t in edited.graph.initializer:
        name = f"{t.name}__stored" if t.name in returned else t.name
        if t.name in returned:
            nodes.append(helper.make_node("Identity", [name], [t.name]))
        if name not in stored:
            stored[name] = proto.graph.initializer.add()
            stored[name].CopyFrom(t)
            stored[name].name = name
    del body.node[:]
    body.node.extend(nodes)


def rewritten(proto: onnx.ModelProto, edit: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """`proto` with `edit` applied to every body as a model of its own, the innermost first, and then to the whole."""
    if not any(bodies_of(n) for n in proto.graph.node):
        return edit(proto)
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    stored = weights_of(result)
    for node in result.graph.node:
        for _, body in bodies_of(node):
            put_back(result, body, rewritten(as_model(result, body, stored), edit), stored)
    return edit(result)


# onnx-graphsurgeon works on flat graphs


def hollowed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose nodes read what their bodies captured, and have none; the model itself where no node has any."""
    if not any(bodies_of(n) for n in proto.graph.node):
        return proto
    flat = onnx.ModelProto()
    flat.CopyFrom(proto)
    for node in flat.graph.node:
        if bodies_of(node):
            node.input.extend(captured_names(node))
            kept = [a for a in node.attribute if a.type not in _KINDS]
            del node.attribute[:]
            node.attribute.extend(kept)
    return flat


def refilled(proto: onnx.ModelProto, like: onnx.ModelProto) -> None:
    """Undo `hollowed`, in place: the bodies of `like` for the nodes with the same first output."""
    full = {main_output(n): n for n in like.graph.node if bodies_of(n)}
    for node in proto.graph.node:
        before = full.get(main_output(node))
        if before is not None:
            del node.input[len(before.input) :]
            node.attribute.extend(a for a in before.attribute if a.type in _KINDS)
