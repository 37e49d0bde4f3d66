"""Calibration and evaluation data: read, checked against the model's inputs, and handed out in batches.

Accepted: a `.npz` keyed by input names, a `.npy` for a model with one input, or a folder of either. Files are read
without pickles, a folder one file at a time. Everything is hostile until checked. A large array that is not compressed
stays in its file, and its samples are read when they are run.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.data.array_files import Rows, chunks, listed, read
from onnxprune.data.declared import dims_of, dtype_of
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.numerics.arrays import Array, Ints, cast, is_float
from onnxprune.regular_files import shown


@dataclass(frozen=True)
class InputSpec:
    """A model input: its numpy dtype and declared dimensions, None where symbolic.

    whole: axis 0 counts no samples, as an input that is no tensor has that size too, or as the data has one value for
    all samples.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | None, ...]
    whole: bool = False

    @property
    def batched(self) -> bool:
        """Whether axis 0 counts samples: symbolic, or of size 1."""
        return bool(self.dims) and self.dims[0] in (None, 1) and not self.whole


def input_specs(proto: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The inputs of a model, initializers excepted. Raises CalibrationError where one is no tensor."""
    for v in other_inputs(proto):
        raise CalibrationError(f"input {v.name!r} is not a tensor; only tensor inputs can be fed")
    return tensor_specs(proto)


def other_inputs(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """The inputs that are no tensors: sequences, and values that may be absent."""
    weights = {t.name for t in proto.graph.initializer}
    return (
        v
        for v in proto.graph.input
        if v.type.WhichOneof("value") not in (None, "tensor_type") and v.name not in weights
    )


def with_others(samples: Samples, proto: onnx.ModelProto) -> Samples:
    """The samples with the inputs that are no tensors, whose entries are extra keys of the data (`entries_of`).

    Raises CalibrationError where a sequence has none.
    """
    extras, fixed = dict(samples.extras), dict[str, Any]()
    for v in other_inputs(proto):
        if v.name in extras:
            whole = extras.pop(v.name)
            fixed[v.name] = [] if _is_sequence(v.type) and not whole.size else whole
            continue
        entries = [extras.pop(f"{v.name}[{i}]") for i in range(len(extras)) if f"{v.name}[{i}]" in extras]
        if not entries and not v.type.HasField("optional_type"):
            raise CalibrationError(f"no data for input {v.name!r}, a sequence: store its entries as '{v.name}[0]', ...")
        fixed[v.name] = entries or None
    return replace(samples, extras=extras, fixed=fixed) if fixed else samples


def _is_tensor(v: onnx.ValueInfoProto) -> bool:
    """Whether an input is declared as a tensor, or as nothing, which is refused."""
    return v.type.WhichOneof("value") in (None, "tensor_type")


def _is_sequence(kind: onnx.TypeProto) -> bool:
    return bool(kind.HasField("sequence_type")) or (
        bool(kind.HasField("optional_type")) and _is_sequence(kind.optional_type.elem_type)
    )


def _symbols(kind: onnx.TypeProto) -> set[str]:
    """Names of the symbolic dimensions of a type."""
    if kind.HasField("tensor_type"):
        return {d.dim_param for d in kind.tensor_type.shape.dim if d.dim_param}
    inner = kind.sequence_type if kind.HasField("sequence_type") else kind.optional_type
    return _symbols(inner.elem_type) if inner.HasField("elem_type") else set()


def entries_of(name: str, value: Any) -> dict[str, Array]:
    """The arrays of an input that is no tensor: entry i of a sequence x is x[i].

    An empty sequence is an empty array x, and an absent value has none.
    """
    if value is None:
        return {}
    if isinstance(value, list) and value:
        return {k: a for i, v in enumerate(value) for k, a in entries_of(f"{name}[{i}]", v).items()}
    return {name: np.asarray(value)}


def tensor_specs(proto: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The tensors among the inputs of a model, initializers excepted. Raises ModelError for impossible ones."""
    weights = {t.name for t in proto.graph.initializer}
    shared = {s for v in other_inputs(proto) for s in _symbols(v.type)}
    specs: list[InputSpec] = []
    for v in proto.graph.input:
        if v.name in weights or not _is_tensor(v):
            continue
        dtype = dtype_of(v)
        dims = dims_of(v, dtype)
        whole = bool(dims) and v.type.tensor_type.shape.dim[0].dim_param in shared
        specs.append(InputSpec(v.name, dtype, dims, whole))
    return tuple(specs)


@dataclass(frozen=True, eq=False)
class Samples:
    """Checked data: arrays per input (and per extra key), first axis = samples for batched inputs.

    origin: what to say of it in the report; sha256: over the values that were used. fixed: the inputs that are no
    tensors, the same for every sample.
    """

    specs: tuple[InputSpec, ...]
    arrays: Mapping[str, Array | Rows]
    extras: Mapping[str, Array] = field(default_factory=dict)
    origin: str = ""
    synthetic: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        counts = [len(self.arrays[s.name]) for s in self.specs if s.batched]
        return counts[0] if counts else 1

    @property
    def fixed_batch(self) -> bool:
        """Whether the model runs one sample at a time."""
        return any(s.batched and s.dims[0] == 1 for s in self.specs)

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Feeds of at most `size` samples (1 where the model's batch is fixed), in order."""
        size = 1 if self.fixed_batch else size
        for start in range(0, len(self), size):
            yield self.slice(start, start + size)

    def slice(self, start: int, stop: int, names: Collection[str] | None = None) -> dict[str, Array]:
        """Feeds of samples start..stop; names: of these inputs alone."""
        specs = [s for s in self.specs if names is None or s.name in names]
        feeds = {s.name: _sliced(self.arrays[s.name], slice(start, stop) if s.batched else None) for s in specs}
        return feeds | {k: v for k, v in self.fixed.items() if names is None or k in names}

    def count(self, feeds: Mapping[str, Array]) -> int:
        """The number of samples in the feeds of one batch."""
        return next((len(feeds[s.name]) for s in self.specs if s.batched), 1)

    def take(self, indices: Sequence[int] | Ints) -> Samples:
        """A subset of the samples."""
        picked = {
            s.name: _picked(self.arrays[s.name], indices) if s.batched else self.arrays[s.name] for s in self.specs
        }
        extras = {k: v[indices] for k, v in self.extras.items() if v.ndim and len(v) == len(self)}
        return replace(self, arrays=picked, extras=extras)

    def repeated(self, count: int) -> dict[str, Array]:
        """Feeds of so many samples, from the first on and over again. Raises UsageError where they take too much."""
        size = sum(math.prod(self.arrays[s.name].shape[1:]) * s.dtype.itemsize for s in self.specs if s.batched)
        if size * count > _BATCH_BYTES:
            raise UsageError(f"a batch of {count} would take {shown(size * count)} of memory; ask for a smaller one")
        return self.take(np.arange(count) % len(self)).slice(0, count)

    def part(self, start: int, stop: int) -> Samples:
        """The samples start..stop, without extra keys; what lies in a file stays there."""
        rows = slice(start, stop)
        arrays = {s.name: _picked(self.arrays[s.name], rows) if s.batched else self.arrays[s.name] for s in self.specs}
        return replace(self, arrays=arrays, extras={})

    def example(self) -> dict[str, Array]:
        """A small batch: two samples where the batch is free, one where it is fixed."""
        feeds = self.slice(0, 1 if self.fixed_batch else 2)
        for s in self.specs:
            if s.batched and s.dims[0] is None and len(feeds[s.name]) == 1:
                feeds[s.name] = np.repeat(feeds[s.name], 2, axis=0)
        return feeds

    def sha256(self, *extras: str) -> str:
        """The checksum of names, shapes and values of the inputs, and of these extra keys."""
        digest = hashlib.sha256()
        for name, a in self._hashed(extras):
            # An array without an axis counts as one with a single entry.
            digest.update(f"{name}{a.shape or (1,)}{a.dtype}".encode())
            for part in chunks(a):
                digest.update(part.tobytes() if part.dtype.kind != "O" else repr(part.tolist()).encode())
        return digest.hexdigest()

    def _hashed(self, extras: Sequence[str]) -> Iterator[tuple[str, Array | Rows]]:
        """Inputs, the entries of those that are sequences, and extra keys, by name."""
        yield from sorted(self.arrays.items())
        for name, value in sorted(self.fixed.items()):
            yield from ((k, np.asarray(v)) for k, v in entries_of(name, value).items())
        yield from ((name, self.extras[name]) for name in extras)


def _sliced(a: Array | Rows, part: slice | None) -> Array:
    if isinstance(a, Rows) or part is not None:
        return a[part or slice(None)]
    return a


def _picked(a: Array | Rows, indices: Sequence[int] | Ints | slice) -> Array | Rows:
    if isinstance(a, Rows):
        return a.at(indices)
    picked: Array = a[indices]
    return picked


def load(path: str | Path, specs: tuple[InputSpec, ...]) -> Samples:
    """Read and check data for a model with these inputs. Raises CalibrationError."""
    p = Path(path)
    files = listed(p)
    parts = list(_parts(p, files, specs))
    once = {s.name for s in specs for inputs, _ in parts if _same_for_all(s, inputs, specs)}
    specs = tuple(replace(s, whole=True) if s.name in once else s for s in specs)
    arrays: dict[str, Array | Rows] = {}
    for s in specs:
        pieces = [part[0][s.name] for part in parts]
        if s.name in once and any(len(x) > 1 or not np.array_equal(x[:], pieces[0][:]) for x in pieces):
            raise CalibrationError(f"{p}: the files hold other values of input {s.name!r}; store one for each sample")
        if not s.batched:
            arrays[s.name] = pieces[0]
        elif len({piece.shape[1:] for piece in pieces}) > 1:
            raise CalibrationError(f"{p}: the files hold input {s.name!r} in different shapes; make them equal")
        else:
            arrays[s.name] = pieces[0] if len(pieces) == 1 else np.concatenate([piece[:] for piece in pieces])
    extras: dict[str, Array] = {}
    counts = [next((len(inputs[s.name]) for s in specs if s.batched), 1) for inputs, _ in parts]
    for k in parts[0][1]:
        others = [np.atleast_1d(x[1][k]) for x in parts if k in x[1]]
        if len({(o.shape[1:], o.dtype.kind) for o in others}) > 1:
            raise CalibrationError(f"{p}: the files hold {k!r} in different shapes or types; make them equal")
        if len(others) == len(parts):
            extras[k] = np.concatenate(others)
            if len(extras[k]) == sum(counts) and [len(o) for o in others] != counts:
                raise CalibrationError(f"{p}: some files hold fewer or more {k!r} than samples; make them equal")
    return Samples(specs, arrays, extras, str(p))


def _parts(
    path: Path, files: Sequence[Path], specs: tuple[InputSpec, ...]
) -> Iterator[tuple[dict[str, Array | Rows], dict[str, Array]]]:
    """What each file holds, checked; several are held in memory, so they have a limit together."""
    total = 0
    for f in files:
        inputs, extras = _checked(_read(f, specs), specs, f)
        total += sum(a.size * a.dtype.itemsize for a in (*inputs.values(), *extras.values()))
        if len(files) > 1 and total > _FOLDER_BYTES:
            raise CalibrationError(
                f"{path}: the files up to {f.name} hold {shown(total)}, which would be held in memory; save all as one "
                ".npy or uncompressed .npz, whose samples are read one by one"
            )
        yield inputs, extras


def given(source: object, specs: tuple[InputSpec, ...]) -> Samples:
    """What a user gives: the path of data, or arrays by input name. Raises CalibrationError."""
    if isinstance(source, Mapping):
        return checked(source, specs)
    if isinstance(source, (str, os.PathLike)):
        if not os.fspath(source):  # Path would take it for the present folder
            raise CalibrationError("the path of the data is empty")
        return load(Path(source), specs)
    raise CalibrationError(f"the data is a {type(source).__name__}; give a path, or arrays by input name")


def checked(arrays: Mapping[str, Any], specs: tuple[InputSpec, ...]) -> Samples:
    """Check arrays in memory, as `load` does those of files. Raises CalibrationError."""
    inputs, extras = _checked({_key(k): _as_array(k, v) for k, v in arrays.items()}, specs, "the data")
    specs = tuple(replace(s, whole=True) if _same_for_all(s, inputs, specs) else s for s in specs)
    return Samples(specs, inputs, extras, "arrays in memory")


def _key(name: object) -> str:
    if not isinstance(name, str):
        raise CalibrationError(f"the data has the key {name!r}; keys are names of inputs")
    return name


def _as_array(name: object, value: object) -> Array:
    """Raises CalibrationError for what is no array: rows of different lengths, or values that are masked out."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise CalibrationError(f"the data: {name!r} has values that are masked out; fill them in first")
    try:
        return np.asarray(value)
    except Exception as e:
        raise CalibrationError(f"the data: {name!r} is no array: {' '.join(str(e).split())[:200]}") from e


def _read(path: Path, specs: tuple[InputSpec, ...]) -> Mapping[str, Array | Rows]:
    stored = read(path)
    if isinstance(stored, dict):
        return stored
    if len(specs) != 1:
        names = ", ".join(repr(s.name) for s in specs)
        raise CalibrationError(f"{path}: the model has several inputs ({names}); use a .npz keyed by their names")
    return {specs[0].name: stored}


def _checked(
    data: Mapping[str, Array | Rows], specs: tuple[InputSpec, ...], path: Path | str
) -> tuple[dict[str, Array | Rows], dict[str, Array]]:
    """(inputs, other keys), with every input's presence, dtype, shape and values checked."""
    checked: dict[str, Array | Rows] = {}
    for s in specs:
        if s.name not in data:
            wanted = ", ".join(repr(x.name) for x in specs)
            keys = ", ".join(repr(k) for k in data) or "nothing"
            raise CalibrationError(
                f"{path}: no data for input {s.name!r}: the model wants {wanted}, the file has {keys}"
            )
        a = data[s.name]
        where = f"{path}: input {s.name!r}"
        if isinstance(a, Rows) and (a.dtype != s.dtype or a.ndim != len(s.dims) or not s.batched):
            a = a[:]
        if (
            isinstance(a, np.ndarray)
            and s.dtype.itemsize == 2
            and is_float(s.dtype)
            and a.dtype in (np.float32, np.float64)
        ):
            a = _halved(a, s, where)
        if isinstance(a, np.ndarray) and s.dtype.kind == "O" and a.dtype.kind in "US":
            a = a.astype(object)  # as onnxruntime gives strings out
        if a.dtype != s.dtype:
            wanted = "text" if s.dtype.kind == "O" else str(s.dtype)
            raise CalibrationError(f"{where} is {a.dtype}, the model wants {wanted}; convert it with .astype")
        if isinstance(a, np.ndarray) and a.dtype.kind == "O" and not all(isinstance(v, str) for v in np.ravel(a)):
            raise CalibrationError(f"{where} holds other things than text")
        if isinstance(a, np.ndarray) and s.batched and a.ndim == len(s.dims) - 1:
            a = a[None]
        _check_shape(a, s, where)
        if a.size == 0 and (0 not in s.dims or (s.batched and not len(a))):
            raise CalibrationError(f"{where} {_why_empty(a, s)}")
        if is_float(a.dtype) and not all(np.isfinite(part).all() for part in chunks(a)):
            raise CalibrationError(f"{where} holds NaN or infinite values; clean the data first")
        checked[s.name] = a
    _check_counts(checked, specs, path)
    return checked, {k: v[:] if isinstance(v, Rows) else v for k, v in data.items() if k not in checked}


def _check_counts(arrays: Mapping[str, Array | Rows], specs: tuple[InputSpec, ...], path: Path | str) -> None:
    """Raises CalibrationError unless all inputs have as many samples, those aside that have one for all of them."""
    counts = {s.name: len(arrays[s.name]) for s in specs if s.batched and not _same_for_all(s, arrays, specs)}
    name, count = next(iter(counts.items()), ("", 0))
    for other, other_count in counts.items():
        if other_count != count:
            raise CalibrationError(f"{path}: input {other!r} has {other_count} samples, input {name!r} has {count}")


def _same_for_all(s: InputSpec, arrays: Mapping[str, Array | Rows], specs: tuple[InputSpec, ...]) -> bool:
    """Whether an input has one value for all samples: exactly what it is declared as, where others have more.

    A first size of 1 that is fixed may be that of a batch, or of a list with one entry, such as the starts of a Slice.
    """
    most = max((len(arrays[x.name]) for x in specs if x.batched), default=1)
    return s.batched and None not in s.dims and len(arrays[s.name]) == 1 < most


def _why_empty(a: Array | Rows, s: InputSpec) -> str:
    if not s.batched or not len(a):
        return "is empty; at least one sample is needed"
    return (
        f"has the shape {'x'.join(map(str, a.shape))}: there are {len(a)} samples, but nothing in them to learn from; "
        f"give one entry or more along axis {a.shape.index(0)} (of a past, zeros)"
    )


def _halved(a: Array, s: InputSpec, where: str) -> Array:
    """Data in single precision for an input in half precision, rounded: files of numpy know no bfloat16."""
    half = cast(a, s.dtype)
    if np.isfinite(a).all() and not np.isfinite(half).all():
        raise CalibrationError(f"{where} has values beyond {s.dtype}, which the model wants; scale the data first")
    return half


def _check_shape(a: Array | Rows, s: InputSpec, where: str) -> None:
    wanted = tuple(("?" if k else "N") if d is None else d for k, d in enumerate(s.dims))
    shown = "x".join(str(d) for d in wanted)
    first = 1 if s.batched else 0
    if a.ndim != len(s.dims) or any(
        d is not None and d != n for d, n in zip(s.dims[first:], a.shape[first:], strict=True)
    ):
        raise CalibrationError(f"{where} has shape {'x'.join(map(str, a.shape))}, the model wants {shown}")


# A batch that was asked for is held in memory.
_BATCH_BYTES = 4 << 30
# And so are the files of a folder.
_FOLDER_BYTES = 8 << 30
