"""Threads of this process: how many there may be, and work that they do ahead of its use.

onnxruntime, and the linear algebra of `numerics.lapack` and numpy, let go of the interpreter's lock.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

from threadpoolctl import threadpool_info, threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")

_END = object()
_LIMIT: ContextVar[int] = ContextVar("_LIMIT", default=0)
# Items that are taken ahead, to each thread: one that takes long does not let the others run dry.
_AHEAD = 4
_WORKERS_PER_CORE, _WORKERS_ANYWHERE = 4, 8
# What items that are worked on at the same time may take together.
AT_ONCE_BYTES = 512 << 20


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_workers() -> int:
    """Processes that this machine can have use for: more than a few to a core only take memory from each other."""
    return max(_WORKERS_PER_CORE * cores(), _WORKERS_ANYWHERE)


def limit() -> int:
    """Threads that one computation may use here, 0 for no limit."""
    return _LIMIT.get()


def share(size: int) -> int:
    """Threads for each of the items of so many bytes that `mapped` works on at the same time."""
    workers = limit() or cores()
    return workers // min(max(AT_ONCE_BYTES // max(size, 1), 1), workers)


@contextmanager
def limited(count: int) -> Iterator[None]:
    """While this lasts, `mapped` and sessions that are opened use so many threads, where they do not say a number."""
    token = _LIMIT.set(count)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def one_blas_thread() -> AbstractContextManager[object]:
    """Run numpy's and scipy's linear algebra in one thread while this context lasts.

    BLAS workers that wait by spinning take the cores from onnxruntime's and from other processes: on two cores with a
    second job beside it, selection took 17 s with BLAS threads and 1.2 s without. One thread also adds in one order, so
    that a plan replays to the same bytes on machines with other numbers of cores.
    """
    context: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return context


def blas() -> str:
    """The linear algebra libraries that are loaded, numpy's and scipy's: name, version and kernels of each."""
    libraries = [i for i in threadpool_info() if i["user_api"] == "blas"]
    parts = [(i["internal_api"], i.get("version"), i.get("architecture")) for i in libraries]
    return ", ".join(sorted({" ".join(str(x) for x in p if x) for p in parts})) or "unknown"


def prefetched(items: Iterable[Item]) -> Iterator[Item]:
    """The same items in the same order, each computed in a thread one step ahead of its use.

    So onnxruntime computes the next batch while numpy works on this one. An error in the thread is raised here. The
    thread ends with the iteration, be it cut short or not.
    """
    source = iter(items)
    context = copy_context()  # a thread starts without

    def step() -> Item | object:
        return next(source, _END)

    with ThreadPoolExecutor(max_workers=1) as worker:
        ahead = worker.submit(context.run, step)
        while True:
            item = ahead.result()
            if item is _END:
                return
            ahead = worker.submit(context.run, step)
            yield item  # type: ignore[misc]  # _END is the only item that is not an Item


def mapped(
    function: Callable[[Item], Result], items: Iterable[Item], bytes_of: Callable[[Item], int] = lambda _: 0
) -> Iterator[Result]:
    """The results in the order of the items, several computed at a time, one to a core; items are taken ahead of use.

    bytes_of: memory that an item needs, for which it may have to wait. The first error is raised in its turn.
    """
    workers = limit() or cores()
    if workers == 1:
        yield from map(function, items)
        return
    ahead: deque[Future[Result]] = deque()
    running: dict[Future[Result], int] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                size = bytes_of(item)
                while running := {f: s for f, s in running.items() if not f.done()}:
                    if sum(running.values()) + size <= AT_ONCE_BYTES:
                        break
                    wait(running, return_when=FIRST_COMPLETED)
                future = pool.submit(copy_context().run, function, item)
                del item
                ahead.append(future)
                running[future] = size
                if len(ahead) >= _AHEAD * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
