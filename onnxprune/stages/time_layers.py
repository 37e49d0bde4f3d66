"""Time on this machine, where the budget is one of latency."""

from __future__ import annotations

import onnx

from onnxprune.config import PruneConfig
from onnxprune.jobs.workplace import Workplace
from onnxprune.latency.cache import Cache, default_folder
from onnxprune.latency.machine import OnnxRuntime
from onnxprune.latency.stopwatch import Latency, Stopwatch, feeds_of
from onnxprune.numerics.arrays import Masks
from onnxprune.stages.clock import Clock
from onnxprune.stages.couple import (
    Coupled,
)
from onnxprune.stages.load import Loaded


def stopwatch_of(loaded: Loaded, coupled: Coupled, settings: PruneConfig, place: Workplace) -> Stopwatch:
    """What times cuts of the model on this machine. Raises UsageError where the batch does not fit the model."""
    groups = coupled.channels.groups
    machine = OnnxRuntime(threads=settings.threads, providers=place.timing)
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


def timed_with(
    stopwatch: Stopwatch | None, model: onnx.ModelProto | None, coupled: Coupled, masks: Masks, stage: Clock
) -> Latency | None:
    """The time of the result against the original, where the budget is one of time."""
    if stopwatch is None:
        return None
    with stage("time"):
        kept = tuple(int(masks[g.index].sum()) if g.index in masks else g.size for g in coupled.channels.groups)
        return stopwatch.timed(model, kept)
