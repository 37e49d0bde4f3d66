"""A linear layer of the graph as a regression: how its input becomes rows, its weights a matrix.

Y = X W with X (g, R, D) the rows at sampled positions, augmented by a constant column where the layer has a bias, and
W (g, D, M) the weights with the bias as its last row; g is the number of groups of a grouped convolution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.channels import ChannelGraph
from onnxprune.channels.domains import limited_by
from onnxprune.channels.groups import is_recurrent, weight_axes
from onnxprune.channels.labels import as_ints
from onnxprune.channels.names import called
from onnxprune.channels.trace import Linear, whole
from onnxprune.graph.operators import QUANTIZED_LSTM
from onnxprune.graph.quantized import Quantized, behind_quantization, bias_scale, input_scale, least_scale, stored
from onnxprune.graph.view import Graph, Node, Shape
from onnxprune.numerics.arrays import Array, Doubles, Floats, Ints, Mask, is_float
from onnxprune.numerics.gram import augmented
from onnxprune.numerics.patches import Window


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear layer.

    data, output: tensors that it reads and that its target is measured at (behind the bias); output is "" where the
    operator keeps it to itself.
    inputs: class of each input channel (C,), outputs: of each output channel (M,), -1 where untracked.
    window: None for a matrix product.
    transposed: the weight is stored (M, C). alpha, beta: factors of Gemm on product and bias.
    stored_weight, stored_bias: how these two are stored, where that is quantized. step: the scale of the layer's input,
    where the bias is stored at that times the scale of the weight. limited: the operator behind it that is only defined
    for some numbers, if there is one: then its weights are never fitted (see `channels.domains`). made: bytes from
    which the model generates its weight, 0 where it stores it: it is fitted only where storing that takes no more.
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
    stored_weight: Quantized | None = None
    stored_bias: Quantized | None = None
    step: float | None = None
    limited: str = ""
    made: int = 0

    @property
    def called(self) -> str:
        """What reports call it."""
        return called(self.node, self.weight)

    @property
    def stored(self) -> tuple[str, ...]:
        """The initializers that hold weight and bias."""
        weight = self.stored_weight.names if self.stored_weight is not None else (self.weight,)
        bias = self.stored_bias.names if self.stored_bias is not None else (self.bias,)
        return tuple(n for n in (*weight, *bias) if n)

    @property
    def quantized(self) -> bool:
        """Whether weight or bias is rounded where it is stored."""
        return self.stored_weight is not None or self.stored_bias is not None

    @property
    def channels(self) -> int:
        """How many input channels the layer has."""
        return int(self.inputs.size)

    @property
    def groups(self) -> int:
        """Groups of a grouped convolution, else 1."""
        return self.window.groups if self.window is not None else 1

    @property
    def groups_are_units(self) -> bool:
        """Whether it passes its units on instead of reading them (see `channels.trace.whole`)."""
        return whole(self.groups, self.inputs, self.outputs)

    @property
    def kernel_size(self) -> int:
        """How many kernel positions each input channel has."""
        return int(np.prod(self.window.kernel)) if self.window is not None else 1

    def columns(self, group: int) -> Ints:
        """Class of each column of one group's matrix, (D,); -1 for untracked ones and the constant."""
        per_group = self.inputs.reshape(self.groups, -1)[group]
        spread = np.tile(per_group, self.kernel_size)
        return np.append(spread, -1) if self.bias else spread

    def matrix(self, weights: Mapping[str, Array], dtype: type[np.floating] = np.float64) -> Array:
        """W (g, D, M), bias included; `weights` holds the arrays `stored` by name."""
        w = _read(self.weight, self.stored_weight, weights)
        m = (w.T if self.transposed else w)[None] if self.window is None else self.window.to_matrix(w)
        groups, rows, outputs = m.shape
        # One array, written once: the largest layers of a network may be half of it.
        matrix = np.empty((groups, rows + bool(self.bias), outputs), dtype)
        matrix[:, :rows] = m
        if self.alpha != 1.0:
            matrix[:, :rows] *= self.alpha
        if self.bias:
            b = _read(self.bias, self.stored_bias, weights).astype(np.float64)
            matrix[:, rows] = self.beta * b.reshape(groups, outputs)
        return matrix

    def weights(self, matrix: Doubles, present: Mapping[str, Array]) -> dict[str, Array]:
        """The inverse of `matrix`, as arrays by initializer name; `present` holds the present ones.

        What is quantized is rounded anew, with scales of its own.
        """
        body = matrix[:, :-1] if self.bias else matrix
        if self.window is not None:
            w = np.asarray(self.window.from_matrix(body, self.channels), np.float64)
        else:
            w = body[0] / self.alpha if self.alpha != 1.0 else body[0]
            w = w.T if self.transposed else w
        b = matrix[:, -1].ravel() / self.beta if self.bias else np.zeros(0)
        arrays = {self.weight: w}
        scale: Array | None = None
        if self.stored_weight is not None:
            old = present[self.stored_weight.scales[0]]
            least = least_scale(b, self.step, old) if self.step is not None and self.bias else 0.0
            arrays = self.stored_weight.write(w, present, least=least)
            scale = arrays[self.stored_weight.scales[0]]
        if self.stored_bias is not None:
            old = present[self.stored_bias.scales[0]]
            wanted = bias_scale(scale, self.step, old) if self.step is not None and scale is not None else None
            arrays |= self.stored_bias.write(b.reshape(present[self.stored_bias.values].shape), present, scale=wanted)
        elif self.bias:
            arrays[self.bias] = b
        return arrays

    def keeps(self, keep: Mask) -> bool:
        """Whether its weights are sliced and not fitted, where these classes stay."""
        kept = int(self.kept_inputs(keep).sum()) * int(self.kept_outputs(keep).sum())
        return bool(self.limited) or 0 < self.made < 4 * kept * self.kernel_size // self.groups

    def rounded(self, matrix: Doubles, present: Mapping[str, Array]) -> Doubles:
        """`matrix` as it is read back once it is stored."""
        return self.matrix({**present, **self.weights(matrix, present)}) if self.quantized else matrix

    def dequantized(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """What the operator reads of weight and bias, by tensor name, where that is quantized."""
        parts = ((self.weight, self.stored_weight), (self.bias, self.stored_bias))
        return {name: q.read(weights).astype(weights[q.scales[0]].dtype) for name, q in parts if q is not None}

    def kept_columns(self, keep: Mask) -> Mask:
        """Which columns stay, (g, D), given which classes do."""
        classes = np.stack([self.columns(g) for g in range(self.groups)])
        return np.where(classes < 0, True, keep[np.maximum(classes, 0)])

    @property
    def channel_axis(self) -> int:
        """The axis of the output that carries its channels."""
        return -1 if self.window is None else 1

    def kept_inputs(self, keep: Mask) -> Mask:
        """Which input channels stay, (C,), given which classes do."""
        return np.where(self.inputs < 0, True, keep[np.maximum(self.inputs, 0)])

    def kept_outputs(self, keep: Mask) -> Mask:
        """Which output channels stay, (M,), given which classes do."""
        return np.where(self.outputs < 0, True, keep[np.maximum(self.outputs, 0)])

    def sliced(self, keep: Mask, groups: int) -> Layer:
        """This layer in the cut model, where its convolution has `groups` groups."""
        stays = self.kept_inputs(keep)
        if not stays.any():
            return BiasAlone.of(self, keep)
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
            r = _rows_at(x, positions)[None]
        return augmented(r) if self.bias else r

    def values_at(self, y: Floats, positions: Ints) -> Floats:
        """(R, channels) of an array shaped like the output, at the positions of every sample."""
        if self.window is not None:
            return self.window.outputs_at(y, positions)
        return _rows_at(y, positions)

    def by_group(self, rows: Floats) -> Floats:
        """(R, channels) → Y (g, R, M)."""
        count, channels = rows.shape
        grouped: Floats = rows.reshape(count, self.groups, channels // self.groups).transpose(1, 0, 2)
        return grouped

    def targets(self, y: Floats, positions: Ints) -> Floats:
        """Y (g, R, M) of an array shaped like the output, at the positions of every sample."""
        return self.by_group(self.values_at(y, positions))


def _rows_at(x: Floats, positions: Ints) -> Floats:
    """(N·P, C) of an array (N, *S, C) at flat positions (P,); no size is left to numpy, which cannot divide by none."""
    n, *places, channels = x.shape
    rows: Floats = x.reshape(n, int(np.prod(places)), channels)[:, positions].reshape(n * len(positions), channels)
    return rows


def _read(name: str, stored: Quantized | None, weights: Mapping[str, Array]) -> Array:
    return weights[name] if stored is None else stored.read(weights)


@dataclass(frozen=True, eq=False)
class BiasAlone(Layer):
    """What is left of a layer that reads a branch of which no channel stays: the same numbers for every sample.

    It reads nothing: data is "", and its rows are made of (R, 0).
    """

    @classmethod
    def of(cls, layer: Layer, keep: Mask) -> BiasAlone:
        """What is left of this layer."""
        window = None if layer.window is None else replace(layer.window, groups=1)
        none, outputs = np.zeros(0, np.int64), layer.outputs[layer.kept_outputs(keep)]
        return cls(layer.node, "", layer.output, "", layer.bias, none, outputs, window, beta=layer.beta)

    def matrix(self, weights: Mapping[str, Array], dtype: type[np.floating] = np.float64) -> Array:
        """The bias, (1, 1, M)."""
        return self.beta * weights[self.bias].astype(dtype).reshape(1, 1, -1)

    def weights(self, matrix: Doubles, present: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays by initializer name that `matrix` would read back from: its inverse."""
        return {self.bias: matrix.ravel() / self.beta}

    def rows(self, x: Floats, positions: Ints) -> Floats:
        """Rows of ones, (1, R, 1), for R positions: such a layer reads a constant."""
        return augmented(x[None])


@dataclass(frozen=True, eq=False)
class InputGates(Layer):
    """What a recurrent net makes of its input: X (T, B, I) to the gates of all directions, one after the other.

    No tensor holds the output; its positions are the steps. recurrent_bias: the half of the bias that belongs to the
    state, (D, G H); it stays.
    """

    directions: int = 1
    recurrent_bias: Array | None = None

    def dequantized(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Nothing: where its weights are quantized, the operator reads their codes."""
        return {}

    def matrix(self, weights: Mapping[str, Array], dtype: type[np.floating] = np.float64) -> Array:
        """W (1, I, D G H), with the input's half of the bias."""
        w = _read(self.weight, self.stored_weight, weights).astype(dtype)
        if self.stored_weight is not None:  # codes are stored as (D, I, G H)
            w = w.swapaxes(1, 2)
        m = w.reshape(-1, w.shape[2]).T[None]
        if self.bias:
            b = weights[self.bias][:, : w.shape[1]].astype(dtype)
            m = np.concatenate([m, b.reshape(1, 1, -1)], axis=1)
        return np.ascontiguousarray(m)

    def weights(self, matrix: Doubles, present: Mapping[str, Array]) -> dict[str, Array]:
        """The inverse of `matrix`; the state's half of the bias as it was."""
        body = matrix[0, : self.channels].T.reshape(self.directions, -1, self.channels)
        arrays: dict[str, Array] = {self.weight: body}
        if self.stored_weight is not None:
            arrays = self.stored_weight.write(body.swapaxes(1, 2), present)
        if self.recurrent_bias is not None:
            own = matrix[0, -1].reshape(self.recurrent_bias.shape)
            arrays[self.bias] = np.concatenate([own, self.recurrent_bias], axis=1)
        return arrays

    def output_shape(self, x: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is sampled, (B, T, 0): steps in place of positions."""
        return x[1], x[0], 0

    def rows(self, x: Floats, positions: Ints) -> Floats:
        """X (1, R, I) at the steps of every sequence."""
        return super().rows(x.swapaxes(0, 1), positions)

    def sliced(self, keep: Mask, groups: int) -> Layer:
        """This layer in the cut model."""
        small, rest = super().sliced(keep, groups), self.recurrent_bias
        if rest is not None:
            rest = rest.ravel()[self.kept_outputs(keep)].reshape(len(rest), -1)
        return replace(self, inputs=small.inputs, outputs=small.outputs, recurrent_bias=rest)


@dataclass(frozen=True, eq=False)
class StateGates(Layer):
    """What a recurrent net makes of its own state: Y (T, D, B, H) to the gates of each direction, a group each.

    No tensor holds the output; its positions are the steps.
    """

    directions: int = 1

    @property
    def groups(self) -> int:
        """How many directions the recurrent net runs in; they count as groups."""
        return self.directions

    def dequantized(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Nothing: where its weights are quantized, the operator reads their codes."""
        return {}

    def matrix(self, weights: Mapping[str, Array], dtype: type[np.floating] = np.float64) -> Array:
        """R (D, H, G H)."""
        if self.stored_weight is not None:  # codes are stored in that order
            return self.stored_weight.read(weights).astype(dtype)
        return np.ascontiguousarray(weights[self.weight].astype(dtype).transpose(0, 2, 1))

    def weights(self, matrix: Doubles, present: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays by initializer name that `matrix` would read back from: its inverse."""
        if self.stored_weight is not None:
            return self.stored_weight.write(matrix, present)
        return {self.weight: matrix.transpose(0, 2, 1)}

    def output_shape(self, x: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is sampled, (B, T, 0): steps in place of positions."""
        return x[2], x[0], 0

    def rows(self, x: Floats, positions: Ints) -> Floats:
        """X (D, R, H) at the steps of every sequence."""
        taken: Floats = x.transpose(1, 2, 0, 3)[:, :, positions]
        return taken.reshape(x.shape[1], -1, x.shape[3])


def layers_of(channels: ChannelGraph) -> tuple[Layer, ...]:
    """Every linear layer of the main graph whose weights are stored in the model and used once, quantized or not."""
    graph = channels.graph
    uses: dict[str, int] = {}
    for n in graph.nodes:
        for i in (*n.inputs, *n.captures):
            uses[i] = uses.get(i, 0) + 1
    for o in graph.outputs:
        uses[o] = uses.get(o, 0) + 1
    layers: list[Layer | None] = []
    for linear in channels.linears:
        if linear.node.index in graph.inside:
            continue
        if is_recurrent(linear.node):
            layers += [_input_gates(linear, graph, uses), _state_gates(linear, graph, uses)]
        else:
            layers.append(_layer(linear, graph, uses))
    limits = limited_by(graph)
    return tuple(replace(x, limited=limits.get(x.node.outputs[0], "")) for x in layers if x is not None)


def _own_weight(name: str, graph: Graph, uses: Mapping[str, int]) -> Array | None:
    w = graph.constants.get(name)
    return w if w is not None and is_float(w.dtype) and uses[name] == 1 else None


def _on_codes(node: Node, slot: int, graph: Graph, uses: Mapping[str, int]) -> Quantized | None:
    """How a DynamicQuantizeLSTM stores the weight at a slot, where nothing else reads that; else None."""
    q = Quantized.read_by_lstm(graph, node, slot) if node.op == QUANTIZED_LSTM else None
    return q if q is not None and all(uses[n] == 1 for n in q.names) else None


def _input_gates(linear: Linear, graph: Graph, uses: Mapping[str, int]) -> InputGates | None:
    q = _on_codes(linear.node, 1, graph, uses)
    w = _own_weight(linear.weight, graph, uses) if q is None else graph.constants[linear.weight].swapaxes(1, 2)
    if w is None or linear.outputs is None or linear.data in graph.constants:
        return None
    b = _own_weight(linear.bias, graph, uses) if linear.bias else None
    if linear.bias and b is None:
        return None
    return InputGates(
        linear.node,
        linear.data,
        "",
        linear.weight,
        linear.bias,
        np.full(w.shape[2], -1, np.int64) if linear.inputs is None else linear.inputs,
        linear.outputs,
        None,
        stored_weight=q,
        directions=w.shape[0],
        recurrent_bias=None if b is None else b[:, w.shape[1] :],
    )


def _state_gates(linear: Linear, graph: Graph, uses: Mapping[str, int]) -> StateGates | None:
    node = linear.node
    r, y = node.inputs[2], node.outputs[0]
    q = _on_codes(node, 2, graph, uses)
    w = _own_weight(r, graph, uses) if q is None else graph.constants[r].swapaxes(1, 2)
    if w is None or linear.outputs is None or not y or node.attrs.get("layout", 0):
        return None
    if node.op == "GRU" and not node.attrs.get("linear_before_reset", 0):
        # Its last gate reads the state times another gate, which no tensor holds.
        return None
    directions, _, hidden = w.shape
    units = linear.outputs.reshape(directions, -1)[:, :hidden].ravel()
    return StateGates(node, y, "", r, "", units, linear.outputs, None, stored_weight=q, directions=directions)


def _layer(linear: Linear, graph: Graph, uses: Mapping[str, int]) -> Layer | None:
    shape, x = graph.shape(linear.weight), graph.shape(linear.data)
    if shape is None or x is None or stored(graph, linear.data) in graph.constants:
        return None
    node = linear.node
    # DeformConv reads its input between positions.
    if not _is_own(linear.weight, graph, uses) or node.op == "DeformConv":
        return None
    reads, writes = weight_axes(linear)
    output, bias = node.outputs[0], linear.bias
    if node.op in ("Conv", "ConvTranspose"):
        channels = x[1]
        window: Window | None = _window(node, shape, linear.groups, len(x) - 2)
    else:
        channels, window = shape[reads], None
        if len(x) < 2 or (node.op == "Gemm" and node.attrs.get("transA", 0)):
            return None
        if node.op == "Gemm" and node.attrs.get("alpha", 1.0) == 0.0:
            return None
        if node.op == "Gemm" and node.attrs.get("beta", 1.0) == 0.0:
            bias = ""
        if node.op == "MatMul":
            output, bias = _added_bias(node, graph, shape[writes])
    b = graph.shape(bias) if bias else None
    width = shape[writes] * (linear.groups if node.op == "ConvTranspose" else 1)
    if bias and not (_is_vector(b, width) and _is_own(bias, graph, uses)):
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
        stored_weight=Quantized.of(graph, linear.weight),
        stored_bias=Quantized.of(graph, bias),
        step=input_scale(graph, linear.data, linear.weight, bias, writes),
    )


def _is_vector(shape: Shape | None, width: int) -> bool:
    return shape is not None and len(shape) > 0 and shape == (1,) * (len(shape) - 1) + (width,)


def _is_own(name: str, graph: Graph, uses: Mapping[str, int]) -> bool:
    """Whether a weight or bias is a constant, in floating point or quantized, that nothing else reads."""
    c, q = graph.constants.get(name), Quantized.of(graph, name)
    if c is not None:
        return is_float(c.dtype) and uses[name] == 1
    return q is not None and uses[name] == 1 and all(uses[n] == k for n, k in Counter(q.names).items())


def _added_bias(node: Node, graph: Graph, width: int) -> tuple[str, str]:
    """(output, bias) of a MatMul: a constant vector added right behind it is its bias."""
    own = node.outputs[0]
    out = behind_quantization(graph, own)
    readers = graph.readers.get(out, ())
    if len(readers) == 1 and readers[0][0].op == "Add" and out not in graph.outputs and out not in graph.captured:
        add, slot = readers[0]
        other = add.inputs[1 - slot]
        if stored(graph, other) in graph.constants and _is_vector(graph.shape(other), width):
            return add.outputs[0], other
    return own, ""


def _window(node: Node, shape: Shape, groups: int, rank: int) -> Window:
    a = node.attrs
    ones = (1,) * rank
    return Window(
        shape[2:],
        as_ints(a["strides"]) if a.get("strides") else ones,
        as_ints(a["dilations"]) if a.get("dilations") else ones,
        as_ints(a["pads"]) if a.get("pads") else (0,) * (2 * rank),
        groups,
        str(a.get("auto_pad", "NOTSET")),
        node.op == "ConvTranspose",
        as_ints(a["output_padding"]) if a.get("output_padding") else (),
        as_ints(a["output_shape"])[-rank:] if a.get("output_shape") else (),
    )
