"""The time of layers, where the budget is one of latency: measured here, or recorded on other machines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from onnxprune.config import PruneConfig
from onnxprune.errors import UsageError
from onnxprune.jobs.workplace import Workplace
from onnxprune.latency import timing_file
from onnxprune.latency.cache import Cache, default_folder
from onnxprune.latency.machine import Machine, OnnxRuntime
from onnxprune.latency.recorded import Recorded, device_of
from onnxprune.latency.stopwatch import Latency, Stopwatch, feeds_of
from onnxprune.latency.timer import Timer
from onnxprune.latency.timing_file import Target, Timing
from onnxprune.numerics.arrays import Masks
from onnxprune.stages.clock import Clock
from onnxprune.stages.couple import Coupled
from onnxprune.stages.load import Loaded


@dataclass(frozen=True)
class Timings:
    """Timing files of other devices: of each its path, what it holds, and the targets that count."""

    files: tuple[tuple[str, Timing, tuple[Target, ...]], ...] = ()

    @classmethod
    def of(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        names: Sequence[str],
        settings: PruneConfig,
        *,
        replays: bool = False,
    ) -> Timings:
        """Read them. names: of the targets that count, all where none is given. replays: the settings are those of a
        plan. Raises InputError and UsageError."""
        if names and not paths:
            raise UsageError("timing_target names targets of a timing file: give that too, or leave it out")
        if paths and settings.budget != "latency":
            raise UsageError("timing says what budget 'latency' counts: leave it out, or choose that budget")
        if paths and not replays and (settings.batch, settings.threads) != (1, 0):
            raise UsageError("the timing file says which batch and threads were timed; leave them out")
        read = [(os.fspath(p), timing_file.read(p)) for p in dict.fromkeys(paths)]
        known = {t.name for _, timing in read for t in timing.targets}
        unknown = next((n for n in names if n not in known), None)
        if unknown is not None:
            of = timing_file.Timing("", "", tuple(t for _, timing in read for t in timing.targets))
            of.named([unknown], ", ".join(path for path, _ in read))
        files = [(p, t, tuple(x for x in t.targets if not names or x.name in names)) for p, t in read]
        return cls(tuple((p, t, targets) for p, t, targets in files if targets))


NO_TIMINGS = Timings()


def timer_of(
    loaded: Loaded, coupled: Coupled, settings: PruneConfig, place: Workplace, timings: Timings = NO_TIMINGS
) -> Timer:
    """What tells the time of cuts. Raises UsageError where the batch does not fit, InputError for another's file."""
    if timings.files:
        return recorded_of(loaded, coupled, timings)
    return stopwatch_of(loaded, coupled, settings, OnnxRuntime(threads=settings.threads, providers=place.timing))


def stopwatch_of(loaded: Loaded, coupled: Coupled, settings: PruneConfig, machine: Machine) -> Stopwatch:
    """What times cuts of the model on this machine. Raises UsageError where the batch does not fit the model."""
    groups = coupled.channels.groups
    return Stopwatch(
        loaded.original,
        loaded.normalised.proto,
        coupled.channels,
        # Also of groups that get one width: what the original takes is of all units.
        [w if w[-1] == g.size else (*w, g.size) for w, g in zip(coupled.widths.allowed, groups, strict=True)],
        feeds_of(loaded.fit, settings.batch),
        machine,
        Cache(default_folder(), machine.identity()),
        settings.batch,
        coupled.widths.alignment,
        coupled.drops,
    )


def recorded_of(loaded: Loaded, coupled: Coupled, timings: Timings) -> Recorded:
    """What timing files say of this model. Raises InputError where they are of another one."""
    channels = coupled.channels
    return Recorded(
        channels,
        [
            device_of(target, channels, coupled.drops, path, same_model=timing.sha256 == loaded.source.sha256)
            for path, timing, targets in timings.files
            for target in targets
        ],
    )


def timed_with(
    stopwatch: Timer | None, model: onnx.ModelProto | None, coupled: Coupled, masks: Masks, stage: Clock
) -> Latency | None:
    """The time of the result against the original, where the budget is one of time."""
    if stopwatch is None:
        return None
    with stage("time"):
        kept = tuple(int(masks[g.index].sum()) if g.index in masks else g.size for g in coupled.channels.groups)
        return stopwatch.timed(model, kept)
