"""Which values an operator accepts where few fit: sizes, axes, bounds, steps, indices, counts, scales and rates.

A table by operator and place. Entries of LISTS belong to the whole run: the target of a Reshape is no sample. Entries
of ENTRIES are made for every sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import onnx

_END = 1 << 30
_LARGEST_BLOCK = 8
Shape = tuple[int, ...]


class Reader:
    """A node that reads a value, and what is known of the shapes around it, as they are with one sample."""

    def __init__(self, node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> None:
        self.node: onnx.NodeProto = node
        self._shapes = shapes

    def of(self, place: int) -> Shape | None:
        """The shape of an input, where it is known."""
        return self._shapes.get(self.node.input[place]) if place < len(self.node.input) else None

    def axis(self, place: int, axis: int) -> int | None:
        """The size of an axis of an input, where both are known."""
        shape = self.of(place)
        return shape[axis] if shape and -len(shape) <= axis < len(shape) else None

    @property
    def out(self) -> Shape | None:
        """The shape of the first output, where it is known."""
        return self._shapes.get(self.node.output[0]) if self.node.output else None

    def attribute(self, name: str, default: int) -> int:
        """An integer attribute."""
        return next((int(a.i) for a in self.node.attribute if a.name == name), default)

    def axes(self, rank: int) -> list[int]:
        """The attribute `axes`, all of them where it is absent."""
        return [a % rank for a in self.ints("axes") or range(rank)]

    def ints(self, name: str) -> list[int]:
        """A list of integers; empty where it is absent."""
        return next((list(a.ints) for a in self.node.attribute if a.name == name), [])


# Given the reader and how many entries the list has: the list, or its single value.
List = Callable[[Reader, int], Any]
# Given the reader and the shape of the value: lowest and highest value, of entries that are drawn; or per column.
Range = Callable[[Reader, Shape], tuple[Any, Any] | None]


def _fixed(value: float) -> List:
    return lambda _, n: np.full(n, value)


def _target(r: Reader, n: int) -> Any:
    return r.out if r.out is not None and len(r.out) == n else [-1, *[1] * (n - 1)]


def _like_output(r: Reader, n: int) -> Any:
    return r.out[-n:] if r.out is not None and len(r.out) >= n else np.ones(n)


def _axis_sizes(r: Reader, n: int) -> Any:
    shape = r.out or r.of(0)
    return np.ones(n) if shape is None else np.array(shape)[r.axes(len(shape))]


def _factors(r: Reader, n: int) -> Any:
    before, after = r.of(0), r.out
    if before is None or after is None or len(before) != len(after) or 0 in before:
        return np.ones(n)
    axes = r.axes(len(before))
    return np.array(after)[axes] / np.array(before)[axes]


def _window(r: Reader, n: int) -> Any:
    """What a Resize looks at: all of it, from 0 to 1."""
    return np.repeat([0.0, 1.0], n // 2) if n % 2 == 0 else np.zeros(n)


def _ends(r: Reader, n: int) -> Any:
    return r.out if r.out is not None and len(r.out) == n else np.full(n, _END)


def _parts(r: Reader, n: int) -> Any:
    shape = r.of(0)
    whole = shape[r.attribute("axis", 0)] if shape else n
    if n == 1:
        return [whole]
    return np.diff(np.linspace(0, whole, n + 1).astype(np.int64))


def _single_axes(r: Reader, n: int) -> Any:
    return [a for a, d in enumerate(r.of(0) or ()) if d == 1][:n]


def _blocks(r: Reader, n: int) -> Any:
    """Blocks for Col2Im, with as many entries as the columns have for one channel, at as many places as there are."""
    columns, images = r.of(0), r.out
    if columns is None or images is None or not images[1]:
        return [1] * n
    sizes = images[2:]
    strides, dilations = (np.array(r.ints(name) or [1] * n) for name in ("strides", "dilations"))
    pads = np.array(r.ints("pads") or [0] * 2 * n).reshape(2, n).sum(axis=0)
    for block in product(*(range(1, min(d, _LARGEST_BLOCK) + 1) for d in sizes)):
        places = (np.array(sizes) + pads - dilations * (np.array(block) - 1) - 1) // strides + 1
        if math.prod(block) * images[1] == columns[1] and math.prod(places) == columns[2]:
            return block
    return [1] * n


def _grid(r: Reader, n: int) -> Any:
    theta, out = r.of(0), r.out
    sizes = out[1:-1] if out is not None and len(out) == n else [2] * (n - 2)
    return [theta[0] if theta else 1, 1, *sizes]


def _last(r: Reader, _: int) -> Any:
    """The last axis, of a value whose axes may be counted from behind."""
    return [-1]


def _signal(r: Reader, _: int) -> Any:
    return [r.axis(0, r.attribute("axis", 1)) or 8]


LISTS: Mapping[tuple[str, int], List] = {
    ("Reshape", 1): _target,
    ("Expand", 1): _like_output,
    ("ConstantOfShape", 0): lambda r, n: r.out if r.out is not None and len(r.out) == n else np.full(n, 2),
    ("CenterCropPad", 1): _like_output,
    ("MaxUnpool", 2): _like_output,
    ("Tile", 1): _fixed(1),
    ("Resize", 1): _factors,  # of version 10; later ones have the window here
    ("Resize", 2): _factors,
    ("Resize", 3): _axis_sizes,
    ("Upsample", 1): _factors,
    ("Slice", 1): _fixed(0),
    ("Slice", 2): _ends,
    ("Slice", 3): lambda _, n: np.arange(n),
    ("Slice", 4): _fixed(1),
    ("Split", 1): _parts,
    ("SplitToSequence", 1): lambda r, n: _fixed(1)(r, n) if r.of(1) == () else _parts(r, n),
    ("Squeeze", 1): _single_axes,
    ("Unsqueeze", 1): lambda _, n: np.arange(n),
    ("Pad", 1): _fixed(0),
    ("Pad", 3): lambda _, n: np.arange(n),
    ("TopK", 1): _fixed(1),
    ("OneHot", 1): _fixed(4),
    ("NonMaxSuppression", 2): _fixed(2),
    ("NonMaxSuppression", 3): _fixed(0.5),
    ("NonMaxSuppression", 4): _fixed(0.0),
    ("Col2Im", 1): _like_output,
    ("Col2Im", 2): _blocks,
    ("AffineGrid", 1): _grid,
    ("Range", 0): _fixed(0),
    ("Range", 1): _fixed(4),
    ("Range", 2): _fixed(1),
    ("Trilu", 1): _fixed(0),
    ("CumSum", 1): _last,
    ("CumProd", 1): _last,
    ("Loop", 0): _fixed(2),
    ("SequenceAt", 1): _fixed(0),
    ("SequenceErase", 1): _fixed(0),
    ("SequenceInsert", 2): _fixed(0),
    ("Dropout", 1): _fixed(0.5),
    ("Clip", 1): _fixed(-1),
    ("Clip", 2): _fixed(1),
    ("STFT", 1): _fixed(4),
    ("STFT", 3): _fixed(8),
    ("DFT", 1): _signal,
    ("DFT", 2): _fixed(1),
    ("MelWeightMatrix", 0): _fixed(4),
    ("MelWeightMatrix", 1): _fixed(16),
    ("MelWeightMatrix", 2): _fixed(8192),
    ("MelWeightMatrix", 3): _fixed(0),
    ("MelWeightMatrix", 4): _fixed(4096),
    **{(f"{name}Window", 0): _fixed(8) for name in ("Hann", "Hamming", "Blackman")},
    **{
        (f"Reduce{name}", 1): lambda _, n: np.arange(n)
        for name in "Sum Mean Max Min Prod L1 L2 LogSum LogSumExp SumSquare".split()
    },
    ("GroupQueryAttention", 6): lambda r, _: [r.axis(0, 1) or 1],
    ("BeamSearch", 1): _fixed(8),
    ("BeamSearch", 2): _fixed(1),
    ("BeamSearch", 3): _fixed(1),
    ("BeamSearch", 4): _fixed(1),
    ("BeamSearch", 5): _fixed(1),
    ("BeamSearch", 6): _fixed(1),
    ("GreedySearch", 1): _fixed(8),
    ("GreedySearch", 2): _fixed(1),
    ("GreedySearch", 3): _fixed(1),
}


# entries that are drawn


def _below(data: int, axis: int | None = None) -> Range:
    """Indices into an axis of an input: the one that the attribute names, or this."""

    def found(r: Reader, _: Shape) -> tuple[Any, Any] | None:
        size = r.axis(data, r.attribute("axis", 0) if axis is None else axis)
        return None if not size else (0, size - 1)

    return found


def _coordinates(r: Reader, shape: Shape) -> tuple[Any, Any] | None:
    """Indices into several axes of the first input, one column for each; where columns are not those, into any."""
    data, skipped = r.of(0), r.attribute("batch_dims", 0)
    read = r.of(1) or shape
    if data is None or not read or len(data) < skipped + read[-1]:
        return (0, 0)
    most = np.maximum(np.array(data[skipped : skipped + read[-1]]) - 1, 0)
    if shape[-1:] != read[-1:] or len(most) == 1:
        return (0, int(most.min()) if most.size else 0)
    return np.zeros_like(most), most


def _lengths(r: Reader, _: Shape) -> tuple[Any, Any] | None:
    """Lengths of sequences: all of them, as a longer one is an error and a shorter one hides what is behind it."""
    size = r.axis(0, r.attribute("time_axis", r.attribute("layout", 0)))
    return (size or 1, size or 1)


def _between(low: float, high: float) -> Range:
    return lambda *_: (low, high)


def _positions(r: Reader, _: Shape) -> tuple[Any, Any] | None:
    return None if not r.axis(1, 0) else (0, (r.axis(1, 0) or 1) - 1)


_SCALES = {
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    "QLinearConv": (1, 4, 6),
    "QLinearMatMul": (1, 4, 6),
    "QLinearAdd": (1, 4, 6),
    "QLinearMul": (1, 4, 6),
    "QLinearSigmoid": (1, 3),
    "QLinearLeakyRelu": (1, 3),
    "QLinearGlobalAveragePool": (1, 3),
    "QLinearAveragePool": (1, 3),
    "QGemm": (1, 4, 7),
    "MatMulIntegerToFloat": (2, 3),
}

ENTRIES: Mapping[tuple[str, int], Range] = {
    ("Gather", 1): _below(0),
    ("GatherElements", 1): _below(0),
    ("ScatterElements", 1): _below(0),
    ("Scatter", 1): _below(0),
    ("ArrayFeatureExtractor", 1): _below(0, -1),
    ("GatherND", 1): _coordinates,
    ("ScatterND", 1): _coordinates,
    ("TensorScatter", 2): _between(0, 0),
    ("MaxUnpool", 1): _between(0, 0),
    ("NegativeLogLikelihoodLoss", 1): _below(0, 1),
    ("SoftmaxCrossEntropyLoss", 1): _below(0, 1),
    ("ReverseSequence", 1): _lengths,
    ("LSTM", 4): _lengths,
    ("GRU", 4): _lengths,
    ("RNN", 4): _lengths,
    ("DynamicQuantizeLSTM", 4): _lengths,
    ("RoiAlign", 2): _between(0, 0),
    ("Attention", 6): lambda r, _: (r.axis(1, -2) or 1,) * 2,
    ("BatchNormalization", 4): _between(0.5, 1.5),
    ("Bernoulli", 0): _between(0, 1),
    **{(name, 0): _between(0.01, 1) for name in ("Log", "Sqrt")},
    **{(name, 0): _between(-0.9, 0.9) for name in ("Acos", "Asin", "Atanh")},
    ("Acosh", 0): _between(1, 3),
    **{(name, place): _between(0.01, 0.1) for name, places in _SCALES.items() for place in places},
    # of com.microsoft
    ("EmbedLayerNormalization", 0): _below(2, 0),
    ("EmbedLayerNormalization", 1): _below(4, 0),
    ("EmbedLayerNormalization", 8): _below(3, 0),
    ("RotaryEmbedding", 1): lambda r, s: _below(2, 0)(r, s) if r.node.domain == "com.microsoft" else None,
    ("RotaryEmbedding", 3): lambda r, s: _positions(r, s) if r.node.domain != "com.microsoft" else None,
    ("GroupQueryAttention", 5): lambda r, _: ((r.axis(0, 1) or 1) - 1,) * 2,
}
_INTEGERS = frozenset(getattr(onnx.TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64))
# Of integers alone: onnxruntime up to 1.24 at least dies of a division by zero (SIGFPE), and this process with it.
OF_INTEGERS: Mapping[tuple[str, int], Range] = {("Div", 1): _between(1, 1), ("Mod", 1): _between(1, 1)}


def is_integer(element: int) -> bool:
    """Whether an ONNX element type is one of whole numbers of 8 bits and more."""
    return element in _INTEGERS
