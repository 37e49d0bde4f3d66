"""Where weights lie: inside a model, or in files beside it that are mapped into memory only while they are read.

A tensor that a model stores in a file of its own stays there. Its TensorProto keeps the reference, as an absolute,
checked place, so that a model of any size is a small message that is cheap to copy. `array_of` maps the bytes; what is
computed from such a tensor goes to a file again, in the folder of the innermost `spilling()`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError, RunError
from onnxprune.numerics.arrays import Array
from onnxprune.regular_files import opened

# Weights of a smaller size are kept in the model, as onnx itself does: shape inference reads them.
INLINE_BYTES = 1024
# Embedded weights of a model above this size are treated as if they had been stored beside it: every copy of the model
# that is made on the way then shares them.
LARGE_BYTES = 16 << 20
# A message of protobuf ends at 2 GiB; the graph itself has to fit beside the weights.
MOST_BYTES = (2 << 30) - (64 << 20)
_PAGE = 4096
_ALIGN = 64
_LARGE_TENSOR = 1 << 20
_CHUNK = 8 << 20
# Numbers of the fields of an attribute in which tensors may lie.
_HOLDING_TENSORS = frozenset(
    onnx.AttributeProto.DESCRIPTOR.fields_by_name[name].number
    for name in ("t", "g", "tensors", "graphs", "sparse_tensor", "sparse_tensors")
)
# Of the checksum in the name of a file of weights.
_DIGITS = 16

BITS = {
    getattr(onnx.TensorProto, name): bits
    for name, bits in (("UINT4", 4), ("INT4", 4), ("FLOAT4E2M1", 4), ("UINT2", 2), ("INT2", 2))
    if hasattr(onnx.TensorProto, name)
}
# Types of which several values share a byte.
PACKED = frozenset(BITS)


class Placement(Enum):
    """Where the weights of a model that is written go."""

    BESIDE = "into a file beside it"
    FITTING = "into its own file where that can hold them, else beside it"
    INSIDE = "into its own file, or nowhere"


def stored_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: weights of graphs and bodies, attributes, functions and their defaults included."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        yield from _of_attributes(function.attribute_proto)
        yield from _of_nodes(function.node)
    for training in proto.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _of_sparse(graph.sparse_initializer)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    """Whatever type an attribute claims: a reference to a file is one also where nothing should read it."""
    for a in attributes:
        for field, _ in a.ListFields():
            if field.number in _HOLDING_TENSORS:
                break
        else:  # nearly always: one question in place of six
            continue
        if a.HasField("t"):
            yield a.t
        yield from a.tensors
        if a.HasField("sparse_tensor"):
            yield from _of_sparse((a.sparse_tensor,))
        yield from _of_sparse(a.sparse_tensors)
        if a.HasField("g"):
            yield from _of_graph(a.g)
        for body in a.graphs:
            yield from _of_graph(body)


def _of_sparse(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for s in tensors:
        yield from (s.values, s.indices)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the values lie in a file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def has_external(proto: onnx.ModelProto) -> bool:
    """Whether any weight lies in a file."""
    return any(is_external(t) for t in stored_tensors(proto))


def bytes_of(tensor: onnx.TensorProto) -> int:
    """Size of the values: what their shape and type ask for; 0 for strings."""
    if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return 0
    elements = math.prod(int(d) for d in tensor.dims)
    if tensor.data_type in BITS:
        return -(-elements * BITS[tensor.data_type] // 8)
    return elements * _item_bytes(tensor.data_type)


@cache
def _item_bytes(data_type: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def external_bytes(proto: onnx.ModelProto) -> int:
    """Size of all values that lie in files."""
    return sum(bytes_of(t) for t in stored_tensors(proto) if is_external(t))


def model_bytes(proto: onnx.ModelProto) -> int:
    """Size of a model with all of its weights, wherever they lie."""
    embedded = embedded_bytes(proto)
    # A message above the limit of protobuf does not tell its size.
    return (int(proto.ByteSize()) if embedded < MOST_BYTES else embedded) + external_bytes(proto)


# reading


# Digits of ASCII alone, as other readers want them, and of 64 bits at most.
_NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class FileRange:
    """A range of a file. length: None where the reference does not name one."""

    location: str
    offset: int
    length: int | None

    @classmethod
    def of(cls, tensor: onnx.TensorProto) -> FileRange:
        """The range that an external tensor refers to. Raises ModelError where no file has such an offset or length."""
        entries = {e.key: e.value for e in tensor.external_data}
        given = [entries.get(key) or None for key in ("offset", "length")]
        if not all(text is None or _NUMBER.fullmatch(text) for text in given):
            raise ModelError(
                f"tensor {tensor.name!r}: offset or length of its data is not a number that a file can have"
            )
        offset, length = (None if text is None else int(text) for text in given)
        offset = offset or 0
        if offset < 0 or (length is not None and length < 0):
            raise ModelError(f"tensor {tensor.name!r}: offset or length of its data is negative")
        return cls(entries.get("location", ""), offset, length)

    def put(self, tensor: onnx.TensorProto) -> None:
        """Make `tensor` refer to this range; values that it held are dropped."""
        for name in _VALUES:
            tensor.ClearField(name)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", self.location), ("offset", self.offset), ("length", self.length)):
            tensor.external_data.add(key=key, value=str(value))


_VALUES = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def equal(a: onnx.TensorProto, b: onnx.TensorProto) -> bool:
    """Whether two tensors hold the same values, bit for bit, in the same type and shape."""
    x, y = array_of(a), array_of(b)
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def array_of(tensor: onnx.TensorProto) -> Array:
    """The values of a tensor: read-only and mapped where they lie in a file. Raises ModelError where they cannot be."""
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    place, size = FileRange.of(tensor), bytes_of(tensor)
    shape = tuple(int(d) for d in tensor.dims)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if size == 0:
        return np.empty(shape, dtype)
    try:
        if tensor.data_type in BITS or sys.byteorder != "little":
            return _unpacked(tensor, place, size)
        with opened(place.location, ModelError) as f:
            return np.asarray(np.memmap(f, dtype, "r", place.offset, shape))
    except (OSError, ValueError) as e:
        raise ModelError(f"the data of tensor {tensor.name!r} in {place.location} cannot be read: {e}") from e


def _unpacked(tensor: onnx.TensorProto, place: FileRange, size: int) -> Array:
    """Values that are stored in another form than numpy's."""
    with opened(place.location, ModelError) as f:
        f.seek(place.offset)
        raw = f.read(size)
    if len(raw) != size:
        raise ValueError("the file is too short")
    whole = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=raw)
    return numpy_helper.to_array(whole)


