"""From curves to widths where whole layers may go: which of them, and how many units each group keeps beside that.

What a layer does to the outputs when it goes is measured with all its branches at once, as the harm of both is no sum
of what each does alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onnxprune.allocation import budget
from onnxprune.allocation.widths import Widths
from onnxprune.channels.branches import together
from onnxprune.errors import BudgetUnreachable
from onnxprune.numerics.arrays import Doubles, Ints
from onnxprune.stages.couple import Coupled


def with_layers(
    curves: Sequence[Doubles],
    cost: budget.CostModel,
    limit: float,
    coupled: Coupled,
    errors: Mapping[int, float],
    *,
    exact: bool = True,
) -> tuple[int, ...]:
    """The allocation that harms least: without any layer that may go, and with one more of them at a time.

    errors: by number, what each layer does to the outputs when it goes. They go in the order of this over what they
    save in the whole network, those that have to go at first. exact: what does not hold the limit is refused by
    BudgetUnreachable; else what comes nearest is taken, as a measured budget is met in rounds.
    """
    widths = coupled.widths
    full = np.array(coupled.channels.sizes)
    saved = {x.number: cost.at(full) - cost.at(without(full, x.groups)) for x in widths.layers}
    may_go = [n for n, error in errors.items() if n not in widths.gone and saved[n] > 0 and np.isfinite(error)]
    order = sorted(may_go, key=lambda n: errors[n] / saved[n])
    best: tuple[tuple[float, float], tuple[int, ...]] | None = None
    missed: BudgetUnreachable | None = None
    for count in range(len(order) + 1):
        own = widths.without(order[:count])
        out = sorted(own.gone_groups)
        if len(together(coupled.channels, out)) < len(out):
            continue
        try:
            kept = kept_of(curves, cost, limit, own, coupled)
        except BudgetUnreachable as e:
            missed = e
            continue
        rank = max(cost.at(kept) - limit, 0.0), harm_of(kept, curves, coupled, errors)
        if best is None or rank < best[0]:
            best = rank, kept
        if cost.at(without(full, out)) <= limit:  # more than these need not go
            break
    if best is None:
        assert missed is not None  # `named_layers.check_together`: those that have to go can
        raise missed
    if exact and best[0][0] > 0:
        raise BudgetUnreachable("not all layers can go, and what the others may lose is not enough; lower --ratio")
    return best[1]


def without(kept: Ints, groups: Collection[int]) -> Ints:
    """Units of each group, with none of these."""
    fewer = kept.copy()
    fewer[[*groups]] = 0
    return fewer


def harm_of(kept: Sequence[int], curves: Sequence[Doubles], coupled: Coupled, errors: Mapping[int, float]) -> float:
    """What the cuts do to the outputs, by the curves: of layers that go as a whole what both branches do together."""
    gone = [x for x in coupled.widths.layers if x.number in errors and not any(kept[g] for g in x.groups)]
    dead = {d for g, drop in coupled.drops.items() if kept[g] == 0 for d in drop.groups}
    dead = dead.union(*(x.groups for x in gone), *(x.dead for x in gone))
    alone = sum(float(c[k]) for g, (c, k) in enumerate(zip(curves, kept, strict=True)) if g not in dead)
    return alone + sum(errors[x.number] for x in gone)


def kept_of(
    curves: Sequence[Doubles], cost: budget.CostModel, limit: float, allowed: Widths, coupled: Coupled
) -> tuple[int, ...]:
    """The allocation, anew without those branches that cannot go together with others. Raises BudgetUnreachable."""
    widths: Sequence[tuple[int, ...]] = allowed.allowed
    out = allowed.gone_groups
    dies = {g: d.groups for g, d in coupled.drops.items() if widths[g][0] == 0 and d.groups}
    while True:
        allocation = budget.allocate(curves, cost, budget.Budget(limit, widths, dies, allowed.alike))
        empty = sorted((g not in out, float(curves[g][0]), g) for g, n in enumerate(allocation.kept) if n == 0)
        stay = {g for _, _, g in empty} - set(together(coupled.channels, [g for _, _, g in empty]))
        if not stay:
            return allocation.kept
        widths = [w[1:] if g in stay else w for g, w in enumerate(widths)]
        if budget.smallest(cost, widths) > limit:
            raise BudgetUnreachable("branches whose sum nothing else joins cannot all go; lower --ratio")
