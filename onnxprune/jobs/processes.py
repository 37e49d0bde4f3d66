"""Workers as processes of this machine: the only user of multiprocessing.

Each worker has a pipe of its own, gets the work once and then one item at a time. Processes are spawned, since a fork
would copy onnxruntime's threads in whatever state they are.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from traceback import format_exception
from types import TracebackType
from typing import Any

from onnxprune.errors import RunError
from onnxprune.jobs.work import Item, Progress, Result, Work, check_own
from onnxprune.runtime import custom_ops
from onnxprune.threads import cores, limited, one_blas_thread

_LAST_SECONDS = 5.0


@dataclass(eq=False)
class _Worker:
    """A process that works, and the pipe to it.

    item: the place of the item that it is at. work: the number of the work that it knows.
    """

    process: BaseProcess
    pipe: Connection
    started: bool = False
    item: int | None = None
    work: int = 0


class _Elsewhere(Exception):
    """Where an error came from: the traceback of a worker, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Processes:
    """`count` processes, which share the cores of this one."""

    def __init__(self, count: int, progress: Progress) -> None:
        self.name: str = f"{count} processes"
        self.workers = count
        self._progress = progress
        self._pool: list[_Worker] = []
        self._works = 0

    def __enter__(self) -> Processes:
        """Start the workers, which load while this process goes on. Raises RunError."""
        try:
            # What a worker leaves behind when it is ended goes with this folder.
            self._folder = tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True)
            threads = max(cores() // self.workers, 1)
            with _deaf():
                for _ in range(self.workers):
                    self._pool.append(_started(threads, self._folder.name, custom_ops.libraries()))
        except OSError as e:
            self._end()
            raise RunError(f"{self.workers} worker processes cannot be started: {e.strerror}; use fewer --jobs") from e
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()
        self._folder.cleanup()

    @property
    def processes(self) -> tuple[int, ...]:
        """Process numbers of the workers."""
        return tuple(w.process.pid or 0 for w in self._pool)

    def map(self, work: Work[Item, Result], items: Iterable[Item], count: int) -> Iterator[Result]:
        """The results, in order.

        Where this ends early, by an error or because nobody asks for more, the workers end with it.
        """
        check_own(work)
        content = pickle.dumps(work, protocol=pickle.HIGHEST_PROTOCOL)
        self._works += 1
        source = enumerate(items)
        waiting: dict[int, Result] = {}
        sent = done = given = 0
        try:
            while given < count:
                for w in self._pool:
                    # Results wait here for those before them; were there no limit, for a slow one nearly all would.
                    if w.item is None and sent < min(count, given + 2 * self.workers):
                        self._send(w, *next(source), content)
                        sent += 1
                for index, value in self._replies():
                    waiting[index] = value
                    done += 1
                    self._progress(done, count)
                while given in waiting:
                    given += 1
                    yield waiting.pop(given - 1)
        finally:
            if given < count:
                self._end()

    def _send(self, w: _Worker, index: int, item: object, content: bytes) -> None:
        try:
            if w.work != self._works:
                w.pipe.send(content)
                w.work = self._works
            w.pipe.send((index, item))
        except OSError as e:
            raise RunError(_why_ended(w)) from e
        w.item = index

    def _replies(self) -> Iterator[tuple[int, Any]]:
        """The results that are there, once one is. Raises what the work raised, and RunError where a worker ended."""
        busy = {w.pipe: w for w in self._pool if w.item is not None}
        # A pipe whose other end is gone counts as ready.
        for pipe in wait(list(busy)):
            w = busy[pipe]  # type: ignore[index]
            try:
                message = w.pipe.recv()
            except (EOFError, OSError) as e:
                raise RunError(_why_ended(w)) from e
            if message is None:
                w.started = True
                continue
            index, value, error, traceback = message
            w.item = None
            if error is not None:
                raise error from _Elsewhere(traceback)
            yield index, value

    def _end(self) -> None:
        """End the workers, whatever they are doing."""
        for w in self._pool:
            w.process.terminate()
        for w in self._pool:
            w.process.join(_LAST_SECONDS)
            if w.process.is_alive():
                w.process.kill()
                w.process.join()
            w.pipe.close()
        self._pool = []


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started while this lasts never hear what ends all of a terminal's; this one does, after."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # its start ends with signals unblocked, so it comes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _started(threads: int, folder: str, libraries: tuple[str, ...]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, threads, folder, libraries), daemon=True)
    process.start()
    theirs.close()  # so that the pipe ends with the worker
    return _Worker(process, ours)


def _why_ended(w: _Worker) -> str:
    w.process.join(_LAST_SECONDS)
    code = w.process.exitcode
    how = "its pipe was closed" if code is None else f"exit code {code}"
    if code is not None and code < 0:
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if not w.started and (code is None or code >= 0):
        return (
            f"a worker process did not start ({how}); a script that calls prune(..., jobs=N) has to do so under "
            "if __name__ == '__main__'"
        )
    return f"a worker process ended ({how}), perhaps for want of memory: use fewer --jobs"


# in a worker


def _serve(pipe: Connection, threads: int, folder: str, libraries: tuple[str, ...]) -> None:
    """Do what comes through the pipe, until it ends. libraries: of custom operators."""
    for name in ("SIGINT", "SIGHUP"):  # they reach every process of a terminal, and the first one decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tempfile.tempdir = folder
    work: Work[Any, Any] | None = None
    registered = custom_ops.registering(libraries)
    with one_blas_thread(), limited(threads), registered, contextlib.suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            message = pipe.recv()
            if isinstance(message, bytes):
                work = None  # the last one's memory first
                work = pickle.loads(message)
                check_own(work)
            elif work is not None:
                _reply(pipe, work, *message)


def _reply(pipe: Connection, work: Work[Any, Any], index: int, item: Any) -> None:
    reply: tuple[int, Any, Exception | None, str]
    try:
        reply = index, work(item), None, ""
    except Exception as e:  # noqa: BLE001  whatever it is, it is raised where the run is
        error = e if _travels(e) else RunError(f"{type(e).__name__}: {e}")
        reply = index, None, error, "".join(format_exception(e))
    pipe.send(reply)


def _travels(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  an error class may take arguments that it does not keep
        return False
    return True


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
