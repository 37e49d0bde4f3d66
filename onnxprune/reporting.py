"""Collect the report of a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import cost, runtime, storage
from onnxprune import model as m
from onnxprune.channels import ChannelGraph, Group
from onnxprune.config import PruneConfig
from onnxprune.report.summary import Effort, GroupRow, PinnedRow, Report, Size
from onnxprune.scope import allowed
from onnxprune.state import HERE, Calibrated, Checked, Clock, Coupled, Loaded, Masks, Place


def report_of(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    masks: Masks,
    settings: PruneConfig,
    stage: Clock,
    checked: Checked | None,
    output: str | os.PathLike[str] | None,
    place: Place = HERE,
) -> Report:
    """Collect the report; for a dry run `checked` is None."""
    channels = coupled.channels
    full = [g.size for g in channels.groups]
    kept = [int(masks[g.index].sum()) if g.index in masks else g.size for g in channels.groups]
    prices = {"macs": cost.macs(channels), "params": cost.parameters(channels)}
    batch = channels.graph.batch
    unchanged = m.parameters(loaded.original)
    removed = round(prices["params"].at(full) - prices["params"].at(kept))
    before = Size(round(prices["macs"].at(full) / batch), unchanged, loaded.source.size)
    after = Size(
        round(prices["macs"].at(kept) / batch),
        m.parameters(checked.model) if checked else unchanged - removed,
        storage.model_bytes(checked.model) if checked else 0,
    )
    rows = tuple(_row(g, k, why_whole(g, coupled, settings)) for g, k in zip(channels.groups, kept, strict=True))
    price = prices[settings.budget]
    return Report(
        model=loaded.source.path,
        model_sha256=loaded.source.sha256,
        output=None if output is None else str(output),
        dry_run=checked is None,
        config=settings.as_dict(),
        requested=settings.share,
        achieved=1.0 - price.at(kept) / price.at(full) if settings.uniform is None else _share_removed(rows),
        before=before,
        after=after,
        groups=rows,
        pinned=pinned_rows(channels),
        checks=_checks(checked),
        output_error=checked.output_error if checked else None,
        calibration={
            "origin": loaded.fit.origin,
            "synthetic": loaded.fit.synthetic,
            "samples": loaded.count,
            "held_out": len(loaded.held) if loaded.held is not loaded.fit else 0,
            "sha256": loaded.data_sha256,
            "labels": loaded.labels,
        },
        effort=Effort(
            dict(stage.seconds),
            calibrated.plain_seconds,
            peak_memory(),
            place.scheduler.name,
            place.scheduler.workers,
            place.provider,
        ),
        versions=versions(),
        refit=tuple(vars(f) for f in checked.fits) if checked else (),
        notes=(
            *loaded.notes,
            *without_gradient(coupled, calibrated, settings),
            *(checked.notes if checked else ()),
        ),
    )


def without_gradient(coupled: Coupled, calibrated: Calibrated, settings: PruneConfig) -> tuple[str, ...]:
    """That groups which may be cut were selected without gradients, how many, and the first reason."""
    if not settings.reads_gradients or calibrated.goals is None:
        return ()
    free = [g.index for g in coupled.channels.groups if not why_whole(g, coupled, settings)]
    known = calibrated.outputs
    left = [g for g in free if g not in known.gates]
    if not left:
        return ()
    why = next((known.missing[g] for g in left if g in known.missing), "nothing that reads them can take a gate")
    instead = "magnitude" if settings.method == "taylor" else "local imitation"
    return (f"{len(left)} of {len(free)} groups have no gradient, and {instead} stands in for them: {why}",)


def _checks(checked: Checked | None) -> dict[str, Any]:
    if checked is None:
        return {}
    exact = checked.exactness
    return {
        "normalised_against_original": exact.normalised if exact else None,
        "slice_against_oracle": exact.slice if exact else None,
        "tolerance": exact.tolerance if exact else None,
        "input_sizes_run": checked.sizes,
        "refit": checked.level,
        "held_out_error": dict(checked.errors),
        **({"recovery": asdict(checked.recovery)} if checked.recovery else {}),
    }


def why_whole(g: Group, coupled: Coupled, settings: PruneConfig) -> str:
    """Why a group may not be cut at all, "" where it may."""
    if g.index in coupled.frozen:
        return coupled.frozen[g.index]
    return "" if len(allowed(g, coupled, settings)) > 1 else "too narrow for --round-to and --min-channels"


def _row(g: Group, kept: int, note: str) -> GroupRow:
    c = g.channels_per_unit
    return GroupRow(g.name, g.size * c, kept * c, len(g.producers), len(g.consumers), g.mixing, note)


def _share_removed(rows: Sequence[GroupRow]) -> float:
    """The share of their channels that the groups which may be cut have lost."""
    free = [r for r in rows if not r.note]
    return 1.0 - sum(r.channels_after for r in free) / sum(r.channels_before for r in free)


def pinned_rows(channels: ChannelGraph) -> tuple[PinnedRow, ...]:
    """Every axis of a weight that cannot be cut."""
    return tuple(
        PinnedRow(p.tensor, p.axis, p.positions, p.why.op, p.why.reason, p.why.remedy) for p in channels.pinned
    )


def peak_memory() -> int | None:
    """Peak resident bytes of this process, None where the platform does not tell."""
    # Linux counts in ru_maxrss what a parent held when it started this program.
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def versions() -> dict[str, str]:
    """Of onnxprune and what its numbers depend on."""
    from onnxprune import __version__

    return {
        "onnxprune": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": runtime.version(),
        "numpy": np.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
