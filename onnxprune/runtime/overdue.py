"""Runs that do not end are ended in this process too: some models count to what their data say, and that may be much.

The first run, which happens in the child process, tells what a run takes here. A later one may take many times that for
each time that its inputs are as large; then onnxruntime is told to stop, which it heeds between two nodes and between
two turns of a Loop. Processes that saw no first run (of `--jobs`) wait longer. What a single kernel does is not cut.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from onnxprune.runtime.child import PATIENCE, patience

_SECONDS = 30.0
_SECONDS_UNKNOWN = 600.0
# As of what the child process may take for a model that is known to run.
_TIMES_AN_HONEST_RUN = 60.0
_LOOK_SECONDS = 0.5


class _Watch:
    """Looks at all runs of this process twice a second, from the first one on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[int, tuple[float, Any]] = {}
        self._numbers = itertools.count()
        self._process: int | None = None
        self._seconds = self._seconds_per_byte = 0.0

    def expect(self, seconds: float, size: int) -> None:
        """Learn that an honest run took so long for inputs of so many bytes."""
        self._seconds = max(self._seconds, seconds)
        self._seconds_per_byte = max(self._seconds_per_byte, seconds / max(size, 1))

    def allowed(self, size: int) -> float:
        """Seconds for a run with inputs of so many bytes."""
        honest = max(self._seconds, self._seconds_per_byte * size)
        return patience() * ((_SECONDS if honest else _SECONDS_UNKNOWN) + _TIMES_AN_HONEST_RUN * honest)

    def add(self, options: Any, seconds: float) -> int:
        """Watch a run, and return the number under which it is watched."""
        number = next(self._numbers)
        self._runs[number] = (time.monotonic() + seconds, options)
        if self._process != os.getpid():  # a fork takes no threads along
            with self._lock:
                if self._process != os.getpid():
                    threading.Thread(target=self._look, daemon=True).start()
                    self._process = os.getpid()
        return number

    def remove(self, number: int) -> None:
        """Forget a run: it has ended."""
        del self._runs[number]

    def _look(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            for until, options in list(self._runs.values()):
                if now > until:
                    options.terminate = True


_WATCH = _Watch()
expect: Callable[[float, int], None] = _WATCH.expect
allowed: Callable[[int], float] = _WATCH.allowed


@contextmanager
def ended_after(options: Any, seconds: float) -> Iterator[None]:
    """Set `terminate` of onnxruntime's RunOptions where what is done here takes longer."""
    number = _WATCH.add(options, seconds)
    try:
        yield
    finally:
        _WATCH.remove(number)


def why(seconds: float) -> str:
    """The message for a run that was stopped after so many seconds."""
    return (
        f"a run of the model with this data does not end: it was stopped after {seconds:.0f} seconds; its first run "
        f"took far less; if model and data are to be trusted, set {PATIENCE}=10 to wait ten times as long"
    )
