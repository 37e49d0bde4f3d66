"""Files that a user names: only regular ones, of a size that is looked at before anything is read.

A pipe, a terminal or a device may have no end, or wait for a writer who never comes; a folder is no file. What the
opened descriptor says decides, so nothing can be put in the place of a file once it was looked at.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from onnxprune.errors import InputError

# A model file is one message of protobuf, which ends there.
MODEL_BYTES = 2 << 30
# A plan of a million units with their coefficients has half of it.
PLAN_BYTES = 64 << 20
# A file from this size on, of which the disk holds less than an eighth, is taken for an empty one.
_HOLLOW_BYTES = 1 << 30

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def opened(path: str | os.PathLike[str], error: type[InputError], *, most: int | None = None) -> BinaryIO:
    """A regular file of at most so many bytes, opened for reading without waiting for anyone.

    most: None for a file that is mapped, or read in parts. Raises `error` with one line that says what it is instead.
    """
    try:
        status = Path(path).stat()  # a device may do something on being opened
        _check(path, status, error, most)
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        raise error(f"{os.fspath(path)} does not exist") from None
    except (OSError, ValueError) as e:  # a ValueError for a NUL in the name
        raise error(f"{brief(path)} cannot be read: {reason(e)}") from e
    try:
        _check(path, os.fstat(descriptor), error, most)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def content(path: str | os.PathLike[str], error: type[InputError], most: int) -> bytes:
    """All bytes of a regular file of at most so many. Raises `error`."""
    with opened(path, error, most=most) as f:
        try:
            return f.read(min(os.fstat(f.fileno()).st_size, most))
        except OSError as e:
            raise error(f"{path} cannot be read: {reason(e)}") from e


def check_not_hollow(f: BinaryIO, path: str | os.PathLike[str], error: type[InputError]) -> None:
    """Refuse a large file of which nearly nothing is on the disk: to go through its zeros would take for ever."""
    status = os.fstat(f.fileno())
    blocks = getattr(status, "st_blocks", None)
    if blocks is not None and status.st_size >= _HOLLOW_BYTES and blocks * 512 < status.st_size // 8:
        raise error(
            f"{path} has {shown(status.st_size)}, of which the disk holds {shown(blocks * 512)}: it is an empty file"
        )


def _check(path: str | os.PathLike[str], status: os.stat_result, error: type[InputError], most: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "no ordinary file")
        raise error(f"{os.fspath(path)} is {kind}; give a regular file")
    if most is not None and status.st_size > most:
        raise error(f"{os.fspath(path)} has {shown(status.st_size)}; at most {shown(most)} are read")


def reason(e: Exception) -> str:
    """What an error of the system says, without the path that it repeats."""
    return (isinstance(e, OSError) and e.strerror) or str(e)


def brief(path: str | os.PathLike[str]) -> str:
    """A path for a message, cut where it is absurdly long."""
    text = os.fspath(path)
    return f"{text[:100]}…" if len(text) > 1000 else text


def shown(size: int) -> str:
    """A number of bytes in the largest binary unit that it has one of."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f} {unit}"
    return f"{size} bytes"
