"""The standard streams, which may be closed, full, or a pipe that nobody reads.

What a closed one would have shown is not wanted, so it goes to the null device; its number is taken at once, as the
next file to be opened would get it otherwise, and would be printed into. What stdout does not take is an error, since a
result was asked for there; a reader that has gone away has read enough. What stderr does not take changes nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO, cast

from onnxprune.errors import RunError

_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}


def open_closed() -> None:
    """Put the null device in the place of streams that are closed. To be called before anything opens a file."""
    for number, (name, mode) in enumerate(_MODES.items()):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # for child processes too
            if null != number:
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115  it lasts


def show(text: str) -> None:
    """Print to stdout, all of it. Raises RunError where it cannot be."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        give_up(sys.stdout)
    except (OSError, ValueError) as e:
        give_up(sys.stdout)
        reason = getattr(e, "strerror", None) or str(e)
        raise RunError(f"the report cannot be printed: {reason}; nothing was written") from e


def settle() -> None:
    """Leave nothing in the streams that the end of the interpreter would fail on."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            give_up(stream)


def give_up(stream: TextIO) -> None:
    """Have what is left in a stream, and whatever else comes, go to the null device."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def unbreakable(stream: TextIO) -> TextIO:
    """A stream whose failures are nobody's business: those of a terminal that was closed, say."""
    return cast(TextIO, _Unbreakable(stream))


class _Unbreakable(io.TextIOBase):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a terminal has one
        """The encoding of the stream behind it."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether the stream behind it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The file descriptor of the stream behind it."""
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        """Write what the stream takes."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what the stream takes."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()