class Weights(Mapping[str, Array]):
    """The values of tensors by name, read when they are asked for; those that lie in files are not kept."""

    def __init__(self, tensors: Iterable[onnx.TensorProto]) -> None:
        self._tensors = {t.name: t for t in tensors}
        self._known: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name in self._known:
            return self._known[name]
        tensor = self._tensors[name]
        array = array_of(tensor)
        if not is_external(tensor):
            self._known[name] = array
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors


def resolve(proto: onnx.ModelProto, model: Path | None, *, allow_links: bool = False) -> None:
    """Check every reference of `proto` to a file, and make it absolute, in place.

    model: the model's file; None for a model in memory, whose references must be absolute already. A link in its folder
    may lead to the folder in which the model itself lies, where its file is a link too, as in the caches of model hubs;
    allow_links: and to anywhere else. Raises ModelError for data that is missing, too short, or outside the folder.
    """
    sizes: dict[Path, int] = {}
    for tensor in stored_tensors(proto):
        if not is_external(tensor):
            continue
        place = FileRange.of(tensor)
        target = _in_memory(tensor, place) if model is None else _inside(tensor, place, model, allow_links=allow_links)
        if target not in sizes:
            if not target.exists():
                beside = "missing" if model is None else "missing beside the model"
                raise ModelError(f"tensor {tensor.name!r} stores its data in {place.location!r}, which is {beside}")
            sizes[target] = _length_of(target, tensor, place)
        size = _checked_size(tensor, place)
        if place.offset + size > sizes[target]:
            raise ModelError(
                f"tensor {tensor.name!r} stores {size} bytes from byte {place.offset} of {place.location!r}, which has "
                f"only {sizes[target]}: the file is cut short or belongs to another model"
            )
        FileRange(str(target), place.offset, size).put(tensor)


def _length_of(file: Path, tensor: onnx.TensorProto, place: FileRange) -> int:
    try:
        with opened(file, ModelError) as f:
            return os.fstat(f.fileno()).st_size
    except ModelError as e:
        raise ModelError(f"tensor {tensor.name!r} stores its data in {place.location!r}: {e}") from e


def read_small(proto: onnx.ModelProto) -> None:
    """Embed, in place, the weights that are too small to lie in a file: shape inference reads these."""
    for tensor in stored_tensors(proto):
        if is_external(tensor) and bytes_of(tensor) < INLINE_BYTES:
            _embed(tensor)


def _checked_size(tensor: onnx.TensorProto, place: FileRange) -> int:
    if tensor.data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING) or any(d < 0 for d in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} cannot be stored outside the model: its type or shape is not fixed")
    try:
        size = bytes_of(tensor)
    except KeyError:
        raise ModelError(f"tensor {tensor.name!r} has the unknown element type {tensor.data_type}") from None
    if place.length not in (None, size):
        raise ModelError(
            f"tensor {tensor.name!r} stores {place.length} bytes in {place.location!r}, its shape and type need {size}"
        )
    return size


