"""The only user of threadpoolctl."""

from __future__ import annotations

from contextlib import AbstractContextManager

from threadpoolctl import threadpool_limits


def one_blas_thread() -> AbstractContextManager[object]:
    """Run numpy's and scipy's linear algebra in one thread while this context lasts.

    BLAS workers that wait by spinning take the cores from onnxruntime's and from other processes: on two cores with a
    second job beside it, selection took 17 s with BLAS threads and 1.2 s without. One thread also adds in one order, so
    that a plan replays to the same bytes on machines with other numbers of cores.
    """
    context: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return context
