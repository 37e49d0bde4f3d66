"""Random inputs where the user has no data: normal noise, zeros and ones, and values that operators accept.

An input that says how large something is, or where (the target of a Reshape, the scales of a Resize), takes few values.
What reads it says which: a table below, by operator and place. What that does not settle is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import onnx

from onnxprune.data.array_files import chunks
from onnxprune.data.declared import dims_of, dtype_of
from onnxprune.data.samples import InputSpec, Samples, other_inputs
from onnxprune.errors import CalibrationError
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.regular_files import shown

_TRIAL_SIZES = (64, 224, 32, 16, 128, 512)
# Stand-ins are held in memory.
_MOST_BYTES = 1 << 30
_SEQUENCE_LENGTH = 2
_END = 1 << 30
_LARGEST_BLOCK = 8


def random(
    proto: onnx.ModelProto,
    specs: tuple[InputSpec, ...],
    count: int,
    seed: int,
    runs: Callable[[Mapping[str, Any]], bool],
    advice: str = "give real data with --calib",
) -> Samples:
    """Seeded normal noise (zeros and ones for integers) for `count` samples.

    Symbolic dimensions other than the batch take the first of a few usual sizes with which `runs(feeds)` is true. Only
    a model whose inputs are all floating-point ones of known sizes is not run. Raises CalibrationError, with the
    advice, where no size runs or fits into memory.
    """
    reason = ""
    readers = _readers(proto)
    certain = all(None not in s.dims[1:] and is_float(s.dtype) and s.name not in readers for s in specs)
    symbolic = any(None in s.dims for s in specs)
    for size in _TRIAL_SIZES if symbolic else _TRIAL_SIZES[:1]:
        shapes = {s.name: _shape(s, count, size) for s in specs}
        needs = {s.name: math.prod(shapes[s.name]) * (s.dtype.itemsize if is_float(s.dtype) else 8) for s in specs}
        if sum(needs.values()) > _MOST_BYTES:
            name = max(needs, key=lambda k: needs[k])
            reason = reason or (
                f"random data of shape {'x'.join(map(str, shapes[name]))} for input {name!r} would take "
                f"{shown(needs[name])} of memory: {advice}, or ask for fewer samples"
            )
            continue
        reason = f"random data does not run the model: {advice}"
        for style in _STYLES:
            rng = np.random.default_rng(seed)
            arrays = {s.name: _values(s, shapes[s.name], style, rng, readers.get(s.name)) for s in specs}
            fixed = {v.name: _other(v.name, v.type, size, rng) for v in other_inputs(proto)}
            samples = Samples(specs, arrays, {}, f"random, seed {seed}", True, fixed)
            if (certain and not fixed) or runs(samples.example()):
                return samples
            if all(is_float(s.dtype) for s in specs):
                break  # the other styles differ in integers alone
    raise CalibrationError(reason)


def _shape(s: InputSpec, count: int, size: int) -> tuple[int, ...]:
    dims = [size if d is None else d for d in s.dims]
    if s.batched:
        dims[0] = count
    elif len(dims) > 1 and s.dims[1] is None:
        dims[1] = 1  # a batch that is not on the first axis still is one sample
    return tuple(dims)


_AS_READ, _ONES, _ZEROS = "as it is read", "ones", "zeros"
_STYLES = (_AS_READ, _ONES, _ZEROS)


def _values(
    s: InputSpec, shape: tuple[int, ...], style: str, rng: np.random.Generator, fitting: Callable[..., Any] | None
) -> Array:
    """Values of one input; `fitting` makes those that its reader accepts."""
    fitted = fitting(shape) if fitting is not None and style == _AS_READ else None
    drawn = _noise(rng, shape, s.dtype) if is_float(s.dtype) else rng.integers(0, 2, shape)
    if fitted is not None and math.prod(shape) == np.size(fitted):
        return np.asarray(fitted).reshape(shape).astype(s.dtype)
    if s.dtype.kind == "O":
        return np.asarray(drawn).astype(np.str_).astype(object)
    if is_float(s.dtype):
        return drawn
    if s.dtype == np.bool_ or style == _ONES:
        return np.ones(shape, s.dtype)
    return np.zeros(shape, s.dtype) if style == _ZEROS else np.asarray(drawn).astype(s.dtype)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Normal numbers of a type, piece by piece, as they are drawn in 64 bits."""
    noise = np.empty(shape, dtype)
    for part in chunks(noise):
        part[...] = np.asarray(rng.standard_normal(part.shape)).astype(dtype)
    return noise


def _other(name: str, kind: onnx.TypeProto, size: int, rng: np.random.Generator) -> Any:
    """Random values of any type of input: a sequence gets two entries, an optional value is present."""
    if kind.HasField("sequence_type"):
        return [_other(name, kind.sequence_type.elem_type, size, rng) for _ in range(_SEQUENCE_LENGTH)]
    if kind.HasField("optional_type"):
        return _other(name, kind.optional_type.elem_type, size, rng)
    if not kind.HasField("tensor_type"):
        raise CalibrationError("an input is neither a tensor, a sequence nor an optional of them; nothing can be fed")
    declared = onnx.ValueInfoProto(name=name, type=kind)
    dtype = dtype_of(declared)
    dims = tuple(size if d is None else d for d in dims_of(declared, dtype))
    spec = InputSpec(name, dtype, dims)
    needs = math.prod(dims) * max(dtype.itemsize, 8)
    if needs > _MOST_BYTES:
        raise CalibrationError(f"random data for input {name!r} would take {shown(needs)} of memory: give data instead")
    return _values(spec, dims, _AS_READ, rng, None)


