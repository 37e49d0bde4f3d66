"""A model as bytes promise it: element types that exist, values as many as the shape says, names that are text, bounds.

onnx and onnxruntime check the meaning of a model, and do so in the child process. What is looked at here is what this
process itself reads of it, before it does: numpy and protobuf raise whatever comes at these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.graph import external
from onnxprune.graph.bodies import every_body, every_node

# Nodes once all local functions are inlined. Exporters write some ten thousand for the largest networks.
MOST_NODES = 500_000
# Nodes in the bodies of If, Loop and Scan together, likewise. Each body is measured as a model of its own.
MOST_IN_BODIES = 50_000
# Characters in the name of a node or a tensor: each is compared and printed many times.
MOST_CHARACTERS = 100_000
# Bodies inside bodies; protobuf reads files of about thirty.
MOST_LEVELS = 30
# Sequences of sequences, optional ones, maps: standard operators make three levels. What looks at types takes twice as
# long for each.
MOST_TYPES = 8
# Axes of a tensor: numpy before 2 knows no more.
MOST_AXES = 32
# More elements than any memory holds: products of sizes stay exact in 64 bits.
_MOST_ELEMENTS = 1 << 60
_FIELDS: Mapping[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.STRING: ("string_data", 1),
}
# Fields of types that hold another type, and where.
_NESTING = {"sequence_type": "elem_type", "optional_type": "elem_type", "map_type": "value_type"}
_KNOWN = set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}


def check(proto: onnx.ModelProto) -> None:
    """Raises ModelError with the first thing that is wrong."""
    _check_depth(proto)
    _check_types(proto)
    _check_names(proto)
    _check_count(proto)
    for tensor in external.stored_tensors(proto):
        _check_tensor(tensor)
    _check_references(proto)


def _check_depth(proto: onnx.ModelProto) -> None:
    level = [n for nodes in (proto.graph.node, *(f.node for f in proto.functions)) for n in nodes]
    for _ in range(MOST_LEVELS + 1):
        level = [n for node in level for a in node.attribute for body in _bodies(a) for n in body.node]
        if not level:
            return
    raise ModelError(f"the model nests bodies more than {MOST_LEVELS} deep")


def _bodies(a: onnx.AttributeProto) -> Iterable[onnx.GraphProto]:
    return (a.g,) if a.type == onnx.AttributeProto.GRAPH else a.graphs


def _check_types(proto: onnx.ModelProto) -> None:
    for name, declared in _types(proto):
        t = declared
        for _ in range(MOST_TYPES):
            kind = t.WhichOneof("value")
            if kind not in _NESTING:
                break
            t = getattr(getattr(t, kind), _NESTING[kind])
        else:
            raise ModelError(f"the type of {name!r} nests more than {MOST_TYPES} deep")
        if kind in ("tensor_type", "sparse_tensor_type"):
            _check_rank(name, len(getattr(t, kind).shape.dim))


def _check_rank(name: str, axes: int) -> None:
    if axes > MOST_AXES:
        raise ModelError(f"{name!r} has {axes} axes; at most {MOST_AXES} are read")


def _types(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.TypeProto]]:
    for graph in _every_graph(proto):
        yield from ((v.name, v.type) for v in (*graph.input, *graph.output, *graph.value_info))
    for n in _every_node(proto):
        for a in n.attribute:
            yield from ((a.name, t) for t in ((a.tp, *a.type_protos) if a.HasField("tp") else a.type_protos))


def _every_graph(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield from (proto.graph, *every_body(proto.graph), *(b for f in proto.functions for b in every_body(f)))


def _every_node(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from every_node(proto.graph)
    for f in proto.functions:
        yield from every_node(f)


# text


def _check_names(proto: onnx.ModelProto) -> None:
    """Of bytes that are no text, an implementation of protobuf gives out bytes, or raises when they are read."""
    try:
        wrong = next((name for name in _names(proto) if not isinstance(name, str)), None)
    except UnicodeDecodeError as e:
        wrong = e.object
    if wrong is not None:
        raise ModelError(f"a name in the model is not UTF-8 text: {bytes(wrong)[:60]!r}")
    longest = max((name for n in _every_node(proto) for name in (n.name, *n.input, *n.output)), key=len, default="")
    if len(longest) > MOST_CHARACTERS:
        raise ModelError(
            f"the name {longest[:40]!r}… has {len(longest):,} characters; at most {MOST_CHARACTERS:,} are read"
        )


def _names(proto: onnx.ModelProto) -> Iterator[str | bytes]:
    yield from (proto.domain, proto.producer_name, proto.producer_version, proto.doc_string)
    yield from (o.domain for o in proto.opset_import)
    yield from _metadata(proto)
    for f in proto.functions:
        yield from (
            f.name,
            f.domain,
            f.doc_string,
            *f.input,
            *f.output,
            *f.attribute,
            *(o.domain for o in f.opset_import),
        )
    for graph in _every_graph(proto):
        yield from (graph.name, graph.doc_string, *_metadata(graph))
        for q in graph.quantization_annotation:
            yield from (q.tensor_name, *(text for p in q.quant_parameter_tensor_names for text in (p.key, p.value)))
        for v in (*graph.input, *graph.output, *graph.value_info):
            yield from _names_of_value(v)
    for n in _every_node(proto):
        yield from (n.name, n.op_type, n.domain, n.doc_string, *n.input, *n.output, *_metadata(n))
        for a in n.attribute:
            yield from (a.name, a.ref_attr_name, a.doc_string)
    for t in external.stored_tensors(proto):
        yield from (t.name, t.doc_string, *_metadata(t))
        for e in t.external_data:
            yield from (e.key, e.value)


def _metadata(part: Any) -> Iterator[str | bytes]:
    for p in part.metadata_props:
        yield from (p.key, p.value)


def _names_of_value(v: onnx.ValueInfoProto) -> Iterator[str | bytes]:
    yield from (v.name, v.doc_string, *_metadata(v))
    if v.type.HasField("tensor_type"):
        yield from (d.dim_param for d in v.type.tensor_type.shape.dim)


# values


def _check_tensor(t: onnx.TensorProto) -> None:
    where = f"tensor {t.name!r}"
    if t.data_type not in _KNOWN:
        raise ModelError(f"{where} has the unknown element type {t.data_type}")
    _check_rank(t.name, len(t.dims))
    if any(d < 0 for d in t.dims):
        raise ModelError(f"{where} has the negative size {min(t.dims)}")
    elements = math.prod(t.dims)
    if elements > _MOST_ELEMENTS:
        raise ModelError(f"{where} claims {'x'.join(map(str, t.dims))} elements, which no memory holds")
    if external.is_external(t):
        return  # its place is checked where it is resolved
    if t.HasField("raw_data"):
        size = external.bytes_of(t)
        if t.data_type == TensorProto.STRING or len(t.raw_data) != size:
            raise ModelError(f"{where} holds {len(t.raw_data)} bytes, its shape and type need {size}")
        return
    if t.data_type in external.PACKED:
        return
    field, each = _FIELDS.get(t.data_type, ("int32_data", 1))
    held = len(getattr(t, field))
    if held != elements * each:
        raise ModelError(f"{where} holds {held} values, its shape needs {elements * each}")


# functions


def _check_references(proto: onnx.ModelProto) -> None:
    """Outside of functions there is nothing whose attribute could be meant; onnx and onnxruntime read such models."""
    for n in every_node(proto.graph):
        for a in n.attribute:
            if a.ref_attr_name:
                raise ModelError(
                    f"attribute {a.name!r} of node {n.name!r} ({n.op_type}) refers to an attribute of a function"
                )


def _check_count(proto: onnx.ModelProto) -> None:
    """Bound the nodes that inlining makes, in all and in bodies: forty functions that call the next twice make 2^40."""
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    sizes: dict[tuple[str, str, str], int] = {}
    for key in functions:
        _size_of(key, functions, sizes)
    total = sum(sizes.get((n.domain, n.op_type, n.overload), 1) for n in every_node(proto.graph))
    if total > MOST_NODES:
        raise ModelError(
            f"the model has {_shown(total)} nodes once its functions are inlined; at most {MOST_NODES:,} are read"
        )
    within: dict[tuple[str, str, str], int] = {}
    for key in sorted(functions, key=sizes.__getitem__):  # what a function calls is smaller than it
        within[key] = _in_bodies(functions[key].node, sizes, within)
    inside = _in_bodies(proto.graph.node, sizes, within)
    if inside > MOST_IN_BODIES:
        raise ModelError(
            f"the bodies of If, Loop and Scan hold {_shown(inside)} nodes together; at most {MOST_IN_BODIES:,} are read"
        )


def _in_bodies(
    nodes: Iterable[onnx.NodeProto],
    sizes: Mapping[tuple[str, str, str], int],
    within: Mapping[tuple[str, str, str], int],
) -> int:
    """Nodes inside bodies once functions are inlined; sizes: of each function; within: those inside its bodies."""
    count = 0
    for n in nodes:
        count += within.get((n.domain, n.op_type, n.overload), 0)
        inner = (i for a in n.attribute for body in _bodies(a) for i in every_node(body))
        count += sum(sizes.get((i.domain, i.op_type, i.overload), 1) for i in inner)
    return count


def _size_of(
    key: tuple[str, str, str],
    functions: Mapping[tuple[str, str, str], onnx.FunctionProto],
    sizes: dict[tuple[str, str, str], int],
) -> None:
    """Nodes of a function with all that it calls. Not recursive, since chains may be long."""
    stack = [(key, False)]
    open_: set[tuple[str, str, str]] = set()
    while stack:
        caller, done = stack.pop()
        if caller in sizes:
            continue
        calls = [(n.domain, n.op_type, n.overload) for n in every_node(functions[caller])]
        if done:
            open_.discard(caller)
            sizes[caller] = 1 + sum(sizes.get(c, 1) for c in calls)
            continue
        open_.add(caller)
        stack.append((caller, True))
        inner = {c for c in calls if c in functions}
        if inner & open_:
            raise ModelError(f"the model's function {min(inner & open_)[1]!r} calls itself")
        stack.extend((c, False) for c in sorted(inner))


def _shown(count: int) -> str:
    return f"{count:,}" if count < 10**12 else f"{float(count):.1e}" if count < 10**300 else "more than 1e300"
