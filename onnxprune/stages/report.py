"""Collect the report of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.benchmark.measure import Bench, Candidate, Feeds, Settings, measure
from onnxprune.channels import ChannelGraph, Group
from onnxprune.channels.branches import dead_groups
from onnxprune.channels.groups import PinnedAxis
from onnxprune.channels.remedies import Remedy
from onnxprune.config import PruneConfig
from onnxprune.errors import OnnxPruneError
from onnxprune.graph import protobuf
from onnxprune.intake.preview import thumbnails
from onnxprune.jobs.workplace import HERE, Workplace
from onnxprune.latency.stopwatch import Latency
from onnxprune.measures.gates import Gate
from onnxprune.measures.verdict import verdict_of
from onnxprune.methods import METHODS, tried
from onnxprune.numerics.arrays import Masks
from onnxprune.options import exact_percent
from onnxprune.output.model_files import written_bytes
from onnxprune.refit.lockstep import Fit
from onnxprune.report.environment import peak_memory, versions
from onnxprune.report.summary import Alignment, Effort, GroupRow, PatternRow, PinnedRow, Report, Size, WholeLayerRow
from onnxprune.stages.allocate import LATENCY_MISSED, estimate_of
from onnxprune.stages.allocate_layers import without
from onnxprune.stages.calibrate import Calibrated
from onnxprune.stages.clock import Clock
from onnxprune.stages.counted_at import counted_at
from onnxprune.stages.couple import Coupled, not_counted
from onnxprune.stages.curves import curve_rows
from onnxprune.stages.draw import layer_rows
from onnxprune.stages.engine_command import engine_command
from onnxprune.stages.load import Loaded
from onnxprune.stages.try_cuts import Tried
from onnxprune.stages.verify import Checked
from onnxprune.targets.alignment import TARGETS

# Why a group stays whole where a ratio of 0 leaves it so.
NOT_ASKED = "none of its channels were asked for"


def report_of(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    masks: Masks,
    settings: PruneConfig,
    stage: Clock,
    checked: Checked | None,
    output: str | os.PathLike[str] | None,
    timed: Latency | None = None,
    place: Workplace = HERE,
    tried: Tried | None = None,
) -> Report:
    """Collect the report; for a dry run `checked` is None. timed: with a latency budget. tried: where cuts were."""
    channels = coupled.channels
    full = channels.sizes
    dead = dead_groups(coupled.drops, masks)
    kept = [0 if g.index in dead else int(masks.get(g.index, np.ones(g.size)).sum()) for g in channels.groups]
    macs, batch = coupled.costs["macs"], channels.graph.batch
    own = Size(round(macs.at(full) / batch), coupled.stored_parameters, loaded.source.size)
    before = with_all_tokens(with_all_experts(own, loaded, batch), loaded, batch)
    after = Size(
        round(macs.at(kept) / batch),
        protobuf.parameters(checked.in_float or checked.model) if checked else round(coupled.costs["stored"].at(kept)),
        _bytes_of_result(checked.whole, loaded, output) if checked else 0,
    )
    figures = checked.figures if checked else None
    rows = tuple(_row(g, k, coupled, settings) for g, k in zip(channels.groups, kept, strict=True))
    if timed is not None:
        achieved = 1.0 - timed.share
    elif settings.uniform is not None:
        achieved = _share_removed(rows)
    else:
        achieved = share_removed(own, after, settings.budget)
    return Report(
        model=loaded.source.path,
        model_sha256=loaded.source.sha256,
        output=None if output is None else str(output),
        dry_run=checked is None,
        config=settings.as_dict(),
        requested=settings.share,
        achieved=achieved,
        before=before,
        after=after,
        groups=rows,
        alignment=alignment_reached(coupled, masks, settings),
        pinned=pinned_rows(channels, settings),
        patterns=pattern_rows(coupled),
        checks=_checks(checked),
        output_error=figures.error if figures else None,
        calibration=calibration_of(loaded),
        effort=Effort(
            dict(stage.seconds),
            calibrated.plain_seconds,
            peak_memory(),
            place.scheduler.name,
            place.scheduler.workers,
            place.provider,
        ),
        versions=versions(),
        refit=tuple(_fit(f) for f in checked.finished.fits) if checked else (),
        notes=(
            *loaded.notes,
            *not_counted(channels),
            *counted_at(loaded),
            *nothing_asked(settings),
            *larger(before, after),
            *less_aligned(coupled, settings),
            *unspent(kept, coupled, settings),
            *without_gradient(coupled, calibrated, settings),
            *(checked.notes if checked else ()),
            *(timed.notes if timed else ()),
            *missed(timed, settings),
        ),
        timing=asdict(timed) if timed else None,
        engine=engine_command(checked.whole, loaded, output, settings) if checked else "",
        agreement=figures.agreement if figures else None,
        outputs=figures.as_dicts() if figures else (),
        error=figures.summary() if figures else {},
        verdict=asdict(verdict_of(figures, settings.lowered)) if figures else None,
        warnings=tuple(stage.warnings),
        layers=layer_rows(coupled, masks, kept),
        whole_layers=whole_layer_rows(coupled, tried, kept),
        experts=loaded.experts.rows if loaded.experts else (),
        fewer_bits=checked.fewer_bits if checked else None,
        curves=curve_rows(tried, coupled, kept),
    )


def whole_layer_rows(coupled: Coupled, tried: Tried | None, kept: Sequence[int]) -> tuple[WholeLayerRow, ...]:
    """Every layer that could have gone as a whole. kept: units of each group."""
    full, batch = np.array(coupled.channels.sizes), coupled.channels.graph.batch
    errors = {} if tried is None else tried.layers

    def saved(budget: str, groups: Sequence[int]) -> float:
        return coupled.costs[budget].at(full) - coupled.costs[budget].at(without(full, groups))

    return tuple(
        WholeLayerRow(
            number=x.number,
            name=x.name,
            branches=x.kinds,
            groups=x.groups,
            gone=not any(kept[g] for g in x.groups),
            macs=round(saved("macs", x.groups) / batch),
            parameters=round(saved("stored", x.groups)),
            error=float(errors[x.number]) if np.isfinite(errors.get(x.number, np.inf)) else None,
        )
        for x in coupled.layers_whole
    )


def with_all_tokens(own: Size, loaded: Loaded, batch: int) -> Size:
    """The size of the original, where the rows of tokens that are not listed went before."""
    if loaded.tokens is None:
        return own
    shapes = loaded.normalised.shapes
    heads, ids = loaded.tokens.vocabulary.heads, loaded.tokens.ids
    macs = sum(
        prod(shapes.get(h.output) or (0,)) // ids.size * h.width * (loaded.tokens.vocabulary.count - ids.size)
        for h in heads
    )
    return replace(own, macs=own.macs + round(macs / batch), parameters=protobuf.parameters(loaded.given))


def with_all_experts(own: Size, loaded: Loaded, batch: int) -> Size:
    """The size of the original, where experts went before: products of a router's columns, and all weights."""
    if loaded.experts is None:
        return own
    macs = 0
    for row, (logits, width) in zip(loaded.experts.rows, loaded.experts.routers, strict=True):
        positions = (loaded.normalised.shapes.get(logits) or (0,))[0]
        macs += positions * width * len(row.gone)
    return replace(own, macs=own.macs + round(macs / batch), parameters=protobuf.parameters(loaded.given))