def _in_memory(tensor: onnx.TensorProto, place: FileRange) -> Path:
    if not Path(place.location).is_absolute():
        raise ModelError(
            f"tensor {tensor.name!r} stores its data in {place.location!r}, in a folder that is not known: give the "
            "path of the model, or load its weights first"
        )
    return Path(place.location)


def _inside(tensor: onnx.TensorProto, place: FileRange, model: Path, *, allow_links: bool) -> Path:
    location, root = place.location, model.parent.resolve()
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
    # A link may lead out of the folder, the reference itself may not.
    within = bool(location) and not absolute and ".." not in PurePosixPath(location.replace("\\", "/")).parts
    try:
        target = (root / location).resolve()
        allowed = allow_links or target.parent == model.resolve().parent
    except (OSError, ValueError, RuntimeError):  # a NUL, or links in a circle
        target, within, allowed = Path(), False, False
    if location and not absolute and target.is_relative_to(root):
        return target
    if within and allowed:
        return target
    advice = f" (a link leads to {target}; --allow-links follows it)" if within else ""
    raise ModelError(
        f"tensor {tensor.name!r} stores its data outside the model's folder, at {location!r}: refused{advice}"
    )


def files_of(proto: onnx.ModelProto) -> set[Path]:
    """The files that the weights lie in."""
    return {Path(FileRange.of(t).location) for t in stored_tensors(proto) if is_external(t)}


def fingerprint(proto: onnx.ModelProto) -> bytes:
    """Of the values in files: size, first and last page of every tensor; reading gigabytes for a checksum takes long.

    Empty where no weight lies in a file.
    """
    digest = hashlib.sha256()
    external = [t for t in stored_tensors(proto) if is_external(t)]
    for tensor in external:
        place, size = FileRange.of(tensor), bytes_of(tensor)
        digest.update(f"{tensor.name} {size} ".encode())
        with opened(place.location, ModelError) as f:
            for start in {0, max(size - _PAGE, 0)}:
                f.seek(place.offset + start)
                digest.update(f.read(min(_PAGE, size)))
    return digest.digest() if external else b""


# keeping


def embedded_bytes(proto: onnx.ModelProto) -> int:
    """Size of all values that lie in the model itself."""
    return sum(bytes_of(t) for t in stored_tensors(proto) if not is_external(t))


def rebuilt(proto: onnx.ModelProto, change: Callable[[onnx.TensorProto], onnx.TensorProto]) -> onnx.ModelProto:
    """A copy with other weights of the main graph; the present ones are not copied on the way."""
    result = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name != "graph":
            _assign(result, field.name, value)
    for field, value in proto.graph.ListFields():
        if field.name != "initializer":
            _assign(result.graph, field.name, value)
    for t in proto.graph.initializer:
        result.graph.initializer.append(change(t))
    return result


def _assign(message: Any, name: str, value: Any) -> None:
    if hasattr(value, "extend"):
        getattr(message, name).extend(value)
    elif hasattr(value, "ListFields"):
        getattr(message, name).CopyFrom(value)
    else:
        setattr(message, name, value)


