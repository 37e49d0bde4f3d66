"""The report as frozen data and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Size:
    """MACs per sample, parameters, and bytes of the ONNX file (0 where none was written)."""

    macs: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class GroupRow:
    """One group: channels on its producers before and after, and why it stayed whole, if it did.

    alignment: what its widths had to be multiples of.
    """

    name: str
    channels_before: int
    channels_after: int
    producers: int
    consumers: int
    mixing: bool
    note: str = ""
    alignment: int = 1


@dataclass(frozen=True)
class Alignment:
    """What widths should be multiples of, and how many inputs and outputs of layers are so, before and after.

    requested: a number of channels, or "auto". multiple: channels; groups that were too narrow for it have their own.
    """

    requested: int | str
    target: str
    multiple: int
    widths: int
    aligned_before: int
    aligned: int


@dataclass(frozen=True)
class PinnedRow:
    """An axis of a weight that cannot be cut, with the operator, the reason, and what would free it."""

    tensor: str
    axis: int
    channels: int
    operator: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class PatternRow:
    """What a pattern of an option matched, by name; of --exclude-after the nodes behind it.

    layers: those of the nodes that multiply by weights. groups: what the pattern means, by name.
    """

    option: str
    pattern: str
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    layers: tuple[str, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Effort:
    """Wall-clock seconds per stage, and what one plain onnxruntime pass over the same samples takes.

    peak_memory_bytes: of the main process alone. scheduler, workers: who calibrated, selected and tried cuts; 0 workers
    where the main process did. provider: where calibration ran.
    """

    stages: Mapping[str, float]
    plain_pass_seconds: float
    peak_memory_bytes: int | None
    scheduler: str = "this process"
    workers: int = 0
    provider: str = "cpu"

    @property
    def seconds(self) -> float:
        """The seconds of the whole run."""
        return sum(self.stages.values())

    @property
    def passes(self) -> float:
        """The whole run as a multiple of one plain pass."""
        return self.seconds / self.plain_pass_seconds if self.plain_pass_seconds else float("nan")


@dataclass(frozen=True)
class Report:
    """Everything that a run has to say.

    requested, achieved: shares removed, of the budget or, in a uniform cut, of the channels that may be cut; with a
    tolerance nothing is requested. latency: what `bench` says of the original and the result, where that was asked for.
    timing: with a latency budget, what was measured and predicted (`latency.stopwatch.Latency`); `achieved` is the
    measured share then.

    output_error: the mean over the measured parts of the outputs, None where none was; error: its 95 % interval, on how
    many samples, whether these were held out, and why it was not measured. outputs: the figure of each part and output
    (`measures.figures.Figure`). agreement: the share of those samples, or entries, that keep their class. verdict:
    level ("good", "doubtful", "bad" or "unknown") and text.
    calibration: of the data; its sha256 is over the samples that were used, and labels that were read, not over a file.
    warnings: what makes the result doubtful; notes: what else there is to say.
    """

    model: str
    model_sha256: str
    output: str | None
    dry_run: bool
    config: Mapping[str, Any]
    requested: float | None
    achieved: float
    before: Size
    after: Size
    groups: tuple[GroupRow, ...]
    alignment: Alignment
    pinned: tuple[PinnedRow, ...]
    checks: Mapping[str, Any]
    output_error: float | None
    calibration: Mapping[str, Any]
    effort: Effort
    versions: Mapping[str, str]
    refit: tuple[Mapping[str, Any], ...] = ()
    latency: Mapping[str, Any] | None = None
    timing: Mapping[str, Any] | None = None
    agreement: float | None = None
    outputs: tuple[Mapping[str, Any], ...] = ()
    error: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] | None = None
    patterns: tuple[PatternRow, ...] = ()
    notes: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> str:
        """The report as JSON text."""
        data = asdict(self)
        data["effort"] |= {"seconds": self.effort.seconds, "passes": self.effort.passes}
        return json.dumps(_plain(data), indent=1) + "\n"


def _plain(value: Any) -> Any:
    """JSON has no infinity: it becomes null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
