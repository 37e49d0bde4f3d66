"""Libraries of operators that a user registers with onnxruntime: in every session of this process, and of its helpers.

A library is code that runs with all rights of the user, so none is loaded that was not named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from onnxprune.errors import UsageError

ADVICE = "--custom-ops LIBRARY registers operators of your own"
Libraries = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class _Registered:
    """The libraries of this process; sessions are made in several threads."""

    def __init__(self) -> None:
        self.paths: tuple[str, ...] = ()


_REGISTERED = _Registered()


def libraries() -> tuple[str, ...]:
    """The paths of the libraries that sessions register now."""
    return _REGISTERED.paths


def checked(given: Libraries) -> tuple[str, ...]:
    """Absolute paths of libraries. Raises UsageError for what is no file."""
    several = (given,) if isinstance(given, (str, os.PathLike)) else tuple(given)
    paths: list[str] = []
    for path in several:
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise UsageError(f"custom_ops has {path!r}; give paths of shared libraries")
        if not Path(path).is_file():
            raise UsageError(f"the library {os.fspath(path)} of custom operators is no file")
        paths.append(str(Path(path).resolve()))
    return tuple(dict.fromkeys(paths))


@contextmanager
def registering(paths: Sequence[str]) -> Iterator[None]:
    """While this lasts, every new session registers these libraries."""
    before, _REGISTERED.paths = _REGISTERED.paths, tuple(paths)
    try:
        yield
    finally:
        _REGISTERED.paths = before
