"""The report as frozen data and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxprune.measures.gates import Gate
from onnxprune.report.document import Outcome, document_of, to_json
from onnxprune.report.notebook import line, notebook


@dataclass(frozen=True)
class Size:
    """MACs per sample, parameters, and bytes of the ONNX file (0 where none was written)."""

    macs: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class GroupRow:
    """One group: channels on its first producer before and after, and why it stayed whole, if it did.

    alignment: what its widths had to be multiples of. units: what goes as a whole, before and after; head: channels of
    a head where each is a head of attention (with `shared`, the heads that share keys and values), else 0. macs: per
    sample, of all multiplications that its channels have a part in, in the original and with this group alone cut;
    parameters: the same of weights.
    """

    name: str
    channels_before: int
    channels_after: int
    producers: int
    consumers: int
    mixing: bool
    note: str = ""
    alignment: int = 1
    units: tuple[int, int] = (0, 0)
    head: int = 0
    shared: bool = False
    macs: tuple[int, int] = (0, 0)
    parameters: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class CurveRow:
    """What cutting one group alone does to the error of the outputs, by the channels that it keeps, ascending.

    group: its number among the groups. method: whose order its units go in. errors: measured at the channels that are
    `tried`, elsewhere estimated from the discrepancy that the method knows; None where a number is not finite.
    """

    group: int
    method: str
    channels: tuple[int, ...]
    errors: tuple[float | None, ...]
    tried: tuple[int, ...]


@dataclass(frozen=True)
class LayerRow:
    """A row of the drawing of the network, from input to output.

    kind: "input", "layer", "join" (reads several others) or "output". operators: its own first, then those behind it.
    sources: rows that it reads, by their number. inputs, outputs: channels before and after, None where they are not
    known. macs: per sample, before and after. group: of its outputs, by its number among the groups, None where they
    belong to none. stays: why its outputs kept their width; "" where they did not, or have none.
    """

    kind: str
    name: str
    operators: tuple[str, ...]
    sources: tuple[int, ...]
    inputs: tuple[int, int] | None = None
    outputs: tuple[int, int] | None = None
    macs: tuple[int, int] = (0, 0)
    group: int | None = None
    stays: str = ""


@dataclass(frozen=True, kw_only=True)
class WholeLayerRow:
    """A layer of a transformer that could have gone as a whole.

    number: from 0 on. name: the scope of its weights, "" where they share none. branches: what it consists of:
    "attention", "feed-forward"; groups: that of each, by its number among the groups. gone: whether all of it went.
    macs: per sample, and parameters: that go with it when it alone goes. error: what that does to the outputs, measured
    with all its branches gone at once; None where that was not tried.
    """

    number: int
    name: str
    branches: tuple[str, ...]
    groups: tuple[int, ...]
    gone: bool
    macs: int
    parameters: int
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class ExpertsRow:
    """A mixture of experts that lost some before anything else went.

    name: of its node. experts: how many it had. kept: the numbers of those that stay, and gone: of those that went,
    both ascending. lost: the share of what its experts give on the samples that those which went gave; None where that
    was not measured, as they were named.
    """

    name: str
    experts: int
    kept: tuple[int, ...]
    gone: tuple[int, ...]
    lost: float | None = None


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


@dataclass(frozen=True, kw_only=True)
class FloatRow:
    """A layer that stays in float where the others are stored in fewer bits.

    name: of its node. share: of the multiplications of all layers that could be, None where that was not counted.
    error: of the outputs, on the samples that chose, with this layer and those above it in float; None where it was not
    chosen by that. why: in words.
    """

    name: str
    operator: str
    share: float | None
    error: float | None
    why: str


@dataclass(frozen=True, kw_only=True)
class FewerBitsRow:
    """What became of a model that is stored in fewer bits.

    precision: "int8" or "fp16". target: where it will run. ranges: how those of activations were found, and tried: the
    error of the outputs by each way that was tried, on the samples that chose (None where it was not measured).
    reduce_range: whether weights have 7 bits. equalised: activations whose channels were brought to one scale, and
    equalised_from: the error before that, None where there was nothing of that. layers: that could be in integers;
    nodes: operators that are. share: of the multiplications of these layers that are in integers. ranges, layers and
    share are None of half precision. samples: that ranges are of, chosen_on: how many of them chose.
    errors, agreements: on the samples that judge, of the model that was pruned and not quantized ("pruned"), of the
    original quantized in the same way ("alone"), and of the result ("result"); None where that was not measured. bytes:
    of the file in float ("float"), and of the result.
    """

    precision: str
    target: str
    ranges: str | None
    tried: Mapping[str, float | None]
    reduce_range: bool
    equalised: int
    equalised_from: float | None
    layers: int | None
    nodes: int
    share: float | None
    floating: tuple[FloatRow, ...]
    samples: int
    chosen_on: int
    errors: Mapping[str, float | None] = field(default_factory=dict)
    agreements: Mapping[str, float | None] = field(default_factory=dict)
    bytes: Mapping[str, int] = field(default_factory=dict)


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


@dataclass(frozen=True, repr=False)
class Report:
    """Everything that a run has to say.

    requested, achieved: shares removed, of the budget or, in a uniform cut, of the channels that may be cut; with a
    tolerance nothing is requested. latency: what `bench` says of the original and the result, where that was asked for.
    timing: with a latency budget, what was measured and predicted (`latency.stopwatch.Latency`); `achieved` is the
    measured share then. engine: the command that builds an engine of the result, for TensorRT.

    output_error: the mean over the measured parts of the outputs, None where none was; error: its 95 % interval, on how
    many samples, whether these were held out, and why it was not measured. outputs: the figure of each part and output
    (`measures.figures.Figure`). agreement: the share of those samples, or entries, that keep their class. verdict:
    level ("good", "doubtful", "bad" or "unknown") and text.
    calibration: of the data; its sha256 is over the samples that were used, and labels that were read, not over a file;
    prepared: what was done to files that hold no arrays.
    gates: limits that the run was held to. layers: the network in outline. whole_layers: those of a transformer, where
    they could go as a whole. experts: mixtures that lost some before all else. fewer_bits: where the result is
    stored in fewer bits; all figures are those of that result then. curves: of the groups of which cuts were
    tried. warnings: what makes the result doubtful; notes: what else there is to say.
    outcome: how it ended. command: what was typed, () for a call from Python.
    sources: where options come from that were not on the command line, and which these are. files: all that the run
    writes, the model first; no part of the document, which is one of them.
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
    engine: str = ""
    agreement: float | None = None
    outputs: tuple[Mapping[str, Any], ...] = ()
    error: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] | None = None
    patterns: tuple[PatternRow, ...] = ()
    notes: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())
    gates: tuple[Gate, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    whole_layers: tuple[WholeLayerRow, ...] = ()
    experts: tuple[ExpertsRow, ...] = ()
    fewer_bits: FewerBitsRow | None = None
    curves: tuple[CurveRow, ...] = ()
    outcome: Outcome = field(default_factory=Outcome)
    command: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The report as plain data, by `docs/report-schema.json`."""
        data = asdict(self)
        del data["files"]
        outcome, command = data.pop("outcome"), data.pop("command")
        data["effort"] |= {"seconds": self.effort.seconds, "passes": self.effort.passes}
        return document_of("prune", data, Outcome(**outcome), command)

    def to_json(self) -> str:
        """The report as JSON text."""
        return to_json(self.document())

    def __repr__(self) -> str:
        """What matters most, in a line."""
        return line(self.document())

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        return notebook(self.document())


@dataclass(frozen=True)
class Refusal:
    """What is left to say of a run that ended before there was a report.

    error: the class of the error, of `onnxprune.errors`. model_sha256, calibration, pinned: as in `Report`; None or
    empty where the run did not come that far. seconds: by stage, of those that ended.
    """

    model: str
    config: Mapping[str, Any]
    error: str
    outcome: Outcome
    versions: Mapping[str, str]
    stages: Mapping[str, float]
    command: tuple[str, ...] = ()
    model_sha256: str | None = None
    calibration: Mapping[str, Any] | None = None
    pinned: tuple[PinnedRow, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As plain data, by `docs/report-schema.json`."""
        data = asdict(self)
        outcome, command, stages = data.pop("outcome"), data.pop("command"), data.pop("stages")
        data |= {"output": None, "effort": {"stages": stages, "seconds": sum(stages.values())}}
        return document_of("prune", data, Outcome(**outcome), command)
