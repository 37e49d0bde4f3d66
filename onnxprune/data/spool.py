"""Arrays that come one after the other: in memory while they are few, in files once they are not.

Each name has one file, in which all of its arrays follow each other, so that those which fit each other are one array
there. Nothing is written twice, and memory holds no more than `LARGE_BYTES` and the array that comes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxprune.data.array_files import LARGE_BYTES, Rows, chunks
from onnxprune.errors import CalibrationError, RunError
from onnxprune.numerics.arrays import Array
from onnxprune.process.room import why_not
from onnxprune.process.spill import new_spill_file
from onnxprune.regular_files import shown

# What is held in memory at most, where it has to be: the files of a folder, and what is no rows of numbers.
FOLDER_BYTES = 8 << 30
# What the disk keeps free: a source that has no end shall not fill it.
_LEFT_FREE, _LOOKED_AT = 1 << 30, 256 << 20


class Spool:
    """Arrays by name, in their order. where: what the data are called in messages."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._pieces: dict[str, list[Array | Rows]] = {}
        self._files: dict[str, _File] = {}
        self._held = self._looked_at = 0
        self._written = 0

    def add(self, name: str, array: Array) -> None:
        """Take a copy of an array, as whoever made it may use its memory again.

        Raises CalibrationError where nothing can hold it, and RunError where it cannot be written.
        """
        piece = np.array(array, order="C", copy=True)
        self._pieces.setdefault(name, []).append(piece)
        self._held += piece.nbytes
        if self._held > LARGE_BYTES:
            self._write_out()

    def pieces(self, name: str) -> Sequence[Array | Rows]:
        """The arrays of a name: all of them as they are, or all where they lie."""
        if self._files:
            self._write_out()
        return self._pieces.get(name, [])

    def _write_out(self) -> None:
        """Put what is held to the files, but for what is no rows of numbers."""
        left = 0
        for name, pieces in self._pieces.items():
            for i, piece in enumerate(pieces):
                if isinstance(piece, Rows):
                    continue
                stored = self._stored(name, piece) if _has_rows(piece) else None
                if stored is None:
                    left += piece.nbytes
                else:
                    pieces[i] = stored
        self._held = left
        if left > FOLDER_BYTES:
            raise CalibrationError(
                f"{self._where}: {shown(left)} would be held in memory; ask for fewer samples (--samples)"
            )
        if self._written - self._looked_at > _LOOKED_AT:
            self._looked_at = self._written
            self._check_room()

    def _stored(self, name: str, piece: Array) -> Rows | None:
        """The array where it lies in its file; None where there is no place for files."""
        if name not in self._files:
            path = new_spill_file()
            if path is None:
                return None
            self._files[name] = _File(path)
        file = self._files[name]
        try:
            offset = file.append(piece)
        except OSError as e:
            advice = "set TMPDIR to a larger folder, or ask for fewer samples"
            raise RunError(f"{file.path.parent} has no room: {why_not(e, advice)}") from e
        self._written += piece.nbytes
        return Rows(file.path, offset, piece.dtype, piece.shape)

    def _check_room(self) -> None:
        folder = next(iter(self._files.values())).path.parent
        free = shutil.disk_usage(folder).free
        if free < _LEFT_FREE:
            raise CalibrationError(
                f"{self._where}: {shown(self._written)} were read, and {folder} has only {shown(free)} left; if the "
                "data have no end, say how many samples to take (--samples), else set TMPDIR to a larger folder"
            )


class _File:
    def __init__(self, path: Path) -> None:
        self.path, self._size = path, 0

    def append(self, array: Array) -> int:
        """Write an array behind the others; the offset of its first byte. Raises OSError."""
        start = self._size
        with self.path.open("ab") as f:
            f.write(array.reshape(-1).view(np.uint8).data)
        self._size += array.nbytes
        return start


def check_held(total: int, path: object, name: str) -> None:
    """Raises CalibrationError where the files of a folder take more memory than they may."""
    if total > FOLDER_BYTES:
        raise CalibrationError(
            f"{path}: the files up to {name} hold {shown(total)}, which would be held in memory; save all as one "
            ".npy or uncompressed .npz, whose samples are read one by one"
        )


def _has_rows(a: Array) -> bool:
    """Whether an array can be read in parts from a file."""
    return bool(a.ndim) and bool(a.size) and not a.dtype.hasobject


def joined(pieces: Sequence[Array | Rows], where: str) -> Array | Rows:
    """Arrays that differ in their first size alone, one after the other; what lies in files stays in some.

    Raises as `Spool.add`.
    """
    if len(pieces) == 1:
        return pieces[0]
    whole = _one_range(pieces)
    if whole is not None:
        return whole
    if sum(p.size * p.dtype.itemsize for p in pieces) < LARGE_BYTES or not any(isinstance(p, Rows) for p in pieces):
        return np.concatenate([p[:] for p in pieces])
    spool = Spool(where)
    for piece in pieces:
        for part in chunks(piece):
            spool.add("", part)
    return _one_range(spool.pieces("")) or np.concatenate([p[:] for p in spool.pieces("")])


def _one_range(pieces: Sequence[Array | Rows]) -> Rows | None:
    """The one array that the pieces are in a file; None where they are none."""
    first = pieces[0]
    if not isinstance(first, Rows):
        return None
    offset, count = first.offset, 0
    for p in pieces:
        plain = isinstance(p, Rows) and p.axis == 0 and p.chosen is None and p.written is None
        if not plain or not isinstance(p, Rows) or (p.path, p.offset, p.dtype) != (first.path, offset, first.dtype):
            return None
        offset += p.size * p.dtype.itemsize
        count += len(p)
    return Rows(first.path, first.offset, first.dtype, (count, *first.stored[1:]))
