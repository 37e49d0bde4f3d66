"""Where a run works, checked before anything is done: its processes or workers, its provider, its libraries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from onnxprune.config import PruneConfig
from onnxprune.errors import RunError, UsageError
from onnxprune.jobs import check_choice, scheduling
from onnxprune.jobs.work import Progress
from onnxprune.jobs.workplace import Workplace
from onnxprune.numerics.least_squares import SolveFailed
from onnxprune.process import spill
from onnxprune.runtime.custom_ops import Libraries
from onnxprune.runtime.custom_ops import checked as checked_libraries
from onnxprune.runtime.session import check_provider, check_starts, timing_on
from onnxprune.targets.alignment import TARGETS
from onnxprune.threads import one_blas_thread


@dataclass(frozen=True)
class Machine:
    """What a caller chose, as for `prune`. timed_by: the providers that a budget of latency is timed on. libraries: of
    operators, whoever registers them."""

    jobs: int
    scheduler: str | None
    provider: str
    timed_by: tuple[str, ...]
    libraries: tuple[str, ...]

    @classmethod
    def of(
        cls,
        settings: PruneConfig,
        jobs: int,
        scheduler: str | None,
        provider: str | None,
        custom_ops: Libraries,
        *,
        timed_here: bool = True,
    ) -> Machine:
        """Raises UsageError and RunError for what cannot be had, before hours of calibration.

        timed_here: a budget of latency is one of this machine.
        """
        check_choice(jobs, scheduler)
        libraries = checked_libraries(custom_ops)
        if libraries and scheduler is not None:
            raise UsageError("custom_ops are libraries of this machine, which the workers of a scheduler do not have")
        check_provider(provider or "cpu")
        timed_by = timing_on(provider, TARGETS[settings.target].provider)
        if settings.budget == "latency" and timed_here:
            check_starts(timed_by)
        return cls(jobs, scheduler, provider or "cpu", timed_by, libraries)

    @contextmanager
    def working(self, progress: Progress) -> Iterator[Workplace]:
        """Workers and temporary files while this lasts. progress: as for `jobs.scheduling`.

        Raises RunError where a system of equations has no solution.
        """
        try:
            with one_blas_thread(), spill.spilling(), scheduling(self.jobs, self.scheduler, progress) as workers:
                yield Workplace(workers, self.provider, self.timed_by, progress=progress)
        except SolveFailed as e:
            raise RunError(f"{e}: the statistics cannot be trusted; give more or cleaner calibration data") from e
