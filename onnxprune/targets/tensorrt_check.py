"""Hold a model against what TensorRT's ONNX parser accepts (`tensorrt_support`).

A pruned model must have no problem that its original does not have; those of the original are warnings. Nothing of
TensorRT itself is needed.
"""

from __future__ import annotations

import contextlib
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial

import onnx
import onnx.inliner

from onnxprune.errors import CheckFailed
from onnxprune.graph import bodies, external, protobuf
from onnxprune.graph.protobuf import copied, held_by
from onnxprune.numerics.arrays import Array
from onnxprune.targets import tensorrt_pairs
from onnxprune.targets.tensorrt_support import NEWEST, OLDEST, Use, refused

_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"}

# Layers with weights: (slot of the data, slot of the weights, axis of the channels in the data and in the output).
_LAYERS: Mapping[str, tuple[tuple[int, int, int, int], ...]] = {
    **dict.fromkeys(
        (
            "Conv",
            "ConvTranspose",
            "DeformConv",
            "BatchNormalization",
            "InstanceNormalization",
            "GroupNormalization",
        ),
        ((0, 1, 1, 1),),
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), ((0, 1, 2, -1),)),
    "MatMul": ((0, 1, -1, -1), (1, 0, -2, -2)),
    "Gemm": ((0, 1, 1, 1), (1, 0, 0, 0)),
}


@dataclass(frozen=True)
class Problem:
    """What the parser refuses: the operator ("" for the model as a whole), the reason, and the nodes."""

    operator: str
    reason: str
    nodes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The problem as a report says it."""
        if not self.operator:
            return self.reason
        first = f" {self.nodes[0]!r}" if self.nodes[0] else ""
        more = f" and {len(self.nodes) - 1} more" if len(self.nodes) > 1 else ""
        return f"{self.operator}{first}{more}: {self.reason}"


@dataclass(frozen=True, eq=False)
class _Scope:
    """What is known of the tensors that a graph sees, those of the graphs around it included."""

    types: MutableMapping[str, int]
    shapes: MutableMapping[str, tuple[int | None, ...]]
    constants: MutableMapping[str, Callable[[], Array] | None]

    def inside(self) -> _Scope:
        return _Scope(ChainMap({}, self.types), ChainMap({}, self.shapes), ChainMap({}, self.constants))


def problems(proto: onnx.ModelProto) -> tuple[Problem, ...]:
    """Everything that speaks against a model, operators in order of their first appearance."""
    proto = onnx.inliner.inline_local_functions(proto) if proto.functions else proto
    nodes_by_problem: dict[tuple[str, str], list[str]] = {}
    opset = protobuf.opset_of(proto)
    if not OLDEST <= opset <= NEWEST:
        nodes_by_problem["", f"opset {opset} is not among those that it supports, {OLDEST} to {NEWEST}"] = []
    for v in (*proto.graph.input, *proto.graph.output):
        if v.type.WhichOneof("value") not in (None, "tensor_type"):
            nodes_by_problem["", "inputs and outputs must be tensors"] = []
    for use in _uses(_inferred(proto).graph, _Scope({}, {}, {})):
        for reason in (refused(use), _open_channels(use)):
            if reason:
                nodes_by_problem.setdefault((use.node.op_type, reason), []).append(use.node.name)
        if onnx.TensorProto.DOUBLE in (use.types.get(o) for o in use.node.output):
            nodes_by_problem.setdefault(("", "float64 is computed in float32"), [])
    return tuple(Problem(op, reason, tuple(nodes)) for (op, reason), nodes in nodes_by_problem.items())


def warnings(proto: onnx.ModelProto) -> list[str]:
    """The `problems` of a model as lines of a report, and pairs of quantizers that are not where they help."""
    return [*(f"TensorRT (by its documentation): {p}" for p in problems(proto)), *tensorrt_pairs.warnings(proto)]


def introduced(
    original: onnx.ModelProto, pruned: onnx.ModelProto, written: onnx.ModelProto | None = None
) -> tuple[Problem, ...]:
    """What speaks against the pruned model, and not against its original.

    written: the original in standard operators. Where the parser refuses an operator that others stand for there, what
    speaks against those is nothing new either.
    """
    known = {(p.operator, p.reason) for p in problems(original)}
    if written is not None:
        replaced = _operators(original) - _operators(written)
        if any(operator in replaced for operator, _ in known):
            known |= {(p.operator, p.reason) for p in problems(written)}
    return tuple(p for p in problems(pruned) if (p.operator, p.reason) not in known)


def check(original: onnx.ModelProto, pruned: onnx.ModelProto, written: onnx.ModelProto) -> None:
    """Raises CheckFailed where pruning has brought in what the parser refuses; `written` as for `introduced`."""
    new = introduced(original, pruned, written)
    if new:
        raise CheckFailed(f"TensorRT would refuse what the original does not have: {'; '.join(map(str, new))}")


def _operators(proto: onnx.ModelProto) -> set[str]:
    return {n.op_type for n in bodies.every_node(proto.graph)}


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the shapes that inference finds, and no others: the parser does not read those of the exporter."""
    bare = copied(proto)
    for graph in (bare.graph, *bodies.every_body(bare.graph)):
        del graph.value_info[:]
    with contextlib.suppress(Exception):  # best effort: what it does not find is not known
        return onnx.shape_inference.infer_shapes(bare, data_prop=True)
    return bare


def _uses(graph: onnx.GraphProto, scope: _Scope) -> Iterator[Use]:
    """Every node with what is known around it, those of bodies before what comes after their holder."""
    for t in graph.initializer:
        scope.types[t.name], scope.shapes[t.name] = t.data_type, tuple(t.dims)
        scope.constants[t.name] = partial(external.array_of, t)
    for v in (*graph.input, *graph.value_info, *graph.output):
        tensor = v.type.tensor_type
        if tensor.elem_type:
            scope.types[v.name] = tensor.elem_type
        if tensor.HasField("shape"):
            scope.shapes[v.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    for n in graph.node:
        _note_constant(n, scope)
        yield Use(n, scope.types, scope.shapes, scope.constants)
        for _, body in bodies.bodies_of(n):
            yield from _uses(body, scope.inside())


def _note_constant(n: onnx.NodeProto, scope: _Scope) -> None:
    """Enter what depends on weights alone, and on fixed sizes, among the constants."""
    held = held_by(n)
    if held is not None:
        scope.constants[n.output[0]] = partial(external.array_of, held)
    elif n.op_type == "Shape" and None not in scope.shapes.get(n.input[0], (None,)):
        scope.constants[n.output[0]] = None
    elif n.op_type not in _RANDOM and not bodies.bodies_of(n) and all(i in scope.constants for i in n.input if i):
        scope.constants.update(dict.fromkeys((o for o in n.output if o), None))


def _open_channels(use: Use) -> str:
    """Why a layer with weights is refused: channels whose number no shape tells."""
    for data, weight, before, after in _LAYERS.get(use.node.op_type, ()):
        if use.computed(weight) or not use.computed(data):
            continue
        if use.node.op_type == "Gemm" and use.attribute("transB" if data else "transA", 0):
            before = 1 - before
        shape, result = use.shape(data), use.shapes.get(use.output(0))
        if shape is None or _size(shape, before) is None:
            return "the number of its input channels is not fixed"
        if result is not None and _size(result, after) is None:
            return "the number of its output channels is not fixed"
    return ""


def _size(shape: tuple[int | None, ...], axis: int) -> int | None:
    # A vector stands for its channels alone.
    return shape[axis] if -len(shape) <= axis < len(shape) else next(iter(shape), None)
