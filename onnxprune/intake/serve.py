"""What runs in the child process (`child`): one question after another, each within its limit of memory."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import queue
import re
import signal
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from traceback import format_exception
from typing import IO, Any

from onnxprune.errors import ModelError
from onnxprune.process import spill
from onnxprune.runtime import custom_ops
from onnxprune.runtime.child import HUNGRY

_LENGTH = struct.Struct("<Q")
_IDLE_SECONDS = 60.0
# A child that has taken so much is replaced, since memory seldom goes back to the system.
_LARGE_BYTES = 1 << 30
_LINUX = bool(sys.platform == "linux")
_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main() -> None:
    """Answer questions of the parent process until it asks no more."""
    incoming, outgoing = _wires()
    _die_with_parent()
    requests: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_listen, args=(incoming, requests), daemon=True).start()
    answers = _answers()
    gc.freeze()  # what has been loaded stays: a collection behind each question need not look at it
    while True:
        try:
            question, given, most, folder, libraries = requests.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            os._exit(0)
        _send(outgoing, None)
        tempfile.tempdir = folder
        with custom_ops.registering(libraries):
            _send(outgoing, _answered(answers[question], given, most, folder))
        gc.collect()
        if _bytes_now() > _LARGE_BYTES:
            os._exit(0)


def _wires() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes, moved away from where compiled code prints."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    return incoming, outgoing


def _die_with_parent() -> None:
    """The parent decides what becomes of a signal; where it dies, this process does."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if _LINUX:
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)


def _listen(incoming: IO[bytes], requests: queue.Queue[Any]) -> None:
    """Queue the questions that arrive. Where the pipe ends the parent has, and this process ends at once."""
    while True:
        head = incoming.read(_LENGTH.size)
        content = incoming.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
        if not content:
            os._exit(1)
        requests.put(pickle.loads(content))


def _send(outgoing: IO[bytes], message: object) -> None:
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    outgoing.write(_LENGTH.pack(len(content)))
    outgoing.write(content)
    outgoing.flush()


def _answered(
    answer: Callable[..., Any], given: tuple[Any, ...], most: int, folder: str
) -> tuple[Any, Exception | None, str]:
    """Answer one question: (value, None, no text), or (None, error, traceback)."""
    with _within(most), spill.spilling_in(folder):
        try:
            value = answer(*given)
            pickle.dumps(value)
            return value, None, ""
        except Exception as e:  # noqa: BLE001  whatever it is, it is raised where the run is
            text = "".join(format_exception(e))
            return None, _travelling(e), text


def _travelling(error: Exception) -> Exception:
    """The same error, or what is left of it where its class cannot be sent."""
    if isinstance(error, RecursionError):
        return ModelError("the model is nested too deeply")
    plain = type(error)(*error.args) if type(error).__module__.partition(".")[0] in ("builtins", "onnxprune") else None
    if plain is not None:
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(plain))
            return plain
    return RuntimeError(f"{type(error).__name__}: {error}")


# memory


@contextlib.contextmanager
def _within(most: int) -> Iterator[None]:
    """No more than so many bytes on top of what this process has now: an allocation beyond fails, or ends it."""
    if _LINUX:
        import resource

        before = resource.getrlimit(resource.RLIMIT_DATA)
        limit = _bytes_now() + most
        hard = before[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)
        return
    done = threading.Event()
    threading.Thread(target=_watch, args=(_peak_now() + most, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _bytes_now() -> int:
    """What counts against the limit: private memory that can be written, touched or not."""
    if not _LINUX:
        return _peak_now()
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it is not mounted
        return _peak_now()
    match = re.search(r"VmData:\s*(\d+) kB", status)
    return int(match[1]) << 10 if match else 0


def _peak_now() -> int:
    """The largest resident size so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _watch(most: int, done: threading.Event) -> None:
    """End this process where it takes more; for systems that cannot limit memory."""
    while not done.wait(0.05):
        if _peak_now() > most:
            os._exit(HUNGRY)


# answers


def _answers() -> Mapping[str, Callable[..., Any]]:
    """The function that answers each question; loading all that they need is the cost of a start."""
    from onnxprune.intake import trials

    return {
        "check file": trials.check_file,
        "open": trials.opens,
        "output types": trials.output_types,
        "infer": trials.infer,
        "shapes": trials.shapes,
        "run": trials.run,
        "run again": trials.run_again,
        "normalise": trials.normalised,
    }
