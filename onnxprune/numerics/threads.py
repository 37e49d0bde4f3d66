"""The only user of threadpoolctl."""

from __future__ import annotations

from contextlib import AbstractContextManager

from threadpoolctl import threadpool_limits


def one_blas_thread() -> AbstractContextManager[object]:
    """Run numpy's and scipy's linear algebra in one thread while this context lasts.

    BLAS workers that wait by spinning take the cores from onnxruntime's, and the other way round: on two cores a run
    took two to four times as long with both. One thread also adds in one order, so that a plan replays to the same
    bytes on machines with other numbers of cores.
    """
    context: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return context
