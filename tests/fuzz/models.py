"""Mutations of models: small functions that damage one thing of a ModelProto, or of its bytes, by a random generator.

A mutator does nothing where the model has no such thing. A new one is a function with the decorator of its table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.fuzz.choice import Rng, pick

MUTATORS: dict[str, Callable[[onnx.ModelProto, Rng], None]] = {}
BYTE_MUTATORS: dict[str, Callable[[bytes, Rng], bytes]] = {}

INTEGERS = (0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, -1.0, 0.5, float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-45)
STRINGS = (
    "",
    " ",
    "\x1b[31mred",
    "a\nb",
    "\u202e",
    "x" * 3000,
    "../../x",
    "/etc/passwd",
    "%s{}",
    "nearest",
    "SAME_UPPER",
)
PLACES = ("weights.bin", "missing.bin", "../weights.bin", "/etc/passwd", "link.bin", "/dev/zero", "", ".", "a\0b")
ELEMENTS = (*range(26), 99, -1, 2**31 - 1)
OPERATORS = tuple(
    "Add Mul Div Pow Mod MatMul Gemm Conv ConvTranspose Relu Softmax BatchNormalization LayerNormalization Reshape "
    "Transpose Concat Split Slice Gather Pad Expand Tile Resize Squeeze Unsqueeze Flatten ReduceMean ReduceSum MaxPool "
    "AveragePool GlobalAveragePool Shape ConstantOfShape Range Cast Where Einsum TopK NonMaxSuppression LSTM GRU Loop "
    "If Scan SequenceAt Optional STFT DFT Col2Im GridSample DepthToSpace OneHot CumSum Identity Dropout QLinearConv "
    "DequantizeLinear MatMulInteger StringNormalizer Unknown Attention GroupNormalization InstanceNormalization "
    "RandomNormal ImageDecoder RegexFullMatch ScatterND GatherND GatherElements MeanVarianceNormalization Trilu".split()
)


def model(function: Callable[[onnx.ModelProto, Rng], None]) -> Callable[[onnx.ModelProto, Rng], None]:
    """Put a mutator of models into the table."""
    MUTATORS[function.__name__] = function
    return function


def content(function: Callable[[bytes, Rng], bytes]) -> Callable[[bytes, Rng], bytes]:
    """Put a mutator of bytes into the table."""
    BYTE_MUTATORS[function.__name__] = function
    return function


# places


def graphs(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The main graph and the bodies in it."""
    found = [proto.graph]
    for g in found:
        found += [b for n in g.node for a in n.attribute for b in ((a.g,) if a.HasField("g") else a.graphs)]
    return found


def node_lists(proto: onnx.ModelProto) -> list[Any]:
    """Lists of nodes that are not empty, of graphs, bodies and functions."""
    return [x.node for x in (*graphs(proto), *proto.functions) if x.node]


def node(proto: onnx.ModelProto, rng: Rng) -> onnx.NodeProto | None:
    """Any node."""
    lists = node_lists(proto)
    return pick(rng, pick(rng, lists)) if lists else None


def tensors(proto: onnx.ModelProto) -> list[TensorProto]:
    """Initializers and tensors in attributes."""
    found = [t for g in graphs(proto) for t in g.initializer]
    return found + [a.t for x in node_lists(proto) for n in x for a in n.attribute if a.HasField("t")]


