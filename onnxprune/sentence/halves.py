"""The sentence: load → couple → calibrate → select → allocate → rewrite → refit → recover → finish → verify → report.

Each word is a file of `stages`. From couple to verify it is in two halves: `prepare` is what is known before a budget
is spent; for every ratio `choose` and `make` are what becomes of it. With `then` a word stands behind verify: quantize.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune import plan
from onnxprune.channels.untried import warnings_of
from onnxprune.config import PruneConfig
from onnxprune.jobs.workplace import Workplace
from onnxprune.latency.timer import Timer
from onnxprune.numerics.arrays import Coefficients, Masks
from onnxprune.refit.reference import SharedPoints
from onnxprune.stages.answers import judged_by
from onnxprune.stages.attention import HEADS, attention_of
from onnxprune.stages.calibrate import Calibrated, calibrate
from onnxprune.stages.clock import Clock
from onnxprune.stages.couple import Coupled, couple, idle_ports
from onnxprune.stages.decide import best_of, check_before, cut_with, mixtures, replay, uncut
from onnxprune.stages.finish import finish
from onnxprune.stages.load import Loaded
from onnxprune.stages.quantize import check_before as can_be_quantized
from onnxprune.stages.quantize import doubts_of, quantized
from onnxprune.stages.recover import recover_weights
from onnxprune.stages.refit import refit_weights
from onnxprune.stages.rewrite import rewrite
from onnxprune.stages.rotate import Rotated, idle_rotation, rotate, streams_to_turn
from onnxprune.stages.select import select
from onnxprune.stages.time_layers import NO_TIMINGS, Timings, timer_of
from onnxprune.stages.try_cuts import Tried, try_cuts
from onnxprune.stages.turn_heads import heads_to_turn, turn_heads
from onnxprune.stages.verify import Checked, Original, check
from onnxprune.targets.alignment import AUTO


@dataclass(frozen=True, eq=False, kw_only=True)
class Prepared:
    """All that is known before a budget is spent: one calibration serves cuts of any ratio.

    tried: None where a plan is replayed, and where no channels are to go. stopwatch: with a budget of latency.
    original: what the checks have asked of it, which every cut leaves to the next. attention: what goes in attention,
    also where the options leave that open. rotated: groups whose stream was turned. shared: what the refit has read of
    it; None where one cut is made.
    """

    loaded: Loaded
    coupled: Coupled
    calibrated: Calibrated
    tried: Tried | None
    stopwatch: Timer | None
    place: Workplace
    original: Original
    attention: str
    rotated: tuple[str, ...] = ()
    shared: SharedPoints | None = None

    def for_several(self) -> Prepared:
        """The same where several cuts are to be made: what the refit reads of the original is kept for the next."""
        return replace(self, shared=SharedPoints())

    def settled(self, settings: PruneConfig) -> PruneConfig:
        """Options with what they left open, for plans and reports."""
        return settings.with_options(attention=self.attention)

    def at(self, settings: PruneConfig) -> Prepared:
        """The same for another ratio, by the same curves: cuts are tried anew where other groups may be cut then."""
        coupled, tried = self.coupled.at(settings.ratio), self.tried
        if tried is not None and settings.ratio is not None and not tried.serves(coupled):
            tried = try_cuts(self.loaded, coupled, self.calibrated, tried.paths, settings, self.place)
        return replace(self, coupled=coupled, tried=tried)


@dataclass(frozen=True, eq=False, kw_only=True)
class Chosen:
    """A cut: the units that stay, by group index, the coefficients of greedy methods, and both as a plan."""

    masks: Masks
    coefficients: Mapping[int, Coefficients]
    plan: plan.Plan

    @property
    def key(self) -> bytes:
        """Equal cuts of one model have equal keys."""
        given = ((g, m, self.coefficients.get(g)) for g, m in sorted(self.masks.items()))
        parts = ((str(g).encode(), np.packbits(m).tobytes(), b"" if a is None else a.tobytes()) for g, m, a in given)
        return b"|".join(b":".join(p) for p in parts)


def prepare(
    loaded: Loaded,
    settings: PruneConfig,
    stage: Clock,
    place: Workplace,
    *,
    replays: plan.Plan | None = None,
    one_number: bool = False,
    timings: Timings = NO_TIMINGS,
) -> Prepared:
    """The first half, after load: from the channel graph to the curves; of a replay what its refit needs.

    one_number: all caches that may change keep equally many heads. timings: of the devices that a budget of latency
    counts, instead of this machine.
    """
    left_open = settings.attention == AUTO and replays is None
    with stage("couple"):
        settings = settings.with_options(attention=attention_of(loaded, settings, replays))
        coupled = couple(loaded, settings, replays, one_number=one_number)
        check_before(loaded, coupled, settings, replays)
        can_be_quantized(loaded, settings)
        heads = heads_to_turn(loaded, coupled, settings, replays, asked=not left_open)
        streams = streams_to_turn(loaded, coupled, settings, replays, heads.names(coupled))
    # Not before: where nothing can be pruned, one line says so.
    stage.warn((*loaded.doubts, *warnings_of(coupled.untried, cut=settings.untried_branches == "cut")))
    stage.warn(idle_ports(loaded, coupled.channels, settings))
    stage.warn(idle_rotation(loaded, streams, settings, replays))
    turned = Rotated(loaded, Original(loaded))
    if streams:
        with stage("rotate"):
            turned = rotate(loaded, coupled, streams, settings, replays, place.provider)
            loaded = turned.loaded
            if turned.groups:
                coupled = couple(loaded, settings, replays, one_number=one_number)
    if heads.turnable:
        with stage("rotate"):
            streams_turned = turned.groups
            turned = turn_heads(loaded, coupled, heads, settings, replays, place.provider)
            if left_open and not turned.groups:
                settings = settings.with_options(attention=HEADS)
            loaded, turned = turned.loaded, replace(turned, groups=(*streams_turned, *turned.groups))
            coupled = couple(loaded, settings, replays, one_number=one_number)
    stopwatch = timer_of(loaded, coupled, settings, place, timings) if settings.budget == "latency" else None
    with stage("calibrate"):
        calibrated = calibrate(loaded, coupled, settings, place, selects=replays is None, known=turned.moments)
    tried = None
    if replays is None and settings.cuts_channels:
        if stopwatch is not None:
            with stage("time layers"):
                stopwatch.measure()
        with stage("select"):
            candidates = select(coupled, calibrated, settings, place)
        with stage("allocate"):
            tried = try_cuts(loaded, coupled, calibrated, candidates, settings, place)
    return Prepared(
        loaded=loaded,
        coupled=coupled,
        calibrated=calibrated,
        tried=tried,
        stopwatch=stopwatch,
        place=place,
        original=turned.original,
        attention=settings.attention,
        rotated=turned.groups,
    )


def choose(prepared: Prepared, settings: PruneConfig, stage: Clock) -> Chosen:
    """The cut that meets the budget. Raises BudgetUnreachable and NothingPrunable."""
    loaded, coupled, calibrated = prepared.loaded, prepared.coupled, prepared.calibrated
    tried = [] if prepared.tried is None else mixtures(prepared.tried, settings)
    cuts = [cut_with(t, loaded, coupled, calibrated, settings, stage, prepared.stopwatch) for t in tried]
    masks, coefficients = cuts[0] if cuts else ({}, {})
    if len(cuts) > 1:
        with stage("compare"):
            masks, coefficients = best_of(cuts, loaded, coupled, calibrated, settings)
    checksums = (loaded.source.sha256, loaded.inputs_sha256)
    stays = uncut(coupled, masks)
    chosen = plan.make(
        coupled.channels,
        masks,
        *checksums,
        prepared.settled(settings).as_dict(),
        coefficients,
        stays,
        loaded.said_of_data,
        [x.called for x in coupled.layers_whole if all(g in masks and not masks[g].any() for g in x.groups)],
        () if loaded.experts is None else loaded.experts.planned,
        prepared.rotated,
    )
    return Chosen(masks=masks, coefficients=coefficients, plan=chosen)


def replayed_from(prepared: Prepared, given: plan.Plan, settings: PruneConfig) -> Chosen:
    """The cut of a saved plan."""
    settings = prepared.settled(settings)
    masks = replay(given, prepared.coupled, settings)
    chosen = replace(
        given,
        data_sha256=prepared.loaded.inputs_sha256,
        config=settings.as_dict(),
        split_seed=None if given.divided_by == settings.seed else given.divided_by,
    )
    return Chosen(masks=masks, coefficients=chosen.coefficients(prepared.coupled.channels), plan=chosen)


def make(prepared: Prepared, chosen: Chosen, settings: PruneConfig, stage: Clock) -> Checked:
    """The second half: the cut made, refitted and checked. Raises CheckFailed."""
    loaded, coupled, calibrated = prepared.loaded, prepared.coupled, prepared.calibrated
    masks = chosen.masks
    with stage("rewrite"):
        sliced = rewrite(loaded, coupled, masks)
        judged = judged_by(loaded, coupled, calibrated.reference, masks)
    with stage("refit"):
        refitted = refit_weights(
            loaded, coupled, calibrated, masks, chosen.coefficients, sliced, settings, prepared.shared, prepared.place
        )
    if settings.epochs:
        with stage("recover"):
            refitted = recover_weights(
                loaded, judged, masks, refitted, settings, stage.judged, stage.stop, calibrated.provider
            )
    with stage("verify"):
        finished = finish(loaded, judged, masks, sliced, refitted, settings)
        checked = check(loaded, coupled, calibrated, masks, sliced, finished, settings, prepared.original)
    if settings.then is None:
        return checked
    with stage("quantize"):
        narrow = quantized(loaded, coupled, masks, checked, settings, prepared.original, stage.read)
    if narrow.fewer_bits is not None:
        stage.warn(doubts_of(narrow.fewer_bits))
    return narrow
