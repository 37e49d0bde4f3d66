"""Weights that a graph stores quantized: how a layer reads them as real numbers, and how it stores new ones.

DequantizeLinear gives w = (q - z) · s, with the scale s and the zero point z one number for the whole tensor, one per
position of an axis, or one per block of an axis. QuantizeLinear gives q = saturate(round(w / s) + z), ties to even.

New weights take the range that they need: s = max |w| / (codes on a side) where the zero point lies in the middle of
the type (it stays there), else s = (max w - min w) / (all codes), and z = round(low - min w / s); 0 is in every range.
Scales below zero are those of a quantizer that gives the side with one code more to the largest number, whatever its
sign: so do new ones. Codes that the original leaves out on purpose (int8 kept to 7 bits against overflow in 16-bit
accumulators) stay out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.graph.operators import QUANTIZED_LSTM
from onnxprune.graph.view import Graph, Node
from onnxprune.numerics.arrays import Array, Doubles

QUANTIZE, DEQUANTIZE, DYNAMIC = "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"
DOMAINS = ("", "com.microsoft")

# Least and greatest code of each type that stores quantized numbers; those of the small floats are values.
_RANGES: Mapping[str, tuple[float, float]] = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-(2**31), 2**31 - 1),
    "float8_e4m3fn": (-448, 448),
    "float8_e4m3fnuz": (-240, 240),
    "float8_e5m2": (-57344, 57344),
    "float8_e5m2fnuz": (-57344, 57344),
}
# Types with far more codes than a weight needs: a scale that holds the values stays as it is.
_AMPLE = ("int32",)
_TINY = float(np.finfo(np.float32).tiny)
# What quantizers keep to: seven bits against overflow in 16-bit accumulators, and two of four where they store two.
_KEPT: Mapping[str, tuple[float, float]] = {"int8": (-64, 64), "uint8": (0, 127), "uint4": (0, 3)}


def code_range(kind: str) -> tuple[float, float]:
    """Least and greatest code of a type, by its numpy name."""
    return _RANGES[kind]


def is_quantize(node: Node | None) -> bool:
    """Whether a node is a QuantizeLinear."""
    return node is not None and node.op == QUANTIZE and node.domain in DOMAINS


def is_dequantize(node: Node | None) -> bool:
    """Whether a node is a DequantizeLinear."""
    return node is not None and node.op == DEQUANTIZE and node.domain in DOMAINS


def stored(graph: Graph, name: str) -> str:
    """The constant that a weight is made from by QuantizeLinear and DequantizeLinear; else `name` itself."""
    source = name
    node = graph.producer.get(source)
    while node is not None and (is_dequantize(node) or is_quantize(node)):
        source = node.inputs[0]
        node = graph.producer.get(source)
    return source if source in graph.constants else name


def real_values(graph: Graph, name: str) -> Array:
    """A constant as the numbers that it stands for: dequantized where its scale is known."""
    for node, slot in graph.readers.get(name, ()):
        if node.op == QUANTIZED_LSTM and slot in (1, 2):
            q = Quantized.read_by_lstm(graph, node, slot)
            return graph.constants[name] if q is None else q.read(graph.constants)
        q = Quantized.of(graph, node.outputs[0]) if slot == 0 and is_dequantize(node) else None
        if q is not None:
            return q.read(graph.constants)
    return graph.constants[name]


def input_scale(graph: Graph, data: str, weight: str, bias: str, output_axis: int) -> float | None:
    """The scale of a layer's input, where its int32 bias is stored at that times the scale of its weight; else None.

    output_axis: of the weight. That is what integer kernels assume, as they add the bias to a sum of products of codes.
    """
    w, b, by = Quantized.of(graph, weight), Quantized.of(graph, bias), graph.producer.get(data)
    if w is None or b is None or b.kind != "int32" or by is None or not is_dequantize(by):
        return None
    step = graph.constants.get(by.inputs[1])
    per_weight, per_bias = graph.constants[w.scales[0]].size, graph.constants[b.scales[0]].size
    along = per_weight == 1 or (w.axis == output_axis and not w.block and per_bias % per_weight == 0)
    return float(step.ravel()[0]) if step is not None and step.size == 1 and along else None


def bias_scale(weight_scale: Array, step: float, like: Array) -> Array:
    """The scale of a bias, shaped like its present one: the input's times the weight's.

    The weight of a grouped transposed convolution has one scale for the same output of every group.
    """
    return np.tile(weight_scale.ravel() * like.dtype.type(step), like.size // weight_scale.size).reshape(like.shape)


def least_scale(b: Doubles, step: float, like: Array) -> Doubles:
    """The scale of a weight, shaped like its present one, below which the bias would not fit into int32."""
    most: Doubles = (np.abs(b) / (step * _RANGES["int32"][1])).reshape(-1, like.size).max(axis=0).reshape(like.shape)
    return most


def behind_quantization(graph: Graph, name: str) -> str:
    """The tensor behind the QuantizeLinear and DequantizeLinear that alone read `name`; else `name` itself.

    A zero point at an end of the codes makes a Relu of the pair: such a pair is not looked through.
    """
    first = _only_reader(graph, name)
    second = _only_reader(graph, first.outputs[0]) if first is not None and is_quantize(first) else None
    if first is None or second is None or not is_dequantize(second):
        return name
    zero = graph.constants.get(second.input(2))
    span = None if zero is None or zero.size != 1 else _RANGES.get(zero.dtype.name)
    if zero is None or span is None or not span[0] < float(zero.ravel()[0]) < span[1]:
        return name
    return second.outputs[0]


def _only_reader(graph: Graph, name: str) -> Node | None:
    readers = graph.readers.get(name, ())
    if len(readers) != 1 or name in graph.outputs or name in graph.captured:
        return None
    return readers[0][0]


@dataclass(frozen=True, eq=False)
class Quantized:
    """A weight behind DequantizeLinear.

    values: the constant that holds it: codes, or behind a QuantizeLinear of its own (`rounds`) the weight in floating
    point. scales, zero_points: the constants that QuantizeLinear and DequantizeLinear read, of the same content.
    axis: of a scale per position (or per block of `block` positions). low, high: the codes to use. kind: their type.
    symmetric: the zero point lies in the middle of the codes, or cannot be stored, and stays.
    """

    values: str
    scales: tuple[str, ...]
    zero_points: tuple[str, ...]
    axis: int
    block: int
    low: float
    high: float
    kind: str
    rounds: bool
    symmetric: bool

    @classmethod
    def of(cls, graph: Graph, name: str) -> Quantized | None:
        """What `name` is made of; None where it is no DequantizeLinear of constants, or of an unknown type."""
        last = graph.producer.get(name)
        if last is None or not is_dequantize(last):
            return None
        nodes = [last]
        by = graph.producer.get(last.inputs[0])
        if by is not None and is_quantize(by):
            if len(graph.readers[last.inputs[0]]) > 1:
                return None
            nodes.append(by)
        values = graph.constants.get(nodes[-1].inputs[0])
        scales = tuple(n.inputs[1] for n in nodes)
        zeros = tuple(n.input(2) for n in nodes if n.input(2))
        if values is None or any(c not in graph.constants for c in (*scales, *zeros)):
            return None
        rounds = len(nodes) > 1
        kind = (graph.constants[zeros[0]] if zeros else values).dtype.name
        if kind not in _RANGES or len(zeros) not in (0, len(nodes)):
            return None
        block = int(last.attrs.get("block_size", 0))
        axis = int(last.attrs.get("axis", 1)) % max(values.ndim, 1)
        found = cls(nodes[-1].inputs[0], scales, zeros, axis, block, *_RANGES[kind], kind, rounds, False)
        return found._settled(graph.constants)

    @classmethod
    def read_by_lstm(cls, graph: Graph, node: Node, slot: int) -> Quantized | None:
        """The weight at slot 1 or 2 of a DynamicQuantizeLSTM; None where each direction has scales for each row.

        The scale is one for each direction, or of the only direction one for each row of its gates.
        """
        names = node.input(slot), node.input(6 + 2 * slot), node.input(7 + 2 * slot)
        values, scale, zero = (graph.constants.get(n) for n in names)
        if values is None or scale is None or zero is None or scale.shape != zero.shape:
            return None
        if scale.ndim == 2 and scale.shape[0] > 1:
            return None
        kind = zero.dtype.name
        axis = 0 if scale.ndim < 2 else 2
        found = cls(names[0], names[1:2], names[2:], axis, 0, *_RANGES[kind], kind, False, False)
        return found._settled(graph.constants)

    def _settled(self, constants: Mapping[str, Array]) -> Quantized | None:
        """The same with the codes that its quantizer kept to; None where it could not be written anew."""
        zero = constants[self.zero_points[0]].astype(np.float64) if self.zero_points else np.zeros(1)
        low, high, middle = self.low, self.high, _middle(self.low, self.high)
        if self.kind in _KEPT:
            codes, (least, most) = self.codes(constants), _KEPT[self.kind]
            held = least <= zero.min() and zero.max() <= most
            if held and codes.min(initial=0) >= least and codes.max(initial=0) <= most:
                low, high = least, most
                middle = _middle(low, high) if self.kind == "uint4" else middle
        symmetric = bool((zero == middle).all())
        if not symmetric and not (self.zero_points and _is_integer(self.kind)):
            return None
        return replace(self, low=low, high=high, symmetric=symmetric)

    @property
    def names(self) -> tuple[str, ...]:
        """Every constant that it is made of."""
        return (self.values, *self.scales, *self.zero_points)

    def codes(self, constants: Mapping[str, Array]) -> Doubles:
        """The codes q that the weight is stored as, or is rounded to, as float64."""
        values = constants[self.values].astype(np.float64)
        if not self.rounds:
            return values
        scale, zero = self._parts(constants)
        least, most = _RANGES[self.kind]
        q = np.clip((np.rint(values / scale) if _is_integer(self.kind) else values / scale) + zero, least, most)
        # The small floats round as their own type does.
        result: Doubles = q if _is_integer(self.kind) else q.astype(constants[self.zero_points[0]].dtype).astype(float)
        return result

    def read(self, constants: Mapping[str, Array]) -> Doubles:
        """The numbers that the codes stand for, (q - z) · s, as float64."""
        scale, zero = self._parts(constants)
        result: Doubles = (self.codes(constants) - zero) * scale
        return result

    def write(
        self,
        w: Doubles,
        constants: Mapping[str, Array],
        *,
        scale: Array | None = None,
        least: Array | float = 0.0,
    ) -> dict[str, Array]:
        """The constants that hold w, by name, in their own types; `constants` holds the present ones.

        scale: the scale to use, shaped like the stored one, where something else prescribes it. least: a lower bound
        of the scale, which broadcasts against it.
        """
        old, zeros = constants[self.scales[0]], constants[self.zero_points[0]] if self.zero_points else None
        middle = np.zeros(old.shape) if zeros is None else zeros.astype(np.float64).reshape(old.shape)
        top, bottom = self._most(w, old), -self._most(-w, old)
        if scale is not None:
            s = scale.reshape(old.shape)
        elif self.symmetric and bool((old < 0).any()):
            # The quantizer gives the longer side of the codes to the side on which the largest number lies.
            s = np.where(top > -bottom, top, bottom) / (self.low - middle)
        elif self.symmetric:
            s = np.maximum(top, -bottom) / np.minimum(self.high - middle, middle - self.low)
            if self.kind in _AMPLE:
                s = np.where(s <= old, old, s)
        else:
            s = (top - bottom) / (self.high - self.low)
        s = np.where(np.abs(s) < least, least, s)
        # Weights that are all zero need no scale; the old one is as good as any.
        s = np.where((np.abs(s) > _TINY) & (s.astype(old.dtype) != 0), s, old).astype(old.dtype)
        if not self.symmetric:
            middle = np.clip(np.rint(self.low - bottom / s.astype(np.float64)), self.low, self.high)
        written = dict.fromkeys(self.scales, s)
        if zeros is not None:
            written |= dict.fromkeys(self.zero_points, middle.reshape(zeros.shape).astype(zeros.dtype))
        if self.rounds:
            written[self.values] = w.astype(constants[self.values].dtype)
            return written
        codes = w / self._spread(s.astype(np.float64), w.shape)
        codes = (np.rint(codes) if _is_integer(self.kind) else codes) + self._spread(middle, w.shape)
        written[self.values] = np.clip(codes, self.low, self.high).astype(constants[self.values].dtype)
        return written

    def _parts(self, constants: Mapping[str, Array]) -> tuple[Doubles, Doubles]:
        shape = constants[self.values].shape
        scale = constants[self.scales[0]].astype(np.float64)
        zero = constants[self.zero_points[0]].astype(np.float64) if self.zero_points else np.zeros(1)
        return self._spread(scale, shape), self._spread(zero, shape)

    def _spread(self, per: Doubles, shape: tuple[int, ...]) -> Doubles:
        """A number per tensor, position or block, so that it broadcasts against `shape`."""
        if per.size == 1:
            return per.reshape((1,) * len(shape))
        if self.block:
            return np.repeat(per, self.block, axis=self.axis).take(range(shape[self.axis]), axis=self.axis)
        return per.reshape([-1 if a == self.axis else 1 for a in range(len(shape))])

    def _most(self, w: Doubles, like: Array) -> Doubles:
        """The greatest of 0 and the entries that each number of a scale shaped `like` covers."""
        if like.size == 1:
            result = w.max(initial=0.0)
        elif self.block:
            starts = np.arange(0, w.shape[self.axis], self.block)
            result = np.maximum(np.maximum.reduceat(w, starts, axis=self.axis), 0.0)
        else:
            result = w.max(axis=tuple(a for a in range(w.ndim) if a != self.axis), initial=0.0)
        return np.asarray(result, np.float64).reshape(like.shape)


def _middle(low: float, high: float) -> float:
    return 0.0 if low < 0 else (low + high + 1) / 2


def _is_integer(kind: str) -> bool:
    return not kind.startswith("float")