def values(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Declared inputs, outputs and inner values."""
    return [v for g in graphs(proto) for v in (*g.input, *g.output, *g.value_info)]


def names(proto: onnx.ModelProto) -> list[str]:
    """Names of tensors, and the empty one."""
    found = {i for x in node_lists(proto) for n in x for i in (*n.input, *n.output)}
    return sorted(found | {v.name for v in values(proto)} | {""})


# nodes


@model
def drop_node(proto: onnx.ModelProto, rng: Rng) -> None:
    lists = node_lists(proto)
    if lists:
        nodes = pick(rng, lists)
        del nodes[int(rng.integers(len(nodes)))]


@model
def duplicate_node(proto: onnx.ModelProto, rng: Rng) -> None:
    lists = node_lists(proto)
    if not lists:
        return
    nodes = pick(rng, lists)
    copy = onnx.NodeProto()
    copy.CopyFrom(pick(rng, nodes))
    if rng.random() < 0.7:
        for i, name in enumerate(copy.output):
            copy.output[i] = f"{name}_again"
    nodes.append(copy)


@model
def swap_nodes(proto: onnx.ModelProto, rng: Rng) -> None:
    lists = node_lists(proto)
    if not lists:
        return
    nodes = pick(rng, lists)
    a, b = (int(rng.integers(len(nodes))) for _ in range(2))
    first, second = onnx.NodeProto(), onnx.NodeProto()
    first.CopyFrom(nodes[a])
    second.CopyFrom(nodes[b])
    nodes[a].CopyFrom(second)
    nodes[b].CopyFrom(first)


@model
def change_operator(proto: onnx.ModelProto, rng: Rng) -> None:
    n = node(proto, rng)
    if n is not None:
        n.op_type = pick(rng, OPERATORS)


@model
def change_domain(proto: onnx.ModelProto, rng: Rng) -> None:
    n = node(proto, rng)
    if n is not None:
        n.domain = pick(rng, ("com.microsoft", "ai.onnx.ml", "ai.onnx", "unknown.domain", ""))


@model
def rewire_input(proto: onnx.ModelProto, rng: Rng) -> None:
    n = node(proto, rng)
    if n is not None and n.input:
        n.input[int(rng.integers(len(n.input)))] = pick(rng, names(proto))


@model
def add_or_drop_input(proto: onnx.ModelProto, rng: Rng) -> None:
    n = node(proto, rng)
    if n is None:
        return
    if n.input and rng.random() < 0.5:
        del n.input[int(rng.integers(len(n.input)))]
    else:
        n.input.append(pick(rng, names(proto)))


@model
def rename_output(proto: onnx.ModelProto, rng: Rng) -> None:
    n = node(proto, rng)
    if n is not None and n.output:
        n.output[int(rng.integers(len(n.output)))] = pick(rng, (*names(proto), *STRINGS))


@model
def add_or_drop_output(proto: onnx.ModelProto, rng: Rng) -> None:
    n = node(proto, rng)
    if n is None:
        return
    if n.output and rng.random() < 0.5:
        del n.output[int(rng.integers(len(n.output)))]
    else:
        n.output.append(pick(rng, ("", "further", "further2")))


@model
def name_node(proto: onnx.ModelProto, rng: Rng) -> None:
    n = node(proto, rng)
    if n is not None:
        n.name = pick(rng, STRINGS)


@model
def rename_everywhere(proto: onnx.ModelProto, rng: Rng) -> None:
    old, new = pick(rng, names(proto)), pick(rng, STRINGS)
    for x in node_lists(proto):
        for n in x:
            for side in (n.input, n.output):
                for i, name in enumerate(side):
                    if name == old:
                        side[i] = new
    for v in (*values(proto), *tensors(proto)):
        if v.name == old:
            v.name = new


@model
def insert_node(proto: onnx.ModelProto, rng: Rng) -> None:
    """A node between some tensor and one of its readers, with the operator's other inputs left out."""
    lists = node_lists(proto)
    if not lists:
        return
    nodes = pick(rng, lists)
    at = int(rng.integers(len(nodes)))
    if not nodes[at].input:
        return
    slot = int(rng.integers(len(nodes[at].input)))
    rest = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    new = helper.make_node(pick(rng, OPERATORS), [rest[at].input[slot]], ["inserted"])
    rest[at].input[slot] = "inserted"
    del nodes[:]
    nodes.extend([*rest[:at], new, *rest[at:]])


# attributes


@model
def change_attribute(proto: onnx.ModelProto, rng: Rng) -> None:
    """Another value of the same type."""
    found = [a for x in node_lists(proto) for n in x for a in n.attribute]
    if not found:
        return
    a = pick(rng, found)
    if a.type == AttributeProto.INT:
        a.i = pick(rng, INTEGERS)
    elif a.type == AttributeProto.FLOAT:
        a.f = pick(rng, FLOATS)
    elif a.type == AttributeProto.STRING:
        a.s = pick(rng, (*(s.encode() for s in STRINGS), b"\xff\xfe", b"NOTSET", b"i,j->"))
    elif a.type == AttributeProto.INTS:
        change_integers(a.ints, rng)
    elif a.type == AttributeProto.FLOATS and a.floats:
        a.floats[int(rng.integers(len(a.floats)))] = pick(rng, FLOATS)


def change_integers(ints: Any, rng: Rng) -> None:
    """One more, one less, or another value."""
    how = rng.random()
    if how < 0.25 or not ints:
        ints.append(pick(rng, INTEGERS))
    elif how < 0.5:
        del ints[int(rng.integers(len(ints)))]
    else:
        ints[int(rng.integers(len(ints)))] = pick(rng, INTEGERS)


@model
def change_attribute_type(proto: onnx.ModelProto, rng: Rng) -> None:
    found = [a for x in node_lists(proto) for n in x for a in n.attribute]
    if not found:
        return
    a = pick(rng, found)
    if rng.random() < 0.5:
        a.type = pick(rng, tuple(range(15)))
        return
    value = pick(rng, (1, 0.5, "text", [1, -1], [0.5], ["a", "b"], numpy_helper.from_array(np.zeros(3, np.float32))))
    a.CopyFrom(helper.make_attribute(a.name, value))


@model
def drop_attribute(proto: onnx.ModelProto, rng: Rng) -> None:
    found = [n for x in node_lists(proto) for n in x if n.attribute]
    if found:
        n = pick(rng, found)
        del n.attribute[int(rng.integers(len(n.attribute)))]


@model
def add_attribute(proto: onnx.ModelProto, rng: Rng) -> None:
    n = node(proto, rng)
    if n is None:
        return
    name = pick(
        rng, "axis axes perm group strides pads dilations kernel_shape to epsilon alpha num_outputs allowzero".split()
    )
    n.attribute.append(
        helper.make_attribute(name, pick(rng, (pick(rng, INTEGERS), [pick(rng, INTEGERS)] * 2, 0.5, "x")))
    )


@model
def refer_to_attribute(proto: onnx.ModelProto, rng: Rng) -> None:
    found = [a for x in node_lists(proto) for n in x for a in n.attribute]
    if found:
        pick(rng, found).ref_attr_name = pick(rng, ("alpha", "", "missing"))


# tensors


@model
def change_dims(proto: onnx.ModelProto, rng: Rng) -> None:
    found = tensors(proto)
    if found:
        change_integers(pick(rng, found).dims, rng)


@model
def change_element_type(proto: onnx.ModelProto, rng: Rng) -> None:
    found = tensors(proto)
    if found:
        pick(rng, found).data_type = pick(rng, ELEMENTS)


@model
def change_raw_length(proto: onnx.ModelProto, rng: Rng) -> None:
    found = [t for t in tensors(proto) if t.HasField("raw_data")]
    if not found:
        return
    t = pick(rng, found)
    t.raw_data = pick(
        rng, (b"", t.raw_data[:-1], t.raw_data[: len(t.raw_data) // 2], t.raw_data + b"\0", t.raw_data * 2)
    )


@model
def fill_both_fields(proto: onnx.ModelProto, rng: Rng) -> None:
    found = tensors(proto)
    if found:
        t = pick(rng, found)
        getattr(t, pick(rng, ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"))).append(1)


@model
def change_values(proto: onnx.ModelProto, rng: Rng) -> None:
    """NaN and extremes among floats, impossible indices among integers."""
    found = [t for t in tensors(proto) if t.data_type in (TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32)]
    if not found:
        return
    t = pick(rng, found)
    try:
        array = numpy_helper.to_array(t).copy()
    except Exception:  # noqa: BLE001  it has been damaged before
        return
    if array.size:
        which = slice(None) if rng.random() < 0.3 else int(rng.integers(array.size))
        with np.errstate(all="ignore"):
            kept = np.iinfo(array.dtype) if array.dtype.kind == "i" else None
            value = pick(rng, FLOATS) if kept is None else min(max(pick(rng, INTEGERS), kept.min), kept.max)
            array.reshape(-1)[which] = value
    t.CopyFrom(numpy_helper.from_array(array, t.name))


@model
def resize_weight(proto: onnx.ModelProto, rng: Rng) -> None:
    """Another shape, with data that fits it."""
    found = [t for t in tensors(proto) if t.data_type == TensorProto.FLOAT and t.dims]
    if not found:
        return
    t = pick(rng, found)
    dims = list(t.dims)
    how = rng.random()
    if how < 0.4:
        dims[int(rng.integers(len(dims)))] = pick(rng, (0, 1, 2, 5))
    elif how < 0.7:
        dims = dims[::-1]
    else:
        dims = pick(rng, ([], [1, *dims], dims[:-1], [*dims, 1]))
    if 0 <= np.prod(dims, dtype=float) < 1e6:
        t.CopyFrom(numpy_helper.from_array(np.full(dims, 0.5, np.float32), t.name))


@model
def drop_weight(proto: onnx.ModelProto, rng: Rng) -> None:
    found = [g for g in graphs(proto) if g.initializer]
    if found:
        g = pick(rng, found)
        del g.initializer[int(rng.integers(len(g.initializer)))]


@model
def duplicate_weight(proto: onnx.ModelProto, rng: Rng) -> None:
    found = [g for g in graphs(proto) if g.initializer]
    if found:
        g = pick(rng, found)
        g.initializer.add().CopyFrom(pick(rng, g.initializer))


@model
def share_weight(proto: onnx.ModelProto, rng: Rng) -> None:
    """One weight in the place of another."""
    weights = [t.name for g in graphs(proto) for t in g.initializer]
    if len(weights) < 2:
        return
    old, new = pick(rng, weights), pick(rng, weights)
    for x in node_lists(proto):
        for n in x:
            for i, name in enumerate(n.input):
                if name == old:
                    n.input[i] = new


@model
def list_weight_as_input(proto: onnx.ModelProto, rng: Rng) -> None:
    if proto.graph.initializer:
        t = pick(rng, proto.graph.initializer)
        proto.graph.input.append(helper.make_tensor_value_info(t.name, max(t.data_type, 0), list(t.dims)))


@model
def point_outside(proto: onnx.ModelProto, rng: Rng) -> None:
    """A reference to a file: missing, above the folder, absolute, a link, a device, beyond its end."""
    found = tensors(proto)
    if not found:
        return
    t = pick(rng, found)
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    place = pick(
        rng, ("weights.bin", "missing.bin", "../weights.bin", "/etc/passwd", "link.bin", "/dev/zero", "", ".", "a\0b")
    )
    t.external_data.add(key="location", value=place)
    for key in ("offset", "length"):
        if rng.random() < 0.5:
            t.external_data.add(key=key, value=str(pick(rng, (*INTEGERS, "x", "", "1e3"))))


@model
def make_sparse(proto: onnx.ModelProto, rng: Rng) -> None:
    if not proto.graph.initializer:
        return
    t = pick(rng, proto.graph.initializer)
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), t.name))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, pick(rng, INTEGERS)], np.int64), "indices"))
    sparse.dims.extend(t.dims)
    if rng.random() < 0.7:
        proto.graph.initializer.remove(t)


