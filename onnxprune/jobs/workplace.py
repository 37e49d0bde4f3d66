"""Where work is done."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.jobs.work import Here, Scheduler


@dataclass(frozen=True, eq=False)
class Workplace:
    """Where work is done: by whom, and with which of onnxruntime's providers calibration runs.

    timing: the providers on which a budget of latency is timed.
    """

    scheduler: Scheduler
    provider: str = "cpu"
    timing: tuple[str, ...] = ("CPUExecutionProvider",)


HERE = Workplace(Here())
