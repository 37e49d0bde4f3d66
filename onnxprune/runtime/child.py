"""A process that tries what comes from outside: where it crashes, hangs or eats memory, the user gets one line.

onnx's checker and inliner and onnxruntime are compiled code, and no model is safe for them: some end the process with a
floating-point signal, some count to 2**62, and some bytes ask for terabytes. So each model is first tried in a process
of its own, with a limit of time and of memory. It is no sandbox: it has all rights of the user.

There is one child, which serves any number of models, one after another: `ask` starts it when it is first needed, and
anew after it has ended, and a further question costs about a millisecond. It ends with this process, however that ends,
and after a minute without a question. `warm` starts it ahead of need, so that its imports overlap with others.

    for proto in models:
        with spill.spilling():
            first_run.check(proto), first_run.run(proto, feeds)  # the same child, or a new one behind a crash
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from onnxprune.errors import OnnxPruneError, RunError, UsageError
from onnxprune.runtime import custom_ops

_LENGTH = struct.Struct("<Q")
# What a model without weights may take; both grow with the size of what is tried.
_SECONDS = 30.0
_SECONDS_TO_READ = 20.0  # where nothing is computed
_BYTES = 3 << 30
_BYTES_PER_SECOND = 20e6
_TIMES_THE_SIZE = 5
# onnxruntime's time grows with the square of tensors that nothing reads: half a millisecond each where they are 50,000.
_SECONDS_PER_PART = 1e-3
# The normal form runs the model at about ten sizes, some of them four times as large.
_TIMES_AN_HONEST_RUN = 60.0
# Two stacks and a cache of the allocator for each core: reserved, and hardly ever touched.
_BYTES_PER_CORE = 32 << 20
PATIENCE = "ONNXPRUNE_PATIENCE"
# No clock counts to infinity.
_MOST_PATIENCE = 1e6
_LAST_SECONDS = 5.0
# The exit code of a child that saw itself exceed its limit of memory.
HUNGRY = 77
# What onnxruntime says where an allocation of C++ fails, and nothing more.
_NO_MEMORY = "bad_alloc"
_COMPUTING = ("run", "run again", "normalise")


class NotLoaded(RunError):
    """onnxruntime does not open the model, whatever the data."""


class Stopped(RunError):
    """The child crashed, did not end, or needed too much memory: onnxruntime's own refusals are plain RunErrors."""


class Late(Stopped):
    """The child did not end its work in time."""


class _Elsewhere(Exception):
    """Where an error came from: the traceback of the child, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Child:
    """A child process, and the pipes to it."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        # As multiprocessing does: what this process finds, the child finds.
        start = f"import sys; sys.path[:] = {[*sys.path, root]!r}; from onnxprune.intake.serve import main; main()"
        settings = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", start],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=settings,
            )
        except OSError as e:
            raise RunError(f"a process that tries the model cannot be started: {e.strerror}") from e
        self.parent = os.getpid()

    @property
    def alive(self) -> bool:
        """Whether the child lives, and this is the process that started it and may ask it."""
        return self.parent == os.getpid() and self._process.poll() is None

    def send(self, message: object) -> None:
        """Send the child a message. Raises OSError where it has ended."""
        content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        pipe = self._pipe(self._process.stdin)
        pipe.write(_LENGTH.pack(len(content)))
        pipe.write(content)
        pipe.flush()

    def receive(self) -> Any:
        """Receive the child's answer. Raises EOFError where it has ended."""
        pipe = self._pipe(self._process.stdout)
        head = pipe.read(_LENGTH.size)
        content = pipe.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
        if not content:
            raise EOFError
        return pickle.loads(content)

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe

    def kill(self) -> None:
        """Kill the child at once, whatever it does; also from another thread."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def end(self) -> int | None:
        """End the child; the exit code, or minus the signal, with which it ended by itself; None where it did not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Where it has closed its pipe it is about to end, with a code that says why.
            self._process.wait(0 if self._process.stdin is None or self._process.stdin.closed else 1.0)
        own = self._process.poll()
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, ValueError):
                self._pipe(pipe).close()
        return own


