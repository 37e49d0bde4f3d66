"""From curves to masks: how many units of every group stay, and which path they are from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnxprune.allocation import budget, every_part, trial_cuts
from onnxprune.channels.branches import dead_groups
from onnxprune.config import PruneConfig
from onnxprune.data.batches import BATCH
from onnxprune.data.layouts import samples_first
from onnxprune.errors import BudgetUnreachable, NothingPrunable
from onnxprune.latency.search import KeptUnits, meet
from onnxprune.latency.timer import Timer
from onnxprune.numerics.arrays import Coefficients, Doubles, Mask, Masks
from onnxprune.options import at_most, exact_percent
from onnxprune.runtime.session import concatenated
from onnxprune.selection import Path
from onnxprune.stages.allocate_layers import harm_of, with_layers
from onnxprune.stages.calibrate import Calibrated
from onnxprune.stages.couple import Coupled
from onnxprune.stages.load import Loaded
from onnxprune.stages.try_cuts import Tried, trial_network

# How far from the wanted share of the time a measured one may be.
LATENCY_MISSED = 0.1


def allocate(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    tried: Tried,
    settings: PruneConfig,
    stopwatch: Timer | None = None,
) -> tuple[dict[int, Mask], Sequence[Path]]:
    """Masks over the units of the groups that are cut, and the path of every group that they are from.

    With a tolerance of the outputs nothing is cut here. stopwatch: for a latency budget. Raises BudgetUnreachable and
    NothingPrunable, where `check_reachable` could not tell before.
    """
    channels = coupled.channels
    widths = coupled.widths.allowed
    paths = next(iter(tried.paths.values()))
    if settings.tolerance is not None:
        return {}, paths
    if settings.ratio == 0.0:
        kept = tuple(w[-1] for w in widths)
    elif settings.ratio is not None:
        kept, paths = within_budget(loaded, coupled, calibrated, tried, settings, stopwatch)
    elif settings.uniform is not None:
        kept = budget.uniform(widths, settings.uniform)
    else:
        kept, paths = within_each(coupled, tried.paths, settings)
    masks = {g.index: paths[g.index].kept(kept[g.index]) for g in channels.groups if kept[g.index] < g.size}
    masks = {g: mask for g, mask in masks.items() if g not in dead_groups(coupled.drops, masks)}
    option, wanted = settings.option, exact_percent(getattr(settings, settings.goal))
    if not masks:
        if settings.layer_tolerance is not None:
            raise NothingPrunable(f"not one group can be cut within a layer tolerance of {wanted}; give a larger one")
        of = f"the {settings.counted}" if settings.uniform is None else "the channels of every group"
        raise NothingPrunable(f"no channel has to go for {wanted} of {of}; give a larger {option}")
    whole = every_part.with_every_part(channels, masks, paths)
    if whole is None:
        raise BudgetUnreachable(f"at {wanted} some tensor would keep no channel at all; lower {option}")
    return whole, paths


def check_reachable(coupled: Coupled, settings: PruneConfig) -> None:
    """Raises BudgetUnreachable and NothingPrunable where the widths alone say that the goal cannot be met.

    Of a latency nothing is measured yet, and of tolerances nothing can be said beforehand.
    """
    if not settings.cuts_channels:
        return
    widths = coupled.widths.narrowest
    if all(w == (g.size,) for w, g in zip(widths, coupled.channels.groups, strict=True)):
        shares, frozen = coupled.choices.wanted.shares, coupled.choices.frozen
        if not any(shares.get(g.index, 1.0) for g in coupled.channels.groups if g.index not in frozen):
            patterns = ", ".join(repr(f"{p}={share:g}") for p, share in settings.shares_of)
            raise NothingPrunable(
                f"--ratio-of {patterns} keeps every group whole, so that nothing is left to go for {settings.option} "
                f"{exact_percent(getattr(settings, settings.goal))}: leave it out, or give some groups a share above 0"
            )
        capped = " with --max-ratio" if settings.max_ratio is not None else ""
        held = ", or kept whole by --ratio-of" if settings.ratio_of else ""
        raise NothingPrunable(
            f"every group is too narrow for --round-to and --min-channels{capped}{held}; ask less of these"
        )
    if settings.ratio and settings.budget in coupled.costs:
        within_reach(coupled.costs[settings.budget], widths, coupled.whole(settings.budget), settings)


def within_reach(
    cost: budget.CostModel, widths: Sequence[tuple[int, ...]], full: float, settings: PruneConfig
) -> float:
    """The least that any widths cost. Raises BudgetUnreachable where that is above what `ratio` leaves of `full`."""
    share = settings.ratio or 0.0
    least = budget.smallest(cost, widths)
    if least > (1.0 - share) * full:
        rounds = isinstance(settings.round_to, int) and settings.round_to > 1
        hint = "lower --ratio" + (", or give a smaller --round-to" if rounds else "")
        held = [name for name, v in (("--ratio-of", settings.ratio_of), ("--max-ratio", settings.max_ratio)) if v]
        hint += f", or let groups lose more by {' and '.join(held)}" if held else ""
        raise BudgetUnreachable(
            f"{exact_percent(share)} of the {settings.counted} cannot go: at most {at_most(1 - least / full)} can; "
            f"{hint}"
        )
    return least


def within_each(
    coupled: Coupled, candidates: Mapping[str, Sequence[Path]], settings: PruneConfig
) -> tuple[KeptUnits, Sequence[Path]]:
    """Units that each group keeps within the tolerance of its own layers, and the path by which these are fewest."""
    idle = coupled.taken.idle  # of which nothing is known
    widths = [w[-1:] if g in idle else w for g, w in enumerate(coupled.widths.allowed)]
    tolerance = settings.layer_tolerance or 0.0
    by_method = [
        (budget.within_each(widths, [p.loss for p in paths], tolerance), paths) for paths in candidates.values()
    ]
    fewest = [min(by_method, key=lambda f, g=g: f[0][g]) for g in range(len(widths))]  # type: ignore[misc]
    kept = [fewest_of[g] for g, (fewest_of, _) in enumerate(fewest)]
    for groups in coupled.widths.alike:  # what the most sensitive of them needs
        for g in groups:
            kept[g] = max(fewest[i][0][i] for i in groups)
    return tuple(kept), [paths[g] for g, (_, paths) in enumerate(fewest)]


def within_budget(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    tried: Tried,
    settings: PruneConfig,
    stopwatch: Timer | None = None,
) -> tuple[KeptUnits, Sequence[Path]]:
    """Units that each group keeps so that the whole meets the budget, by trial cuts, and the better path of each.

    A latency budget is met by what is measured, in rounds. Raises BudgetUnreachable.
    """
    channels, share = coupled.channels, settings.ratio or 0.0
    cost = cost_of(coupled, settings, stopwatch)
    # What a latency is a share of is the model as it came, which the normalised one may beat without a cut.
    full = coupled.whole(settings.budget) if stopwatch is None else 1.0
    limit = (1.0 - share) * full
    least = within_reach(cost, coupled.widths.narrowest, full, settings)
    by_method = [(p, tried.errors[k]) for k, p in tried.paths.items()]
    if len(by_method) > 1:
        better = [min(by_method, key=lambda t, g=g: sum(t[1][g].values())) for g in range(len(channels.groups))]  # type: ignore[misc]
        by_method.append(([p[g] for g, (p, _) in enumerate(better)], [t[g] for g, (_, t) in enumerate(better)]))
    with_curves = [(p, curves_of(p, t, coupled)) for p, t in by_method]

    def decide(limit: float) -> tuple[KeptUnits, Sequence[Path]]:
        exact = stopwatch is None
        allocations = [
            (with_layers(curves, cost, limit, coupled, tried.layers, exact=exact), p) for p, curves in with_curves
        ]
        if len(allocations) == 1:
            return allocations[0]
        # Trials of single groups do not tell which of several allocations is best; one run of each does.
        return min(allocations, key=lambda f: error_of(loaded, coupled, calibrated, f[0], f[1], settings))

    return decide(limit) if stopwatch is None else _measured(decide, stopwatch, limit, least)


def _measured(
    decide: Callable[[float], tuple[KeptUnits, Sequence[Path]]], stopwatch: Timer, wanted: float, least: float
) -> tuple[KeptUnits, Sequence[Path]]:
    """What comes closest to the wanted share of the time when it is measured."""
    paths: dict[KeptUnits, Sequence[Path]] = {}

    def units(limit: float) -> KeptUnits:
        kept, path = decide(limit)
        paths.setdefault(kept, path)
        return kept

    rounds = meet(units, stopwatch.share, wanted, least)
    best = next((r for r in rounds if r.kept != stopwatch.channels.sizes), None)
    if best is None:
        raise NothingPrunable(
            f"no channel has to go: the rewritten graph takes {rounds[0].measured:.1%} of the time as it is; "
            "give a larger --ratio"
        )
    closest, hint = "that was measured", ", or measure on a machine that does nothing else"
    if not stopwatch.measures:
        closest, hint = "by the timing file", ""
    if best.measured > (1.0 + LATENCY_MISSED) * wanted:
        raise BudgetUnreachable(
            f"{exact_percent(1 - wanted)} of the latency cannot go: {1 - best.measured:.1%} is the closest {closest}; "
            f"lower --ratio{hint}"
        )
    return best.kept, paths[best.kept]


def cost_of(coupled: Coupled, settings: PruneConfig, stopwatch: Timer | None) -> budget.CostModel:
    """What the budget counts, against the units kept."""
    if stopwatch is not None:
        return stopwatch.cost
    return coupled.costs[settings.budget]


def curves_of(paths: Sequence[Path], trials: Sequence[Mapping[int, float]], coupled: Coupled) -> list[Doubles]:
    """Discrepancy of each group against the units kept, in units of the outputs' error."""
    channels = coupled.channels
    curves = [budget.measured_curve(p.loss, t) if t else p.loss for p, t in zip(paths, trials, strict=True)]
    for g in coupled.taken.idle:
        # Nothing is known of what they do to the answer, so they go as if each were the most sensitive group.
        measured = [c for i, c in enumerate(curves) if i not in coupled.taken.idle]
        curves[g] = budget.worst_curve(measured, channels.groups[g].size)
    return curves


