"""Results that outlive the process: what a run has computed, in a folder, for the same run after it was killed.

A result is a few arrays under two words: what it is, and of which item. Files appear whole or not at all, and hold
arrays alone: nothing that lies in the folder is executed. What the run was is written down in it, and another run is
refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from onnxprune.errors import RunError, UsageError
from onnxprune.numerics.arrays import Array
from onnxprune.process.room import why_not

_IDENTITY = "run.json"
_DIGEST = "digest"
_MOST_IDENTITY = 1 << 20


class Kept(Protocol):
    """Where results are looked up, and put."""

    @property
    def lasts(self) -> bool:
        """Whether what is put is there for a later run."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of results that were there."""

    def get(self, kind: str, item: str) -> Mapping[str, Array] | None:
        """What was put there by this run or an earlier one; None where nothing was."""

    def put(self, kind: str, item: str, arrays: Callable[[], Mapping[str, Array]]) -> None:
        """Keep arrays, which are made if they are kept at all."""


class Nowhere:
    """Nothing is kept."""

    lasts: bool = False
    notes: tuple[str, ...] = ()

    def get(self, kind: str, item: str) -> None:
        """Nothing was put."""

    def put(self, kind: str, item: str, arrays: Callable[[], Mapping[str, Array]]) -> None:
        """It is not kept."""


NOWHERE = Nowhere()


class Folder:
    """Results in a folder, for runs with the same identity. found: how many of an earlier run were used."""

    lasts: bool = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """As of `Kept`."""
        if not self.found:
            return ()
        results = (
            "1 result of an earlier run was" if self.found == 1 else f"{self.found} results of an earlier run were"
        )
        return (f"{results} taken from {self.path}",)

    def get(self, kind: str, item: str) -> Mapping[str, Array] | None:
        """As of `Kept`; a file that is not this result as it was put is computed anew."""
        try:
            with self._file(kind, item).open("rb") as f, np.load(f, allow_pickle=False) as stored:
                arrays = {k: stored[k] for k in stored.files}
        except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile):
            return None
        digest = arrays.pop(_DIGEST, None)
        if digest is None or str(digest) != _digest(kind, item, arrays):
            return None
        self.found += 1
        return arrays

    def put(self, kind: str, item: str, arrays: Callable[[], Mapping[str, Array]]) -> None:
        """As of `Kept`. Raises RunError where there is no room."""
        file = self._file(kind, item)
        made = dict(arrays())
        digest = np.array(_digest(kind, item, made))
        _write(file, lambda f: np.savez(f, allow_pickle=False, **made, **{_DIGEST: digest}))

    def _file(self, kind: str, item: str) -> Path:
        """Items have any names; files have those that every system takes."""
        return self.path / f"{kind}-{hashlib.sha256(item.encode()).hexdigest()[:32]}.npz"


def kept_in(path: str | os.PathLike[str] | None, identity: Mapping[str, Any]) -> Kept:
    """The results of a run in a folder, which is made where there is none; of no run for None.

    identity: what its results depend on, as JSON. Raises UsageError for a folder that holds something else, and
    RunError where nothing can be written. Two processes that do the same work there write the same.
    """
    if path is None:
        return Nowhere()
    folder = Path(path)
    if not str(path) or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{path or repr('')} is no folder; give --work a new one, or an empty one")
    with _room(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / _IDENTITY
        if file.is_file():
            _check_same(folder, file, identity)
        elif any(folder.iterdir()):
            raise UsageError(f"{folder} holds other files; give --work a new folder, or an empty one")
        else:
            text = json.dumps(identity, sort_keys=True, indent=1) + "\n"
            _write(file, lambda f: f.write(text.encode()))
    return Folder(folder)


def _check_same(folder: Path, file: Path, identity: Mapping[str, Any]) -> None:
    try:
        with file.open("rb") as f:
            before = json.loads(f.read(_MOST_IDENTITY))
    except ValueError:
        before = None
    wanted = json.loads(json.dumps(identity))
    if before == wanted:
        return
    if not isinstance(before, dict):
        raise UsageError(f"{file} cannot be read; give --work another folder, or remove this one")
    differ = ", ".join(sorted(_differing(before, wanted))) or "more"
    raise UsageError(
        f"{folder} holds the work of another run (not the same: {differ}); give --work another folder, or remove it"
    )


def _differing(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """What is not the same, of several things under one name each of them."""
    for k, value in wanted.items():
        other = before.get(k)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from (x for x in {*value, *other} if value.get(x) != other.get(x))
        elif other != value:
            yield k


def _digest(kind: str, item: str, arrays: Mapping[str, Array]) -> str:
    """What tells a result from that of another item, and from a file that somebody has changed."""
    digest = hashlib.sha256(repr((kind, item)).encode())
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        digest.update(repr((name, values.shape, values.dtype.str)).encode())
        digest.update(values.tobytes() if values.dtype.kind == "U" else values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _write(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """A file that is there as a whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    with _room(file.parent):
        try:
            with part.open("wb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
            part.replace(file)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise RunError(f"nothing can be kept in {folder}: {why_not(e, 'give --work another folder')}") from e
