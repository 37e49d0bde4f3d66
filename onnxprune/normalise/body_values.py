"""What is measured inside bodies: a body of If, Loop or Scan is run as a model on the values that it captures.

An If's branch runs once for each set of inputs, whether or not the If would take it; a body of Loop or Scan for two
iterations. Where that fails (a branch that does not fit these inputs, values that are no tensors) nothing is known of
the body, and what it holds stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import RunError
from onnxprune.graph import bodies, external, protobuf
from onnxprune.graph.view import Shape
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Feeds, Session

_ITERATIONS = 2


@dataclass(frozen=True, eq=False)
class Inside:
    """A body as a model, and its inputs at several sizes and iterations.

    iterates: whether all iterations ran that should: without them, nothing is known to be the same in each.
    """

    model: onnx.ModelProto
    runs: list[dict[str, Array]]
    iterates: bool


def read_by_bodies(proto: onnx.ModelProto, runs: Sequence[Feeds]) -> list[dict[str, Array]] | None:
    """For each of the inputs `runs`: what the nodes with bodies read and capture; None where the model does not run."""
    names: dict[str, None] = {}
    for node in proto.graph.node:
        if bodies.bodies_of(node):
            names.update((i, None) for i in (*node.input, *bodies.captured_names(node)) if i)
    weights = {t.name: external.array_of(t) for t in proto.graph.initializer if t.name in names}
    values_by_run: list[dict[str, Array]] = []
    for feeds in runs:
        values = _values(proto, [i for i in names if i not in weights], feeds)
        if values is None:
            return None
        values_by_run.append({**weights, **values})
    return values_by_run


def inside(
    proto: onnx.ModelProto,
    node: onnx.NodeProto,
    body: onnx.GraphProto,
    stored: Mapping[str, onnx.TensorProto],
    values: Sequence[Mapping[str, Array]],
) -> Inside | None:
    """The inputs of `body` of `node`, given what `read_by_bodies` gives; None where they cannot be told.

    stored: the `bodies.weights_of` the model. values: of outer tensors, run by run.
    """
    alone = onnx.NodeProto()
    alone.attribute.append(helper.make_attribute("body", body))
    captured = [c for c in bodies.captured_names(alone) if c not in stored]
    runs: list[dict[str, Array]] = []
    model: onnx.ModelProto | None = None
    for outer in values:
        first = _first_inputs(node, body, outer)
        if first is None:
            return None
        inputs = {c: outer[c] for c in captured} | first
        if not all(isinstance(v, np.ndarray) for v in inputs.values()):
            return None
        if model is None:
            types = {k: helper.make_tensor_type_proto(_type(v), None) for k, v in inputs.items()}
            model = bodies.as_model(proto, body, stored, types)
        runs.append(inputs)
        if node.op_type in ("Loop", "Scan"):
            more = _next_inputs(node, body, model, inputs, outer)
            if more is None:
                return Inside(model, runs, False)
            runs.append(more)
    return None if model is None else Inside(model, runs, True)


def _type(value: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(value.dtype))


def _values(proto: onnx.ModelProto, names: Sequence[str], feeds: Feeds) -> dict[str, Array] | None:
    """The values of the tensors `names` of a model that reads `feeds`; None where it does not run."""
    computed = [n for n in names if n not in feeds]
    fed = {n: feeds[n] for n in names if n in feeds}
    if not computed:
        return fed
    try:
        return fed | Session(protobuf.submodel(proto, {}, computed), optimize=False).run(feeds)
    except RunError:
        return None


def scan_axes(node: onnx.NodeProto, count: int) -> list[int]:
    """The axis along which each of `count` scan inputs is read."""
    given = next((list(a.ints) for a in node.attribute if a.name == "scan_input_axes"), [])
    return [int(a) for a in given] or [0] * count


def _first_inputs(node: onnx.NodeProto, body: onnx.GraphProto, outer: Mapping[str, Array]) -> dict[str, Array] | None:
    """The body's own inputs at the first iteration; None for a node whose bodies run otherwise.

    outer: values of the tensors that the node reads and its bodies capture.
    """
    names = [v.name for v in body.input]
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "If":
        return {}
    if node.op_type == "Loop":
        going = outer[node.input[1]] if node.input[1] else np.array(True)
        values = [np.array(0, np.int64), going.reshape(()), *(outer[i] for i in node.input[2:])]
        return dict(zip(names, _as_declared(body, values), strict=True))
    if node.op_type == "Scan":
        return _scanned(node, names, [outer[i] if i else None for i in node.input], 0)
    return None


def _as_declared(body: onnx.GraphProto, values: Sequence[Array]) -> list[Array]:
    """The iteration number and the condition may be declared as scalars or as vectors of one entry."""
    ranks = [len(v.type.tensor_type.shape.dim) for v in body.input[:2]]
    return [v.reshape((1,) * r) for v, r in zip(values, ranks, strict=False)] + list(values[2:])


def _scanned(
    node: onnx.NodeProto, names: Sequence[str], values: Sequence[Array | None], step: int
) -> dict[str, Array] | None:
    if len(values) != len(names) or any(v is None for v in values):
        return None  # before version 9 of the operator set: lengths come first, and a batch axis
    scanned = protobuf.int_attribute(node, "num_scan_inputs", len(names))
    states = len(names) - scanned
    axes = [0] * states + scan_axes(node, scanned)
    result: dict[str, Array] = {}
    for k, (name, value, axis) in enumerate(zip(names, values, axes, strict=True)):
        assert value is not None
        if k < states:
            result[name] = value
        elif value.shape[axis] == 0:
            return None
        else:
            result[name] = np.ascontiguousarray(value.take(step % value.shape[axis], axis=axis))
    return result


def _next_inputs(
    node: onnx.NodeProto, body: onnx.GraphProto, model: onnx.ModelProto, inputs: Feeds, outer: Mapping[str, Array]
) -> dict[str, Array] | None:
    """The inputs of the iteration behind the one with `inputs`; None where that one does not run.

    outer: as in `_first_inputs`.
    """
    names, results = [v.name for v in body.input], [v.name for v in body.output]
    following: dict[str, Array] | None
    if node.op_type == "Loop":
        carried = dict(zip(names[1:], results, strict=False))
        following = {names[0]: np.asarray(inputs[names[0]] + 1)}
    else:
        states = len(names) - protobuf.int_attribute(node, "num_scan_inputs", len(names))
        carried = dict(zip(names[:states], results, strict=False))
        following = _scanned(node, names, [outer[i] for i in node.input], _ITERATIONS - 1)
    # Nothing else of the body: it need not run at a size that only its shape arithmetic is asked about.
    outputs = _values(model, list(carried.values()), inputs)
    if following is None or outputs is None:
        return None
    following |= {i: outputs[o] for i, o in carried.items()}
    if not all(isinstance(v, np.ndarray) for v in following.values()):
        return None
    return {**inputs, **following}


def add_shapes(values: Mapping[str, Any], shapes: dict[str, Shape], types: dict[str, int]) -> None:
    """Add shapes and element types of the tensors among these values."""
    for name, v in values.items():
        if isinstance(v, np.ndarray):
            shapes[name] = tuple(v.shape)
            types.setdefault(name, _type(v))


def add_shapes_of_bodies(proto: onnx.ModelProto, feeds: Feeds, shapes: dict[str, Shape], types: dict[str, int]) -> None:
    """Add shapes and element types of what bodies hold, in their first iteration."""
    if not any(bodies.bodies_of(n) for n in proto.graph.node):
        return
    read = read_by_bodies(proto, [feeds])
    stored = bodies.weights_of(proto)
    for node in proto.graph.node:
        for _, body in bodies.bodies_of(node):
            part = None if read is None else inside(proto, node, body, stored, read)
            if part is None:
                continue
            first = part.runs[0]
            names = [o for n in part.model.graph.node for o in n.output if o]
            values = _values(part.model, names, first)
            if values is None:
                continue
            add_shapes({**first, **values}, shapes, types)
            add_shapes_of_bodies(part.model, first, shapes, types)
