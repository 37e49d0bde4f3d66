"""What the layers of a model take on this machine, for a budget of latency somewhere else: `bench --layers`.

The first two words of the sentence, and then the recorder (`latency.recorder`) instead of a calibration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from onnxprune.benchmark import tensorrt_engine
from onnxprune.benchmark.measure import provider_named
from onnxprune.benchmark.settings import PRECISIONS
from onnxprune.config import PruneConfig
from onnxprune.data.accepted import Data
from onnxprune.data.sources import files_of
from onnxprune.errors import UsageError
from onnxprune.intake.model_file import ModelLike
from onnxprune.latency import timing_file, trtexec
from onnxprune.latency.alone import Alone
from onnxprune.latency.engine import TensorRT
from onnxprune.latency.half import HALF, InHalf
from onnxprune.latency.machine import Machine, OnnxRuntime
from onnxprune.latency.recorder import record
from onnxprune.latency.timing_file import ALONE, INSIDE, Target, Timing
from onnxprune.latency.trtexec import EngineLayer
from onnxprune.options import MOST, check_most, shown, typed
from onnxprune.output.commit import write_atomically
from onnxprune.output.destination import check_outputs
from onnxprune.process import spill
from onnxprune.report.progress import Progress
from onnxprune.runtime.custom_ops import Libraries, registering
from onnxprune.runtime.custom_ops import checked as checked_libraries
from onnxprune.runtime.session import CPU, check_starts, fallbacks
from onnxprune.stages.couple import Coupled, couple
from onnxprune.stages.load import Loaded, load
from onnxprune.stages.time_layers import stopwatch_of

# Of a layer that is timed by itself: there are hundreds of them.
_LAYER_SECONDS = 0.05
_MOST_NAME = 200
# The share of a profile's time from which on it matters whose it is.
_MUCH = 0.1
_EXTRAPOLATED = (
    "a profile knows the present widths alone: times at others are extrapolated by MACs and bytes, not measured"
)


@dataclass(frozen=True)
class Recording:
    """A timing file, and the target in it that was measured, or imported, now. notes: what is to say of it."""

    timing: Timing
    target: Target
    path: str
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """What there is to say of it, as plain data: layers with what they take at all channels, slowest first."""
        t = self.target
        whole = t.cuts[0]
        layers = [
            {"operator": row.op, "output": row.output, "channels": [a.size for a in row.axes], "seconds": seconds}
            for row, seconds in zip(t.layers, whole.seconds, strict=True)
        ]
        return {
            "file": self.path,
            "model": self.timing.model,
            "target": t.name,
            "how": t.how,
            "machine": dict(t.machine),
            "batch": t.batch,
            "alignment": t.alignment,
            "seconds": t.seconds,
            "cuts": len(t.cuts),
            "shares": [c.share for c in t.cuts],
            "layers": sorted(layers, key=lambda x: -(x["seconds"] or 0.0)),
            "targets": [x.name for x in self.timing.targets],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """The same as JSON text."""
        return json.dumps(self.as_dict(), indent=1) + "\n"


def record_layers(
    model: ModelLike,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    data: Data | None = None,
    provider: str = "cpu",
    batch: int | None = None,
    threads: int = 0,
    precision: str = PRECISIONS[0],
    round_to: int | str = "auto",
    target: str = "ort-cpu",
    state: Sequence[str] = (),
    from_trtexec: str | os.PathLike[str] | None = None,
    trtexec_layers: str | os.PathLike[str] | None = None,
    allow_links: bool = False,
    custom_ops: Libraries = (),
    overwrite: bool = False,
    watch: Callable[[Progress], None] = lambda _: None,
) -> Recording:
    """Time the layers of `model` at several widths on this machine, and write them to the timing file `path`.

    Where the file is there already, of the same model, the target is added to it. name: of the target, made of the
    machine where it is None. data, batch, provider, threads, precision, state, allow_links, custom_ops: as for `bench`.
    round_to, target: as in PruneConfig, the widths that are measured. from_trtexec: nothing is timed, and the layers
    are those of an engine of `model` by `trtexec --exportProfile`; trtexec_layers: what its `--exportLayerInfo` says of
    them. batch is then that of the engine, and target or round_to what widths are padded to. overwrite: a target of
    that name may be replaced. watch: told of the cuts that are done. Raises the errors of `onnxprune.errors`; then
    nothing is written.
    """
    check_most("batch", batch, MOST["batch"])
    settings = PruneConfig(
        budget="latency",
        batch=1 if batch is None else batch,
        threads=threads,
        round_to=round_to,
        target=target,
        state=tuple(state),
        samples=2 if batch is None else max(2, batch),
    )
    name = typed("name", name, "str | None")
    if name is not None and not 0 < len(name) <= _MOST_NAME:
        raise UsageError(f"the name of a target has 1 to {_MOST_NAME} letters, not {len(name)}")
    place = Path(path)
    known = timing_file.read(place) if place.exists() else None
    exports = tuple(x for x in (from_trtexec, trtexec_layers) if x is not None)
    check_outputs((None, path), (model, *files_of(data), *exports), overwrite=True)
    source = _source(provider, threads, precision, from_trtexec, trtexec_layers)
    name = name or source.name
    if known is not None and not overwrite:
        known.with_target(replace(known.targets[0], name=name), replace=False, path=str(path))
    with spill.spilling(), registering(checked_libraries(custom_ops)):
        watch(Progress("load"))
        loaded = load(model, data, settings, allow_links=allow_links)
        if known is not None and known.sha256 != loaded.source.sha256:
            raise UsageError(
                f"{path} is the timing of another model, {shown(known.model)}: name another file with --save"
            )
        coupled = couple(loaded, settings)
        found, notes = source.target(
            name, loaded, coupled, settings, lambda done, count: watch(Progress("time layers", done, count))
        )
    timing = Timing(Path(loaded.source.path).name, loaded.source.sha256, (found,))
    if known is not None:
        timing = known.with_target(found, replace=overwrite, path=str(path))
    write_atomically(place, timing.to_json().encode())
    return Recording(timing, found, str(path), notes)


class _Source(Protocol):
    """Where the times of layers come from. name: of the target, where none is given."""

    @property
    def name(self) -> str:
        """As above."""

    def target(
        self, name: str, loaded: Loaded, coupled: Coupled, settings: PruneConfig, told: Callable[[int, int], None]
    ) -> tuple[Target, tuple[str, ...]]:
        """The target, and what is to say of it."""


def _source(
    provider: str,
    threads: int,
    precision: str,
    profile: str | os.PathLike[str] | None,
    layers: str | os.PathLike[str] | None,
) -> _Source:
    """What was asked for, checked before anything is loaded. Raises UsageError, InputError and RunError."""
    if profile is not None:
        return _Profile(os.fspath(profile), trtexec.read(profile, layers))
    if layers is not None:
        raise UsageError("trtexec_layers says what is in the layers of from_trtexec: give that too, or leave it out")
    return _Here(*machine_of(provider_named(provider), threads, precision))


@dataclass(frozen=True)
class _Here:
    """This machine. layer_machine: what times layers, and how it does."""

    machine: Machine
    layer_machine: Machine
    how: str

    @property
    def name(self) -> str:
        """That of the machine."""
        return name_of(self.machine)

    def target(
        self, name: str, loaded: Loaded, coupled: Coupled, settings: PruneConfig, told: Callable[[int, int], None]
    ) -> tuple[Target, tuple[str, ...]]:
        """What was measured."""
        stopwatch = stopwatch_of(loaded, coupled, settings, self.machine)
        return record(stopwatch, self.layer_machine, name, self.how, told), ()


@dataclass(frozen=True)
class _Profile:
    """An engine's layers, by trtexec."""

    path: str
    rows: tuple[EngineLayer, ...]

    @property
    def name(self) -> str:
        """That of the profile's file."""
        return f"TensorRT, {Path(self.path).stem}"[:_MOST_NAME]

    def target(
        self, name: str, loaded: Loaded, coupled: Coupled, settings: PruneConfig, _: Callable[[int, int], None]
    ) -> tuple[Target, tuple[str, ...]]:
        """What the profile says, and how much of it belongs to no node."""
        widths = coupled.widths
        found = trtexec.imported(
            self.rows,
            coupled.channels,
            [next(n for n in w if n > 0) for w in widths.allowed],
            name=name,
            machine={"providers": tensorrt_engine.NAME, "profile": Path(self.path).name},
            batch=settings.batch,
            alignment=widths.alignment,
            path=self.path,
        )
        notes = [_EXTRAPOLATED]
        if found.unexplained > _MUCH:
            notes.append(
                f"{found.unexplained:.1%} of the time is of layers that no name ties to the model, and counts as "
                "fixed: build the engine with --profilingVerbosity=detailed, and give --trtexec-layers"
            )
        return found.target, tuple(notes)


