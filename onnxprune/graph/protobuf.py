"""What is asked of a model in protobuf: its view without protobuf, parts of it, shapes, parameters.

Weights that a model stores beside it stay there (`external`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import onnx

from onnxprune.graph import bodies, external, packed_codes
from onnxprune.graph.bodies import captured_names, subgraphs
from onnxprune.graph.view import Body, Graph, Node, Shape, StateGather, is_parameter, samples_in

# What other rooms call a model, the names of the standard domain, and the element types of sizes and conditions.
Model = onnx.ModelProto
STANDARD = ("", "ai.onnx")
SIZE_TYPES = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
# Weights of this size and more are no sizes, scales or bounds.
_LIGHT_BYTES = 1 << 12


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model, which may be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def element_type(dtype: np.dtype[Any]) -> int:
    """ONNX's number of an element type."""
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))


def int_attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node, or `default` where it is not given."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def held_by(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor that a Constant node holds; None of any other node."""
    if node.op_type != "Constant" or node.domain not in STANDARD or [a.name for a in node.attribute] != ["value"]:
        return None
    held: onnx.TensorProto = node.attribute[0].t
    return held


def declared_sizes(v: onnx.ValueInfoProto) -> tuple[int | str | None, ...]:
    """What is declared of each axis of a tensor: its size, a symbol, or None for nothing."""
    dims = v.type.tensor_type.shape.dim
    return tuple(int(d.dim_value) if d.HasField("dim_value") else d.dim_param or None for d in dims)


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of the standard operator set."""
    return next((int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)


def view(
    proto: onnx.ModelProto,
    shapes: Mapping[str, Shape],
    known_values: Mapping[str, tuple[int | None, ...]],
    binding: Mapping[str, Shape],
    free: Mapping[str, frozenset[int]] | None = None,
    samples: int | None = None,
    states: Iterable[StateGather] = (),
    balanced: Iterable[tuple[str, ...]] = (),
    alike: Iterable[tuple[str, str]] = (),
) -> Graph:
    """The read-only view of a normalised model. samples: in inputs of the shapes of `binding`.

    states: the Gathers between states and nodes. balanced, alike: as of `view.Graph`.
    """
    return Graph(
        _nodes(proto.graph, count()),
        external.Weights(proto.graph.initializer),
        tuple(i.name for i in proto.graph.input),
        tuple(o.name for o in proto.graph.output),
        dict(shapes),
        opset_of(proto),
        dict(known_values),
        dict(binding),
        dict(free or {}),
        samples,
        {s.tensor: s for s in states},
        balanced=tuple(balanced),
        alike=tuple(alike),
    )


def _nodes(graph: onnx.GraphProto, numbers: Iterator[int]) -> tuple[Node, ...]:
    """The nodes of a graph or body; indices are unique over the whole model, depth first."""
    nodes: list[Node] = []
    for n in graph.node:
        i = next(numbers)
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute if not subgraphs(a)}
        attrs = {k: _as_text(v) for k, v in attrs.items()}
        domain = "" if n.domain == "ai.onnx" else n.domain
        name = n.name or f"{n.op_type}_{i}"
        inside = tuple(
            Body(a, _nodes(b, numbers), tuple(v.name for v in b.input), tuple(v.name for v in b.output))
            for a, b in bodies.bodies_of(n)
        )
        ports = tuple(n.input), tuple(n.output)
        nodes.append(Node(i, name, n.op_type, domain, *ports, attrs, captured_names(n), inside, bool(n.name)))
    return tuple(nodes)


def _as_text(value: Any) -> Any:
    """Strings of an attribute, also of a list, as strings."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return [_as_text(v) for v in value] if isinstance(value, list) else value


def submodel(
    proto: onnx.ModelProto, inputs: Mapping[str, int], outputs: Iterable[str], *, overridable: Iterable[str] = ()
) -> onnx.ModelProto:
    """The part of a model between `inputs` (name → ONNX element type) and `outputs`.

    overridable: initializers that a run may replace by feeding them.
    """
    producer = {o: i for i, n in enumerate(proto.graph.node) for o in n.output if o}
    wanted = list(dict.fromkeys(outputs))
    needed: set[int] = set()
    used: set[str] = set()
    stack = list(wanted)
    while stack:
        name = stack.pop()
        if name in used:
            continue
        used.add(name)
        if name in inputs or name not in producer or producer[name] in needed:
            continue
        node = proto.graph.node[producer[name]]
        needed.add(producer[name])
        stack.extend(i for i in (*node.input, *captured_names(node)) if i)
    initializers = [t for t in proto.graph.initializer if t.name in used and t.name not in inputs]
    override = set(overridable)
    declared = {v.name: v for v in proto.graph.input}
    ports = [
        declared[k] if k in declared else onnx.helper.make_tensor_value_info(k, t, None) for k, t in inputs.items()
    ]
    ports += [declared[k] for k in declared if k in used and k not in inputs]
    ports += [
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers if t.name in override
    ]
    nodes = [proto.graph.node[i] for i in sorted(needed)]
    inner = {o for n in nodes for o in n.output if o} - {*wanted}
    # Of some tensors onnxruntime cannot tell the type; a shape that is declared may be another one here.
    typed = [v for v in proto.graph.value_info if v.name in inner and not v.type.tensor_type.HasField("shape")]
    graph = onnx.helper.make_graph(
        nodes,
        "part",
        ports,
        [onnx.helper.make_empty_tensor_value_info(o) for o in wanted],
        initializers,
        value_info=typed,
    )
    part = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=max(proto.ir_version, 4))
    part.functions.extend(proto.functions)
    return part


