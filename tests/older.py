"""The same network as an old exporter spells it: opset 9, IR version 3, every weight listed among the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET = 9
Constants = Mapping[str, NDArray[Any]]


def at_opset_9(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` in operators of opset 9; raises ValueError for one that has no spelling here."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    for n in proto.graph.node:
        if n.op_type == "Constant":
            constants[n.output[0]] = numpy_helper.to_array(n.attribute[0].t)
    nodes: list[onnx.NodeProto] = []
    for n in proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(n)
        if n.op_type in SPELLINGS:
            nodes += SPELLINGS[n.op_type](copy, constants)
        elif n.op_type in SAME:
            nodes.append(copy)
        else:
            raise ValueError(f"{n.op_type} has no spelling at opset {OPSET} here")
    for n in nodes:
        _without_newer_attributes(n)
    del result.graph.node[:], result.graph.value_info[:], result.opset_import[:]
    result.graph.node.extend(nodes)
    for n in nodes:
        if n.op_type == "Gemm" and len(n.input) == 2:
            weight = constants[n.input[1]]
            width = weight.shape[0 if any(a.name == "transB" and a.i for a in n.attribute) else 1]
            n.input.append(f"{n.output[0]}_zero")
            result.graph.initializer.append(numpy_helper.from_array(np.zeros(width, np.float32), n.input[2]))
    read = {i for n in nodes for i in n.input} | {o.name for o in proto.graph.output}
    kept = [t for t in result.graph.initializer if t.name in read]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    listed = {v.name for v in result.graph.input}
    result.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in kept if t.name not in listed
    )
    result.opset_import.append(helper.make_opsetid("", OPSET))
    result.ir_version = 3
    onnx.checker.check_model(result)
    return result


NEUTRAL: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("training_mode", "ceil_mode", "allowzero", "noop_with_empty_axes"), lambda v: v == 0),
    "dilations": lambda v: set(v) == {1},
}


def _without_newer_attributes(node: onnx.NodeProto) -> None:
    """Leave out what opset 9 has no attribute for, if it says what opset 9 does anyway."""
    known = onnx.defs.get_schema(node.op_type, OPSET).attributes
    newer = [a for a in node.attribute if a.name not in known]
    for a in newer:
        if a.name not in NEUTRAL or not NEUTRAL[a.name](helper.get_attribute_value(a)):
            raise ValueError(f"{node.op_type} has no attribute {a.name} at opset {OPSET}")
        node.attribute.remove(a)


def _attribute(name: str, slot: int) -> Callable[[onnx.NodeProto, Constants], list[onnx.NodeProto]]:
    """What was an attribute then is a constant input now."""

    def spell(node: onnx.NodeProto, constants: Constants) -> list[onnx.NodeProto]:
        if len(node.input) > slot:
            values = constants[node.input[slot]]
            del node.input[slot:]
            node.attribute.append(helper.make_attribute(name, [int(v) for v in values.ravel()]))
        return [node]

    return spell


def _clip(node: onnx.NodeProto, constants: Constants) -> list[onnx.NodeProto]:
    bounds = {k: float(constants[i]) for k, i in zip(("min", "max"), node.input[1:], strict=False) if i}
    del node.input[1:]
    node.attribute.extend(helper.make_attribute(k, v) for k, v in bounds.items())
    return [node]


def _pad(node: onnx.NodeProto, constants: Constants) -> list[onnx.NodeProto]:
    pads = [int(v) for v in constants[node.input[1]]]
    value = float(constants[node.input[2]]) if len(node.input) > 2 and node.input[2] else 0.0
    del node.input[1:]
    node.attribute.extend([helper.make_attribute("pads", pads), helper.make_attribute("value", value)])
    return [node]


def _slice(node: onnx.NodeProto, constants: Constants) -> list[onnx.NodeProto]:
    names = ("starts", "ends", "axes", "steps")
    given = {k: [int(v) for v in constants[i].ravel()] for k, i in zip(names, node.input[1:], strict=False) if i}
    if any(s != 1 for s in given.pop("steps", [])):
        raise ValueError(f"Slice has no steps at opset {OPSET}")
    del node.input[1:]
    node.attribute.extend(helper.make_attribute(k, v) for k, v in given.items())
    return [node]


def _hard_swish(node: onnx.NodeProto, constants: Constants) -> list[onnx.NodeProto]:
    gate = f"{node.output[0]}_gate"
    return [
        helper.make_node("HardSigmoid", [node.input[0]], [gate], alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", [node.input[0], gate], [node.output[0]], name=node.name),
    ]


SAME = set(
    "Add AveragePool BatchNormalization Cast Concat Conv Div Flatten Gather Gemm GlobalAveragePool Identity LeakyRelu "
    "MatMul MaxPool Mul PRelu Pow Relu Reshape Sigmoid Sqrt Sub Sum Tanh Transpose Constant HardSigmoid ConvTranspose "
    "InstanceNormalization Erf Exp Shape Expand Where".split()
)


def _reshape(node: onnx.NodeProto, constants: Constants) -> list[onnx.NodeProto]:
    """A target without zeros means the same with and without `allowzero`."""
    target = constants.get(node.input[1])
    if target is not None and (target != 0).all():
        for a in [a for a in node.attribute if a.name == "allowzero"]:
            node.attribute.remove(a)
    return [node]


SPELLINGS: Mapping[str, Callable[[onnx.NodeProto, Constants], list[onnx.NodeProto]]] = {
    "Clip": _clip,
    "HardSwish": _hard_swish,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _attribute("axes", 1)),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), _attribute("axes", 1)),
    "Split": _attribute("split", 1),
}
