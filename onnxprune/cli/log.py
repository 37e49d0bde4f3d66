"""The file that --log-file names: what stderr and stdout show, line by line, with the time."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from onnxprune.errors import RunError, UsageError

_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT")


class Log:
    """A log that is written to once it is opened; without that, nobody is told anything."""

    def __init__(self) -> None:
        self._file: TextIO | None = None

    @property
    def opened(self) -> bool:
        """Whether anybody is told."""
        return self._file is not None

    def open(self, path: str | None) -> None:
        """Append to a file, which is made where there is none. Raises UsageError for a file that is no log of ours."""
        if path is None:
            return
        try:
            if Path(path).exists():
                if not Path(path).is_file():
                    raise UsageError(f"{path} is no ordinary file; give --log-file another name")
                with Path(path).open("rb") as f:
                    start = f.read(16)
                if start and not _STAMP.match(start):
                    raise UsageError(f"{path} exists and is no log; give --log-file another name")
            self._file = Path(path).open("a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  it lasts
        except (OSError, ValueError) as e:
            raise RunError(f"{path} cannot be written: {getattr(e, 'strerror', None) or e}") from e

    def write(self, text: str) -> None:
        """Each line of a text with the time. A disk that is full ends no run."""
        if self._file is None:
            return
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with suppress(OSError, ValueError):
            self._file.writelines(f"{now} {line}\n" for line in text.splitlines())
            self._file.flush()

    def close(self) -> None:
        """Nothing more will come."""
        if self._file is not None:
            with suppress(OSError, ValueError):
                self._file.close()
            self._file = None