def bind_inputs(proto: onnx.ModelProto, binding: Mapping[str, Shape]) -> onnx.ModelProto:
    """A copy whose input dimensions are the given sizes, and whose inner and output shapes are left to inference."""
    bound = copied(proto)
    del bound.graph.value_info[:]
    for v in bound.graph.input:
        if v.name in binding:
            del v.type.tensor_type.shape.dim[:]
            for size in binding[v.name]:
                v.type.tensor_type.shape.dim.add().dim_value = size
    for v in bound.graph.output:
        if v.type.HasField("tensor_type"):
            v.type.tensor_type.ClearField("shape")
    return bound


def shapes_at(proto: onnx.ModelProto, sizes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The static shapes where the inputs have these: inferred beside what is declared, and those of the weights."""
    bound = copied(proto)
    for v in bound.graph.input:
        dims = v.type.tensor_type.shape.dim
        if v.name in sizes and len(dims) == len(sizes[v.name]):
            for d, size in zip(dims, sizes[v.name], strict=True):
                d.dim_value = size
    return {t.name: tuple(t.dims) for t in proto.graph.initializer} | inferred_shapes(bound)[0]


def batch_of(proto: onnx.ModelProto, shapes: Mapping[str, Shape]) -> int:
    """Samples with which the tensors have these shapes, by `view.samples_in`."""
    return samples_in(shapes.get(i.name, ()) for i in proto.graph.input)


def inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with what ONNX shape inference finds, if anything: callers measure what is missing."""
    with contextlib.suppress(Exception):
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return proto


def _without_values(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the values of weights that no size is computed from: inference copies the model twice."""

    def light(t: onnx.TensorProto) -> onnx.TensorProto:
        return t if t.data_type in SIZE_TYPES or external.bytes_of(t) < _LIGHT_BYTES else external.described(t)

    return external.rebuilt(proto, light)


def inferred_shapes(proto: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    """(static shapes, element types) that ONNX shape inference finds; models that it refuses yield what is declared."""
    proto = inferred(_without_values(proto))
    shapes: dict[str, Shape] = {}
    types: dict[str, int] = {}
    declared = [v for g in (proto.graph, *bodies.every_body(proto.graph)) for v in (*g.input, *g.value_info, *g.output)]
    for v in declared:
        if not v.type.HasField("tensor_type"):
            continue
        t = v.type.tensor_type
        types[v.name] = t.elem_type
        if v.name and t.HasField("shape") and all(d.HasField("dim_value") for d in t.shape.dim):
            shapes[v.name] = tuple(int(d.dim_value) for d in t.shape.dim)
    return shapes, types


def no_tensors(proto: onnx.ModelProto) -> set[str]:
    """What a model says to be a sequence, a map or optional; of all its tensors where it is `inferred`."""
    every = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    return {v.name for v in every if v.type.WhichOneof("value") not in (None, "tensor_type")}


def inferred_ranks(proto: onnx.ModelProto) -> dict[str, int]:
    """The number of axes of every tensor for which ONNX shape inference finds it."""
    proto = inferred(_without_values(proto))
    types = ((v.name, v.type.tensor_type) for v in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output))
    return {name: len(t.shape.dim) for name, t in types if t.HasField("shape")}


def check(proto: onnx.ModelProto, *, strict: bool = True) -> None:
    """ONNX's checker and, where `strict`, strict shape inference; raises onnx's own errors."""
    external.check(proto)
    if strict:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)


def as_bytes(proto: onnx.ModelProto) -> bytes:
    """The content of the model's file; equal models give equal bytes."""
    blob: bytes = proto.SerializeToString(deterministic=True)
    return blob


def parameters(proto: onnx.ModelProto) -> int:
    """Elements of all weights, those of Constant nodes, bodies and functions included; see `view.is_parameter`."""
    readers: dict[str, list[str]] = {}
    nodes = [n for every in (bodies.every_node(proto.graph), *(f.node for f in proto.functions)) for n in every]
    for n in nodes:
        for i in n.input:
            readers.setdefault(i, []).append(n.op_type)
    packed = _in_packed_codes(proto, nodes)

    def counts(t: onnx.TensorProto) -> bool:
        if t.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
            return False
        return is_parameter(onnx.helper.tensor_dtype_to_np_dtype(t.data_type), readers.get(t.name, ()))

    return sum(packed.get(t.name, int(np.prod(t.dims))) for t in external.stored_tensors(proto) if counts(t))


def _in_packed_codes(proto: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    """How many numbers each weight holds of which several share a byte in a way that its shape does not tell."""
    reading = [n for n in nodes if packed_codes.reads(n.op_type)]
    dims = {t.name: t.dims for t in external.stored_tensors(proto) if t.name} if reading else {}
    types = {t.name: t.data_type for t in external.stored_tensors(proto)} if reading else {}
    counts: dict[str, int] = {}
    for n in reading:
        shapes = {k: dims[i] for k, i in enumerate(n.input) if i in dims}
        attributes = {a.name: int(a.i) for a in n.attribute if a.type == onnx.AttributeProto.INT}
        for k, i in enumerate(n.input):
            count = packed_codes.numbers_in(n.op_type, k, shapes, attributes)
            if count is not None and types.get(i) == onnx.TensorProto.UINT8:
                counts[i] = count
    return counts
