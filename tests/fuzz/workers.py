"""Processes that run one thing after another and may die of it; the parent stays alive and says what happened."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

HANG_SECONDS = 60.0
MOST_BYTES = 4 << 30
# What the kernel refuses, should a process outrun the watch over its memory.
_ADDRESS_BYTES = 24 << 30
_START_SECONDS = 120.0
_POLL_SECONDS = 0.05
_SHOWN = 20_000


@dataclass(frozen=True)
class Answer:
    """What became of a call.

    value: what it returned; None where it did not. error: the traceback of what it raised. died: empty, or how the
    process ended: "hang", "memory" or "signal N". stdout, stderr: what came through the file descriptors, native lines
    included. peak: largest resident memory in bytes.
    """

    value: Any
    error: str
    died: str
    stdout: str
    stderr: str
    seconds: float
    peak: int


class Worker:
    """One process, started again whenever it has died. core: the only one that it uses."""

    def __init__(self, core: int | None = None) -> None:
        self._core = core
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def call(
        self, function: Callable[..., Any], *args: Any, seconds: float = HANG_SECONDS, most: int = MOST_BYTES
    ) -> Answer:
        """The function, importable by name, in the process."""
        self._start()
        out, err = (Path(self._folder.name) / name for name in ("stdout", "stderr"))
        start = time.monotonic()
        self._pipe.send((function, args, str(out), str(err)))
        died, peak, value, error = "", 0, None, ""
        while True:
            try:
                if self._pipe.poll(_POLL_SECONDS):
                    value, error, own = self._pipe.recv()
                    peak = max(peak, own)
                    break
            except (EOFError, OSError):
                self._process.join(5)
                code = self._process.exitcode
                died = f"signal {-code}" if code is not None and code < 0 else f"exit {code}"
                break
            peak = max(peak, _resident(self._process.pid))
            if peak > most or time.monotonic() - start > seconds:
                died = "memory" if peak > most else "hang"
                break
        spent = time.monotonic() - start
        if not died and peak > most:
            died = "memory"
        if died:
            text = _text(out), _text(err)
            self.stop()
            return Answer(value, error, died, *text, spent, peak)
        return Answer(value, error, died, _text(out), _text(err), spent, peak)

    def stop(self) -> None:
        """End the process and what it started."""
        if self._process is None:
            return
        for pid in (*_descendants(self._process.pid), self._process.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._process.join(5)
        self._pipe.close()
        self._folder.cleanup()
        self._process = None

    def _start(self) -> None:
        if self._process is not None and self._process.is_alive():
            return
        self.stop()
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True)
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._core), daemon=False)
        self._process.start()
        other.close()
        if not self._pipe.poll(_START_SECONDS):
            raise RuntimeError("a worker does not start")
        self._pipe.recv()


def _serve(pipe: Connection, core: int | None) -> None:
    """The worker's loop."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES, _ADDRESS_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import onnxprune.cli.program
    import onnxprune.pipeline  # noqa: F401

    pipe.send("ready")
    while True:
        try:
            function, args, out, err = pipe.recv()
        except EOFError:
            return
        _forget_peak()
        with Path(out).open("wb") as o, Path(err).open("wb") as e, _redirected(o, e):
            value, error = _called(function, args)
        pipe.send((value, error, _peak()))


def _called(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, str]:
    try:
        return function(*args), ""
    except BaseException:  # noqa: BLE001  whatever it is, the parent is told
        return None, traceback.format_exc()


@contextlib.contextmanager
def _redirected(out: IO[bytes], err: IO[bytes]) -> Any:
    """The file descriptors 1 and 2, which native code uses too, lead to these files."""
    kept = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, old in enumerate(kept, 1):
            os.dup2(old, fd)
            os.close(old)


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[:_SHOWN].decode("utf-8", "replace")
    except OSError:
        return ""


# memory, by Linux's /proc: elsewhere it counts as 0


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    return _status("self", "VmHWM")


def _resident(pid: int) -> int:
    return sum(_status(str(p), "VmRSS") for p in (pid, *_descendants(pid)))


def _status(pid: str, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), 0)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [*_descendants(child), child]
    return found
