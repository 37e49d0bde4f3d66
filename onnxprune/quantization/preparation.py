"""A model as the quantizer reads it: weights are initializers, nodes have names, BatchNormalizations went into layers.

onnxruntime advises to optimize a model before it is quantized, since a pair of QuantizeLinear and DequantizeLinear
keeps apart what could have been folded. Of that, what changes numbers is here: a BatchNormalization behind a
convolution,

    y = γ (W x + b - μ) / √(σ² + ε) + β  =  (s W) x + (s (b - μ) + β),  s = γ / √(σ² + ε).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import TensorProto, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import bodies, external, protobuf
from onnxprune.graph.protobuf import copied
from onnxprune.graph.quantized import DEQUANTIZE, DYNAMIC, QUANTIZE
from onnxprune.numerics.arrays import Array

# The first opset whose QuantizeLinear and DequantizeLinear know an axis, for scales per channel.
OPSET = 13
_CODES = ("QLinear", "QGemm", "QAttention", "QMoE", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QEmbedLayer")
_STANDARD = ("", "ai.onnx")
# Before this version of the format every weight had to be an input, too.
_NO_DUTY = 4


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model in float32 that can be quantized.

    named: names that nodes without one got, which the result does without. notes: what was done to get there.
    """

    model: onnx.ModelProto
    named: frozenset[str]
    notes: tuple[str, ...]


def refused(proto: onnx.ModelProto, into: str = "8-bit integers") -> str:
    """Why a model cannot be brought into fewer bits, which are called `into`; "" where it can."""
    nodes = [*bodies.every_node(proto.graph), *(n for f in proto.functions for n in f.node)]
    coded = Counter(n.op_type for n in nodes if _computes_on_codes(n))
    if coded:
        name, count = coded.most_common(1)[0]
        of = f"{count} nodes are {name}" if count > 1 else f"it has a node {name}"
        return f"the model is quantized already ({of}), and stays so where it is pruned"
    types = Counter(t.data_type for t in proto.graph.initializer if len(t.dims) > 1)
    narrow = types[TensorProto.FLOAT16] + types[TensorProto.BFLOAT16]
    if narrow and not types[TensorProto.FLOAT]:
        kind = "float16" if types[TensorProto.FLOAT16] else "bfloat16"
        return f"the model computes in {kind}, and {into} can only be made of float32: export it in that"
    if types[TensorProto.DOUBLE] and not types[TensorProto.FLOAT]:
        return f"the model computes in float64, and {into} can only be made of float32: export it in that"
    return ""


def _computes_on_codes(n: onnx.NodeProto) -> bool:
    return n.op_type in (QUANTIZE, DEQUANTIZE, DYNAMIC) or n.op_type.startswith(_CODES) or n.op_type.endswith("Integer")


def prepared(proto: onnx.ModelProto, into: str = "8-bit integers") -> Prepared:
    """A copy that can be quantized, which computes the same up to rounding. Raises ModelError.

    into: what the fewer bits are called.
    Weights that lie in files are read.
    """
    if why := refused(proto, into):
        raise ModelError(why)
    notes: list[str] = []
    model = copied(external.embedded(proto))
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if protobuf.opset_of(model) < OPSET:
        model = _brought_up(model)
        notes.append(f"the model is in opset {protobuf.opset_of(proto)}; onnx's converter brought it to opset {OPSET}")
    if model.ir_version < _NO_DUTY:
        _weights_are_no_inputs(model)
    bodies.name_uniquely(model)
    _constants_as_weights(model)
    count = _fold_normalizations(model)
    if count:
        notes.append(f"{count} BatchNormalizations became part of the convolutions in front of them")
    return Prepared(model, _name_nodes(model), tuple(notes))