def described(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A copy without values."""
    copy = onnx.TensorProto()
    for field, value in tensor.ListFields():
        if field.name not in (*_VALUES, "external_data", "data_location"):
            _assign(copy, field.name, value)
    return copy


def embedded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that holds all of its weights; `proto` itself where it does already."""
    if not has_external(proto):
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for t in stored_tensors(result):
        if is_external(t):
            _embed(t)
    return result


def sendable(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model in one message, for a machine that cannot read these files. Raises RunError where it does not fit."""
    if embedded_bytes(proto) + external_bytes(proto) >= MOST_BYTES:
        raise RunError(
            "the model's weights exceed the 2 GiB of one message, and other machines cannot read the files that they "
            "lie in: leave out --scheduler, and use --jobs"
        )
    return embedded(proto)


def _embed(tensor: onnx.TensorProto) -> None:
    place = FileRange.of(tensor)
    with opened(place.location, ModelError) as f:
        f.seek(place.offset)
        raw = f.read(bytes_of(tensor))
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT
    tensor.ClearField("data_location")
    tensor.raw_data = raw


# writing


def beside(path: Path, digest: str) -> Path:
    """The file that holds the weights of the model file `path`; digest: of its content, in hexadecimal digits.

    Other weights have another name, so that no model file ever stands beside the weights of another one.
    """
    return path.with_name(f"{_in_unicode(path.name)}.{digest[:_DIGITS]}.data")


def is_beside(name: str, path: Path) -> bool:
    """Whether `beside` gives the model file `path` files of such a name."""
    middle = name.removeprefix(f"{_in_unicode(path.name)}.").removesuffix(".data")
    return len(middle) == _DIGITS and set(middle) <= set("0123456789abcdef") and name == beside(path, middle).name


def _in_unicode(name: str) -> str:
    """A model can name no file whose name is not Unicode."""
    return name.encode("utf-8", "replace").decode("utf-8")


def referring_to(proto: onnx.ModelProto, location: str) -> None:
    """Have every weight of `proto` that lies in a file lie at the same place of the file `location`, in place."""
    for t in stored_tensors(proto):
        if is_external(t):
            place = FileRange.of(t)
            FileRange(location, place.offset, place.length).put(t)


def separated(proto: onnx.ModelProto, location: str) -> tuple[onnx.ModelProto, Callable[[IO[bytes]], None]]:
    """(the model with references to the file `location`, what writes that file tensor by tensor).

    Every weight of 1 KiB and more goes there; those of 1 MiB and more start at a page. Equal references stay shared.
    """
    sources: list[tuple[onnx.TensorProto, int]] = []
    shared: dict[tuple[str, int, int], int] = {}
    end = 0

    def put(tensor: onnx.TensorProto) -> onnx.TensorProto:
        nonlocal end
        size = bytes_of(tensor)
        key: tuple[str, int, int] | None = None
        if is_external(tensor):
            place = FileRange.of(tensor)
            key = (place.location, place.offset, size)
        offset = shared.get(key) if key else None
        if offset is None:
            align = _PAGE if size >= _LARGE_TENSOR else _ALIGN
            offset = -(-end // align) * align
            end = offset + size
            sources.append((tensor, offset))
            if key:
                shared[key] = offset
        moved = described(tensor)
        FileRange(location, offset, size).put(moved)
        return moved

    shell = rebuilt(proto, lambda t: put(t) if bytes_of(t) >= INLINE_BYTES else t)
    for t in stored_tensors(shell):
        # What is left is a constant of a node or of a body, which goes out only where it came from outside.
        if is_external(t) and FileRange.of(t).location != location:
            held = onnx.TensorProto()
            held.CopyFrom(t)
            t.CopyFrom(put(held))

    def write(f: IO[bytes]) -> None:
        for tensor, offset in sources:
            f.write(b"\0" * (offset - f.tell()))
            stream(tensor, f)

    return shell, write


def end_of_data(shell: onnx.ModelProto) -> int:
    """Size of the file that all weights outside of a `separated` model lie in."""
    places = map(FileRange.of, filter(is_external, stored_tensors(shell)))
    return max((p.offset + (p.length or 0) for p in places), default=0)


def stream(tensor: onnx.TensorProto, f: IO[bytes]) -> None:
    """Write the values of a tensor, a file's in pieces."""
    if is_external(tensor):
        place, left = FileRange.of(tensor), bytes_of(tensor)
        with opened(place.location, ModelError) as source:
            source.seek(place.offset)
            while left:
                part = source.read(min(left, _CHUNK))
                if not part:
                    raise OSError(f"{place.location} was cut short meanwhile")
                f.write(part)
                left -= len(part)
    elif tensor.HasField("raw_data"):
        f.write(tensor.raw_data)
    else:
        f.write(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def below(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """(a copy whose references are relative to one folder, that folder): what onnxruntime accepts.

    The folder is the root of the file system, or of the drive with most of the weights; those of others, as a model's
    own and temporary files may lie on two, are in the copy. Raises RunError where it would be too large for that.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    by_root: dict[str, list[onnx.TensorProto]] = {}
    for t in stored_tensors(result):
        if is_external(t):
            by_root.setdefault(os.path.splitdrive(FileRange.of(t).location)[0] + os.sep, []).append(t)
    root = max(sorted(by_root), key=lambda r: sum(map(bytes_of, by_root[r])))
    others = [t for r in by_root if r != root for t in by_root[r]]
    if embedded_bytes(result) + sum(map(bytes_of, others)) >= MOST_BYTES:
        raise RunError(
            f"the weights lie on several drives ({', '.join(sorted(by_root))}); set TMPDIR to a folder of one"
        )
    for t in others:
        _embed(t)
    for t in by_root[root]:
        place = FileRange.of(t)
        FileRange(place.location[len(root) :], place.offset, place.length).put(t)
    return result, root


def check(proto: onnx.ModelProto) -> None:
    """ONNX's checker on a model of any size; raises onnx's own errors.

    It refuses absolute references, and resolves others beside a model's file: so weights in files are stood in for by
    an empty file. It does not look how long that is; one of their size would take their room on NTFS.
    """
    if not has_external(proto):
        onnx.checker.check_model(proto, full_check=False)
        return
    with tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        data = path.with_name("weights")
        shell, _ = separated(proto, data.name)
        data.touch()
        path.write_bytes(shell.SerializeToString())
        onnx.checker.check_model(str(path), full_check=False)