# what operators accept


class _Reader:
    """A node that reads an input at a place where few values fit, and the static shapes around it."""

    def __init__(self, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._node, self._shapes = node, shapes

    def of(self, place: int) -> tuple[int, ...] | None:
        """The shape of an input, where it is known."""
        return self._shapes.get(self._node.input[place]) if place < len(self._node.input) else None

    @property
    def out(self) -> tuple[int, ...] | None:
        """The shape of the first output, where it is known."""
        return self._shapes.get(self._node.output[0])

    def attribute(self, name: str, default: int) -> int:
        """An integer attribute."""
        return next((int(a.i) for a in self._node.attribute if a.name == name), default)

    def axes(self, rank: int) -> list[int]:
        """The attribute `axes`, all of them where it is absent."""
        return [a % rank for a in self.ints("axes") or range(rank)]

    def ints(self, name: str) -> list[int]:
        """A list of integers; empty where it is absent."""
        return next((list(a.ints) for a in self._node.attribute if a.name == name), [])


Fitting = Callable[[_Reader, int], Any]


def _target(r: _Reader, n: int) -> Any:
    return r.out if r.out is not None and len(r.out) == n else [-1, *[1] * (n - 1)]


def _like_output(r: _Reader, n: int) -> Any:
    return r.out[-n:] if r.out is not None and len(r.out) >= n else np.ones(n)


def _axis_sizes(r: _Reader, n: int) -> Any:
    shape = r.out or r.of(0)
    return np.ones(n) if shape is None else np.array(shape)[r.axes(len(shape))]


def _factors(r: _Reader, n: int) -> Any:
    before, after = r.of(0), r.out
    if before is None or after is None or len(before) != len(after) or 0 in before:
        return np.ones(n)
    axes = r.axes(len(before))
    return np.array(after)[axes] / np.array(before)[axes]


def _ends(r: _Reader, n: int) -> Any:
    return r.out if r.out is not None and len(r.out) == n else np.full(n, _END)


def _parts(r: _Reader, n: int) -> Any:
    shape = r.of(0)
    whole = shape[r.attribute("axis", 0)] if shape else n
    if n == 1:
        return [whole]
    return np.diff(np.linspace(0, whole, n + 1).astype(np.int64))


def _single_axes(r: _Reader, n: int) -> Any:
    return [a for a, d in enumerate(r.of(0) or ()) if d == 1][:n]


def _blocks(r: _Reader, n: int) -> Any:
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


def _grid(r: _Reader, n: int) -> Any:
    theta, out = r.of(0), r.out
    sizes = out[1:-1] if out is not None else [2] * (n - 2)
    return [theta[0] if theta else 1, 1, *sizes]


def _fixed(value: float) -> Fitting:
    return lambda _, n: np.full(n, value)


_FITTING: Mapping[tuple[str, int], Fitting] = {
    ("Reshape", 1): _target,
    ("Expand", 1): _like_output,
    ("ConstantOfShape", 0): _like_output,
    ("CenterCropPad", 1): _like_output,
    ("MaxUnpool", 2): _like_output,
    ("Tile", 1): _fixed(1),
    ("Resize", 1): _factors,  # of version 10
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
    ("Dropout", 1): _fixed(0.5),
    ("Range", 1): _fixed(4),
    ("Range", 2): _fixed(1),
    ("STFT", 1): _fixed(4),
    ("STFT", 3): _fixed(8),
    ("DFT", 1): lambda r, n: [(r.of(0) or (1, 8))[1]],
    ("MelWeightMatrix", 0): _fixed(4),
    ("MelWeightMatrix", 1): _fixed(16),
    ("MelWeightMatrix", 2): _fixed(8192),
    ("MelWeightMatrix", 3): _fixed(0),
    ("MelWeightMatrix", 4): _fixed(4096),
    **{(f"{name}Window", 0): _fixed(8) for name in ("Hann", "Hamming", "Blackman")},
}
_INTEGERS = frozenset(getattr(onnx.TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64))
# Of integers alone: onnxruntime up to 1.24 at least dies of a division by zero (SIGFPE), and this process with it.
_FITTING_INTEGERS: Mapping[tuple[str, int], Fitting] = {("Div", 1): _fixed(1), ("Mod", 1): _fixed(1)}


def _readers(proto: onnx.ModelProto) -> dict[str, Callable[[tuple[int, ...]], Any]]:
    """What makes fitting values for a shape, of each graph input that a node of the table reads."""
    from onnxprune.graph.protobuf import inferred_shapes

    tables = {
        v.name: {**_FITTING, **_FITTING_INTEGERS} if v.type.tensor_type.elem_type in _INTEGERS else _FITTING
        for v in proto.graph.input
    }
    readers: dict[str, Callable[[tuple[int, ...]], Any]] = {}
    reading = [
        (name, n, tables[name][n.op_type, place])
        for n in proto.graph.node
        for place, name in enumerate(n.input)
        if (n.op_type, place) in tables.get(name, {})
    ]
    shapes = inferred_shapes(proto)[0] if reading else {}
    for name, node, fitting in reading:
        readers.setdefault(name, partial(_fitted, fitting, _Reader(node, shapes)))
    return readers


def _fitted(fitting: Fitting, reader: _Reader, shape: tuple[int, ...]) -> Any:
    return fitting(reader, math.prod(shape))
