"""What a model computes at some positions of a tensor alone, gathered by the model itself.

A walk that looks at a few positions of every layer then neither copies nor holds whole activations: a pass over
ResNet-50 that gives out all of its convolutions takes twice the time of one with taps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.protobuf import copied
from onnxprune.graph.view import Shape
from onnxprune.numerics.arrays import Array


@dataclass(frozen=True)
class Tap:
    """One tensor at positions of its own: (N, C, *S) at flat positions of S, or (N, *S, C) where channels come last.

    name: of what it gives. shape: of the tensor, as far as it is known; only its first size may be another.
    """

    name: str
    tensor: str
    shape: Shape
    channels_last: bool

    @property
    def at(self) -> str:
        """The input that takes the positions."""
        return f"{self.name}:at"

    def values(self, given: Mapping[str, Array]) -> Array:
        """(rows, channels), the positions of one sample after the other."""
        tapped = given[self.name]
        rows = tapped if self.channels_last else tapped.transpose(0, 2, 1)
        return rows.reshape(-1, rows.shape[-1])


def with_taps(part: onnx.ModelProto, outputs: Iterable[str], taps: Sequence[Tap]) -> onnx.ModelProto:
    """A copy with these outputs, one for each tap, and one for the shape of its tensor."""
    result = copied(part)
    graph = result.graph
    del graph.output[:]
    graph.output.extend(helper.make_empty_tensor_value_info(o) for o in outputs)
    for tap in taps:
        flat, shape = f"{tap.name}:flat", f"{tap.name}:as"
        sizes = (0, -1, tap.shape[-1]) if tap.channels_last else (0, tap.shape[1], -1)
        graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), shape))
        graph.input.append(helper.make_tensor_value_info(tap.at, onnx.TensorProto.INT64, [None]))
        axis = 1 if tap.channels_last else 2
        graph.node.append(helper.make_node("Reshape", [tap.tensor, shape], [flat]))
        graph.node.append(helper.make_node("Gather", [flat, tap.at], [tap.name], axis=axis))
        graph.node.append(helper.make_node("Shape", [tap.tensor], [f"{tap.name}:shape"]))
        graph.output.append(helper.make_empty_tensor_value_info(tap.name))
        graph.output.append(helper.make_empty_tensor_value_info(f"{tap.name}:shape"))
    return result


def as_expected(taps: Sequence[Tap], values: Mapping[str, Array]) -> bool:
    """Whether the tensors had the shapes for which the positions were chosen."""
    return all(tuple(values[f"{tap.name}:shape"].tolist()[1:]) == tuple(tap.shape[1:]) for tap in taps)
