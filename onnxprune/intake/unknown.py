"""Operators that onnxruntime does not know: the part of a model in front of them is what a run works on.

A detector ends in a node of TensorRT, say, that no other runtime has. Such a node, and all that lies behind it, stays
as it is: what it reads is an output of the part in front, and so keeps its size, is calibrated and compared; at the end
the nodes and their weights are put behind that part again. What is unknown is what onnxruntime says so of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx

from onnxprune.errors import ModelError, RunError
from onnxprune.graph import external
from onnxprune.graph.bodies import bodies_of, captured_names, copy_node, every_node, rename, weights_of
from onnxprune.graph.protobuf import copied
from onnxprune.intake import first_run
from onnxprune.options import first_of
from onnxprune.runtime import custom_ops
from onnxprune.runtime.custom_ops import ADVICE
from onnxprune.runtime.session import known_operators

_SAID = (
    re.compile(r"Fatal error: (?P<domain>[^\s:]*):(?P<op>[^\s:(]+)\(-?\d+\) is not a registered function/op"),
    re.compile(r"Could not find an implementation for (?P<domain>)(?P<op>[^\s(]+)\(\d+\) node"),
)
_STANDARD = ("", "ai.onnx")
_SHOWN = 3
Kind = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Tail:
    """What lies behind unknown operators, and these: nodes in their order, and the weights that they read.

    inputs, outputs, imports: of the whole model, as it declares them. functions: those that the nodes call. operators:
    the unknown ones; named: that they are, in words; read: the tensors that they read, in words.
    """

    nodes: tuple[onnx.NodeProto, ...] = ()
    weights: tuple[onnx.TensorProto, ...] = ()
    inputs: tuple[onnx.ValueInfoProto, ...] = ()
    outputs: tuple[onnx.ValueInfoProto, ...] = ()
    value_info: tuple[onnx.ValueInfoProto, ...] = ()
    imports: tuple[onnx.OperatorSetIdProto, ...] = ()
    functions: tuple[onnx.FunctionProto, ...] = ()
    named: str = ""
    operators: str = ""
    read: str = ""

    def __bool__(self) -> bool:
        return bool(self.nodes)

    @cached_property
    def holds(self) -> Mapping[str, str]:
        """By name of a node, tensor or input that is here alone, what it is, in words."""
        if not self:
            return {}
        where = f"behind operators that onnxruntime does not know ({self.operators}), which stays as it is"
        inputs = {v.name for v in self.inputs}
        nodes = {n.name: f"a node {where}" for n in self.nodes if n.name}
        read = {i: f"an input read {where}" for n in self.nodes for i in n.input if i in inputs}
        return {**read, **nodes, **{o: f"a tensor {where}" for n in self.nodes for o in n.output if o}}

    @cached_property
    def readers(self) -> Mapping[str, onnx.NodeProto]:
        """By tensor that is no output of the whole model, the first of these nodes that reads it."""
        own = {v.name for v in self.outputs}
        read = {i: n for n in reversed(self.nodes) for i in (*n.input, *captured_names(n)) if i}
        return {i: n for i, n in read.items() if i not in own}

    @property
    def note(self) -> str:
        """What to say of it in a report; "" where there is nothing."""
        if not self:
            return ""
        return (
            f"{self.named}: from there on ({len(self.nodes)} nodes) the model stays as it is, and the part in front is "
            f"calibrated and checked on what these read ({self.read}); {ADVICE}"
        )


def cut_off(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Tail]:
    """(the part of a model in front of unknown operators, the rest); the model itself where there are none.

    Raises RunError where nothing with weights is in front of them, as a run of the model would.
    """
    unknown = _unknown_in(proto)
    return _parted(proto, unknown) if unknown else (proto, Tail())


def _parted(proto: onnx.ModelProto, unknown: set[Kind]) -> tuple[onnx.ModelProto, Tail]:
    behind: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    front: list[onnx.NodeProto] = []
    for n in proto.graph.node:
        if unknown & {_kind(n), *(_kind(i) for _, body in bodies_of(n) for i in every_node(body))} or behind & _reads(
            n
        ):
            nodes.append(n)
            behind.update(o for o in n.output if o)
        else:
            front.append(n)
    made = {o for n in front for o in n.output if o}
    wanted = [*dict.fromkeys(i for n in nodes for i in (*n.input, *captured_names(n)) if i in made)]
    named = ", ".join(sorted(f"{d}:{op}" if d else op for d, op in unknown)[:_SHOWN])
    layers = {t.name for t in proto.graph.initializer} | {o for n in front if n.op_type == "Constant" for o in n.output}
    if not wanted or not layers & {i for n in front for i in n.input}:
        raise RunError(
            f"onnxruntime does not know the operator {named}, and no layer is in front of it: nothing can be pruned; "
            f"{ADVICE}"
        )
    copy = copied(proto)
    whole = copy.graph
    last = {i for n in nodes for i in _reads(n)} | {v.name for v in whole.output}
    tail = Tail(
        tuple(copy_node(n) for n in nodes),
        tuple(t for t in whole.initializer if t.name in last),
        tuple(whole.input),
        tuple(whole.output),
        tuple(v for v in whole.value_info if v.name in behind),
        tuple(copy.opset_import),
        tuple(_called(copy, nodes)),
        f"onnxruntime does not know the operator {named}",
        named,
        first_of(wanted, _SHOWN),
    )
    return _front(proto, front, [*wanted, *(v.name for v in whole.output if v.name in made)]), tail


def _front(proto: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str]) -> onnx.ModelProto:
    """The part of a model that these tensors are computed by."""
    names, kept = set(wanted), []
    for n in reversed(nodes):
        if names & set(n.output):
            names |= _reads(n)
            kept.append(copy_node(n))
    part = copied(proto)
    declared = {v.name: v for v in proto.graph.output}
    for field, stays in (("initializer", names), ("input", names)):
        entries = getattr(part.graph, field)
        for i in reversed(range(len(entries))):
            if entries[i].name not in stays:
                del entries[i]
    del part.graph.node[:], part.graph.output[:]
    part.graph.node.extend(kept[::-1])
    part.graph.output.extend(declared.get(k, onnx.ValueInfoProto(name=k)) for k in dict.fromkeys(wanted))
    return part


def _reads(n: onnx.NodeProto) -> set[str]:
    return {*n.input, *captured_names(n)}


def put_back(final: onnx.ModelProto, tail: Tail) -> onnx.ModelProto:
    """A copy of the pruned part with the rest of the model behind it. Raises ModelError where names meet."""
    if not tail:
        return final
    result = copied(final)
    stored = weights_of(result)
    taken = {o for n in every_node(result.graph) for o in n.output} | stored.keys() | {v.name for v in tail.inputs}
    names: dict[str, str] = {}
    for t in tail.weights:
        if t.name not in stored:
            result.graph.initializer.add().CopyFrom(t)
        elif not external.equal(stored[t.name], t):  # the other part reads what was cut, or fitted
            names[t.name] = _unused(f"{t.name}__whole", taken)
            whole = result.graph.initializer.add()
            whole.CopyFrom(t)
            whole.name = names[t.name]
    nodes = [copy_node(n) for n in tail.nodes]
    if twice := taken & {o for n in nodes for o in n.output if o}:
        raise ModelError(f"the tensor {min(twice)!r} is computed twice once {len(nodes)} nodes are put back")
    rename(nodes, names)
    result.graph.node.extend(nodes)
    own = {v.name: v for v in (*final.graph.input, *final.graph.output)}
    del result.graph.input[:], result.graph.output[:]
    result.graph.input.extend(own.get(v.name, v) for v in tail.inputs if v.name in own or v.name not in stored)
    result.graph.output.extend(own.get(v.name, v) for v in tail.outputs)
    result.graph.value_info.extend(tail.value_info)
    there = {(f.domain, f.name) for f in result.functions}
    result.functions.extend(f for f in tail.functions if (f.domain, f.name) not in there)
    imported = {o.domain for o in result.opset_import}
    result.opset_import.extend(o for o in tail.imports if o.domain not in imported)
    return result


def check_versions(front: onnx.ModelProto, tail: Tail) -> None:
    """Raises ModelError where the part in front had to be written in another version of operators than the rest is."""
    now = {o.domain: o.version for o in front.opset_import}
    used = {i.domain for n in tail.nodes for i in (n, *(k for _, body in bodies_of(n) for k in every_node(body)))}
    for o in tail.imports:
        if o.domain in used and now.get(o.domain, o.version) != o.version:
            raise ModelError(
                f"the part in front of unknown operators had to be raised from opset {o.version} to {now[o.domain]}, "
                f"and the nodes behind it cannot be; export the model with opset {now[o.domain]}"
            )


def _called(proto: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> list[onnx.FunctionProto]:
    """The functions of the model that nodes call, in their bodies or through other functions, too."""
    functions = {(f.domain, f.name): f for f in proto.functions}
    found: dict[tuple[str, str], onnx.FunctionProto] = {}
    todo = [_kind(i) for n in nodes for i in (n, *(k for _, body in bodies_of(n) for k in every_node(body)))]
    while todo:
        kind = todo.pop()
        if kind in functions and kind not in found:
            found[kind] = functions[kind]
            todo += [_kind(n) for n in every_node(functions[kind])]
    return [f for key, f in functions.items() if key in found]


def _unknown_in(proto: onnx.ModelProto) -> set[Kind]:
    """The operators of the main graph, its bodies and functions that onnxruntime does not know.

    A function that holds one is unknown, too. Of a registered library only onnxruntime knows what is in it, and so it
    does of operators that it adds to the standard domain for TensorRT alone: the model is opened until it no longer
    names an operator.
    """
    known = known_operators()
    kinds = {_kind(n) for part in (proto.graph, *proto.functions) for n in every_node(part)}
    missing = kinds - known - {(f.domain, f.name) for f in proto.functions}
    added = {(domain, op) for domain, op in kinds & known if not domain and not onnx.defs.has(op)}
    if not known or not (missing or added):
        return set()
    unknown = set() if custom_ops.libraries() else _with_functions(proto, missing)
    while open_ := (missing | added) - unknown:
        try:
            first_run.output_types(_parted(proto, unknown)[0] if unknown else proto)
        except RunError as e:
            named = _named(str(e))
            if named not in open_:
                break  # the first run says what is wrong
            unknown = _with_functions(proto, unknown | {named})
            continue
        break
    return unknown


def _named(why: str) -> Kind | None:
    """The operator of which onnxruntime says that it has none."""
    said = next(filter(None, (pattern.search(why) for pattern in _SAID)), None)
    return None if said is None else ("" if said["domain"] in _STANDARD else said["domain"], said["op"])


def _with_functions(proto: onnx.ModelProto, unknown: set[Kind]) -> set[Kind]:
    """With the functions that hold such operators, or call those that do."""
    found = set(unknown)
    while more := {(f.domain, f.name) for f in proto.functions if found & {_kind(n) for n in every_node(f)}} - found:
        found |= more
    return found


def _kind(n: onnx.NodeProto) -> Kind:
    return ("" if n.domain in _STANDARD else n.domain, n.op_type)


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
