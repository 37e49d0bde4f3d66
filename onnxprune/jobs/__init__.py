"""Where the work of a run is done: in this process, in several, or by the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onnxprune.errors import UsageError
from onnxprune.jobs.work import Here, Progress, Scheduler, Work
from onnxprune.options import shown, typed
from onnxprune.threads import cores, most_workers

__all__ = ["Here", "Progress", "Scheduler", "Work", "check_choice", "scheduling"]


def check_choice(jobs: int, scheduler: str | None) -> None:
    """Raises UsageError for numbers of processes that are none or absurd, and for both at once."""
    jobs = typed("jobs", jobs, "int")
    typed("scheduler", scheduler, "str | None")
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}; it must be at least 1")
    if jobs > most_workers():
        raise UsageError(
            f"jobs is {shown(jobs)}; on this machine it is at most {most_workers()}, since {cores()} cores are shared"
        )
    if jobs > 1 and scheduler is not None:
        raise UsageError("jobs are processes of this machine, a scheduler has workers of its own: leave out one")


@contextmanager
def scheduling(jobs: int, scheduler: str | None, progress: Progress) -> Iterator[Scheduler]:
    """The scheduler that was chosen, while this lasts. Raises UsageError, and RunError where it does not start."""
    check_choice(jobs, scheduler)
    if scheduler is not None:
        from onnxprune.jobs.cluster import Cluster

        with Cluster(scheduler, progress) as cluster:
            yield cluster
    elif jobs > 1:
        from onnxprune.jobs.processes import Processes

        with Processes(jobs, progress) as processes:
            yield processes
    else:
        yield Here(progress)
