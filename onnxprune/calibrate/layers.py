"""A linear layer of the graph as a regression: how its input becomes rows, its weights a matrix.

Y = X W with X (g, R, D) the rows at sampled positions, augmented by a constant column where the layer has a bias, and
W (g, D, M) the weights with the bias as its last row; g is the number of groups of a grouped convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelGraph
from onnxprune.channels.groups import weight_axes
from onnxprune.channels.labels import as_ints
from onnxprune.channels.trace import Linear
from onnxprune.graph import Array, Graph, Node, is_float
from onnxprune.numerics.gram import augmented
from onnxprune.numerics.patches import Window

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear layer.

    data, output: tensors that it reads and that its target is measured at (behind the bias).
    inputs: class of each input channel (C,), outputs: of each output channel (M,), -1 where untracked.
    window: None for a matrix product.
    transposed: the weight is stored (M, C). alpha, beta: factors of Gemm on product and bias.
    """

    node: Node
    data: str
    output: str
    weight: str
    bias: str
    inputs: Ints
    outputs: Ints
    window: Window | None
    transposed: bool = False
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def channels(self) -> int:
        """Input channels."""
        return int(self.inputs.size)

    @property
    def groups(self) -> int:
        """Groups of a grouped convolution, else 1."""
        return self.window.groups if self.window is not None else 1

    @property
    def kernel_size(self) -> int:
        """Kernel positions per channel."""
        return int(np.prod(self.window.kernel)) if self.window is not None else 1

    def columns(self, group: int) -> Ints:
        """Class of each column of one group's matrix, (D,); -1 for untracked ones and the constant."""
        per_group = self.inputs.reshape(self.groups, -1)[group]
        spread = np.tile(per_group, self.kernel_size)
        return np.append(spread, -1) if self.bias else spread

    def matrix(self, weights: Mapping[str, Array]) -> NDArray[np.float64]:
        """W (g, D, M), bias included, in float64."""
        w = weights[self.weight].astype(np.float64)
        if self.window is not None:
            m = self.window.to_matrix(w)
        else:
            m = self.alpha * (w.T if self.transposed else w)[None]
        if self.bias:
            b = self.beta * weights[self.bias].astype(np.float64).reshape(m.shape[0], 1, m.shape[2])
            m = np.concatenate([m, b], axis=1)
        return np.ascontiguousarray(m)

    def weights(self, matrix: NDArray[np.float64]) -> dict[str, Array]:
        """The inverse of `matrix`, as arrays by initializer name."""
        body = matrix[:, :-1] if self.bias else matrix
        if self.window is not None:
            found = {self.weight: self.window.from_matrix(body, self.channels)}
        else:
            w = body[0] / self.alpha
            found = {self.weight: w.T if self.transposed else w}
        if self.bias:
            found[self.bias] = matrix[:, -1].ravel() / self.beta
        return found

    def kept_columns(self, keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which columns stay, (g, D), given which classes do."""
        classes = np.stack([self.columns(g) for g in range(self.groups)])
        return np.where(classes < 0, True, keep[np.maximum(classes, 0)])

    def kept_outputs(self, keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which output channels stay, (M,), given which classes do."""
        return np.where(self.outputs < 0, True, keep[np.maximum(self.outputs, 0)])

    def sliced(self, keep: NDArray[np.bool_], groups: int) -> Layer:
        """This layer in the cut model, where its convolution has `groups` groups."""
        stays = np.where(self.inputs < 0, True, keep[np.maximum(self.inputs, 0)])
        window = None if self.window is None else replace(self.window, groups=groups)
        return replace(self, inputs=self.inputs[stays], outputs=self.outputs[self.kept_outputs(keep)], window=window)

    def positions(self, y: tuple[int, ...], limit: int, rng: np.random.Generator) -> Ints:
        """At most `limit` flat output positions, all of them where the map is small."""
        if self.window is None:
            rows = int(np.prod(y[1:-1])) if len(y) > 2 else 1
        else:
            rows = int(np.prod(y[2:]))
        if rows <= limit:
            return np.arange(rows)
        return np.sort(rng.choice(rows, limit, replace=False)).astype(np.int64)

    def output_shape(self, x: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for an input of shape x, with 0 for the number of output channels."""
        if self.window is None:
            return (*x[:-1], 0)
        return (x[0], 0, *self.window.output_size(x[2:]))

    def rows(self, x: Floats, positions: Ints) -> Floats:
        """X (g, R, D) at the positions of every sample."""
        if self.window is not None:
            r = self.window.patches(x, positions)
        else:
            flat = x.reshape(x.shape[0], -1, x.shape[-1]) if x.ndim > 2 else x[:, None, :]
            r = flat[:, positions].reshape(1, -1, x.shape[-1])
        return augmented(r) if self.bias else r

    def values_at(self, y: Floats, positions: Ints) -> Floats:
        """(R, channels) of an array shaped like the output, at the positions of every sample."""
        if self.window is not None:
            return self.window.outputs_at(y, positions)
        flat = y.reshape(y.shape[0], -1, y.shape[-1]) if y.ndim > 2 else y[:, None, :]
        return flat[:, positions].reshape(-1, y.shape[-1])

    def by_group(self, rows: Floats) -> Floats:
        """(R, channels) → Y (g, R, M)."""
        grouped: Floats = rows.reshape(len(rows), self.groups, -1).transpose(1, 0, 2)
        return grouped

    def targets(self, y: Floats, positions: Ints) -> Floats:
        """Y (g, R, M) of an array shaped like the output, at the positions of every sample."""
        return self.by_group(self.values_at(y, positions))


def layers_of(channels: ChannelGraph) -> tuple[Layer, ...]:
    """Every linear layer whose weights are stored in the model, used once, and in floating point."""
    graph = channels.graph
    uses: dict[str, int] = {}
    for n in graph.nodes:
        for i in (*n.inputs, *n.captures):
            uses[i] = uses.get(i, 0) + 1
    for o in graph.outputs:
        uses[o] = uses.get(o, 0) + 1
    found = (_layer(linear, graph, uses) for linear in channels.linears)
    return tuple(x for x in found if x is not None)


def _layer(linear: Linear, graph: Graph, uses: Mapping[str, int]) -> Layer | None:
    w = graph.constants.get(linear.weight)
    x = graph.shape(linear.data)
    if w is None or x is None or not is_float(w.dtype) or uses[linear.weight] != 1:
        return None
    if linear.data in graph.constants:
        return None
    node = linear.node
    reads, writes = weight_axes(linear)
    output, bias = node.outputs[0], linear.bias
    if node.op in ("Conv", "ConvTranspose"):
        channels = x[1]
        window: Window | None = _window(node, w, linear.groups, len(x) - 2)
    else:
        channels, window = w.shape[reads], None
        if len(x) < 2 or (node.op == "Gemm" and node.attrs.get("transA", 0)):
            return None
        if node.op == "Gemm" and node.attrs.get("alpha", 1.0) == 0.0:
            return None
        if node.op == "Gemm" and node.attrs.get("beta", 1.0) == 0.0:
            bias = ""
        if node.op == "MatMul":
            output, bias = _added_bias(node, graph, w.shape[writes])
    b = graph.constants.get(bias) if bias else None
    width = w.shape[writes] * (linear.groups if node.op == "ConvTranspose" else 1)
    if bias and (b is None or b.size != width or b.shape[-1:] != (width,) or uses[bias] != 1):
        return None
    inputs = np.full(channels, -1, np.int64) if linear.inputs is None else linear.inputs
    outputs = np.full(width, -1, np.int64) if linear.outputs is None else linear.outputs
    return Layer(
        node,
        linear.data,
        output,
        linear.weight,
        bias,
        inputs,
        outputs,
        window,
        transposed=window is None and writes == 0,
        alpha=float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0,
        beta=float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" and bias else 1.0,
    )


def _added_bias(node: Node, graph: Graph, width: int) -> tuple[str, str]:
    """(output, bias) of a MatMul: a constant vector added right behind it is its bias."""
    out = node.outputs[0]
    readers = graph.readers.get(out, ())
    if len(readers) == 1 and readers[0][0].op == "Add" and out not in graph.outputs:
        add, slot = readers[0]
        other = add.inputs[1 - slot]
        c = graph.constants.get(other)
        if c is not None and c.size == width and c.shape[-1:] == (width,):
            return add.outputs[0], other
    return out, ""


def _window(node: Node, w: Array, groups: int, rank: int) -> Window:
    a = node.attrs
    ones = (1,) * rank
    return Window(
        tuple(w.shape[2:]),
        as_ints(a["strides"]) if a.get("strides") else ones,
        as_ints(a["dilations"]) if a.get("dilations") else ones,
        as_ints(a["pads"]) if a.get("pads") else (0,) * (2 * rank),
        groups,
        str(a.get("auto_pad", "NOTSET")),
        node.op == "ConvTranspose",
        as_ints(a["output_padding"]) if a.get("output_padding") else (),
        as_ints(a["output_shape"])[-rank:] if a.get("output_shape") else (),
    )