# declarations


@model
def change_declared_dim(proto: onnx.ModelProto, rng: Rng) -> None:
    found = [v for v in values(proto) if v.type.HasField("tensor_type") and v.type.tensor_type.shape.dim]
    if not found:
        return
    d = pick(rng, pick(rng, found).type.tensor_type.shape.dim)
    if rng.random() < 0.3:
        d.dim_param = pick(rng, ("N", "batch", "", "x y", "\x1b[2J"))
    else:
        d.dim_value = pick(rng, INTEGERS)


@model
def change_declared_rank(proto: onnx.ModelProto, rng: Rng) -> None:
    found = [v for v in values(proto) if v.type.HasField("tensor_type")]
    if not found:
        return
    shape = pick(rng, found).type.tensor_type.shape
    if shape.dim and rng.random() < 0.5:
        del shape.dim[int(rng.integers(len(shape.dim)))]
    else:
        shape.dim.add().dim_value = pick(rng, (0, 1, 2, 3))


@model
def change_declared_type(proto: onnx.ModelProto, rng: Rng) -> None:
    found = [v for v in values(proto) if v.type.HasField("tensor_type")]
    if found:
        pick(rng, found).type.tensor_type.elem_type = pick(rng, ELEMENTS)


@model
def declare_otherwise(proto: onnx.ModelProto, rng: Rng) -> None:
    """No type, no shape, a sequence, an optional, a map, or a sparse tensor."""
    found = values(proto)
    if not found:
        return
    v = pick(rng, found)
    how = int(rng.integers(6))
    inner = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    if how == 0:
        v.ClearField("type")
    elif how == 1:
        v.type.tensor_type.ClearField("shape")
    elif how == 2:
        v.type.CopyFrom(helper.make_sequence_type_proto(inner))
    elif how == 3:
        v.type.CopyFrom(helper.make_optional_type_proto(inner))
    elif how == 4:
        v.type.CopyFrom(helper.make_map_type_proto(TensorProto.INT64, inner))
    else:
        v.type.CopyFrom(helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [2, 2]))


