"""Workers of a Dask cluster: the only user of dask and distributed, which the extra `dask` installs.

The scheduler keeps the content of the work and of every item that is under way, so that a worker that is lost takes
nothing with it: another one does its items again. A worker's threads are taken for its cores: one item to each.

Nothing is waited for without end. A scheduler has half a minute to answer; where all workers are gone, another one has
a minute to come, and some item has to be done every ten minutes. ONNXPRUNE_PATIENCE multiplies the last.

Scheduler and workers are trusted: what goes to and fro is pickled. With `tls://` they are those that hold a
certificate, as Dask's own configuration says (distributed.comm.tls).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from queue import Empty, SimpleQueue
from types import ModuleType, TracebackType
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from onnxprune.errors import RunError, UsageError
from onnxprune.jobs.work import Item, Progress, Result, Work, check_own
from onnxprune.runtime.child import PATIENCE, patience
from onnxprune.runtime.session import version
from onnxprune.threads import limited, one_blas_thread
from onnxprune.version import __version__

_CONNECT_SECONDS = 5.0
_WORKER_SECONDS = 10.0
# What a worker in its first seconds, or its last, may take to say what it has.
_ABOUT_SECONDS = 60.0
_ANSWER_SECONDS = 30.0
_REPLACED_SECONDS = 60.0
_STUCK_SECONDS = 600.0
# How often the scheduler is asked while nothing comes, and how often it is looked whether something has come.
_ASK_SECONDS, _LOOK_SECONDS = 5.0, 0.01
_CLOSE_SECONDS = 5.0
_SLACK = 2
_LOGGERS = ("distributed", "distributed.client", "distributed.core", "tornado.application", "asyncio")
_PROTOCOLS = ("tcp", "tls", "ws", "wss")


class Cluster:
    """The workers of the Dask scheduler at `address`. Raises RunError where there are none that fit."""

    def __init__(self, address: str, progress: Progress) -> None:
        self.name: str = f"Dask at {address}"
        self.workers: int = 0
        self.address = address
        self._progress = progress
        self._stack = ExitStack()

    def __enter__(self) -> Cluster:
        """Connect. Raises RunError where the scheduler does not answer, or its workers do not fit."""
        dask, distributed = _libraries()
        unreachable = (
            f"no Dask scheduler answers at {self.address}: start one (dask scheduler), or leave out --scheduler"
        )
        with ExitStack() as stack:
            stack.enter_context(_quiet())
            _check_answers(self.address, distributed, unreachable)
            # The warning asks for data to be scattered, which would be lost with the worker that holds it.
            stack.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}))
            try:
                self._client = distributed.Client(self.address, timeout=_CONNECT_SECONDS, set_as_default=False)
                stack.callback(_close, self._client)
            except (OSError, ValueError, RuntimeError) as e:
                raise RunError(unreachable) from e
            try:
                self._client.wait_for_workers(1, timeout=_WORKER_SECONDS)
            except TimeoutError as e:
                raise RunError(
                    f"the Dask scheduler at {self.address} has no workers: start some (dask worker {self.address})"
                ) from e
            self._check_versions()
            self.workers = len(self._threads())
            unit = "worker" if self.workers == 1 else "workers"
            self.name = f"{self.workers} Dask {unit} at {self.address}"
            self._distributed = distributed
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _check_versions(self) -> None:
        """Raises RunError where a worker runs something else than this process does.

        One that is lost meanwhile, or comes and goes, is none: the others are asked again.
        """
        deadline = time.monotonic() + _ABOUT_SECONDS
        while True:
            try:
                answers = _timely(lambda: self._client.run(about, on_error="return"), deadline - time.monotonic())
            except Exception as e:
                raise RunError(f"the workers of {self.address} do not answer: {type(e).__name__}: {e}") from e
            if answers and all(isinstance(x, (dict, ImportError, AttributeError)) for x in answers.values()):
                break
            if time.monotonic() > deadline:
                lost = next(
                    (f"{w}: {x}" for w, x in sorted(answers.items()) if not isinstance(x, dict)), "there are none"
                )
                raise RunError(f"workers of {self.address} are lost as soon as they are asked ({lost})")
            time.sleep(min(_ASK_SECONDS, 1.0))
        ours = about()
        for worker, theirs in sorted(answers.items()):
            if not isinstance(theirs, dict):
                raise RunError(f"worker {worker} has no onnxprune {__version__}: install it there, and what it needs")
            differing = [f"{k} {v} instead of {ours[k]}" for k, v in theirs.items() if ours.get(k) != v]
            if differing:
                raise RunError(f"worker {worker} has {', '.join(differing)}: install the same there")

    def _threads(self) -> dict[str, int]:
        """Threads of every worker. Raises RunError where the scheduler does not say."""
        try:
            threads = self._client.sync(self._client.scheduler.ncores, callback_timeout=_ANSWER_SECONDS)
        except TimeoutError as e:
            raise RunError(
                f"the Dask scheduler at {self.address} does not answer any more ({_ANSWER_SECONDS:.0f} s); nothing was "
                "written"
            ) from e
        except OSError as e:
            raise RunError(f"the Dask scheduler at {self.address} was lost: {e}; nothing was written") from e
        return {str(k): int(v) for k, v in threads.items()}

    def _next(self, finished: Any) -> tuple[Any, Any]:
        """The next future that is done, and its result. Raises what the work raised, RunError where none will be."""
        begin = asked = manned = time.monotonic()
        limit = _STUCK_SECONDS * patience()
        while not finished.has_ready():
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            if now - begin > limit:
                raise RunError(
                    f"no worker of {self.address} has finished anything for {limit:.0f} s: they are stuck, or slow; "
                    f"set {PATIENCE}=10 to wait ten times as long; nothing was written"
                )
            if now - asked > _ASK_SECONDS:
                workers, asked = self._threads(), time.monotonic()
                manned = asked if workers else manned
                if asked - manned > _REPLACED_SECONDS:
                    raise RunError(
                        f"the Dask scheduler at {self.address} has lost all of its workers, and for "
                        f"{_REPLACED_SECONDS:.0f} s no other has come; nothing was written"
                    )
        future, result = next(finished)
        if isinstance(result, CancelledError):
            raise result
        return future, result

    def map(self, work: Work[Item, Result], items: Iterable[Item], count: int) -> Iterator[Result]:
        """The results of all items, in the order of the items."""
        check_own(work)
        content = pickle.dumps(work.portable(), protocol=pickle.HIGHEST_PROTOCOL)
        source = enumerate(items)
        waiting: dict[int, Result] = {}
        places: dict[Any, int] = {}
        sent = done = given = 0
        with _plainly(self.address):
            shared = self._client.submit(
                _unpacked, content, key=f"onnxprune-{hashlib.sha256(content).hexdigest()}", pure=False
            )
            finished = self._distributed.as_completed(loop=self._client.loop, with_results=True)
            while given < count:
                slots = max(sum(self._threads().values()), 1)
                while sent < min(count, given + _SLACK * slots):
                    index, item = next(source)
                    future = self._client.submit(_done, shared, item, __version__, pure=False)
                    places[future] = index
                    finished.add(future)
                    sent += 1
                future, result = self._next(finished)
                waiting[places.pop(future)] = result
                done += 1
                self._progress(done, count)
                while given in waiting:
                    given += 1
                    yield waiting.pop(given - 1)


def _libraries() -> tuple[ModuleType, ModuleType]:
    try:
        import dask
        import distributed
    except ImportError as e:
        raise RunError("--scheduler needs Dask: pip install 'onnxprune[dask]'") from e
    return dask, distributed


def _check_answers(address: str, distributed: ModuleType, unreachable: str) -> None:
    """Check that a Dask scheduler answers: a client takes long to give up, and may leave a traceback.

    Raises UsageError for an address that is none, and RunError where nothing answers, or something that is no Dask (its
    own dashboard, say).
    """

    async def shake_hands() -> None:
        secured = distributed.security.Security().get_connection_args("client")
        connection = distributed.core.connect(address, timeout=_CONNECT_SECONDS, **secured)
        comm = await asyncio.wait_for(connection, _CONNECT_SECONDS)  # what waits for a request never answers
        await comm.close()

    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or parts.scheme not in _PROTOCOLS:
        raise UsageError(f"scheduler {address!r} is no address of a Dask scheduler; write tcp://host:8786")
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
        with ThreadPoolExecutor(1) as thread:  # this one may have an event loop of its own
            thread.submit(asyncio.run, shake_hands()).result()
    except Exception as e:  # what another protocol's answer does to the reader is anyone's guess: a MemoryError, say
        raise RunError(unreachable) from e


def _timely(call: Callable[[], Any], seconds: float) -> Any:
    """What a call returns or raises, or TimeoutError: it goes on in a thread that nobody waits for."""
    came: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            came.put((call(), None))
        except BaseException as e:  # noqa: BLE001  it is raised where it is waited for
            came.put((None, e))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = came.get(timeout=max(seconds, 0.0))
    except Empty:
        raise TimeoutError(f"no answer for {seconds:.0f} s") from None
    if error is not None:
        raise error
    return value


def _close(client: Any) -> None:
    """Say goodbye to whoever still listens."""
    with suppress(Exception):
        _timely(lambda: client.close(timeout=_CLOSE_SECONDS), 2.0 * _CLOSE_SECONDS)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log of lost connections: what matters of it is raised."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [x.level for x in loggers]
    for x in loggers:
        x.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for x, level in zip(loggers, levels, strict=True):
            x.setLevel(level)


@contextmanager
def _plainly(address: str) -> Iterator[None]:
    """Raise Dask's own errors as RunError, in one line; what the work raises passes."""
    _, distributed = _libraries()
    try:
        yield
    except distributed.KilledWorker as e:
        raise RunError(
            f"the same item ended several workers of {address}, perhaps for want of memory: give them more, or fewer "
            "threads"
        ) from e
    except TimeoutError as e:
        raise RunError(f"a result of a worker of {address} does not arrive; nothing was written") from e
    except (CancelledError, distributed.comm.CommClosedError) as e:
        raise RunError(f"the Dask scheduler at {address} was lost: {type(e).__name__}; nothing was written") from e


# on a worker


def about() -> dict[str, str]:
    """What has to be the same here and there: results would differ, or not be readable."""
    return {
        "onnxprune": __version__,
        "python": ".".join(map(str, sys.version_info[:2])),
        "numpy": np.__version__.partition(".")[0],
        "onnxruntime": version(),
    }


def _unpacked(content: bytes) -> Work[Any, Any]:
    work = pickle.loads(content)
    check_own(work)
    return work  # type: ignore[no-any-return]  # check_own has seen to it


def _done(work: Work[Any, Any], item: Any, version: str) -> Any:
    if version != __version__:  # a worker that came later
        raise RunError(f"a worker has onnxprune {__version__} instead of {version}: install the same there")
    one_blas_thread()  # for good: this is a worker, and other threads of it may be at work
    with limited(1):
        return work(item)
