"""Random inputs where the user has no data: normal noise, zeros and ones, and values that operators accept.

Free axes get sizes in turn (`free_sizes`), and an input that says how large something is, or where, gets what its
readers accept (`followed`, `places`). What neither settles is tried: other values for what is left, a batch of one,
optional inputs that are absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import onnx

from onnxprune.data import forced_sizes, free_sizes
from onnxprune.data.arrangement import Arrangement, Stored
from onnxprune.data.array_files import chunks
from onnxprune.data.declared import dims_of, dtype_of
from onnxprune.data.followed import Place, places
from onnxprune.data.inputs import InputSpec, other_inputs
from onnxprune.data.places import ENTRIES, LISTS, OF_INTEGERS, Reader, Shape
from onnxprune.data.readings import counts_samples
from onnxprune.data.samples import Samples
from onnxprune.errors import CalibrationError
from onnxprune.graph import protobuf
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.options import first_of
from onnxprune.regular_files import shown

# Stand-ins are held in memory.
_MOST_BYTES = 1 << 30
_SEQUENCE_LENGTH = 2
_MOST_NAMED = 4
# Tries in which a run is a sample.
_LONE = 8
# Samples of a trial, and the entries of one of them beyond which rare sizes are not tried.
_TRIED = 2
_MOST_ENTRIES = 1 << 22

Runs = Callable[[Mapping[str, Any]], bool]
# The static shapes of a model whose inputs have these.
Shapes = Callable[[Mapping[str, Shape]], Mapping[str, Shape]]


@dataclass(frozen=True)
class Attempt:
    """What one try is made of.

    sizes: of the free axes, by key. style: of the integers that no reader explains. single: a batch of one sample.
    lone: no axis counts samples, and a run is one, as where nodes and edges of a graph stand in front. absent: optional
    inputs have no value.
    """

    sizes: Mapping[str, int]
    style: str
    single: bool = False
    lone: bool = False
    absent: bool = False


_AS_READ, _ONES, _ZEROS, _SHAPE, _TWOS = "as it is read", "ones", "zeros", "the shape of another input", "twos"
_MINUS, _RISING = "minus one", "0, 1, 2"
# Ids as they are read beside a mask of ones, say: what nobody explains is the likelier fault.
_ELSE_ONES = "as it is read, else ones"
_FIRST_STYLES = (_AS_READ, _ELSE_ONES, _ONES, _ZEROS)
_MORE_STYLES = (_SHAPE, _TWOS, _RISING, _MINUS)


def random(
    proto: onnx.ModelProto,
    specs: tuple[InputSpec, ...],
    count: int,
    seed: int,
    runs: Runs,
    advice: str = "give real data with --calib",
    shapes: Shapes | None = None,
) -> Samples:
    """Seeded noise for `count` samples, with which the model runs.

    Only a model whose inputs are all floating-point ones of known sizes that no operator limits is not run. shapes:
    what is known of the tensors inside at given sizes; None: what ONNX infers, in this process. Raises
    CalibrationError, with the advice and the inputs that may be at fault, where nothing runs or fits into memory.
    """
    made = _Maker(proto, specs, count, seed, shapes or partial(protobuf.shapes_at, proto))
    reason, tried = "", 0
    for attempt in made.attempts():
        too_large = made.too_large(attempt)
        if too_large:
            reason = reason or f"{too_large}: {advice}, or ask for fewer samples"
            continue
        if made.certain or runs(made.samples(attempt, min(count, _TRIED)).example()):
            return made.samples(attempt, count)
        tried += 1
    if tried:
        reason = f"random data does not run the model{made.suspects()}: {advice}"
    raise CalibrationError(reason)


class _Maker:
    """Makes the inputs of a model for an attempt."""

    def __init__(
        self, proto: onnx.ModelProto, specs: tuple[InputSpec, ...], count: int, seed: int, shapes: Shapes
    ) -> None:
        self._proto, self._count, self._seed, self._shapes_at = proto, count, seed, shapes
        self._places = places(proto)
        self._specs = tuple(replace(s, whole=True) if self._is_list(s) else s for s in specs)
        self._arrangement = Arrangement.declared(self._specs)
        self._others = tuple(other_inputs(proto))
        self._axes = free_sizes.axes_of(proto, self._specs)
        self._batch = {self._axes[s.name, 0] for s in self._specs if s.batched and s.dims[0] is None}
        self._forced = forced_sizes.forced(proto, self._axes)
        self._known: dict[tuple[Any, ...], Mapping[str, Shape]] = {}

    def _is_list(self, s: InputSpec) -> bool:
        """Whether an input is a list or a number that the whole run reads, and no sample of anything."""
        found = self._places.get(s.name, [])
        return len(s.dims) == 1 and bool(found) and found[0].of_list and found[0].whole

    @property
    def certain(self) -> bool:
        """Whether noise runs for sure, as far as the declarations tell."""
        return not self._others and all(
            None not in s.dims[1:] and is_float(s.dtype) and s.name not in self._places for s in self._specs
        )

    def suspects(self) -> str:
        """The inputs that may be at fault, in words: those whose values or sizes had to be guessed."""
        guessed = [v.name for v in self._others]
        guessed += [s.name for s in self._specs if not is_float(s.dtype) or None in s.dims[1:]]
        names = list(dict.fromkeys(guessed)) or [s.name for s in self._specs]
        if not names:
            return ""
        what = "input" if len(names) == 1 else "inputs"
        return f" (guessed: the {what} {first_of([*map(repr, names)], _MOST_NAMED)})"

    def attempts(self) -> Iterator[Attempt]:
        """What is tried, the likeliest first, nothing twice."""
        fixed = {d for s in self._specs for d in s.dims if d is not None}
        keys = [k for (name, axis), k in self._axes.items() if k not in self._batch]
        every = list(free_sizes.assignments(keys, self._forced, fixed)) or [{}]
        usual = every[: free_sizes.usual(keys, self._forced)]
        styles: tuple[str, ...] = _FIRST_STYLES if self._guesses else _FIRST_STYLES[:1]
        if not any(s.name in self._places for s in self._specs):  # nothing is read as it is: ones, then
            styles = tuple(s for s in styles if s != _ELSE_ONES)
        graphs = list(islice(self._of_runs(), _LONE))
        yield from graphs if self._counts_others else ()
        yield from (Attempt(sizes, style) for sizes in usual for style in styles)
        alone = bool(self._batch)
        if alone:
            yield from (Attempt(sizes, style, single=True) for sizes in usual for style in styles)
        further = [x for x in islice(every, len(usual), None) if self._entries(x) <= _MOST_ENTRIES]
        for single in (False, True)[: 1 + alone]:
            yield from (Attempt(sizes, _AS_READ, single=single) for sizes in further)
            if self._guesses:
                yield from (Attempt(usual[0], style, single=single) for style in _MORE_STYLES)
            if any(v.type.HasField("optional_type") for v in self._others):
                yield from (Attempt(usual[0], style, single=single, absent=True) for style in styles)
        yield from () if self._counts_others else graphs

    @property
    def _counts_others(self) -> bool:
        """Whether first axes count nodes and edges, say: by several names, none of which is that of samples."""
        names = {s.symbol(0) for s in self._specs if s.batched and s.dims[0] is None}
        named = all(n and not n.startswith("?") and not counts_samples(n) for n in names)
        return len(names) > 1 and named and any(s.dtype.kind in "iu" for s in self._specs)

    def _of_runs(self) -> Iterator[Attempt]:
        """Attempts in which a run is a sample, first with another size for each symbol."""
        every = list(dict.fromkeys(self._axes.values()))
        if not self._batch:
            return
        fixed = {d for s in self._specs for d in s.dims if d is not None}
        yield Attempt(free_sizes.distinct(every, self._forced), _AS_READ, lone=True)
        yield from (Attempt(x, _AS_READ, lone=True) for x in free_sizes.assignments(every, self._forced, fixed))

    @property
    def _guesses(self) -> bool:
        """Whether some values are guesses: integers, and what is no tensor."""
        return bool(self._others) or any(not is_float(s.dtype) or s.name in self._places for s in self._specs)

    # one attempt

    def _of(self, attempt: Attempt) -> tuple[InputSpec, ...]:
        """The inputs as they are declared for it: with a batch of one where that is tried."""
        if not attempt.single:
            return self._specs
        return tuple(replace(s, dims=(1, *s.dims[1:])) if s.batched and s.dims[0] is None else s for s in self._specs)

    def _shape(self, s: InputSpec, attempt: Attempt, count: int) -> Shape:
        dims = [d if d is not None else self._size(s, axis, attempt) for axis, d in enumerate(s.dims)]
        axis = self._arrangement.axes.get(s.name)
        if axis is not None and not attempt.lone:
            dims[axis] = count
        return tuple(dims)

    def _stored(self, s: InputSpec, attempt: Attempt, count: int) -> Shape:
        """The shape of what is made for so many samples: of the lone ones, which have no axis there, one for each."""
        shape = self._shape(s, attempt, count)
        return (count, *shape) if attempt.lone and not s.whole else shape

    def _size(self, s: InputSpec, axis: int, attempt: Attempt) -> int:
        key = self._axes.get((s.name, axis), "")
        if attempt.lone:
            return attempt.sizes.get(key, free_sizes.USUAL[0])
        if key in self._batch or (axis == 1 and not s.batched and len(s.dims) > 1 and not s.whole):
            return 1 if key not in attempt.sizes or key in self._batch else attempt.sizes[key]
        return attempt.sizes.get(key, free_sizes.USUAL[0])

    def _entries(self, sizes: Mapping[str, int]) -> int:
        return sum(math.prod(self._shape(s, Attempt(sizes, _AS_READ), 1)) for s in self._specs)

    def too_large(self, attempt: Attempt) -> str:
        """Why memory does not allow it; empty where it does."""
        needs = {}
        for s in self._of(attempt):
            shape = self._stored(s, attempt, self._count)
            needs[s.name] = math.prod(shape) * (s.dtype.itemsize if is_float(s.dtype) else 8), shape
        if sum(n for n, _ in needs.values()) <= _MOST_BYTES:
            return ""
        name = max(needs, key=lambda k: needs[k][0])
        size, shape = needs[name]
        return f"random data of shape {'x'.join(map(str, shape))} for input {name!r} would take {shown(size)} of memory"

    def samples(self, attempt: Attempt, count: int) -> Samples:
        """So many samples of an attempt."""
        rng = np.random.default_rng(self._seed)
        specs = self._of(attempt)
        one = {s.name: self._shape(s, attempt, 1) for s in specs}
        arrays = {}
        for s in specs:
            shape = self._stored(s, attempt, count)
            arrays[s.name] = self._values(s, shape, attempt, rng, one)
        size = next(iter(attempt.sizes.values()), free_sizes.USUAL[0])
        fixed = {v.name: _other(v.name, v.type, size, rng, absent=attempt.absent) for v in self._others}
        arrangement = replace(self._arrangement, per_run=1) if attempt.single else self._arrangement
        stored: dict[str, Stored] = {k: arrangement.first(k, a) for k, a in arrays.items()}
        if attempt.lone:
            arrangement, stored = Arrangement({s.name: None for s in specs if not s.whole}, 1), {**arrays}
        return Samples(specs, stored, {}, f"random, seed {self._seed}", True, fixed, arrangement)

    def _values(
        self, s: InputSpec, shape: Shape, attempt: Attempt, rng: np.random.Generator, one: Mapping[str, Shape]
    ) -> Array:
        found = self._places.get(s.name, [])
        drawn = _noise(rng, shape, s.dtype) if is_float(s.dtype) else rng.integers(0, 2, shape)
        if found and attempt.style in (_AS_READ, _ELSE_ONES):
            read = self._as_read(found, shape, rng, one)
            if read is not None:
                return np.asarray(read).astype(s.dtype)
        if s.dtype.kind == "O":
            return np.asarray(drawn).astype(np.str_).astype(object)
        if is_float(s.dtype):
            return drawn
        return _in_style(attempt.style, shape, s.dtype, np.asarray(drawn), one)

    def _as_read(
        self, found: Sequence[Place], shape: Shape, rng: np.random.Generator, one: Mapping[str, Shape]
    ) -> Array | None:
        """Values that the readers accept; None where they do not say."""
        known = self._known_at(one)
        first = found[0]
        if first.of_list:
            wanted = np.asarray(_listed(first, shape, known)) - first.offset
            if wanted.size == math.prod(shape):
                return wanted.reshape(shape)
            return np.broadcast_to(wanted.reshape(-1)[:1], shape) if wanted.size else None
        low: Any = None
        high: Any = None
        for p in found:
            limits = _limits(p, shape, known)
            if limits is not None:
                lower, upper = limits[0] - p.offset, limits[1] - p.offset
                low, high = (lower, upper) if low is None else (np.maximum(low, lower), np.minimum(high, upper))
        if low is None:
            return None
        high = np.maximum(low, high)
        if isinstance(low, (int, np.integer)) or np.asarray(low).dtype.kind in "iu":
            return np.broadcast_to(rng.integers(low, high, shape, endpoint=True), shape)
        return rng.uniform(low, high, shape)

    def _known_at(self, one: Mapping[str, Shape]) -> Mapping[str, Shape]:
        mark = tuple(one.items())
        if mark not in self._known:
            self._known = {mark: self._shapes_at(one)}
        return self._known[mark]


def _listed(p: Place, shape: Shape, known: Mapping[str, Shape]) -> Any:
    make = LISTS[p.node.op_type, p.place]
    reader = Reader(p.node, known)
    count = math.prod(shape) if p.whole else math.prod(reader.of(p.place) or (1,))
    return make(reader, count)


def _limits(p: Place, shape: Shape, known: Mapping[str, Shape]) -> tuple[Any, Any] | None:
    spot = p.node.op_type, p.place
    made = ENTRIES.get(spot) or OF_INTEGERS.get(spot)
    return None if made is None else made(Reader(p.node, known), shape)


def _in_style(style: str, shape: Shape, dtype: np.dtype[Any], drawn: Array, one: Mapping[str, Shape]) -> Array:
    """Integers and booleans that no reader explains."""
    if style == _ZEROS:
        return np.zeros(shape, dtype)
    if style in (_ONES, _ELSE_ONES) or dtype == np.bool_:
        return np.ones(shape, dtype)
    if style == _TWOS:
        return np.full(shape, 2).astype(dtype)
    if style == _MINUS and dtype.kind == "i":
        return np.full(shape, -1).astype(dtype)
    if style == _RISING:
        return np.broadcast_to(np.arange(shape[-1] if shape else 1).reshape(shape[-1:]), shape).astype(dtype)
    if style == _SHAPE:
        longest = max(one.values(), key=len, default=())
        padded = [*longest, *[1] * max(0, (shape[-1] if shape else 1) - len(longest))]
        return np.broadcast_to(np.array(padded[: shape[-1] if shape else 1]).reshape(shape[-1:]), shape).astype(dtype)
    return drawn.astype(dtype)


def _noise(rng: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Normal numbers of a type, piece by piece, as they are drawn in 64 bits."""
    noise = np.empty(shape, dtype)
    for part in chunks(noise):
        part[...] = np.asarray(rng.standard_normal(part.shape)).astype(dtype)
    return noise