def estimate_of(tried: Tried, coupled: Coupled, kept: Sequence[int]) -> float | None:
    """The error of the outputs by the curves: a sum over the groups; None where these are of several methods, or of
    none."""
    if len(tried.errors) != 1:
        return None
    (name,) = tried.errors
    curves = curves_of(tried.paths[name], tried.errors[name], coupled)
    return harm_of(kept, curves, coupled, tried.layers)


def error_of(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    kept: Sequence[int],
    paths: Sequence[Path],
    settings: PruneConfig,
) -> float:
    """The error of the outputs, on held-out samples, with all groups cut to these widths along their paths."""
    widths = {g.index: k for g, k in zip(coupled.seen.channels.groups, kept, strict=True) if k < g.size}
    session = trial_cuts.cut_session(trial_network(loaded, coupled, calibrated, settings), widths, paths)
    reference, held = calibrated.reference, loaded.held
    runs = [samples_first(session.run(b), held.count(b), reference.layouts) for b in held.batches(BATCH)]
    return reference.error(concatenated(runs, padded=held.ragged))


def coefficients_of(masks: Masks, paths: Sequence[Path]) -> dict[int, Coefficients]:
    """The coefficients that belong to these masks, by group index, where the method gives any."""
    coefficients: dict[int, Coefficients] = {}
    for g, mask in masks.items():
        width = int(mask.sum())
        a = every_part.exchanged(paths[g].coefficients_of(width), paths[g].kept(width), mask)
        if a is not None:
            coefficients[g] = a
    return coefficients
