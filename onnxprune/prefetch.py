"""Let onnxruntime compute the next batch while numpy works on this one: both release the interpreter's lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")
_END = object()


def prefetched(items: Iterable[T]) -> Iterator[T]:
    """The same items in the same order, each computed in a thread one step ahead of its use.

    An error in the thread is raised here. The thread ends with the iteration, be it cut short or not.
    """
    source = iter(items)
    context = copy_context()  # a thread starts without

    def step() -> T | object:
        return next(source, _END)

    with ThreadPoolExecutor(max_workers=1) as worker:
        ahead = worker.submit(context.run, step)
        while True:
            item = ahead.result()
            if item is _END:
                return
            ahead = worker.submit(context.run, step)
            yield item  # type: ignore[misc]  # _END is the only item that is not a T
