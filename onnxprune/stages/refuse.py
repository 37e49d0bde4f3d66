"""What is left of a run that is refused: a report that says why, with what was known by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from onnxprune.config import PruneConfig
from onnxprune.errors import OnnxPruneError, RunError
from onnxprune.measures.gates import Gate
from onnxprune.report.document import Document, Outcome
from onnxprune.report.environment import versions
from onnxprune.report.files import Reports
from onnxprune.report.summary import PinnedRow, Refusal, Report
from onnxprune.stages.clock import Clock
from onnxprune.stages.couple import trace
from onnxprune.stages.load import Loaded
from onnxprune.stages.report import calibration_of, pinned_rows
from onnxprune.stages.verify import within


@dataclass(eq=False)
class SoFar:
    """What is known of a run while it goes. report: once there is one, though a gate may not let the model out."""

    model: str
    settings: PruneConfig
    command: tuple[str, ...]
    clock: Clock
    loaded: Loaded | None = None
    report: Report | None = None

    def settled(self, report: Report, gates: tuple[Gate, ...] = ()) -> Report:
        """The report with the command and the gates. Raises CheckFailed where one of these is not kept."""
        self.report = replace(report, command=self.command, gates=gates)
        within(gates)
        return self.report

    def document(self, error: OnnxPruneError) -> Document:
        """The report of a run that an error ends: that nothing was written, and why."""
        outcome = Outcome.of(error)
        if self.report is not None:
            return replace(self.report, output=None, outcome=outcome).document()
        loaded = self.loaded
        return Refusal(
            model=self.model,
            config=self.settings.as_dict(),
            error=type(error).__name__,
            outcome=outcome,
            versions=versions(),
            stages=dict(self.clock.seconds),
            command=self.command,
            model_sha256=None if loaded is None else loaded.source.sha256,
            calibration=None if loaded is None else calibration_of(loaded),
            pinned=() if loaded is None else self._pinned(loaded),
            notes=() if loaded is None else loaded.notes,
            warnings=tuple(self.clock.warnings),
        ).document()

    def _pinned(self, loaded: Loaded) -> tuple[PinnedRow, ...]:
        """Why nothing, or too little, could go."""
        with suppress(OnnxPruneError):
            return pinned_rows(trace(loaded, self.settings), self.settings)
        return ()


@contextmanager
def refusing(so_far: SoFar, reports: Reports, warn: Callable[[str], None]) -> Iterator[None]:
    """Write the reports of a run that is refused, and of nothing else that it would have written.

    That a report cannot be written is a warning: what stopped the run is worse.
    """
    try:
        yield
    except OnnxPruneError as error:
        if reports.paths:
            try:
                reports.save_refusal(so_far.document(error))
            except RunError as e:
                warn(f"the report of this run could not be written: {e}")
        raise