def machine_of(provider: str, threads: int, precision: str = PRECISIONS[0]) -> tuple[Machine, Machine, str]:
    """What times whole models with a provider (`provider_named`), what times layers, and how that does it."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision {shown(precision)} is unknown; choose one of {', '.join(PRECISIONS)}")
    if precision == HALF:
        whole, layers, how = machine_of(provider, threads)
        return InHalf(whole), InHalf(layers), how
    if provider == tensorrt_engine.NAME:
        if threads:
            raise UsageError("threads are onnxruntime's, and TensorRT computes on the GPU; leave them out")
        return TensorRT(), TensorRT(), INSIDE
    providers = fallbacks(provider)
    check_starts(providers)
    machine = OnnxRuntime(threads=threads, providers=providers)
    if provider == CPU:
        return machine, machine, INSIDE
    return machine, Alone(machine, replace(machine, seconds=_LAYER_SECONDS)), ALONE


def name_of(machine: Machine) -> str:
    """A name for a target: its GPU or processor, the provider, and the threads where they were chosen."""
    facts = machine.identity()
    where = facts.get("gpu") or facts.get("processor") or "machine"
    provider = str(facts.get("providers", "")).split(" ")[0].removesuffix("ExecutionProvider")
    threads = facts.get("threads", "0")
    more = [f"{threads} threads"] if threads != "0" else []
    name = " ".join([where, provider, *more, *filter(None, [facts.get("precision")])])
    return name[:_MOST_NAME]