@model
def add_or_drop_port(proto: onnx.ModelProto, rng: Rng) -> None:
    g = pick(rng, graphs(proto))
    ports = g.input if rng.random() < 0.5 else g.output
    if ports and rng.random() < 0.5:
        del ports[int(rng.integers(len(ports)))]
    else:
        ports.append(helper.make_tensor_value_info(pick(rng, names(proto)), TensorProto.FLOAT, [1]))


@model
def swap_ports(proto: onnx.ModelProto, rng: Rng) -> None:
    g = pick(rng, graphs(proto))
    everything = [*g.input, *g.output]
    if len(everything) > 1:
        a, b = (pick(rng, everything) for _ in range(2))
        a.name, b.name = b.name, a.name


# the model as a whole


@model
def change_opset(proto: onnx.ModelProto, rng: Rng) -> None:
    if proto.opset_import:
        pick(rng, proto.opset_import).version = pick(rng, (*range(0, 30), *INTEGERS))


@model
def add_or_drop_opset(proto: onnx.ModelProto, rng: Rng) -> None:
    if proto.opset_import and rng.random() < 0.4:
        del proto.opset_import[int(rng.integers(len(proto.opset_import)))]
    else:
        domain = pick(rng, ("", "ai.onnx", "com.microsoft", "ai.onnx.ml", "local", "unknown"))
        proto.opset_import.append(helper.make_opsetid(domain, pick(rng, (1, 7, 13, 21, 2**31))))


