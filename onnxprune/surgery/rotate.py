"""Channels of a stream, or positions inside heads, replaced by combinations of them, exactly: only constants change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxprune.channels.groups import weight_axes
from onnxprune.channels.head_layout import Heads
from onnxprune.channels.linear_streams import Folded, LinearStream
from onnxprune.channels.trace import Linear
from onnxprune.graph import external
from onnxprune.graph.protobuf import copied
from onnxprune.numerics.arrays import Array, Doubles
from onnxprune.surgery.slice import set_initializers

_EPSILON = 1e-5


def rotated(
    proto: onnx.ModelProto, layers: Sequence[Linear], turns: Sequence[tuple[LinearStream, Doubles]]
) -> onnx.ModelProto:
    """A copy of the model with each stream in the coordinates that the rows of its matrix (C, C) are.

    layers: of the channel graph, of whose streams these are. Products are in float64, and rounded once.
    """
    result = copied(proto)
    writers = {x.node.outputs[0]: x for x in layers}
    stored = external.Weights(result.graph.initializer)
    values: dict[str, Array] = {}
    for stream, _ in turns:
        for fold in stream.folded:
            values |= _folded(fold, writers[fold.layer.outputs[0]], stored)
    for stream, matrix in turns:
        for name, axis in stream.axes:
            array = np.asarray(values.get(name, stored[name]), np.float64)
            values[name] = np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
    set_initializers(result, values)
    _without(result, [fold for stream, _ in turns for fold in stream.folded])
    return result


def _folded(fold: Folded, layer: Linear, stored: Mapping[str, Array]) -> dict[str, Array]:
    """Weight and bias of a layer with the normalization behind it: y → (y - mean) scale / √(variance + ε) + shift."""
    scale, shift, mean, variance = (np.asarray(stored[i], np.float64) for i in fold.normalization.inputs[1:5])
    factor = scale / np.sqrt(variance + float(fold.normalization.attrs.get("epsilon", _EPSILON)))
    weight, bias = (np.asarray(stored[i], np.float64) for i in (layer.weight, layer.bias))
    along = [1] * weight.ndim
    along[weight_axes(layer)[1]] = -1
    return {layer.weight: weight * factor.reshape(along), layer.bias: (bias - mean) * factor + shift}


def _without(proto: onnx.ModelProto, folded: Sequence[Folded]) -> None:
    """Take the normalizations out, in place: the layers in front give what these gave."""
    renamed = {f.layer.outputs[0]: f.normalization.outputs[0] for f in folded}
    gone = {i for f in folded for i in f.normalization.inputs[1:]}
    if not renamed:
        return
    nodes = [n for n in proto.graph.node if n.output[0] not in renamed.values()]
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    for n in kept:
        n.output[0] = renamed.get(n.output[0], n.output[0])
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    for field in (proto.graph.initializer, proto.graph.value_info):
        left = [type(t).FromString(t.SerializeToString()) for t in field if t.name not in gone | renamed.keys()]
        del field[:]
        field.extend(left)


def with_heads_turned(proto: onnx.ModelProto, turns: Sequence[tuple[Heads, Doubles]]) -> onnx.ModelProto:
    """A copy of the model in which the positions x (d,) of each head are M x, given M for each head, (h, d, d).

    Heads that lie in the same places have the same matrix. Products are in float64, and rounded once.
    """
    result = copied(proto)
    stored = external.Weights(result.graph.initializer)
    values: dict[str, Array] = {}
    for heads, matrices in turns:
        _, own = np.unique(heads.places, axis=0, return_index=True)
        for name, axis in heads.axes:
            array = np.array(values.get(name, stored[name]), np.float64)
            moved = np.moveaxis(array, axis, 0)  # a view
            for head in own.tolist():
                places = heads.places[head]
                moved[places] = np.tensordot(matrices[head], moved[places], (1, 0))
            values[name] = array
    set_initializers(result, values)
    return result
