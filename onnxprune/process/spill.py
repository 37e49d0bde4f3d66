"""Large arrays that a run makes lie in temporary files, which go with it."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cached_property
from itertools import count
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import RunError
from onnxprune.process.room import why_not

Array = NDArray[Any]

_SLOT_BYTES = 256 << 10


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.numbers = count()

    @cached_property
    def slots(self) -> _Slots:
        """The file that holds arrays which soon go again, made at its first use. Raises OSError."""
        return _Slots(self.path)


_SPILL: ContextVar[_Folder | None] = ContextVar("_SPILL", default=None)


class Temporary:
    """A temporary folder that is removed in the end, or with the object that needs it. Raises OSError."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="onnxprune-"))
        self._outer = _SPILL.get()
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def last_as_long_as(self, owner: object) -> None:
        """Leave the folder where it is until `owner` is collected, or the process ends."""
        self._remove.detach()
        weakref.finalize(owner, shutil.rmtree, self.path, ignore_errors=True)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While this lasts, what is computed goes where it went before: for what is to outlive the folder."""
        token = _SPILL.set(self._outer)
        try:
            yield
        finally:
            _SPILL.reset(token)

    def end(self) -> None:
        """Remove it, if nobody else needs it: what was detached does nothing."""
        self._remove()


@contextmanager
def spilling() -> Iterator[Temporary]:
    """While this lasts, large tensors that are computed go to files in a temporary folder, which is removed after.

    The innermost one counts. The system's settings say where it lies (TMPDIR). Raises RunError where it cannot be.
    """
    try:
        folder = Temporary()
    except OSError as e:
        raise RunError(f"no temporary folder can be made: {e.strerror}; set TMPDIR to one") from e
    try:
        with spilling_in(folder.path):
            yield folder
    finally:
        folder.end()


@contextmanager
def spilling_in(path: str | os.PathLike[str]) -> Iterator[None]:
    """As `spilling`, in a folder that exists and that somebody else removes."""
    token = _SPILL.set(_Folder(Path(path)))
    try:
        yield
    finally:
        _SPILL.reset(token)


def spill_folder() -> Path | None:
    """The folder of the innermost `spilling()`; None outside of any."""
    folder = _SPILL.get()
    return None if folder is None else folder.path


def new_spill_file() -> Path | None:
    """The path of a file that does not exist yet, in the folder of the innermost `spilling()`; None outside of any."""
    folder = _SPILL.get()
    return None if folder is None else folder.path / str(next(folder.numbers))


class _Slots:
    """A file of equal slots for arrays that soon go again: a slot that is free is used before the file grows.

    To overwrite what the system holds in its cache is many times as fast as to give it new pages: 10 against 0.45 GB/s
    where it was measured.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  it ends with this object
        weakref.finalize(self, self._file.close)
        self._lock = Lock()
        self._free: deque[int] = deque()
        self._new = count()

    def write(self, values: memoryview) -> list[int]:
        """Write some bytes; the slots that hold them, in order. Raises OSError."""
        taken: list[int] = []
        with self._lock:
            for start in range(0, len(values), _SLOT_BYTES):
                slot = self._taken()
                taken.append(slot)
                self._file.seek(slot * _SLOT_BYTES)
                left = values[start : start + _SLOT_BYTES]
                while left:
                    left = left[self._file.write(left) :]
        return taken

    def read(self, slots: Sequence[int], into: memoryview) -> None:
        """Read the bytes of these slots into a buffer, whose length says how many there are."""
        with self._lock:
            for i, slot in enumerate(slots):
                self._file.seek(slot * _SLOT_BYTES)
                left = into[i * _SLOT_BYTES : (i + 1) * _SLOT_BYTES]
                while left:
                    got = self._file.readinto(left)
                    if not got:
                        raise RunError("a temporary file has been cut short; leave TMPDIR as it is during a run")
                    left = left[got:]

    def free(self, slots: Sequence[int]) -> None:
        """Let others use them; takes no lock, since it is called whenever an array is collected."""
        self._free.extend(slots)

    def _taken(self) -> int:
        try:
            return self._free.pop()
        except IndexError:
            return next(self._new)


def _removed(path: Path) -> None:
    """Remove a file that nobody needs; what Windows keeps, as somebody has it mapped, goes with the folder."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


class Spilled:
    """An array that lies in a file while nothing reads it; in memory where `spilling()` has no folder.

    The file goes with the object; briefly: it lies in a file for many, of which the next ones use the place. A copy in
    another process holds the values. Raises RunError where it cannot be written.
    """

    def __init__(self, array: Array, *, briefly: bool = False) -> None:
        folder = _SPILL.get()
        self._array: Array | None = array
        if folder is None or array.dtype.hasobject:
            return
        self._dtype, self._shape = array.dtype, array.shape
        self._slots: _Slots | None = None
        if briefly:
            with _room(folder.path):
                self._slots = folder.slots
                self._at = self._slots.write(_bytes(array))
            weakref.finalize(self, self._slots.free, self._at)
        else:
            path = self._path = folder.path / str(next(folder.numbers))
            write_file(path, lambda f: write_array(array, f))
            weakref.finalize(self, _removed, path)
        self._array = None

    def load(self) -> Array:
        """The values; read anew each time, and not mapped: pages of a mapped file would count as this process's."""
        if self._array is not None:
            return self._array
        if self._slots is not None:
            array = np.empty(self._shape, self._dtype)
            self._slots.read(self._at, _bytes(array))
            return array
        return np.fromfile(self._path, np.uint8).view(self._dtype).reshape(self._shape)

    def rows(self, indices: Array) -> Array:
        """The rows (..., indices, :) of a matrix or a stack of them."""
        if self._array is not None or self._slots is not None:
            return self.load()[..., indices, :]
        # Mapped for the moment only.
        return np.array(np.memmap(self._path, self._dtype, "r", shape=self._shape)[..., indices, :])

    @property
    def nbytes(self) -> int:
        """What the values take once they are read."""
        if self._array is not None:
            return self._array.nbytes
        return int(self._dtype.itemsize * math.prod(self._shape))

    def __reduce__(self) -> tuple[type[Spilled], tuple[Array]]:
        return Spilled, (self.load(),)


def write_array(array: Array, f: IO[bytes]) -> None:
    """Write the values of an array, in rows."""
    f.write(_bytes(array))


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def write_file(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file of the run's own. Raises RunError where it cannot be written."""
    with _room(path.parent), path.open("wb") as f:
        write(f)


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        trouble = "takes no such file" if e.errno == errno.EFBIG else "has no room"
        raise RunError(f"{folder} {trouble}: {why_not(e, 'set TMPDIR to a larger folder')}") from e
