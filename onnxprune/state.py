"""What the stages of the pipeline hand to each other: frozen data, and a clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import onnx

from onnxprune import refit, verify
from onnxprune.calibrate.layers import Layer
from onnxprune.calibrate.outputs import OutputMoments
from onnxprune.calibrate.samples import Samples
from onnxprune.calibrate.statistics import InputMoments
from onnxprune.channels import ChannelGraph
from onnxprune.channels.branches import Drop
from onnxprune.channels.untried import Untried
from onnxprune.cost import Cost
from onnxprune.gates import Gate
from onnxprune.intake.figures import InputFigures
from onnxprune.jobs.work import Here, Scheduler
from onnxprune.measures.answers import Answers
from onnxprune.measures.figures import Figures
from onnxprune.measures.observed import Observed
from onnxprune.model import Source
from onnxprune.normalise import Normalised
from onnxprune.numerics.arrays import Array
from onnxprune.objective import Objective
from onnxprune.recover import Recovery
from onnxprune.taken import Taken
from onnxprune.widths import Widths

Calibration = str | os.PathLike[str] | Mapping[str, Array] | None


@dataclass(eq=False)
class Clock:
    """Wall-clock seconds per stage; `watch` hears of each stage when it starts, and how far it is.

    hear: is told of each warning when it arises, as a run that fails later has no report; `warnings` keeps them.
    """

    watch: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    current: str = ""
    hear: Callable[[str], None] = lambda _: None
    warnings: list[str] = field(default_factory=list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time one stage."""
        self.current = name
        self.watch(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def warn(self, texts: Iterable[str]) -> None:
        """Something that the user should know at once, and find in the report."""
        for text in texts:
            self.warnings.append(text)
            self.hear(text)

    def progress(self, done: int, count: int) -> None:
        """So many of the present stage's parts are done."""
        if count > 1:
            self.watch(f"{self.current} {done}/{count}")


@dataclass(frozen=True, eq=False)
class Place:
    """Where work is done: by whom, and with which of onnxruntime's providers calibration runs.

    timing: the providers on which a budget of latency is timed.
    """

    scheduler: Scheduler
    provider: str = "cpu"
    timing: tuple[str, ...] = ("CPUExecutionProvider",)


HERE = Place(Here())


@dataclass(frozen=True, eq=False)
class Loaded:
    """The original model, its normalised form, and the data: for fitting, and held out from it.

    held_out: None where the samples are too few to hold any out. data_sha256: of all samples, and of their labels where
    the run reads them; inputs_sha256: without these. labels: their key. figures: of every input; doubts: what makes the
    data doubtful.
    """

    original: onnx.ModelProto
    source: Source
    normalised: Normalised
    fit: Samples
    held_out: Samples | None
    notes: tuple[str, ...]
    data_sha256: str
    inputs_sha256: str
    labels: str | None = None
    figures: tuple[InputFigures, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def held(self) -> Samples:
        """What judges the fits: the samples held out, else those for fitting."""
        return self.fit if self.held_out is None else self.held_out

    @property
    def parts(self) -> tuple[Samples, ...]:
        """All samples, those held out first."""
        return (self.fit,) if self.held_out is None else (self.held_out, self.fit)

    @property
    def count(self) -> int:
        """All samples."""
        return sum(len(p) for p in self.parts)


@dataclass(frozen=True, eq=False)
class Coupled:
    """The channel graph, what of it the samples run, the linear layers of that, and what may not be cut.

    observed: what stands for the outputs. seen: what the samples run, with that as its outputs.
    widths: what each group may keep. drops: by index, the groups that could go as a whole branch. prices: "macs" and
    "params" of the result against the units that are kept, and "stored", its parameters without those that a refit may
    add; stored_parameters: those of the original. untried: the branches that no sample takes.
    """

    channels: ChannelGraph
    taken: Taken
    layers: tuple[Layer, ...]
    observed: Observed
    seen: Taken
    widths: Widths
    drops: Mapping[int, Drop] = field(default_factory=dict)
    prices: Mapping[str, Cost] = field(default_factory=dict)
    stored_parameters: int = 0
    untried: tuple[Untried, ...] = ()

    def whole(self, budget: str) -> float:
        """What the original has of what a budget counts."""
        if budget == "params":
            return float(self.stored_parameters)
        return self.prices[budget].at([g.size for g in self.channels.groups])


@dataclass(frozen=True, eq=False)
class Goals:
    """What the outputs shall imitate, on the samples for fitting and on those held out, with the original's outputs."""

    fit: Objective
    held: Objective
    fit_outputs: Mapping[str, Array]
    held_outputs: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Input moments by weight, and one plain pass: seconds for all samples, and answers on the held-out ones.

    goals: None where nothing looks at the outputs on the samples for fitting. gates, outputs: all gates, and what the
    gradients of the outputs say of them.
    """

    consumers: tuple[Layer, ...]
    moments: Mapping[str, InputMoments]
    plain_seconds: float
    reference: Answers
    goals: Goals | None = None
    gates: tuple[Gate, ...] = ()
    outputs: OutputMoments = field(default_factory=OutputMoments)


@dataclass(frozen=True, eq=False)
class Refitted:
    """Candidates by refit level, the least refitted first, what lockstep did to each layer, and what to say of it.

    recovery: what learning from the original did, where that was asked for.
    """

    candidates: Mapping[str, onnx.ModelProto]
    fits: tuple[refit.Fit, ...] = ()
    notes: tuple[str, ...] = ()
    recovery: Recovery | None = None


@dataclass(frozen=True, eq=False)
class Checked:
    """The model to write and what the checks found.

    figures: how far its outputs are from the original's; None where --force has it written though it does not run.
    errors: by candidate, what they were compared by. discrepancy: what a tolerance is of (`measures.judge`).
    """

    model: onnx.ModelProto
    exactness: verify.Exactness | None
    sizes: int
    figures: Figures | None
    errors: Mapping[str, float]
    level: str
    fits: tuple[refit.Fit, ...]
    notes: tuple[str, ...]
    recovery: Recovery | None = None
    discrepancy: float | None = None
