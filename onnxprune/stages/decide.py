"""Which cut is taken: of one selection or another, or of a saved plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxprune import plan
from onnxprune.channels import branches
from onnxprune.config import PruneConfig
from onnxprune.errors import NothingPrunable, UsageError
from onnxprune.intake import older
from onnxprune.latency.timer import Timer
from onnxprune.numerics.arrays import Mask
from onnxprune.stages.allocate import allocate, check_reachable, coefficients_of
from onnxprune.stages.answers import outputs_of
from onnxprune.stages.calibrate import Calibrated
from onnxprune.stages.clock import Clock
from onnxprune.stages.couple import (
    Coupled,
)
from onnxprune.stages.imitate import Cut, imitate
from onnxprune.stages.load import Loaded
from onnxprune.stages.refit import refit_weights
from onnxprune.stages.rewrite import rewrite
from onnxprune.stages.tokens import KEEP_TOKENS
from onnxprune.stages.try_cuts import Tried


def mixtures(tried: Tried, settings: PruneConfig) -> list[Tried]:
    """What is tried to the end: all candidates group by group and, where there are several, each of them alone.

    With a tolerance, of the outputs or of layers, the first only, since the others would remove something else.
    """
    alone = tried.alone
    return [tried, *alone] if len(alone) > 1 and settings.share is not None else [tried]


def check_before(loaded: Loaded, coupled: Coupled, settings: PruneConfig, replayed: plan.Plan | None) -> None:
    """Raises what can be told before anything is calibrated: of old forms of operators, and of a goal out of reach."""
    if not settings.cuts_channels and loaded.complete is None:
        why = next((note for note in loaded.notes if note.startswith(KEEP_TOKENS)), "no row of tokens, and no expert")
        raise NothingPrunable(f"nothing goes, and no channels were asked for: {why}; list fewer, or give --ratio")
    older.check(loaded.normalised.proto, loaded.normalised.notes)
    if replayed is None:
        check_reachable(coupled, settings)


def cut_with(
    tried: Tried,
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    settings: PruneConfig,
    stage: Clock,
    stopwatch: Timer | None = None,
) -> Cut:
    """Masks and coefficients by these paths and curves. Raises BudgetUnreachable and NothingPrunable."""
    with stage("allocate"):
        masks, paths = allocate(loaded, coupled, calibrated, tried, settings, stopwatch)
    if not settings.sequential:
        return masks, coefficients_of(masks, paths)
    with stage("imitate"):
        return imitate(loaded, coupled, calibrated, tried.paths, masks, settings)


def best_of(
    cuts: Sequence[Cut], loaded: Loaded, coupled: Coupled, calibrated: Calibrated, settings: PruneConfig
) -> Cut:
    """The cut whose refitted model comes closest to what its outputs shall imitate, on all samples.

    Those for fitting count as well: all cuts are fitted on them alike, and the others alone are too few to tell.
    """
    if calibrated.goals is None:
        return cuts[0]
    parts = ((loaded.fit, calibrated.goals.fit), (loaded.deciding, calibrated.goals.deciding))

    def error(cut: Cut) -> float:
        sliced = rewrite(loaded, coupled, cut[0])
        models = refit_weights(loaded, coupled, calibrated, *cut, sliced, settings).candidates.values()
        return min(
            sum(goal.value(outputs_of(p, coupled, loaded, s), slice(0, len(s))) * len(s) for s, goal in parts)
            for p in models
        )

    return min(cuts, key=error)


def uncut(coupled: Coupled, masks: Mapping[int, Mask]) -> frozenset[int]:
    """The groups that might have lost units by these options, and are neither cut nor gone with a branch."""
    groups = zip(coupled.channels.groups, coupled.widths.allowed, strict=True)
    may_lose = {g.index for g, widths in groups if widths != (g.size,)}
    return frozenset(may_lose - masks.keys() - branches.dead_groups(coupled.drops, masks))


def replay(chosen: plan.Plan, coupled: Coupled, settings: PruneConfig) -> dict[int, Mask]:
    """The masks of a saved plan.

    Raises UsageError where it counts other units of attention, or does not fit, and NothingPrunable where it keeps all.
    """
    units = chosen.settings().attention
    if units != settings.attention:
        raise UsageError(f"the plan counts in attention {units!r}, not {settings.attention!r}; make a new plan")
    masks = chosen.masks(coupled.channels)
    if not masks and settings.cuts_channels:
        raise NothingPrunable("the plan keeps every channel, so nothing would be removed; make a new plan")
    if branches.left_of(coupled.channels, coupled.channels.keep_classes(masks)) is None:
        raise UsageError("the plan leaves some tensor without a channel; make a new plan")
    return masks
