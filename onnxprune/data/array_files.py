"""Arrays in files of numpy, `.npy` and `.npz`: every size that a file claims is held against the bytes that are there.

A header is text from outside, a compressed member a claim of what it expands to. So memory is taken only for what the
file can fill, nothing is unpickled, and a large array that is not compressed stays in its file: its samples are read
when they are run.
"""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np

from onnxprune.data.ragged import Ragged
from onnxprune.errors import CalibrationError
from onnxprune.numerics.arrays import Array, Ints
from onnxprune.numerics.arrays import cast as cast_to
from onnxprune.regular_files import brief, check_not_hollow, opened, reason, shown

# Arrays of this size and more stay in their files.
LARGE_BYTES = 64 << 20
# What a compressed file may expand to: it has to be held in memory as a whole. Of one that grows a hundredfold, less.
INFLATED_BYTES = 2 << 30
_BOMB_BYTES, _BOMB_FACTOR = 256 << 20, 100
# Of the directory of an archive, which has 46 bytes and a name for each member.
_MOST_MEMBERS, _MOST_AT_ONCE = 10_000, 4 << 20
SUFFIXES = (".npz", ".npy")
_CHUNK_BYTES = 16 << 20
_MAGIC = np.lib.format.MAGIC_PREFIX
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes; others may ask for memory of their own


@dataclass(frozen=True, eq=False)
class Rows:
    """An array in a file, of which samples are read when they are asked for.

    offset: of the first byte. dtype: of what is handed out; written: of the file. chosen: the rows of the file that
    count, in their order; None for all. axis: the one that counts samples in the file, which stands first here.
    """

    path: Path
    offset: int
    dtype: np.dtype[Any]
    stored: tuple[int, ...]
    chosen: Ints | None = None
    written: np.dtype[Any] | None = None
    axis: int = 0

    def __len__(self) -> int:
        return self.stored[self.axis] if self.chosen is None else len(self.chosen)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, as numpy's arrays have it."""
        return (len(self), *self.stored[: self.axis], *self.stored[self.axis + 1 :])

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.stored)

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    def __getitem__(self, part: slice) -> Array:
        """Some samples, read. Raises CalibrationError where the file has changed meanwhile."""
        try:
            # Mapped for the moment only: pages of a mapped file count as this process's memory.
            with opened(self.path, CalibrationError) as f:
                mapped = np.memmap(f, self.written or self.dtype, "r", self.offset, self.stored)
                whole = np.moveaxis(mapped, self.axis, 0)
        except (OSError, ValueError) as e:
            raise CalibrationError(f"{self.path} cannot be read any more: {e}; leave it as it is during a run") from e
        rows = np.array(whole[part] if self.chosen is None else whole[self.chosen[part]])
        return rows if self.written is None else cast_to(rows, self.dtype)

    def __reduce__(self) -> tuple[Callable[[Array], Array], tuple[Array]]:
        """Another process, maybe on another machine, gets the values."""
        return np.asarray, (self[:],)

    def at(self, indices: Sequence[int] | Ints | slice) -> Rows:
        """A subset of the samples, not read yet."""
        rows = np.arange(self.stored[self.axis]) if self.chosen is None else self.chosen
        subset = indices if isinstance(indices, slice) else np.asarray(indices, np.int64)
        return replace(self, chosen=rows[subset])

    def moved(self, axis: int) -> Rows:
        """The array with this axis of the file first."""
        return replace(self, axis=axis)

    def as_type(self, dtype: np.dtype[Any]) -> Rows:
        """The same samples, converted as they are read."""
        return replace(self, dtype=dtype, written=self.written or self.dtype)


