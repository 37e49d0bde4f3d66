"""The same network in another graph form: part of a given model moved into the body of an If or a Loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.bodies import captured_names, rename

_INNER = "inner_"


def in_branches(proto: onnx.ModelProto, share: float = 0.5) -> onnx.ModelProto:
    """The last nodes, `share` of all, in both branches of an If, each with its own weights under the same names.

    The condition is computed from the first input and always true. Opset 13 or newer, standard operators only.
    """
    head, tail = _split(proto, share)
    result = _without_nodes(proto, head)
    outputs = _given(proto, head, tail)
    x = next(v.name for v in proto.graph.input)
    result.graph.initializer.append(numpy_helper.from_array(np.array(-1e30, np.float32), "lowest"))
    result.graph.node.extend(
        [
            helper.make_node("ReduceMax", [x], ["highest"], keepdims=0),
            helper.make_node("Greater", ["highest", "lowest"], ["condition"]),
        ]
    )
    bodies = {
        k: helper.make_graph(_renamed(tail), k, [], [_bare(_INNER + o) for o in outputs], _weights_of(proto, tail))
        for k in ("then_branch", "else_branch")
    }
    result.graph.node.append(helper.make_node("If", ["condition"], outputs, name="either", **bodies))
    return _tidy(result)


def in_loop(proto: onnx.ModelProto, share: float = 0.5) -> onnx.ModelProto:
    """The last nodes, `share` of all, in the body of a Loop of one step, with their weights.

    The first floating-point tensor that they read of the others is the Loop's state; their outputs are stacked, and
    taken apart again.
    """
    head, tail = _split(proto, share)
    result = _without_nodes(proto, head)
    outputs = _given(proto, head, tail)
    inferred = onnx.shape_inference.infer_shapes(proto).graph.value_info
    floats = {v.name for v in inferred if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    before = {o for n in head for o in n.output} & floats
    state = next(i for n in tail for i in n.input if i in before)
    nodes = [
        *_renamed(tail, {state: "state"}),
        helper.make_node("Identity", ["going"], ["still"]),
        helper.make_node("Identity", ["state"], ["same"]),
    ]
    body = helper.make_graph(
        nodes,
        "step",
        [
            helper.make_tensor_value_info("number", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("going", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", onnx.TensorProto.FLOAT, None),
        ],
        [_bare(o) for o in ("still", "same", *(_INNER + o for o in outputs))],
        _weights_of(proto, tail),
    )
    result.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "steps"))
    result.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "first"))
    stacked = [f"stacked_{o}" for o in outputs]
    ports = ["steps", "", state], ["last", *stacked]
    result.graph.node.append(helper.make_node("Loop", *ports, name="steps", body=body))
    result.graph.node.extend(
        helper.make_node("Gather", [s, "first"], [o], axis=0) for s, o in zip(stacked, outputs, strict=True)
    )
    return _tidy(result)


def nested(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The last nodes in the branches of an If, and that with others in a Loop."""
    return in_loop(in_branches(proto, 0.3), 0.6)


VARIANTS: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "if": in_branches,
    "loop": in_loop,
    "nested": nested,
}


def _split(proto: onnx.ModelProto, share: float) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    nodes = list(proto.graph.node)
    at = len(nodes) - round(share * len(nodes))
    return nodes[:at], nodes[at:]


def _given(proto: onnx.ModelProto, head: Sequence[onnx.NodeProto], tail: Sequence[onnx.NodeProto]) -> list[str]:
    """The graph outputs that the tail computes."""
    produced = {o for n in tail for o in n.output}
    assert head
    found = [o.name for o in proto.graph.output if o.name in produced]
    assert found
    return found


def _renamed(nodes: Sequence[onnx.NodeProto], names: Mapping[str, str] | None = None) -> list[onnx.NodeProto]:
    """The nodes with `inner_` before everything that they compute, and `names` for what they read."""
    own = {o: _INNER + o for n in nodes for o in n.output if o} | dict(names or {})
    result: list[onnx.NodeProto] = []
    for n in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(n)
        result.append(copy)
    rename(result, own)
    return result


def _weights_of(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> list[onnx.TensorProto]:
    read = {i for n in nodes for i in (*n.input, *captured_names(n))}
    return [t for t in proto.graph.initializer if t.name in read]


def _without_nodes(proto: onnx.ModelProto, head: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """The model with the nodes `head` alone, and the weights that they read."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    weights = _weights_of(proto, head)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(head)
    result.graph.initializer.extend(weights)
    return result


def _bare(name: str) -> onnx.ValueInfoProto:
    return onnx.ValueInfoProto(name=name)


def _tidy(proto: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(proto)
    return proto