def _brought_up(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in the first opset that has scales per channel. Raises ModelError."""
    try:
        newer: onnx.ModelProto = onnx.version_converter.convert_version(model, OPSET)
        protobuf.check(newer, strict=False)
    except Exception as e:  # the converter's and the checker's errors share no base class
        raise ModelError(
            f"the model is in opset {protobuf.opset_of(model)}, 8-bit integers per channel need {OPSET}, and onnx's "
            f"converter does not bring it there ({' '.join(str(e).split())[:200]}); export it anew with a newer opset"
        ) from e
    newer.ir_version = max(newer.ir_version, 7)
    return newer


def _weights_are_no_inputs(model: onnx.ModelProto) -> None:
    """Leave the weights out of the list of inputs, in place."""
    stored = {t.name for t in model.graph.initializer}
    inputs = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in model.graph.input if v.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = _NO_DUTY


def _constants_as_weights(model: onnx.ModelProto) -> None:
    """Make initializers, in place, of the Constant nodes of the main graph that hold a tensor."""
    outputs = {o.name for o in model.graph.output}
    for n in [n for n in model.graph.node if n.op_type == "Constant" and n.domain in _STANDARD]:
        value = next((a.t for a in n.attribute if a.name == "value"), None)
        if value is None or n.output[0] in outputs:
            continue
        weight = model.graph.initializer.add()
        weight.CopyFrom(value)
        weight.name = n.output[0]
        model.graph.node.remove(n)


def constants_of(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """The initializers that are no inputs with a default, by name."""
    given = {i.name for i in model.graph.input}
    return {t.name: t for t in model.graph.initializer if t.name not in given}


def readers_of(model: onnx.ModelProto) -> Counter[str]:
    """How many times each tensor is read: by nodes, also inside bodies, and as an output."""
    counts = Counter(i for n in bodies.every_node(model.graph) for i in n.input if i)
    counts.update(o.name for o in model.graph.output)
    for body in bodies.every_body(model.graph):
        counts.update(o.name for o in body.output)
    return counts


def _fold_normalizations(model: onnx.ModelProto) -> int:
    """Fold, in place, BatchNormalizations into the convolutions that they alone read; how many."""
    constants, readers = constants_of(model), readers_of(model)
    producer = {n.output[0]: n for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose")}
    folded = []
    for n in model.graph.node:
        if n.op_type != "BatchNormalization" or n.domain not in _STANDARD or len([o for o in n.output if o]) > 1:
            continue
        layer = producer.get(n.input[0])
        if layer is None or layer.domain not in _STANDARD or readers[n.input[0]] != 1:
            continue
        wanted = (*n.input[1:5], *layer.input[1:3])
        floats = all(i in constants and constants[i].data_type == TensorProto.FLOAT for i in wanted)
        if not floats or readers[layer.input[1]] != 1 or protobuf.int_attribute(n, "training_mode", 0):
            continue
        if layer.op_type == "ConvTranspose" and protobuf.int_attribute(layer, "group", 1) != 1:
            continue
        _fold(n, layer, constants, model)
        folded.append(n)
    for n in folded:
        model.graph.node.remove(n)
    return len(folded)


def _fold(
    n: onnx.NodeProto, layer: onnx.NodeProto, constants: Mapping[str, TensorProto], model: onnx.ModelProto
) -> None:
    gamma, beta, mean, variance = (_array(constants[i]) for i in n.input[1:5])
    epsilon = next((a.f for a in n.attribute if a.name == "epsilon"), 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    weight = constants[layer.input[1]]
    w = _array(weight)
    axis = 0 if layer.op_type == "Conv" else 1
    shape = [1] * w.ndim
    shape[axis] = -1
    weight.CopyFrom(numpy_helper.from_array((w * scale.reshape(shape)).astype(np.float32), weight.name))
    bias = _array(constants[layer.input[2]]) if len(layer.input) > 2 else 0.0
    name = f"{layer.output[0]}_bias"
    model.graph.initializer.append(numpy_helper.from_array((scale * (bias - mean) + beta).astype(np.float32), name))
    del layer.input[2:]
    layer.input.append(name)
    layer.output[0] = n.output[0]


def _array(tensor: TensorProto) -> Array:
    values: Array = external.array_of(tensor).astype(np.float64)
    return values


def _name_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """Give every node of the main graph a name of its own, in place; those that were given."""
    taken = Counter(n.name for n in model.graph.node)
    given = set()
    for i, n in enumerate(model.graph.node):
        if not n.name or taken[n.name] > 1:
            name = f"{n.op_type}__{i}"
            while name in taken or name in given:
                name += "_"
            n.name = name
            given.add(name)
    return frozenset(given)