class _Place:
    """The one child, and the lock of whoever asks it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.child: _Child | None = None

    def ready(self) -> _Child:
        """The child process, started anew where there is none that lives."""
        if self.child is None or not self.child.alive:
            self.drop()
            self.child = _Child()
        return self.child

    def drop(self) -> int | None:
        """End the child, if any; how it ended where it did so by itself."""
        child, self.child = self.child, None
        # One that a fork took along is its parent's.
        return child.end() if child is not None and child.parent == os.getpid() else None


_PLACE = _Place()


def _at_the_end() -> None:
    """Leave nothing behind; first of all nothing that another thread may be waiting for."""
    if _PLACE.child is not None and _PLACE.child.parent == os.getpid():
        _PLACE.child.kill()
    if _PLACE.lock.acquire(timeout=_LAST_SECONDS):
        _PLACE.drop()


atexit.register(_at_the_end)


def warm() -> None:
    """Start the child: it loads while this process goes on. What prevents that is said when it is asked."""
    with contextlib.suppress(RunError), _PLACE.lock:
        _PLACE.ready()


def patience() -> float:
    """What the variable ONNXPRUNE_PATIENCE multiplies limits of time by. Raises UsageError where it is none."""
    given = os.environ.get(PATIENCE, "").strip() or "1"
    with contextlib.suppress(ValueError):
        if (factor := float(given)) > 0.0:  # no NaN is
            return min(factor, _MOST_PATIENCE)
    raise UsageError(f"{PATIENCE} is {given!r}; it is a number above 0, which limits of time are multiplied by")


def limits(size: int, honest: float = 0.0, *, computes: bool = True, parts: int = 0) -> tuple[float, int]:
    """(seconds, bytes) for what has so many bytes.

    honest: seconds that an honest run of it has taken. computes: whether a model is run. parts: how many nodes and
    stored tensors it has. The variable ONNXPRUNE_PATIENCE multiplies the time.
    """
    seconds = (_SECONDS if computes else _SECONDS_TO_READ) + _TIMES_AN_HONEST_RUN * honest
    seconds += size / _BYTES_PER_SECOND + parts * _SECONDS_PER_PART
    seconds = min(seconds * patience(), threading.TIMEOUT_MAX)
    return seconds, _BYTES + _TIMES_THE_SIZE * size + (os.cpu_count() or 1) * _BYTES_PER_CORE


def ask(question: str, *given: Any, what: str, size: int, honest: float = 0.0, parts: int = 0) -> Any:
    """The child's answer to one of `serve.ANSWERS`.

    what: what the child does, for the message ("this model's first run"). size, honest, parts: as for `limits`. Raises
    what the answer raises, and Stopped where the child crashes or exceeds a limit.
    """
    seconds, most = limits(size, honest, computes=question in _COMPUTING, parts=parts)
    with _PLACE.lock, _folder() as folder:
        try:
            child = _begun(question, given, most, folder, seconds)
            with _until(seconds, child) as late:
                try:
                    value, error, traceback = child.receive()
                except (EOFError, OSError) as e:
                    raise _why(_PLACE.drop(), what, seconds, most, late=late.is_set()) from e
        except OnnxPruneError:
            raise
        except BaseException:  # an interrupt: what the child says later is no answer to the next question
            if _PLACE.child is not None:
                _PLACE.child.kill()
            _PLACE.drop()
            raise
    if isinstance(error, MemoryError) or (isinstance(error, RunError) and _NO_MEMORY in str(error)):
        raise Stopped(_hungry(what, most)) from _Elsewhere(traceback)
    if error is not None:
        raise error from _Elsewhere(traceback)
    return value


@contextlib.contextmanager
def _until(seconds: float, child: _Child) -> Iterator[threading.Event]:
    """The child is ended after so many seconds; the event says whether it was."""
    late = threading.Event()
    timer = threading.Timer(seconds, _stop, (child, late))
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _stop(child: _Child, late: threading.Event) -> None:
    late.set()
    child.kill()


def _begun(question: str, given: tuple[Any, ...], most: int, folder: str, seconds: float) -> _Child:
    """A child that has begun with the question: one that ended meanwhile, for want of questions, is replaced.

    seconds: how long it may take to start and to take the question. Raises RunError.
    """
    for last in (False, True):
        child = _PLACE.ready()
        with _until(seconds, child) as late:
            try:
                child.send((question, given, most, folder, custom_ops.libraries()))
                child.receive()
                return child
            except (EOFError, OSError) as e:
                code = _PLACE.drop()
                if late.is_set():
                    raise Late(
                        f"the process that tries a model does not start: it was stopped after {seconds:.0f} seconds; "
                        f"where the machine is that slow, set {PATIENCE}=10 to wait ten times as long"
                    ) from e
                if last:
                    raise RunError(f"the process that tries a model does not start ({_how(code)})") from e
    raise AssertionError


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """Where the child's temporary files go, so that they go with those of this process."""

    from onnxprune.process import spill  # not before the child has started: it loads numpy and onnx

    kept = spill.spill_folder()
    if kept is not None:
        yield tempfile.mkdtemp(dir=kept)
        return
    with tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True) as folder:
        yield folder


def _why(code: int | None, what: str, seconds: float, most: int, *, late: bool) -> Stopped:
    if code == HUNGRY:
        return Stopped(_hungry(what, most))
    if late:
        return Late(
            f"{what} does not end: it was stopped after {seconds:.0f} seconds; if the model is to be trusted, set "
            f"{PATIENCE}=10 to wait ten times as long"
        )
    if code is not None and -code == getattr(signal, "SIGKILL", 9):
        return Stopped(f"{what} was ended by the system ({_how(code)}), most likely for want of memory")
    return Stopped(
        f"onnxruntime or onnx crashes ({_how(code)}) on {what}; the model, or this data for it, is not valid"
    )


def _hungry(what: str, most: int) -> str:
    return (
        f"{what} needs more than {most / 2**30:.1f} GiB of memory, which nothing in the model's size explains; "
        "where that depends on the data, give smaller inputs (--calib)"
    )


def _how(code: int | None) -> str:
    if code is None:
        return "it closed its pipe"
    if code < 0:
        return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"exit code {code}"
