"""Sequential selection: groups are cut one by one, from input to output, and each sees the cuts before it.

This is the order of Ye, Wu & Liu (NeurIPS 2020, algorithm 1). A group is selected on the inputs that the pruned network
gives it, towards what the original gives: locally, its consumers' outputs; globally, the network's. How many units stay
is given, or follows from a tolerance on the discrepancy of the outputs between the network as it is pruned so far and
the *original*; the tolerance grows by the same amount from group to group, so that the last cut has as much to spend as
the first.

Which widths are tried is decided here; what a cut of one group is, in `imitate_group`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.allocation import every_part
from onnxprune.allocation.every_part import exchanged
from onnxprune.channels import branches
from onnxprune.config import PruneConfig
from onnxprune.errors import BudgetUnreachable, NothingPrunable
from onnxprune.numerics.arrays import Coefficients, Doubles, Mask, Masks
from onnxprune.selection import Path
from onnxprune.selection.proposals import Proposal
from onnxprune.stages.calibrate import Calibrated
from onnxprune.stages.couple import Coupled
from onnxprune.stages.imitate_group import Choice, LayersGroup, MaskedGroup, Network, Step, Weights
from onnxprune.stages.load import Loaded

Cut = tuple[dict[int, Mask], dict[int, Coefficients]]


@dataclass(frozen=True, eq=False)
class Selected:
    """The choices in their order."""

    choices: tuple[Choice, ...]

    @property
    def masks(self) -> dict[int, Mask]:
        """Kept units by group index."""
        return {c.group: c.kept for c in self.choices}

    @property
    def coefficients(self) -> dict[int, Doubles]:
        """Coefficients by group index, of the groups that have any."""
        return {c.group: c.coefficients for c in self.choices if c.coefficients is not None}


def imitate(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    candidates: Mapping[str, Sequence[Path]],
    masks: Masks,
    settings: PruneConfig,
) -> Cut:
    """Cut group by group, each on the inputs that the cuts before it left: to the widths of `masks`, or as far as the
    tolerance goes. Raises BudgetUnreachable and NothingPrunable."""
    if settings.tolerance is None:
        widths: dict[int, tuple[int, ...]] = {g: (int(mask.sum()),) for g, mask in masks.items()}
    else:
        widths = {g: w for g, w in enumerate(coupled.widths.allowed) if len(w) > 1 and g not in coupled.taken.idle}
    chosen = in_sequence(loaded, coupled, calibrated, candidates, widths, settings)
    if not chosen.masks:
        raise NothingPrunable(f"not one group can be cut within a tolerance of {settings.tolerance}; give a larger one")
    dead = branches.dead_groups(coupled.drops, chosen.masks)
    masks = {g: mask for g, mask in chosen.masks.items() if g not in dead}
    return masks, {g: a for g, a in chosen.coefficients.items() if g not in dead}


def in_sequence(
    loaded: Loaded,
    coupled: Coupled,
    calibrated: Calibrated,
    candidates: Mapping[str, Sequence[Path]],
    widths: Mapping[int, Sequence[int]],
    settings: PruneConfig,
) -> Selected:
    """Cut every group of `widths`: to its only width, or to the narrowest that the tolerance allows.

    candidates: by what is imitated, the paths of all groups from the first selection. widths: group index → numbers of
    units that may stay, ascending; where the tolerance decides, the last is all of them.
    Raises BudgetUnreachable where a tensor would be left without a channel.
    """
    network = Network(loaded, coupled, calibrated, candidates, settings)
    order = sorted(widths, key=network.place)
    for i, g in enumerate(order):
        limit = None if settings.tolerance is None else settings.tolerance * (i + 1) / len(order)
        cut_group(network, g, list(widths[g]), limit)
    return Selected(tuple(network.choices))


def cut_group(network: Network, g: int, widths: Sequence[int], limit: float | None) -> None:
    """Cut one group and leave the network so."""
    step: Step = LayersGroup(network, g) if g in network.by_layers else MaskedGroup(network, g)
    attempts = [narrowest_cut(network, step, name, p, widths, limit) for name, p in step.proposals().items()]
    tried = [f for f in attempts if f is not None]
    if tried:
        narrowest = min(int(choice.kept.sum()) for choice, _ in tried)
        equal = [f for f in tried if int(f[0].kept.sum()) == narrowest]
        best = equal[0] if len(equal) == 1 else min(equal, key=lambda f: step.compared(*f))
        network.choices.append(best[0])
        step.leave(*best)


def narrowest_cut(
    network: Network, step: Step, name: str, propose: Proposal, widths: Sequence[int], limit: float | None
) -> tuple[Choice, Weights] | None:
    """The cut to the only width, or to the narrowest within the limit; None where the group stays whole."""
    if limit is None:
        attempt = cut_to(network, step, name, propose, widths[0])
        if attempt is None:
            raise BudgetUnreachable("some tensor would keep no channel at all; remove less")
        return attempt
    best: tuple[Choice, Weights] | None = None
    low, high = 0, len(widths) - 1
    while low < high:
        middle = (low + high) // 2
        attempt = cut_to(network, step, name, propose, widths[middle])
        if attempt is not None and attempt[0].error <= limit:
            best, high = attempt, middle
        else:
            low = middle + 1
    return best


def cut_to(network: Network, step: Step, name: str, propose: Proposal, width: int) -> tuple[Choice, Weights] | None:
    """The cut to a width; None where it would leave some tensor without a channel."""
    none = np.zeros(network.channels.groups[step.group].size, bool)
    wanted, coefficients = propose(width) if width else (none, None)
    mask = _with_every_part(network, step.group, wanted)
    if mask is None:
        return None
    coefficients = exchanged(coefficients, wanted, mask)
    weights = step.folded(mask, coefficients)
    return Choice(step.group, name, mask, step.error(mask, weights), coefficients), weights


def _with_every_part(network: Network, g: int, mask: Mask) -> Mask | None:
    paths = next(iter(network.candidates.values()))
    whole = every_part.with_every_part(network.channels, {**network.kept, g: mask}, paths)
    if whole is None or any(not np.array_equal(whole[i], k) for i, k in network.kept.items()):
        return None
    return whole[g]
