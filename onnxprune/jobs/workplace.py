"""Where work is done."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxprune.jobs.kept import Kept, Nowhere
from onnxprune.jobs.work import Here, Progress, Scheduler


@dataclass(frozen=True, eq=False)
class Workplace:
    """Where work is done: by whom, and with which of onnxruntime's providers the samples run.

    timing: the providers on which a budget of latency is timed. kept: results of an earlier run of the same, and where
    those of this one go. progress: is told of what is done outside the scheduler.
    """

    scheduler: Scheduler
    provider: str = "cpu"
    timing: tuple[str, ...] = ("CPUExecutionProvider",)
    kept: Kept = field(default_factory=Nowhere)
    progress: Progress = lambda done, count: None


HERE = Workplace(Here())
