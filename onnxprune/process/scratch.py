"""One folder for all temporary files of the process, so that one removal in the end is sure to catch them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile

PREFIX = "onnxprune-"


class Scratch:
    """The folder in which `tempfile` works between `make` and `remove`. TMPDIR says where it lies."""

    def __init__(self) -> None:
        self._folder: str | None = None
        self._before: str | None = None

    def make(self) -> None:
        """Make the folder. Where that is impossible, whoever needs a temporary file says so."""
        before = tempfile.tempdir
        with contextlib.suppress(OSError):
            self._folder = tempfile.mkdtemp(prefix=PREFIX)
            self._before, tempfile.tempdir = before, self._folder

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        if self._folder is not None:
            tempfile.tempdir = self._before
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
