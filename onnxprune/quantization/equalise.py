"""Channels of an activation brought to one scale before it is quantized, exactly: what one layer gives less of, the
next takes more of.

An activation has one scale for all of its channels, so a channel that is ten times as wide as the others takes most of
the codes from them. With a factor s > 0 for each channel, f(x / s) · s = f(x) for every f that is homogeneous (Relu,
pooling), so

    W₂ f(W₁ x + b₁) = (W₂ diag s) f(diag(1/s) W₁ x + diag(1/s) b₁).

s = (max |x|)^½ / (max |w|)^½, of the channel in the activation and in the weights that read it, splits what is hard to
round between both (SmoothQuant, Xiao et al. 2023, with α = ½; cross-layer equalization, Nagel et al. 2019). Where a
LayerNormalization makes the activation, its scale and bias take 1/s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.graph import bodies, external
from onnxprune.graph.protobuf import copied, int_attribute
from onnxprune.numerics.arrays import Doubles
from onnxprune.quantization.preparation import constants_of, readers_of

_STANDARD = ("", "ai.onnx")
# f(x / s) · s = f(x) for each channel, with channels where they were.
_HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity"}
)
# No factor is larger: numbers that small are noise.
_MOST = 1e3


@dataclass(frozen=True, kw_only=True)
class _Weight:
    """An axis of a constant along which channels lie."""

    name: str
    axis: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What makes the channels of an activation, and what reads them.

    tensors: the activation, and what homogeneous functions make of it; the last axis of channels is `axis`.
    """

    made: tuple[_Weight, ...]
    read: tuple[_Weight, ...]
    tensors: tuple[str, ...]
    axis: int