@model
def change_ir_version(proto: onnx.ModelProto, rng: Rng) -> None:
    proto.ir_version = pick(rng, (*range(0, 15), 2**31, -1))


@model
def change_texts(proto: onnx.ModelProto, rng: Rng) -> None:
    setattr(proto, pick(rng, ("producer_name", "doc_string", "domain")), pick(rng, STRINGS))
    proto.graph.name = pick(rng, STRINGS)
    proto.metadata_props.add(key=pick(rng, STRINGS), value=pick(rng, STRINGS))


@model
def make_function(proto: onnx.ModelProto, rng: Rng) -> None:
    """A local function: a plain one, one that calls itself, or one under a standard operator's name."""
    n = node(proto, rng)
    if n is None:
        return
    name = pick(rng, (n.op_type, "Local"))
    domain = pick(rng, ("local", n.domain))
    called = pick(rng, ("Relu", name))
    inner = helper.make_node(called, ["a"], ["b"], domain="" if called == "Relu" else domain)
    proto.functions.append(helper.make_function(domain, name, ["a"], ["b"], [inner], [helper.make_opsetid("", 13)]))
    n.op_type, n.domain = name, domain
    proto.opset_import.append(helper.make_opsetid(domain or "local", 1))


@model
def wrap_in_if(proto: onnx.ModelProto, rng: Rng) -> None:
    """A node moves into a branch; the other one gives something else."""
    g = proto.graph
    if not g.node:
        return
    at = int(rng.integers(len(g.node)))
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in g.node]
    moved = nodes[at]
    if not moved.output or not moved.input:
        return
    ports = [helper.make_empty_tensor_value_info(o) for o in moved.output]
    other = onnx.NodeProto.FromString(moved.SerializeToString())
    if rng.random() < 0.3:
        other = helper.make_node(pick(rng, ("Identity", "Relu", "Shape")), [moved.input[0]], [moved.output[0]])
    branches = {"then_branch": helper.make_graph([moved], "then", [], ports)}
    branches["else_branch"] = helper.make_graph([other], "else", [], ports[: pick(rng, (0, None, None, None))])
    g.initializer.append(numpy_helper.from_array(np.array(rng.random() < 0.5), "condition"))
    nodes[at] = helper.make_node("If", ["condition"], list(moved.output), **branches)
    del g.node[:]
    g.node.extend(nodes)


