"""Allocation: how many units each group keeps, so that the whole fits a budget at the least discrepancy.

Curves give the discrepancy of each group against the units kept; costs are evaluated on the whole model. A greedy walk
takes, at every step, the cut with the least added discrepancy per cost saved, looking several widths ahead because
curves are not convex. Savings only shrink as other groups shrink, so scores only grow and a heap with lazy
re-evaluation finds the best cut. Then widths are given back where the budget leaves room.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, lcm
from typing import Protocol

import numpy as np

from onnxprune.numerics.arrays import Doubles, Ints

Counts = Ints

_LOOK_AHEAD = 8
_ROUNDING = 1e-9


class CostModel(Protocol):
    """What allocation needs of a cost (see `cost.Cost`)."""

    def at(self, kept: Counts | Sequence[int]) -> float:
        """The cost of the whole model with these units kept."""

    def saving(self, kept: Counts, group: int, fewer: int) -> float:
        """What keeping `fewer` units less of a group saves."""


@dataclass(frozen=True)
class Budget:
    """limit: the cost that may remain. widths: allowed numbers of kept units per group, ascending, the last = all, or
    as many as are left to choose from.

    dies: group → the other groups that disappear with its last unit, and whose discrepancy then no longer counts.
    alike: groups of the same widths that keep equally many units; none of them disappears with another.
    """

    limit: float
    widths: Sequence[tuple[int, ...]]
    dies: Mapping[int, Collection[int]] = field(default_factory=dict)
    alike: Sequence[tuple[int, ...]] = ()


@dataclass(frozen=True)
class Allocation:
    """kept: units per group; reached: whether the limit holds."""

    kept: tuple[int, ...]
    cost: float
    reached: bool


def allowed_widths(
    units: int, channels_per_unit: int, round_to: int, min_channels: int, sets: int = 1
) -> tuple[int, ...]:
    """Numbers of units whose channel count is a multiple of `round_to`, from `min_channels` on, and all of them.

    sets: balanced sets, of which equally many units stay.
    """
    step = lcm(round_to // gcd(round_to, channels_per_unit), sets)
    low = max(-(-min_channels // channels_per_unit), 1)
    first = -(-low // step) * step
    return (*range(first, units, step), units)


def useful_alignment(
    units: int,
    channels_per_unit: int,
    alignment: int,
    min_channels: int,
    sets: int = 1,
    *,
    least: int = 1,
    share: float,
) -> int:
    """`alignment`, halved until a group can lose `share` of its units, or, where nothing allows that, any of them.

    least: units that must stay. A group that could lose less would hardly take part in a cut of that share: 16 channels
    have no narrower multiple of 32, and 10 channels none of 8 that is worth it.
    """
    steps = [alignment >> i for i in range(alignment.bit_length())]

    def narrowest(step: int) -> int:
        widths = allowed_widths(units, channels_per_unit, step, min_channels, sets)
        return min(w for w in widths if w >= max(least, 1))

    for most in (max(int((1.0 - share) * units + _ROUNDING), 1), units - 1):
        for step in steps:
            if narrowest(step) <= most < units:
                return step
    return alignment


def uniform(widths: Sequence[tuple[int, ...]], share: float) -> tuple[int, ...]:
    """Units that each group keeps when it loses `share` of them: the most that its widths allow, or else its least.

    Widths are rounded down, so a group loses the share or more, except where it is too narrow for that.
    """
    return tuple(max((n for n in w if n <= (1.0 - share) * w[-1] + _ROUNDING), default=w[0]) for w in widths)


def nearest(widths: Sequence[int], wanted: float) -> int:
    """The width that is nearest to what is wanted, of two the wider."""
    return min(reversed(widths), key=lambda n: abs(n - wanted))


def within_each(widths: Sequence[tuple[int, ...]], curves: Sequence[Doubles], tolerance: float) -> tuple[int, ...]:
    """The fewest units that each group may keep with a discrepancy of at most `tolerance` times that of keeping none.

    curves[g] (N_g + 1,): discrepancy with n units kept, falling with n. A group of which nothing is known, whose curve
    is 0 throughout, stays whole.
    """
    return tuple(
        next((n for n in w if c[0] > 0 and c[n] <= tolerance * c[0]), w[-1])
        for w, c in zip(widths, curves, strict=True)
    )


@dataclass(frozen=True, eq=False)
class _Alike:
    """A cost in which the first group of every set stands for all of them."""

    cost: CostModel
    followers: Mapping[int, tuple[int, ...]]

    def whole(self, kept: Counts | Sequence[int]) -> Counts:
        """The units of all groups, those of the followers as of their first one."""
        counts = np.array(kept, np.int64)
        for first, others in self.followers.items():
            counts[[*others]] = counts[first]
        return counts

    def at(self, kept: Counts | Sequence[int]) -> float:
        """The cost of the whole model."""
        return self.cost.at(self.whole(kept))

    def saving(self, kept: Counts, group: int, fewer: int) -> float:
        """What keeping `fewer` units less of a group, and of those that follow it, saves."""
        counts, saved = self.whole(kept), 0.0
        for g in (group, *self.followers.get(group, ())):
            saved += self.cost.saving(counts, g, fewer)
            counts[g] -= fewer
        return saved


def allocate(curves: Sequence[Doubles], cost: CostModel, budget: Budget) -> Allocation:
    """The allocation. curves[g] (N_g + 1,): discrepancy of group g with n units kept, falling with n."""
    if not budget.alike:
        return _allocate(curves, cost, budget)
    followers = {first: others for first, *others in map(tuple, budget.alike)}
    together, own, widths = _Alike(cost, {k: tuple(v) for k, v in followers.items()}), [*curves], [*budget.widths]
    for first, others in followers.items():
        own[first] = np.sum([curves[g] for g in (first, *others)], axis=0)
        for g in others:
            own[g], widths[g] = np.zeros_like(curves[g]), widths[g][-1:]
    found = _allocate(own, together, Budget(budget.limit, widths, budget.dies))
    return Allocation(tuple(together.whole(found.kept).tolist()), found.cost, found.reached)


def _allocate(curves: Sequence[Doubles], cost: CostModel, budget: Budget) -> Allocation:
    kept = np.array([w[-1] for w in budget.widths], np.int64)
    positions = [len(w) - 1 for w in budget.widths]
    current = cost.at(kept)
    heap: list[tuple[float, int, int, int]] = []
    stamp = [0] * len(curves)
    owners = {d: [g for g, dying in budget.dies.items() if d in dying] for d in set().union(*budget.dies.values())}

    def best_cut(g: int) -> tuple[float, int] | None:
        best: tuple[float, int] | None = None
        present = _discrepancy(curves, budget, kept, g, int(kept[g]))
        looked = 0
        for to in range(positions[g] - 1, -1, -1):
            if looked >= _LOOK_AHEAD and budget.widths[g][to] > 0:  # an empty group is always in view
                continue
            fewer = budget.widths[g][positions[g]] - budget.widths[g][to]
            saved = cost.saving(kept, g, fewer)
            # Time goes in steps, which may be wider than any look ahead: what saves nothing does not count.
            if saved <= 0:
                continue
            looked += 1
            score = (_discrepancy(curves, budget, kept, g, budget.widths[g][to]) - present) / saved
            if best is None or score < best[0]:
                best = (score, to)
        return best

    def push(g: int) -> None:
        cut = best_cut(g)
        if cut is not None:
            heapq.heappush(heap, (cut[0], g, cut[1], stamp[g]))

    for g in range(len(curves)):
        push(g)
    while current > budget.limit and heap:
        score, g, to, when = heapq.heappop(heap)
        if when != stamp[g]:
            continue
        fresh = best_cut(g)
        if fresh is None:
            continue
        if heap and fresh[0] > heap[0][0] and fresh[0] > score * (1 + 1e-12):
            heapq.heappush(heap, (fresh[0], g, fresh[1], stamp[g]))
            continue
        to = fresh[1]
        kept[g] = budget.widths[g][to]
        positions[g] = to
        stamp[g] += 1
        current = cost.at(kept)
        push(g)
        for owner in owners.get(g, ()):  # what is lost with the whole is less worth now
            stamp[owner] += 1
            push(owner)
    reached = current <= budget.limit
    if reached:
        _give_back(curves, cost, budget, kept, positions)
    return Allocation(tuple(int(k) for k in kept), cost.at(kept), reached)


def _discrepancy(curves: Sequence[Doubles], budget: Budget, kept: Counts, g: int, width: int) -> float:
    """Of a group at a width and, unless it is empty then, of the groups that would die with it, as they are."""
    others = budget.dies.get(g, ()) if width else ()
    return float(curves[g][width] + sum(curves[d][kept[d]] for d in others))


def _give_back(curves: Sequence[Doubles], cost: CostModel, budget: Budget, kept: Counts, positions: list[int]) -> None:
    """Widen groups while the budget has room, where that lowers the discrepancy most."""
    while True:
        room = budget.limit - cost.at(kept)
        best: tuple[float, int, int] | None = None
        dead = {d for g, dying in budget.dies.items() if not kept[g] for d in dying}
        for g, widths in enumerate(budget.widths):
            if g in dead:
                continue
            for to in range(positions[g] + 1, min(positions[g] + 1 + _LOOK_AHEAD, len(widths))):
                wider = kept.copy()
                wider[g] = widths[to]
                added = cost.saving(wider, g, widths[to] - widths[positions[g]])
                if added > room:
                    break
                now, then = (_discrepancy(curves, budget, kept, g, n) for n in (widths[positions[g]], widths[to]))
                gain = now - then
                if gain > 0 and (best is None or gain > best[0]):
                    best = (gain, g, to)
        if best is None:
            return
        _, g, to = best
        positions[g] = to
        kept[g] = budget.widths[g][to]


def smallest(cost: CostModel, widths: Sequence[tuple[int, ...]]) -> float:
    """The cost with every group at its least width."""
    return cost.at(np.array([w[0] for w in widths], np.int64))


def worst_curve(curves: Sequence[Doubles], units: int) -> Doubles:
    """The highest of these curves at every share of units kept, (units + 1,); zeros where there are none."""
    share = np.linspace(0.0, 1.0, units + 1)
    worst = np.zeros(units + 1)
    for c in curves:
        worst = np.maximum(worst, np.interp(share, np.linspace(0.0, 1.0, c.size), c))
    return worst


def measured_curve(loss: Doubles, trials: Mapping[int, float]) -> Doubles:
    """A local curve in units of measured output discrepancy.

    loss (N + 1,): local discrepancy with n units kept; trials: n → output discrepancy measured with n kept. Between
    and beyond the trials, the ratio of measured to local is interpolated over n.
    """
    n = np.arange(loss.size)
    # Below this share a local discrepancy is rounding, and its ratio to a measured one means nothing.
    usable = np.array([k for k in sorted(trials) if loss[k] > _ROUNDING * loss.max()], np.int64)
    if usable.size:
        curve = loss * np.interp(n, usable, [trials[k] / loss[k] for k in usable.tolist()])
    else:
        tried = sorted(trials)
        curve = np.interp(n, [*tried, loss.size - 1], [*(trials[k] for k in tried), 0.0])
    # Keeping fewer is never better: enforce what noise in the trials may break.
    monotone: Doubles = np.maximum.accumulate(curve[::-1])[::-1].copy()
    return monotone