def pairs_in(model: onnx.ModelProto) -> tuple[Pair, ...]:
    """All pairs whose channels can be scaled without a change of the outputs."""
    constants, counts = constants_of(model), readers_of(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for n in model.graph.node:
        for i in dict.fromkeys(n.input):
            readers.setdefault(i, []).append(n)
    outer = bodies.captured(model.graph.node) | {o.name for o in model.graph.output}
    found = []
    for n in model.graph.node:
        made = _made_by(n, constants, counts)
        if made is None:
            continue
        axis = 1 if n.op_type == "Conv" else -1
        traced = _traced(n.output[0], axis, readers, constants, counts, outer, made[0].channels)
        if traced is not None:
            found.append(Pair(made=made, read=traced[0], tensors=traced[1], axis=axis))
    return tuple(found)


def equalised(model: onnx.ModelProto, pairs: tuple[Pair, ...], largest: Mapping[str, Doubles]) -> onnx.ModelProto:
    """A copy with the channels of all pairs brought to one scale. largest: max |x| of each channel, (channels,)."""
    result = copied(model)
    weights = {t.name: t for t in result.graph.initializer}
    for pair in pairs:
        x = largest.get(pair.tensors[-1])
        if x is None or len(x) != pair.made[0].channels or not np.isfinite(x).all():
            continue
        w = np.max([_largest(weights[r.name], r.axis) for r in pair.read], axis=0)
        usable = (x > 0.0) & (w > 0.0)
        if not usable.any():
            continue
        s = np.ones_like(x)
        s[usable] = np.sqrt(x[usable] / w[usable])
        s[usable] /= np.exp(np.log(s[usable]).mean())
        s = np.clip(s, 1.0 / _MOST, _MOST)
        for part in pair.made:
            _scale(weights[part.name], part.axis, 1.0 / s)
        for part in pair.read:
            _scale(weights[part.name], part.axis, s)
    return result


def _largest(tensor: TensorProto, axis: int) -> Doubles:
    w = np.abs(external.array_of(tensor).astype(np.float64))
    peak: Doubles = w.max(axis=tuple(a for a in range(w.ndim) if a != axis % w.ndim))
    return peak


def _scale(tensor: TensorProto, axis: int, s: Doubles) -> None:
    w = external.array_of(tensor)
    shape = [1] * w.ndim
    shape[axis] = -1
    tensor.CopyFrom(numpy_helper.from_array((w * s.reshape(shape)).astype(w.dtype), tensor.name))


def _made_by(
    n: onnx.NodeProto, constants: Mapping[str, TensorProto], counts: Mapping[str, int]
) -> tuple[_Weight, ...] | None:
    """The constants of a node that make the channels of its output; None where others have a part in them."""
    if n.domain not in _STANDARD or len([o for o in n.output if o]) != 1:
        return None
    slots: dict[int, int] = {}
    if n.op_type == "Conv":
        slots = {1: 0, 2: 0}
    elif n.op_type == "Gemm":
        slots = {1: 0 if int_attribute(n, "transB", 0) else 1, 2: -1}
    elif n.op_type == "MatMul":
        slots = {1: 1}
    elif n.op_type == "LayerNormalization" and int_attribute(n, "axis", -1) == -1:
        slots = {1: 0, 2: 0}
    names = {k: n.input[k] for k in slots if k < len(n.input) and n.input[k]}
    if 1 not in names or not all(_own(i, constants, counts) for i in names.values()):
        return None
    dims = {k: constants[i].dims for k, i in names.items()}
    if (n.op_type == "MatMul" and len(dims[1]) != 2) or len(dims[1]) <= slots[1]:
        return None
    channels = int(dims[1][slots[1]])
    if any(not d or d[slots[k]] != channels for k, d in dims.items()):
        return None
    return tuple(_Weight(name=i, axis=slots[k], channels=channels) for k, i in names.items())


def _own(name: str, constants: Mapping[str, TensorProto], counts: Mapping[str, int]) -> bool:
    """Whether a constant of single precision is read once."""
    t = constants.get(name)
    return t is not None and t.data_type == TensorProto.FLOAT and counts[name] == 1


def _traced(
    start: str,
    axis: int,
    readers: Mapping[str, list[onnx.NodeProto]],
    constants: Mapping[str, TensorProto],
    counts: Mapping[str, int],
    outer: set[str],
    channels: int,
) -> tuple[tuple[_Weight, ...], tuple[str, ...]] | None:
    """(weights that read the channels, tensors that have them); None where anything else reads them."""
    waiting, tensors, read = [start], [], list[_Weight]()
    while waiting:
        tensor = waiting.pop()
        if tensor in outer or tensor in tensors:
            return None
        tensors.append(tensor)
        if not readers.get(tensor):
            return None
        for n in readers[tensor]:
            if n.op_type in _HOMOGENEOUS and n.domain in _STANDARD and len([o for o in n.output if o]) == 1:
                if axis == -1 and n.op_type not in ("Relu", "LeakyRelu", "Identity"):
                    return None
                waiting.append(n.output[0])
                continue
            weight = next(iter(_read_by(n, tensor, constants, counts, channels)), None)
            if weight is None:
                return None
            read.append(weight)
    return (tuple(read), tuple(tensors)) if read else None


def _read_by(
    n: onnx.NodeProto, tensor: str, constants: Mapping[str, TensorProto], counts: Mapping[str, int], channels: int
) -> Iterator[_Weight]:
    """The weight with which a layer reads the channels of a tensor, if it is one, and nobody else's."""
    ports = list(n.input)
    if n.domain not in _STANDARD or ports.count(tensor) != 1 or ports[0] != tensor or len(ports) < 2:
        return
    if not _own(ports[1], constants, counts):
        return
    dims = list(constants[ports[1]].dims)
    if n.op_type == "Conv":
        group = int_attribute(n, "group", 1)
        if group == 1 and dims[1] == channels:
            yield _Weight(name=ports[1], axis=1, channels=channels)
        elif group == channels == dims[0]:  # depthwise, one channel each
            yield _Weight(name=ports[1], axis=0, channels=channels)
    elif n.op_type == "Gemm" and not int_attribute(n, "transA", 0):
        axis = 1 if int_attribute(n, "transB", 0) else 0
        if dims[axis] == channels:
            yield _Weight(name=ports[1], axis=axis, channels=channels)
    elif n.op_type == "MatMul" and len(dims) == 2 and dims[0] == channels:
        yield _Weight(name=ports[1], axis=0, channels=channels)