def calibration_of(loaded: Loaded) -> dict[str, Any]:
    """What there is to say of the data."""
    return {
        "origin": loaded.fit.origin,
        "prepared": loaded.fit.prepared,
        "synthetic": loaded.fit.synthetic,
        "samples": loaded.count,
        "held_out": 0 if loaded.held_out is None else len(loaded.held_out),
        **({} if loaded.chosen_by is None else {"chosen_by": len(loaded.chosen_by)}),
        "sha256": loaded.data_sha256,
        "labels": loaded.labels,
        "inputs": [asdict(f) | {"shape": list(f.shape)} for f in loaded.figures],
        "pictures": thumbnails(loaded.fit, loaded.figures) if loaded.pictures else "",
    }


def _bytes_of_result(model: onnx.ModelProto, loaded: Loaded, output: str | os.PathLike[str] | None) -> int:
    return written_bytes(model, None if output is None else Path(output), placement=loaded.source.placement)


def missed(timed: Latency | None, settings: PruneConfig) -> tuple[str, ...]:
    """That the result's time, in sessions of its own, is not the one that was met before it was fitted."""
    wanted = 1.0 - (settings.share or 0.0)
    if timed is None or abs(timed.share - wanted) <= LATENCY_MISSED * wanted:
        return ()
    if timed.measured is None:
        return (
            f"by the timing file the result takes {timed.share:.1%} of the original's time where {wanted:.1%} was "
            "asked for: widths allow no nearer",
        )
    return (
        f"the result takes {timed.measured:.1%} of the original's time where {wanted:.1%} was asked for: widths allow "
        "no nearer, or the machine is a busy one, or another",
    )