@dataclass(frozen=True, eq=False)
class Row:
    """One sample of an array in a file, read whenever it is asked for."""

    rows: Rows
    index: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, as numpy's arrays have it."""
        return self.rows.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the entries."""
        return self.rows.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> Array:
        value: Array = self.rows[self.index : self.index + 1][0]
        return value if dtype is None else value.astype(dtype)

    def __reduce__(self) -> tuple[Callable[[Array], Array], tuple[Array]]:
        """Another process, maybe on another machine, gets the values."""
        return np.asarray, (np.asarray(self),)


def entries(a: Array | Rows) -> Iterator[Array | Row]:
    """The samples of an array one by one; those in a file are not read yet."""
    if isinstance(a, Rows):
        yield from (Row(a, i) for i in range(len(a)))
    else:
        yield from (np.ascontiguousarray(x) for x in a)


def chunks(a: Array | Rows | Ragged) -> Iterator[Array]:
    """Yield an array in pieces of some megabytes, along its first axis; samples of different sizes one by one."""
    if isinstance(a, Ragged):
        yield from a
        return
    if isinstance(a, np.ndarray) and not a.ndim:
        yield a
        return
    size = max(1, _CHUNK_BYTES // max(math.prod(a.shape[1:]) * a.dtype.itemsize, 1))
    for start in range(0, len(a), size):
        yield a[start : start + size]


def listed(path: Path) -> list[Path]:
    """The files of a data set: the path itself, or those in a folder, in order. Raises CalibrationError."""
    try:
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES)
            if not files:
                raise CalibrationError(f"{path} holds no .npz or .npy file")
            return files
        if path.suffix not in SUFFIXES and path.is_file():
            raise CalibrationError(f"{path} is neither a .npz, a .npy nor a folder of them")
    except (OSError, ValueError) as e:
        raise CalibrationError(f"{brief(path)} cannot be read: {reason(e)}") from e
    return [path]


def read(path: Path) -> dict[str, Array | Rows] | Array | Rows:
    """The arrays of an archive by name, or the one array of a file. Raises CalibrationError."""
    try:
        with opened(path, CalibrationError) as f, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers as earlier versions of Python wrote them
            check_not_hollow(f, path, CalibrationError)
            head = f.read(len(_MAGIC))
            f.seek(0)
            if head.startswith(b"PK"):
                return _archive(f, path)
            return _array(f, path, os.fstat(f.fileno()).st_size)
    except CalibrationError:
        raise
    except Exception as e:  # numpy, zipfile, zlib and tokenize share no base class, and a header may nest without end
        raise CalibrationError(f"{path} cannot be read as numpy data: {' '.join(reason(e).split())[:200]}") from e


def from_bytes(data: bytes) -> Array:
    """The array of a `.npy`, or the first one of a `.npz`, held in memory. Raises what numpy and zipfile raise."""
    f = io.BytesIO(data)
    if not data.startswith(b"PK"):
        _Header.of(f).check(len(data))
        f.seek(0)
        return _checked(f)
    with zipfile.ZipFile(f) as z:
        info = z.infolist()[0]
        if info.compress_type not in _PACKED or info.flag_bits & 1:
            raise ValueError("it is packed in a way that numpy does not write")
        if info.file_size > max(_BOMB_BYTES, min(_BOMB_FACTOR * len(data), INFLATED_BYTES)):
            raise ValueError(f"it expands to {shown(info.file_size)}")
        with z.open(info) as member:
            _Header.of(member).check(info.file_size)
        with z.open(info) as member:
            return _checked(member)


def _array(f: BinaryIO, path: Path, length: int) -> Array | Rows:
    header = _Header.of(f)
    header.check(length)
    if length >= LARGE_BYTES and header.by_rows:
        return Rows(path, header.offset, header.dtype, header.shape)
    f.seek(0)
    return _checked(f)


def _archive(f: BinaryIO, path: Path) -> dict[str, Array | Rows]:
    arrays: dict[str, Array | Rows] = {}
    held = 0
    with zipfile.ZipFile(cast(BinaryIO, _Bounded(f))) as z:
        if len(z.infolist()) > _MOST_MEMBERS:
            raise ValueError(f"it has {len(z.infolist())} members; at most {_MOST_MEMBERS} are read")
        for info in z.infolist():
            name = info.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"it holds {name!r} twice")
            if info.compress_type not in _PACKED or info.flag_bits & 1:
                raise ValueError(f"its member {name!r} is packed in a way that numpy does not write")
            with z.open(info) as member:
                if not member.read(len(_MAGIC)) == _MAGIC:
                    raise ValueError(f"its member {name!r} is not an array")
            with z.open(info) as member:
                header = _Header.of(member)
            header.check(info.file_size)
            start = _start(f, info) if info.compress_type == zipfile.ZIP_STORED else None
            if start is not None and info.file_size >= LARGE_BYTES and header.by_rows:
                if start + info.file_size > os.fstat(f.fileno()).st_size:
                    raise ValueError(f"its member {name!r} ends behind the file: it is cut short")
                arrays[name] = Rows(path, start + header.offset, header.dtype, header.shape)
                continue
            held += info.file_size
            if held > (_BOMB_BYTES if held > _BOMB_FACTOR * os.fstat(f.fileno()).st_size else INFLATED_BYTES):
                raise ValueError(f"it expands to {shown(held)} or more; save it uncompressed, with np.savez")
            with z.open(info) as member:
                arrays[name] = _checked(member)
    return arrays


class _Bounded:
    """A file of which zipfile reads a few megabytes at once at most: it takes in a directory whole, of any length."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Read some bytes; without a size, the end of the file. Raises ValueError where too many are asked for."""
        if size > _MOST_AT_ONCE:
            raise ValueError(f"its directory has {shown(size)}; data have a few members")
        return self._file.read(_MOST_AT_ONCE if size < 0 else size)


def _checked(f: IO[bytes]) -> Array:
    array: Array = np.lib.format.read_array(f, allow_pickle=False)
    return array


def _start(f: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin."""
    f.seek(info.header_offset)
    head = f.read(30)
    return info.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")


@dataclass(frozen=True)
class _Header:
    """What an array claims to be. offset: of its first byte."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[Any]
    offset: int

    @classmethod
    def of(cls, f: IO[bytes]) -> _Header:
        """Read the header of an array in numpy's format. Raises what numpy raises where there is none."""
        version = np.lib.format.read_magic(f)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"it has version {version[0]}.{version[1]} of the format; at most 3.0 is read")
        # The third version differs in the encoding of names of fields, which arrays of plain numbers do not have.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(f)
        return cls(shape, by_columns, dtype, f.tell())

    def check(self, length: int) -> None:
        """Raises ValueError where what is claimed does not fit into so many bytes, header included."""
        if self.dtype.hasobject:
            raise ValueError("it holds Python objects, and pickles are never read; save plain arrays of numbers")
        if not self.dtype.itemsize or min(self.shape, default=1) < 0:
            raise ValueError(f"it claims the shape {self.shape} of {self.dtype}")
        size = math.prod(self.shape) * self.dtype.itemsize
        if self.offset + size > length:
            raise ValueError(
                f"its header claims {size} bytes, where {max(length - self.offset, 0)} follow: it is cut short"
            )

    @property
    def by_rows(self) -> bool:
        """Whether single samples can be read."""
        return not self.by_columns and bool(self.shape) and min(self.shape) > 0
