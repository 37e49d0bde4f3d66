"""Inputs with a default: initializers that are inputs of the graph, too, so that a caller may give other values.

Exporters used to list every weight so, by habit; then, and where one is a parameter of a layer, it is a weight like
any other, and stays an input where neither its size nor what reads it has changed. What else is listed was listed by
choice: from here to the end it is an input, which is fed its default, so that nothing can be folded with that value.
Before version 4 of the format the list was a duty, and onnxruntime takes no other values for such inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from onnxprune.graph import external
from onnxprune.graph.bodies import every_body, every_node
from onnxprune.graph.protobuf import copied
from onnxprune.intake.counting import reads_as_size
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.options import first_of

_SINCE = 4
_SHOWN = 3
# These read vectors that belong to channels, from the second input on.
_LAYERS = {
    *("BatchNormalization", "Conv", "ConvTranspose", "DeformConv", "DequantizeLinear", "GRU", "Gemm"),
    *("GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "PRelu"),
    *("QLinearConv", "QLinearMatMul", "QuantizeLinear", "RNN", "SimplifiedLayerNormalization"),
}
# Where operators on codes read a scale that the nodes written for them read too.
_SCALES = {
    **{(operator, place): "scale" for operator in ("QLinearConv", "QLinearMatMul") for place in (1, 4, 6)},
    **{(operator, 1): "scale" for operator in ("QuantizeLinear", "DequantizeLinear")},
}


@dataclass(frozen=True, eq=False)
class Overridable:
    """What of a model's inputs have a default.

    declared: all inputs, in their order. defaults: the tensors of those that are fed. weights: those that are weights,
    with what reads them: (operator, place) and how often.
    """

    declared: tuple[onnx.ValueInfoProto, ...] = ()
    defaults: Mapping[str, onnx.TensorProto] = field(default_factory=dict)
    weights: Mapping[str, Counter[tuple[str, int]]] = field(default_factory=dict)

    @property
    def fed(self) -> dict[str, Array]:
        """The values of the inputs that are fed their default."""
        return {name: external.array_of(t) for name, t in self.defaults.items()}


def as_inputs(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Overridable]:
    """(the model without the defaults of inputs that were listed by choice, what has to be put back).

    These inputs are the last ones then. The model itself where there are none.
    """
    stored = {t.name: t for t in proto.graph.initializer}
    listed = [v.name for v in proto.graph.input if v.name in stored]
    if not listed or proto.ir_version < _SINCE:
        return proto, Overridable()
    readers = _readers(proto)
    parameters = {name for name in listed if _is_parameter(stored[name], readers.get(name, Counter()))}
    by_habit = len(listed) == len(stored) and parameters  # without any, weights are stored as constants in nodes
    weights = set(listed) if by_habit else parameters
    defaults = {name: onnx.TensorProto.FromString(stored[name].SerializeToString()) for name in listed}
    found = Overridable(
        tuple(onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in proto.graph.input),
        {name: t for name, t in defaults.items() if name not in weights},
        {name: readers.get(name, Counter()) for name in listed if name in weights},
    )
    if not found.defaults:
        return proto, found
    result = copied(proto)
    for i in reversed(range(len(result.graph.initializer))):
        if result.graph.initializer[i].name in found.defaults:
            del result.graph.initializer[i]
    del result.graph.input[:]
    result.graph.input.extend(v for v in found.declared if v.name not in found.defaults)
    for name, t in found.defaults.items():
        result.graph.input.append(onnx.helper.make_tensor_value_info(name, t.data_type, t.dims))
    return result, found


def bare(proto: onnx.ModelProto, found: Overridable) -> onnx.ModelProto:
    """A copy of a model like the one that was asked for `found`, whose weights are no inputs, and whose inputs have no
    default, before anything is written into it; `put_back` gives them what they had."""
    result = copied(proto)
    inputs = [v for v in result.graph.input if v.name not in found.weights]
    kept = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in inputs]
    del result.graph.input[:]
    result.graph.input.extend(kept)
    for t in [t for t in result.graph.initializer if t.name in found.defaults]:
        result.graph.initializer.remove(t)
    return result


def put_back(final: onnx.ModelProto, found: Overridable) -> list[str]:
    """Give the result, in place, its inputs with defaults in the order of the original; what is to be said of it."""
    if not found.declared:
        return []
    stored = {t.name: t for t in final.graph.initializer}
    own = {v.name: v for v in final.graph.input}
    readers = _readers(final)
    inputs: list[onnx.ValueInfoProto] = []
    gone: list[str] = []
    for v in found.declared:
        if v.name in found.defaults:
            final.graph.initializer.add().CopyFrom(found.defaults[v.name])
            inputs.append(v)
        elif v.name not in found.weights:
            inputs.append(own.get(v.name, v))
        elif v.name in stored and _is_whole(v, stored[v.name], found.weights[v.name], readers.get(v.name, Counter())):
            inputs.append(v)
        else:
            gone.append(v.name)
    kept = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in inputs]
    del final.graph.input[:]
    final.graph.input.extend(kept)
    if not gone:
        return []
    names = first_of(gone, _SHOWN)
    return [f"weights that were cut or folded are inputs no longer, as callers cannot give others for them: {names}"]


def _is_whole(
    declared: onnx.ValueInfoProto,
    now: onnx.TensorProto,
    before: Counter[tuple[str, int]],
    readers: Counter[tuple[str, int]],
) -> bool:
    """Whether a weight has the size that was declared, and whatever read it still does, and nothing else."""
    kind = declared.type.tensor_type
    sizes = [d.dim_value if d.HasField("dim_value") else n for d, n in zip(kind.shape.dim, now.dims, strict=False)]
    same = not kind.HasField("shape") or (len(kind.shape.dim) == len(now.dims) and sizes == list(now.dims))
    element = onnx.helper.tensor_dtype_to_np_dtype(now.data_type)
    sized = any(reads_as_size(operator, place) for operator, place in before)
    return same and kind.elem_type == now.data_type and _alike(before, readers) and is_float(element) and not sized


def _alike(before: Counter[tuple[str, int]], now: Counter[tuple[str, int]]) -> bool:
    """Whether a tensor is read in the same places, those of a scale taken for one."""
    first, second = (
        Counter({k: sum(n for place, n in x.items() if _SCALES.get(place, place) == k) for k in map(_meaning, x)})
        for x in (before, now)
    )
    return first == second


def _meaning(place: tuple[str, int]) -> tuple[str, int] | str:
    return _SCALES.get(place, place)


def _is_parameter(t: onnx.TensorProto, readers: Counter[tuple[str, int]]) -> bool:
    if not is_float(onnx.helper.tensor_dtype_to_np_dtype(t.data_type)):
        return any(operator in ("DequantizeLinear", "QuantizeLinear") for operator, _ in readers)
    return sum(d > 1 for d in t.dims) > 1 or any(operator in _LAYERS and place for operator, place in readers)


def _readers(proto: onnx.ModelProto) -> dict[str, Counter[tuple[str, int]]]:
    """What reads each tensor: operators with the place at which they do, bodies included; ("", 0): an output."""
    readers: dict[str, Counter[tuple[str, int]]] = {}
    for name, operator, place in _uses(proto):
        readers.setdefault(name, Counter())[operator, place] += 1
    return readers


def _uses(proto: onnx.ModelProto) -> Iterator[tuple[str, str, int]]:
    for n in every_node(proto.graph):
        yield from ((name, n.op_type, k) for k, name in enumerate(n.input) if name)
    for graph in (proto.graph, *every_body(proto.graph)):
        yield from ((v.name, "", 0) for v in graph.output)
