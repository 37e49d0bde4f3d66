"""Processes that a test starts, of which none outlives it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Seconds that a test waits for what takes one, on a machine that does much else; far from what ends a hanging test.
PATIENCE = 300.0


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that is killed with the context; options: as for Popen.

    Popen's own context waits for the end of it, whatever went wrong: a test that fails while its process waits for
    somebody to read what it says would then never end.
    """
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()