def with_latency(report: Report, loaded: Loaded, checked: Checked, provider: str) -> Report:
    """The report with the time of one sample through the original and the result; with a note where that fails, as a
    model that was made and checked is worth more than its latency."""
    try:
        latency = bench_of(report, loaded, checked, provider)
    except OnnxPruneError as e:
        return replace(report, notes=(*report.notes, f"the latency was not measured: {e}"))
    return replace(report, latency=latency.as_dict(), notes=(*report.notes, *latency.notes))


def bench_of(report: Report, loaded: Loaded, checked: Checked, provider: str) -> Bench:
    """The time of one sample through the original and the result, in turns. Raises OnnxPruneError."""
    result = checked.whole if checked.resized and not loaded.tail else loaded.as_given(checked.model)
    models = (
        Candidate(report.model, loaded.given, loaded.source.size),
        Candidate(report.output or "the result", result, report.after.bytes),
    )
    feeds = loaded.fit.slice(0, loaded.fit.run_size(1))
    return measure(models, Feeds(feeds, loaded.fit.count(feeds), loaded.fit.origin), Settings(provider))


def estimated(report: Report, coupled: Coupled, tried: Tried | None, masks: Masks) -> Report:
    """The report of a dry run with what the curves say of the error, where trial cuts were made: an estimate."""
    kept = [int(masks[g.index].sum()) if g.index in masks else g.size for g in coupled.channels.groups]
    error = None if tried is None else estimate_of(tried, coupled, kept)
    if error is None:
        return report
    note = (
        f"estimated output error: {error:.1%} before lockstep and recovery, which lower it: the sum of what the cuts "
        "of single groups did in trials, an estimate and no measurement"
    )
    return replace(report, error={**report.error, "estimated": error}, notes=(*report.notes, note))


def speed_gates(report: Report, least: float | None) -> tuple[Gate, ...]:
    """The limit on how many times as fast the result is, by the lower end of the interval that was measured."""
    if least is None:
        return ()
    measured = (report.latency or {}).get("comparison")
    if measured is None or measured["interval"] is None:
        why = next((n for n in report.notes if "latency" in n), "too few rounds")
        text = f"a speedup of {least:g} was demanded, but it was not measured ({why})"
        return (Gate("--min-speedup", least, False, text),)
    low, high = (1.0 / measured["interval"][i] for i in (1, 0))
    found = f"{1.0 / measured['ratio']:.3f} times as fast (95% interval: {low:.3f} to {high:.3f})"
    if low >= least:
        return (Gate("--min-speedup", least, True, found),)
    return (Gate("--min-speedup", least, False, f"the result is {found}, not surely {least:g} times; remove more"),)


def without_gradient(coupled: Coupled, calibrated: Calibrated, settings: PruneConfig) -> tuple[str, ...]:
    """That groups which may be cut were selected without gradients, how many, and the first reason."""
    if not settings.reads_gradients or calibrated.goals is None:
        return ()
    free = [g for g, why in enumerate(coupled.widths.whole) if not why]
    outputs = calibrated.outputs
    left = [g for g in free if g not in outputs.gates]
    if not left:
        return ()
    why = next((outputs.missing[g] for g in left if g in outputs.missing), "nothing that reads them can take a gate")
    stand_in = METHODS[tried(settings.method)[-1]].stand_in
    instead = "local imitation" if stand_in == "local" else stand_in
    return (f"{len(left)} of {len(free)} groups have no gradient, and {instead} stands in for them: {why}",)


def _checks(checked: Checked | None) -> dict[str, Any]:
    if checked is None:
        return {}
    exact = checked.exactness
    return {
        "normalised_against_original": exact.normalised if exact else None,
        "slice_against_oracle": exact.slice if exact else None,
        "tolerance": exact.tolerance if exact else None,
        "input_sizes_compared": exact.sizes if exact else None,
        "input_sizes_run": checked.sizes,
        **({} if checked.tensorrt is None else {"tensorrt": list(checked.tensorrt)}),
        "refit": checked.finished.level,
        "held_out_error": dict(checked.finished.errors),
        **({} if checked.discrepancy is None else {"discrepancy": checked.discrepancy}),
        **({} if checked.chosen is None else {"chosen": checked.chosen}),
        **({"recovery": asdict(checked.finished.recovery)} if checked.finished.recovery else {}),
    }


def _fit(f: Fit) -> dict[str, Any]:
    """As the report has it: there a ridge is a strength."""
    return {"layer": f.layer, "strength": f.ridge, "before": f.before, "after": f.after}


