"""From paths to masks: how many units of every group stay, by trial cuts, and which path they are from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxprune import budget, cost, parts, sensitivity, sequential
from onnxprune.config import PruneConfig
from onnxprune.errors import BudgetUnreachable, NothingPrunable
from onnxprune.scope import allowed
from onnxprune.select import Path
from onnxprune.state import Calibrated, Coefficients, Coupled, Loaded, Mask, Masks


def allocate(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    candidates: Mapping[str, Sequence[Path]],
    settings: PruneConfig,
) -> tuple[dict[int, Mask], Sequence[Path]]:
    """Masks over the units of the groups that are cut, and the path of every group that they are from.

    With a tolerance nothing is cut here. Raises BudgetUnreachable and NothingPrunable.
    """
    channels = coupled.channels
    widths = [allowed(g, coupled, settings) for g in channels.groups]
    paths = next(iter(candidates.values()))
    if all(len(w) < 2 for w in widths):
        raise NothingPrunable("every group is too narrow for --round-to and --min-channels; give smaller ones")
    if settings.share is None:
        return {}, paths
    if settings.uniform is None:
        kept, paths = within_budget(loaded, coupled, calibrated, candidates, widths, settings.share, settings)
    else:
        kept = budget.uniform(widths, settings.uniform)
    masks = {g.index: paths[g.index].kept(kept[g.index]) for g in channels.groups if kept[g.index] < g.size}
    if not masks:
        raise NothingPrunable("every group is too narrow for --round-to and --min-channels; give smaller ones")
    whole = parts.with_every_part(channels, masks, paths)
    if whole is None:
        option = "--ratio" if settings.uniform is None else "--uniform"
        raise BudgetUnreachable(f"at {settings.share:.0%} some tensor would keep no channel at all; lower {option}")
    return whole, paths


def within_budget(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    candidates: Mapping[str, Sequence[Path]],
    widths: Sequence[tuple[int, ...]],
    share: float,
    settings: PruneConfig,
) -> tuple[tuple[int, ...], Sequence[Path]]:
    """Units that each group keeps so that the whole meets the budget, by trial cuts, and the better path of each.

    Raises BudgetUnreachable.
    """
    channels = coupled.channels
    price = cost.macs(channels) if settings.budget == "macs" else cost.parameters(channels)
    full = price.at([g.size for g in channels.groups])
    limit = (1.0 - share) * full
    least = budget.smallest(price, widths)
    if least > limit:
        hint = "lower --ratio" + (", or give a smaller --round-to" if settings.round_to > 1 else "")
        raise BudgetUnreachable(
            f"{share:.0%} of the {settings.budget} cannot go: at most {1 - least / full:.1%} can; {hint}"
        )
    tried = [(p, trials_of(loaded, coupled, calibrated, p, widths, settings)) for p in candidates.values()]
    better = [min(tried, key=lambda t, g=g: sum(t[1][g].values())) for g in range(len(channels.groups))]  # type: ignore[misc]
    paths = [found[g] for g, (found, _) in enumerate(better)]
    trials = [found[g] for g, (_, found) in enumerate(better)]
    curves = [budget.measured_curve(p.loss, t) if t else p.loss for p, t in zip(paths, trials, strict=True)]
    for g in coupled.taken.idle:
        # Nothing is known of what they do to the answer, so they go as if each were the most sensitive group.
        known = [c for i, c in enumerate(curves) if i not in coupled.taken.idle]
        curves[g] = budget.worst_curve(known, channels.groups[g].size)
    return budget.allocate(curves, price, budget.Budget(limit, widths)).kept, paths


def trials_of(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    paths: Sequence[Path],
    widths: Sequence[tuple[int, ...]],
    settings: PruneConfig,
) -> list[dict[int, float]]:
    """Per group: units kept → the error of the network's outputs when it alone is cut so far."""
    taken = coupled.taken
    return sensitivity.measure(
        taken.proto,
        taken.channels,
        coupled.layers,
        calibrated.moments,
        loaded.held,
        calibrated.reference,
        paths,
        only={i for i, w in enumerate(widths) if len(w) > 1} - taken.idle,
        types=loaded.normalised.types,
        memory=settings.memory,
        level="least-squares" if settings.refit == "lockstep" else settings.refit,
    )


def coefficients_of(masks: Masks, paths: Sequence[Path]) -> dict[int, Coefficients]:
    """The coefficients that belong to these masks, by group index, where the method gives any."""
    found: dict[int, Coefficients] = {}
    for g, mask in masks.items():
        width = int(mask.sum())
        a = sequential.exchanged(paths[g].coefficients_of(width), paths[g].kept(width), mask)
        if a is not None:
            found[g] = a
    return found