@model
def nest_deeply(proto: onnx.ModelProto, rng: Rng) -> None:
    if rng.random() < 0.7:
        return
    inner = helper.make_graph([], "innermost", [], [])
    for _ in range(pick(rng, (3, 30, 90))):
        n = helper.make_node("If", [pick(rng, names(proto))], ["deep"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([n], "level", [], [helper.make_empty_tensor_value_info("deep")])
        if inner.ByteSize() > 1 << 20:
            break
    proto.graph.node.extend(inner.node)


@model
def explode(proto: onnx.ModelProto, rng: Rng) -> None:
    """A constant part that would make something enormous, added to what some node reads."""
    g = proto.graph
    places = [i for i, n in enumerate(g.node) if n.input and n.input[0]]
    if not places:
        return
    at = pick(rng, places)
    size = pick(rng, (2**20, 2**31, 2**40, 2**62))
    g.initializer.append(numpy_helper.from_array(np.array([size], np.int64), "many"))
    g.initializer.append(numpy_helper.from_array(np.array([1.0], np.float32), "single"))
    bomb = pick(rng, ("ConstantOfShape", "Expand", "Tile"))
    made = helper.make_node(bomb, ["many"] if bomb == "ConstantOfShape" else ["single", "many"], ["enormous"])
    total = helper.make_node("ReduceMax", ["enormous"], ["total"], keepdims=0)
    added = helper.make_node("Add", [g.node[at].input[0], "total"], ["larger"])
    put_before(g, at, [made, total, added])
    g.node[at + 3].input[0] = "larger"


def put_before(graph: onnx.GraphProto, at: int, new: Sequence[onnx.NodeProto]) -> None:
    """New nodes in front of one."""
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    del graph.node[:]
    graph.node.extend([*nodes[:at], *new, *nodes[at:]])


# what mostly leaves a sound model


UNARY = tuple(
    "Relu Sigmoid Tanh Exp Log Sqrt Abs Neg Floor Ceil Round Sign Erf Softmax LogSoftmax Hardmax Identity Transpose "
    "Shape Size GlobalAveragePool Flatten ReduceSum ReduceMean ReduceMax ArgMax Dropout LpNormalization IsNaN Not "
    "Reciprocal Softplus Selu Elu LeakyRelu HardSigmoid ThresholdedRelu Det NonZero CumSum Unique".split()
)
ALIKE = (
    UNARY,
    ("Add", "Mul", "Sub", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu", "MatMul", "Equal", "Greater", "Mod"),
    ("Conv", "ConvTranspose", "MatMul", "Gemm"),
    ("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool"),
    ("LSTM", "GRU", "RNN"),
    ("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "Gather", "Pad"),
)


@model
def insert_unary(proto: onnx.ModelProto, rng: Rng) -> None:
    g = proto.graph
    places = [(i, k) for i, n in enumerate(g.node) for k, name in enumerate(n.input) if name]
    if places:
        at, slot = pick(rng, places)
        put_before(g, at, [helper.make_node(pick(rng, UNARY), [g.node[at].input[slot]], [f"unary_{at}_{slot}"])])
        g.node[at + 1].input[slot] = f"unary_{at}_{slot}"


@model
def swap_alike(proto: onnx.ModelProto, rng: Rng) -> None:
    """An operator that takes as many inputs."""
    found = [(n, ops) for x in node_lists(proto) for n in x for ops in ALIKE if n.op_type in ops]
    if found:
        n, ops = pick(rng, found)
        n.op_type = pick(rng, ops)
        if rng.random() < 0.7:
            del n.attribute[:]


@model
def return_inner(proto: onnx.ModelProto, rng: Rng) -> None:
    """One more output, with or without a type."""
    inner = [o for n in proto.graph.node for o in n.output if o]
    if inner:
        name = pick(rng, inner)
        plain = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        proto.graph.output.append(plain if rng.random() < 0.7 else helper.make_empty_tensor_value_info(name))


@model
def widen(proto: onnx.ModelProto, rng: Rng) -> None:
    """Another number type everywhere."""
    kind, numpy_kind = pick(rng, ((TensorProto.DOUBLE, np.float64), (TensorProto.FLOAT16, np.float16)))
    for t in tensors(proto):
        if t.data_type == TensorProto.FLOAT:
            try:
                array = numpy_helper.to_array(t)
            except Exception:  # noqa: BLE001  it has been damaged before
                continue
            with np.errstate(all="ignore"):
                t.CopyFrom(numpy_helper.from_array(array.astype(numpy_kind), t.name))
    for v in values(proto):
        if v.type.HasField("tensor_type") and v.type.tensor_type.elem_type == TensorProto.FLOAT:
            v.type.tensor_type.elem_type = kind


@model
def free_dim(proto: onnx.ModelProto, rng: Rng) -> None:
    """A size of an input becomes symbolic, or a symbol a size."""
    dims = [d for v in proto.graph.input if v.type.HasField("tensor_type") for d in v.type.tensor_type.shape.dim]
    if not dims:
        return
    d = pick(rng, dims)
    if d.HasField("dim_value"):
        d.dim_param = pick(rng, ("N", "L", "free"))
    else:
        d.dim_value = pick(rng, (1, 2, 4))


GENTLE = (
    insert_unary,
    swap_alike,
    return_inner,
    widen,
    free_dim,
    change_values,
    change_attribute,
    drop_attribute,
    share_weight,
    list_weight_as_input,
    rename_everywhere,
    change_declared_rank,
    change_declared_dim,
    wrap_in_if,
    change_opset,
    resize_weight,
    add_or_drop_output,
)


# bytes


@content
def flip_bytes(blob: bytes, rng: Rng) -> bytes:
    found = bytearray(blob)
    for _ in range(int(rng.integers(1, 9))):
        if found:
            found[int(rng.integers(len(found)))] ^= 1 << int(rng.integers(8))
    return bytes(found)


@content
def flip_early_bytes(blob: bytes, rng: Rng) -> bytes:
    head = min(len(blob), 300)
    return flip_bytes(blob[:head], rng) + blob[head:]


@content
def cut_short(blob: bytes, rng: Rng) -> bytes:
    return blob[: int(rng.integers(len(blob) + 1))]


@content
def append_bytes(blob: bytes, rng: Rng) -> bytes:
    return blob + pick(rng, (b"\0", b"\xff" * 20, blob, rng.bytes(50)))


@content
def cut_out(blob: bytes, rng: Rng) -> bytes:
    start = int(rng.integers(len(blob) + 1))
    return blob[:start] + blob[start + int(rng.integers(1, 40)) :]


@content
def break_text(blob: bytes, rng: Rng) -> bytes:
    """A name that is no UTF-8."""
    for old in (b"weight", b"Relu", b"Conv", b"MatMul", b"main"):
        if old in blob and rng.random() < 0.6:
            return blob.replace(old, b"\xff" * len(old), 1)
    return blob


def beside(folder: Path) -> None:
    """The files that `point_outside` may name."""
    (folder / "weights.bin").write_bytes(bytes(4096))
    (folder / "link.bin").symlink_to("/etc/passwd")