def _row(g: Group, kept: int, coupled: Coupled, settings: PruneConfig) -> GroupRow:
    c, batch = g.channels_per_unit, coupled.channels.graph.batch
    full = np.array([other.size for other in coupled.channels.groups])
    parts = {k: coupled.costs[k].part(full, g.index) for k in ("macs", "stored")}
    saved = {k: coupled.costs[k].saving(full, g.index, g.size - kept) for k in parts}
    widths = {r.positions // (r.rows * r.gates) for r in g.producers}
    return GroupRow(
        name=g.name,
        channels_before=g.size * c,
        channels_after=kept * c,
        producers=len(g.producers),
        consumers=len(g.consumers),
        mixing=g.mixing,
        note=coupled.widths.whole[g.index] or (NOT_ASKED if settings.ratio == 0.0 and kept == g.size else ""),
        alignment=coupled.widths.multiples[g.index],
        units=(g.size, kept),
        head=g.head,
        shared=bool(g.head) and len(widths) > 1,
        macs=(round(parts["macs"] / batch), round((parts["macs"] - saved["macs"]) / batch)),
        parameters=(round(parts["stored"]), round(parts["stored"] - saved["stored"])),
    )


def alignment_reached(coupled: Coupled, masks: Masks, settings: PruneConfig) -> Alignment:
    """How many inputs and outputs of layers have a multiple of the alignment as their width, before and after."""
    channels, multiple = coupled.channels, coupled.widths.alignment
    keep = channels.keep_classes(masks)
    axes = [a for x in channels.linears for a in (x.inputs, x.outputs) if a is not None]
    before = sum(a.size % multiple == 0 for a in axes)
    after = sum(int(keep[a].sum()) % multiple == 0 for a in axes)
    return Alignment(settings.round_to, settings.target, multiple, len(axes), before, after)


def less_aligned(coupled: Coupled, settings: PruneConfig) -> tuple[str, ...]:
    """That the budget is out of reach with the alignment of the target, and which one has taken its place."""
    if coupled.widths.relaxed == 1:
        return ()
    wanted, taken = TARGETS[settings.target].alignment, coupled.widths.alignment
    share = exact_percent(settings.ratio or 0.0)
    return (
        f"with widths in multiples of {wanted}, as {settings.target} has them best, {share} of the {settings.counted} "
        f"cannot go; --round-to auto took multiples of {taken}",
    )


def unspent(kept: Sequence[int], coupled: Coupled, settings: PruneConfig) -> tuple[str, ...]:
    """That a tolerance was not what ended the cuts."""
    least = [min(w) for w in coupled.widths.allowed]
    if settings.share is not None or any(k > n for k, n in zip(kept, least, strict=True)):
        return ()
    return (
        f"a tolerance of {getattr(settings, settings.goal):g} would allow more: every group has the least width that "
        "--round-to, --min-channels and the model allow",
    )


def nothing_asked(settings: PruneConfig) -> tuple[str, ...]:
    """That no channels went, as none were asked for."""
    if settings.cuts_channels:
        return ()
    return ("no channels were asked for: none went, and the weights that stay are the original's",)


def larger(before: Size, after: Size) -> tuple[str, ...]:
    """That the file has grown, which a small cut may not make up for."""
    if after.bytes <= before.bytes:
        return ()
    return (
        f"the file is {after.bytes - before.bytes} bytes larger than the original's: the refit added biases, or wrote "
        "numbers that the original stores in fewer bytes; a larger --ratio, or --refit none, makes it smaller",
    )


def share_removed(before: Size, after: Size, budget: str) -> float:
    """The share of the MACs or parameters that went, by the numbers that the report shows."""
    first, second = (s.parameters if budget == "params" else s.macs for s in (before, after))
    return 1.0 - second / first if first else 0.0


def _share_removed(rows: Sequence[GroupRow]) -> float:
    """The share of their channels that the groups which may be cut have lost."""
    free = [r for r in rows if not r.note]
    return 1.0 - sum(r.channels_after for r in free) / sum(r.channels_before for r in free)


def pattern_rows(coupled: Coupled) -> tuple[PatternRow, ...]:
    """What each pattern of the options matched."""
    names = [g.name for g in coupled.channels.groups]
    return tuple(
        PatternRow(m.option, m.text, m.nodes, m.tensors, m.layers, tuple(names[g] for g in sorted(m.groups)))
        for m in coupled.patterns
    )


def pinned_rows(channels: ChannelGraph, settings: PruneConfig) -> tuple[PinnedRow, ...]:
    """Every axis of a weight that cannot be cut."""

    def remedy(p: PinnedAxis) -> str:
        listed = settings.keep_tokens and p.why.why.remedy is Remedy.TOKENS
        return Remedy.LISTED.value if listed else p.why.remedy

    return tuple(PinnedRow(p.tensor, p.axis, p.positions, p.why.op, p.why.reason, remedy(p)) for p in channels.pinned)