def _other(name: str, kind: onnx.TypeProto, size: int, rng: np.random.Generator, *, absent: bool) -> Any:
    """Random values of any type of input: a sequence gets two entries, an optional value is present or absent."""
    if kind.HasField("sequence_type"):
        inner = kind.sequence_type.elem_type
        return [_other(name, inner, size, rng, absent=absent) for _ in range(_SEQUENCE_LENGTH)]
    if kind.HasField("optional_type"):
        return None if absent else _other(name, kind.optional_type.elem_type, size, rng, absent=absent)
    if not kind.HasField("tensor_type"):
        raise CalibrationError("an input is neither a tensor, a sequence nor an optional of them; nothing can be fed")
    declared = onnx.ValueInfoProto(name=name, type=kind)
    dtype = dtype_of(declared)
    dims = tuple(size if d is None else d for d in dims_of(declared, dtype))
    needs = math.prod(dims) * max(dtype.itemsize, 8)
    if needs > _MOST_BYTES:
        raise CalibrationError(f"random data for input {name!r} would take {shown(needs)} of memory: give data instead")
    if is_float(dtype):
        return _noise(rng, dims, dtype)
    drawn = rng.integers(0, 2, dims)
    return drawn.astype(np.str_).astype(object) if dtype.kind == "O" else drawn.astype(dtype)
