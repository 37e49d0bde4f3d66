"""The Gram of each layer's sampled rows, computed by nodes appended to the model.

Where a GPU runs the model only matrices of (g, D, D) leave it, instead of every activation. The nodes gather what
`Layer.rows` gathers, at positions that are inputs of the graph:

    X (g, R, D) = the input of the layer at the positions that each kernel position reads, 0 in the padding
    output      = XᵀX (g, D, D), in the model's precision, at least float32

The constant column of a layer with a bias is an input too, as its length depends on the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.calibration.layers import InputGates, Layer, StateGates
from onnxprune.graph.protobuf import copied
from onnxprune.numerics.arrays import Array, Ints
from onnxprune.numerics.gram import Gram
from onnxprune.runtime.session import Feeds

Shape = tuple[int, ...]
# Shape and type of every tensor that a layer reads, in one batch.
Inputs = Mapping[str, tuple[Shape, np.dtype[Any]]]
_FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True, eq=False)
class GramGraph:
    """A model with the Grams of some layers for outputs.

    grams: weight → output. shapes: tensor that a layer reads → the output that tells its shape. double: layers, by
    weight, whose inputs are float64.
    """

    proto: onnx.ModelProto
    layers: tuple[Layer, ...]
    grams: Mapping[str, str]
    shapes: Mapping[str, str]
    double: frozenset[str]

    @classmethod
    def of(cls, proto: onnx.ModelProto, layers: Sequence[Layer], inputs: Inputs, also: Sequence[str] = ()) -> GramGraph:
        """Append to a model that computes the inputs of the layers. also: tensors that are given out as they are."""
        result = copied(proto)
        del result.graph.output[:]
        double = frozenset(x.weight for x in layers if inputs[x.data][1] == np.float64)
        grams: dict[str, str] = {}
        for i, layer in enumerate(layers):
            writer = _Writer(result.graph, f"gram:{i}", onnx.TensorProto.DOUBLE if layer.weight in double else _FLOAT)
            grams[layer.weight] = writer.gram(layer, len(inputs[layer.data][0]))
        shapes = {t: f"shape:{i}" for i, t in enumerate(sorted({x.data for x in layers}))}
        result.graph.node.extend(helper.make_node("Shape", [t], [name]) for t, name in shapes.items())
        for o in (*grams.values(), *shapes.values(), *also):
            result.graph.output.append(helper.make_empty_tensor_value_info(o))
        return cls(result, tuple(layers), grams, shapes, double)

    def feeds(self, positions: Mapping[str, Ints], inputs: Inputs) -> dict[str, Array]:
        """What to feed beside a batch: positions by weight."""
        feeds: dict[str, Array] = {}
        for i, layer in enumerate(self.layers):
            sampled, (x, _) = positions[layer.weight], inputs[layer.data]
            if layer.window is not None:
                sources = layer.window.sources(x[2:], sampled)
                size = int(np.prod(x[2:]))
                inside = sources < size
                feeds[f"gram:{i}:at"] = np.where(inside, sources, 0).ravel()
                if layer.window.reads_padding:
                    feeds[f"gram:{i}:inside"] = inside.reshape(1, -1, 1)
            else:
                feeds[f"gram:{i}:at"] = sampled
            if layer.bias:
                dtype = np.float64 if layer.weight in self.double else np.float32
                feeds[f"gram:{i}:ones"] = np.ones((layer.groups, rows_of(layer, x, sampled), 1), dtype)
        return feeds

    def sums(self, values: Feeds, positions: Mapping[str, Ints], inputs: Inputs) -> dict[str, Gram] | None:
        """The Grams by weight, with the numbers of their rows; None where the layers' inputs had other shapes."""
        if any(tuple(values[name]) != inputs[t][0] for t, name in self.shapes.items()):
            return None
        grams: dict[str, Gram] = {}
        for x in self.layers:
            rows = rows_of(x, inputs[x.data][0], positions[x.weight])
            grams[x.weight] = Gram(values[self.grams[x.weight]].astype(np.float64), rows)
        return grams


def rows_of(layer: Layer, x: Shape, positions: Ints) -> int:
    """Rows that an input of shape x gives at these positions of every sample."""
    return layer.output_shape(x)[0] * positions.size


@dataclass(eq=False)
class _Writer:
    """Appends the nodes of one layer; element: the type of the products."""

    graph: onnx.GraphProto
    prefix: str
    element: int
    count: int = 0

    def gram(self, layer: Layer, rank: int) -> str:
        x = self.op("Transpose", self.rows(layer, rank), perm=[0, 2, 1])
        return self.op("MatMul", x, self.op("Transpose", x, perm=[0, 2, 1]))

    def rows(self, layer: Layer, rank: int) -> str:
        """X (g, R, D) of the tensor that the layer reads, which has so many axes."""
        x = self.op("Cast", layer.data, to=self.element)
        positions = self.port("at", onnx.TensorProto.INT64, 1)
        if isinstance(layer, StateGates):  # (T, D, B, H)
            x = self.op("Gather", self.op("Transpose", x, perm=[1, 2, 0, 3]), positions, axis=2)
            return self.reshaped(x, layer.groups, -1, layer.channels // layer.groups)
        if layer.window is not None:
            g, k, c = layer.groups, layer.kernel_size, layer.channels
            x = self.op("Transpose", self.reshaped(x, 0, c, -1), perm=[0, 2, 1])
            x = self.op("Gather", x, positions, axis=1)
            if layer.window.reads_padding:
                x = self.op("Where", self.port("inside", onnx.TensorProto.BOOL, 3), x, self.zero())
            x = self.op("Transpose", self.reshaped(x, -1, k, g, c // g), perm=[2, 0, 1, 3])
            x = self.reshaped(x, g, -1, k * (c // g))
        else:
            if isinstance(layer, InputGates):  # (T, B, I)
                x = self.op("Transpose", x, perm=[1, 0, 2])
            by_sample = (0, -1) if rank > 2 else (-1, 1)
            x = self.op("Gather", self.reshaped(x, *by_sample, layer.channels), positions, axis=1)
            x = self.reshaped(x, 1, -1, layer.channels)
        return self.op("Concat", x, self.port("ones", self.element, 3), axis=2) if layer.bias else x

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        output = f"{self.prefix}:{self.count}"
        self.count += 1
        self.graph.node.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def port(self, name: str, element: int, rank: int) -> str:
        """An input of the graph, of any size."""
        full_name = f"{self.prefix}:{name}"
        self.graph.input.append(helper.make_tensor_value_info(full_name, element, [None] * rank))
        return full_name

    def constant(self, values: Array) -> str:
        name = f"{self.prefix}:{self.count}"
        self.count += 1
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def reshaped(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64)))

    def zero(self) -> str:
        return self.constant(np.zeros((), helper.tensor_dtype_to_np_dtype(self.element)))
