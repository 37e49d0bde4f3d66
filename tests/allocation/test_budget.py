"""Allocation, against exhaustive search."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxprune.allocation.budget import (
    Budget,
    allocate,
    allowed_widths,
    measured_curve,
    nearest,
    smallest,
    uniform,
    within_each,
)
from onnxprune.cost import Cost, Length, Term
from tests.compare import assert_same

Array = NDArray[np.float64]


def chain(widths: tuple[int, ...], inputs: int = 3, outputs: int = 5) -> Cost:
    """MACs of a chain of layers: every group is the output of one layer and the input of the next."""
    n = len(widths)
    ends = [Length(inputs), *(Length(0, ((g, 1),)) for g in range(n)), Length(outputs)]
    return Cost.of([Term(2.0, pair) for pair in pairwise(ends)], n)


def separate(costs: tuple[float, ...]) -> Cost:
    """Every unit of a group costs the same, whatever the others keep."""
    return Cost.of([Term(c, (Length(0, ((g, 1),)),)) for g, c in enumerate(costs)], len(costs))


def convex_curve(units: int, rng: np.random.Generator) -> Array:
    """Falling with the units kept, ever less."""
    falls = np.sort(rng.exponential(size=units) * rng.uniform(0.1, 10.0))
    return np.concatenate([[0.0], np.cumsum(falls)])[::-1].copy()


def falling_curve(units: int, rng: np.random.Generator) -> Array:
    """Falling with the units kept, with steps of any size."""
    return np.concatenate([[0.0], np.cumsum(rng.exponential(size=units) ** 3)])[::-1].copy()


def total(curves: list[Array], kept: tuple[int, ...]) -> float:
    return float(sum(c[k] for c, k in zip(curves, kept, strict=True)))


def exhaustive(curves: list[Array], cost: Cost, budget: Budget) -> float:
    """The least discrepancy within the limit."""
    return min(total(curves, kept) for kept in product(*budget.widths) if cost.at(kept) <= budget.limit)


def every(units: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tuple(range(1, n + 1)) for n in units]


@dataclass(frozen=True)
class Instance:
    units: tuple[int, ...]
    seed: int
    share: float


INSTANCES = [
    Instance(units, seed, share)
    for units in ((6,), (5, 4), (4, 6, 3), (7, 5, 6))
    for seed in range(5)
    for share in (0.3, 0.5, 0.8)
]


@pytest.mark.parametrize("i", INSTANCES, ids=str)
def test_convex_curves_at_equal_costs_are_allocated_exactly(i: Instance) -> None:
    """Fails where greedy takes anything but the cheapest removal: it is exact here, up to 1e-12 of rounding."""
    rng = np.random.default_rng(i.seed)
    curves = [convex_curve(n, rng) for n in i.units]
    cost = separate((1.0,) * len(i.units))
    budget = Budget(i.share * sum(i.units), every(i.units))
    if smallest(cost, budget.widths) > budget.limit:
        return
    found = allocate(curves, cost, budget)
    assert found.reached
    assert_same(
        np.float64(total(curves, found.kept)), np.float64(exhaustive(curves, cost, budget)), rtol=1e-12, atol=0.0
    )


@pytest.mark.parametrize("i", INSTANCES, ids=str)
def test_coupled_costs_come_close_to_the_best(i: Instance) -> None:
    """Fails where the walk or the exchange at its end gets worse. A knapsack over products is not solved exactly by
    greedy steps; on these tiny instances, where a single unit is much of the budget, it stays within a factor of 2."""
    rng = np.random.default_rng(i.seed)
    curves = [convex_curve(n, rng) for n in i.units]
    cost = chain(i.units)
    budget = Budget(i.share * cost.at(i.units), every(i.units))
    if smallest(cost, budget.widths) > budget.limit:
        return
    found = allocate(curves, cost, budget)
    best = exhaustive(curves, cost, budget)
    assert found.reached
    assert best <= total(curves, found.kept) * (1 + 1e-12)
    assert total(curves, found.kept) <= 2.0 * best + 1e-12


def test_a_branch_goes_as_a_whole_where_that_is_cheaper() -> None:
    """Fails where the last step to nothing is not seen from afar, or what dies with a group still counts."""
    curves = [np.linspace(1.0, 0.0, 31), np.linspace(1.0, 0.0, 31)]
    cheap = np.r_[0.3, np.linspace(0.3, 0.0, 30)]
    cost = Cost.of([Term(1.0, (Length(0, ((0, 1),)),), ((2,),)), Term(1.0, (Length(0, ((1, 1),)),))], 3)
    widths = [*every((30, 30)), (0, *every((30,))[0])]
    found = allocate([*curves, cheap], cost, Budget(31.0, widths, {2: frozenset({0})}))
    assert found.kept[1:] == (30, 0)
    assert found.reached
    assert allocate([*curves, cheap], cost, Budget(31.0, every((30, 30, 30)))).kept[2] == 30


def test_what_is_lost_with_a_branch_no_longer_counts() -> None:
    """Fails where a group that was narrowed dearly is not given up for a branch that costs little more."""
    narrow, other, whole = np.array([9.0, 4.0, 0.0]), np.array([9.0, 6.0, 0.0]), np.array([9.0, 0.0])
    cost = Cost.of([Term(1.0, (Length(0, ((0, 1),)),), ((2,),)), Term(1.0, (Length(0, ((1, 1),)),))], 3)
    widths = [(1, 2), (1, 2), (0, 1)]
    assert allocate([narrow, other, whole], cost, Budget(2.0, widths, {2: {0}})).kept[1:] == (2, 0)
    assert allocate([narrow, other, whole], cost, Budget(2.0, widths)).kept[1:] == (1, 1)


def test_one_group_is_allocated_exactly_whatever_its_curve() -> None:
    """Fails where a single group keeps fewer units than the budget allows."""
    for seed in range(10):
        curve = falling_curve(9, np.random.default_rng(seed))
        for limit in range(1, 10):
            found = allocate([curve], separate((1.0,)), Budget(float(limit), every((9,))))
            assert found.kept == (limit,)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 10_000), st.floats(0.01, 1.2), st.booleans()
)
def test_limit_holds_when_reached_and_nothing_more_can_go_when_not(
    units: list[int], seed: int, share: float, convex: bool
) -> None:
    """Fails where `reached` is not the truth, a width is not an allowed one, or the cost is not that of the widths."""
    rng = np.random.default_rng(seed)
    curves = [(convex_curve if convex else falling_curve)(n, rng) for n in units]
    cost = chain(tuple(units))
    widths = [allowed_widths(n, 1, int(rng.integers(1, 4)), int(rng.integers(1, 3))) for n in units]
    budget = Budget(share * cost.at(units), widths)
    found = allocate(curves, cost, budget)
    assert all(k in w for k, w in zip(found.kept, widths, strict=True))
    assert_same(np.float64(found.cost), np.float64(cost.at(found.kept)), rtol=1e-12, atol=0.0)
    assert found.reached == (found.cost <= budget.limit)
    assert found.reached == (smallest(cost, widths) <= budget.limit)
    if not found.reached:
        assert found.cost == smallest(cost, widths)
    else:
        # No group can be widened for free any more.
        for g, w in enumerate(widths):
            wider = [x for x in w if x > found.kept[g]][:1]
            for x in wider:
                kept = list(found.kept)
                kept[g] = x
                lower = curves[g][x] < curves[g][found.kept[g]]
                assert not lower or cost.at(kept) > budget.limit * (1 - 1e-12)


def test_a_budget_that_everything_meets_keeps_everything() -> None:
    """Fails where something is removed without need."""
    curves = [convex_curve(5, np.random.default_rng(0)), convex_curve(4, np.random.default_rng(1))]
    cost = chain((5, 4))
    assert allocate(curves, cost, Budget(cost.at((5, 4)), every((5, 4)))).kept == (5, 4)


@pytest.mark.parametrize("seed", range(5))
def test_more_budget_never_does_worse_at_equal_costs(seed: int) -> None:
    """Fails where the discrepancy grows with the budget."""
    rng = np.random.default_rng(seed)
    curves = [convex_curve(n, rng) for n in (6, 5, 7)]
    cost = separate((1.0, 1.0, 1.0))
    losses = [total(curves, allocate(curves, cost, Budget(float(b), every((6, 5, 7)))).kept) for b in range(3, 19)]
    assert (np.diff(losses) <= 1e-12).all()


def test_a_cliff_behind_a_plateau_is_seen() -> None:
    """Fails where only the next width is looked at: here the first removal is dear and the following seven are free."""
    plateau = np.array([50.0, *(1.0,) * 8, 0.0])
    steady = np.linspace(9.0, 0.0, 10)
    found = allocate([plateau, steady], separate((1.0, 1.0)), Budget(11.0, every((9, 9))))
    assert found.reached
    assert total([plateau, steady], found.kept) == 1.0


def test_groups_that_save_nothing_are_left_alone() -> None:
    """Fails where units are removed that cost nothing."""
    cost = Cost.of([Term(1.0, (Length(0, ((0, 1),)),))], 2)
    found = allocate([np.array([3.0, 2.0, 0.0]), np.zeros(4)], cost, Budget(1.0, every((2, 3))))
    assert found.kept == (1, 3)
    assert found.reached


@pytest.mark.parametrize(
    ("units", "per_unit", "round_to", "least", "expected"),
    [
        (16, 1, 8, 1, (8, 16)),
        (20, 1, 8, 1, (8, 16, 20)),
        (20, 1, 8, 9, (16, 20)),
        (6, 1, 8, 1, (6,)),
        (6, 1, 1, 1, (1, 2, 3, 4, 5, 6)),
        (6, 1, 1, 3, (3, 4, 5, 6)),
        (6, 4, 8, 1, (2, 4, 6)),
        (5, 4, 8, 1, (2, 4, 5)),
        (4, 8, 8, 1, (1, 2, 3, 4)),
        (4, 16, 8, 17, (2, 3, 4)),
        (9, 3, 8, 1, (8, 9)),
        (9, 6, 8, 1, (4, 8, 9)),
        (5, 1, 2, 100, (5,)),
        (1, 1, 8, 1, (1,)),
    ],
)
def test_allowed_widths(units: int, per_unit: int, round_to: int, least: int, expected: tuple[int, ...]) -> None:
    """Fails where a width is no multiple in channels, is below the minimum, or the full width is missing."""
    assert allowed_widths(units, per_unit, round_to, least) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(1, 12), st.integers(1, 16), st.integers(1, 40))
def test_allowed_widths_are_those_that_the_rule_names(units: int, per_unit: int, round_to: int, least: int) -> None:
    """Fails where the closed form differs from trying every number."""
    expected = [n for n in range(1, units) if n * per_unit % round_to == 0 and n * per_unit >= least]
    assert allowed_widths(units, per_unit, round_to, least) == (*expected, units)


@pytest.mark.parametrize(
    ("units", "per_unit", "round_to", "share", "expected"),
    [
        (64, 1, 8, 0.5, 32),
        (24, 1, 8, 0.5, 8),
        (40, 1, 8, 0.5, 16),
        (20, 1, 1, 0.5, 10),
        (15, 1, 1, 0.5, 7),
        (64, 1, 8, 0.25, 48),
        (64, 1, 8, 0.9, 8),
        (8, 1, 8, 0.5, 8),
        (6, 1, 8, 0.5, 6),
        (12, 1, 8, 0.5, 8),
        (32, 4, 8, 0.5, 16),
        (6, 4, 8, 0.5, 2),
        (10, 1, 1, 0.3, 7),
        (10, 1, 1, 0.9, 1),
        (100, 1, 1, 0.42, 58),
    ],
)
def test_uniform(units: int, per_unit: int, round_to: int, share: float, expected: int) -> None:
    """Fails where a width is not rounded down, or rounding of the share itself takes one unit too many."""
    assert uniform([allowed_widths(units, per_unit, round_to, 1)], share) == (expected,)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 16), st.integers(1, 40), st.integers(1, 99))
def test_uniform_loses_the_share_and_no_width_more(
    units: int, per_unit: int, round_to: int, least: int, percent: int
) -> None:
    """Fails where a group loses less than the share although a width allows it, or more than the next width needs."""
    widths = allowed_widths(units, per_unit, round_to, least)
    (kept,) = uniform([widths], percent / 100)
    enough = [n for n in widths if 100 * n <= (100 - percent) * units]
    assert kept == (enough[-1] if enough else widths[0])


def test_measured_curve_passes_through_its_trials() -> None:
    """Fails where a trial is not honoured, or the ratio between two trials is not interpolated."""
    loss = np.array([8.0, 4.0, 2.0, 1.0, 0.0])
    found = measured_curve(loss, {1: 40.0, 3: 2.0})
    assert_same(found, np.array([80.0, 40.0, 12.0, 2.0, 0.0]), rtol=1e-12, atol=0.0)


def test_measured_curve_where_the_local_one_says_nothing() -> None:
    """Fails where a local discrepancy of zero hides a measured one, or rounding at one trial inflates the others."""
    assert_same(measured_curve(np.zeros(5), {2: 6.0}), np.array([6.0, 6.0, 6.0, 3.0, 0.0]), rtol=1e-12, atol=0.0)
    noisy = measured_curve(np.array([8.0, 4.0, 2.0, 1e-15, 0.0]), {1: 4.0, 3: 1e-12})
    assert_same(noisy, np.array([8.0, 4.0, 2.0, 1e-15, 0.0]), rtol=1e-12, atol=0.0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(2, 30), st.integers(0, 10_000))
def test_measured_curve_falls_and_ends_at_zero(units: int, seed: int) -> None:
    """Fails where noise in the trials makes it better to keep fewer, or a local loss of zero divides."""
    rng = np.random.default_rng(seed)
    loss = falling_curve(units, rng)
    loss[rng.integers(0, units) :] = 0.0
    trials = {int(n): float(rng.exponential()) for n in rng.integers(1, units + 1, 3) if n < units} or {1: 1.0}
    before = loss.copy()
    found = measured_curve(loss, trials)
    assert found.shape == loss.shape
    assert np.isfinite(found).all()
    assert (np.diff(found) <= 0.0).all()
    assert found[-1] == 0.0
    assert_same(loss, before, rtol=0.0, atol=0.0)


def test_one_curve_entry_off_by_a_hundredth_is_seen() -> None:
    """The mutation check: of two removals within 1 % of each other the cheaper one is taken."""
    dear, cheap = np.array([9.0, 1.0, 0.0]), np.array([9.0, 0.995, 0.0])
    cost = separate((1.0, 1.0))
    assert allocate([dear, cheap], cost, Budget(3.0, every((2, 2)))).kept == (2, 1)
    cheap[1] *= 1.01
    assert allocate([dear, cheap], cost, Budget(3.0, every((2, 2)))).kept == (1, 2)


@dataclass(frozen=True)
class Stepped:
    """Costs that go in steps of `block` units, as times do."""

    block: int
    groups: int

    def at(self, kept: NDArray[np.int64]) -> float:
        return float(sum(-(-int(n) // self.block) for n in kept))

    def saving(self, kept: NDArray[np.int64], group: int, fewer: int) -> float:
        return float(-(-int(kept[group]) // self.block) - -(-(int(kept[group]) - fewer) // self.block))


@pytest.mark.parametrize("block", [1, 8, 16, 32])
def test_steps_wider_than_the_look_ahead_are_taken(block: int) -> None:
    """Fails where a group is stuck because its next few widths save nothing."""
    steep, flat = np.linspace(9.0, 0.0, 97), np.linspace(1.0, 0.0, 97)
    cost = Stepped(block, 2)
    limit = cost.at(np.array([96, 96])) - 2
    found = allocate([steep, flat], cost, Budget(limit, every((96, 96))))
    assert found.reached
    assert found.kept == (96, 96 - 2 * block)


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 1e-9])
def test_a_tolerance_of_each_group_keeps_the_fewest_units(tolerance: float) -> None:
    """Fails where a group keeps fewer or more than its curve allows, or one of which nothing is known is cut."""
    rng = np.random.default_rng(0)
    widths = [(1, 2, 3, 4, 5, 6), (2, 4, 6), (0, 1, 2, 3), (1, 4)]
    curves = [falling_curve(w[-1], rng) for w in widths[:3]] + [np.zeros(5)]
    found = within_each(widths, curves, tolerance)
    for w, curve, n in zip(widths, curves, found, strict=True):
        enough = [k for k in w if curve[0] and curve[k] / curve[0] <= tolerance]
        assert n == (min(enough) if enough else w[-1])
    assert found[3] == 4


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("alike", [((0, 2),), ((1, 3), (0, 2)), ((0, 1, 2, 3),)])
def test_groups_that_are_alike_keep_as_many(seed: int, alike: tuple[tuple[int, ...], ...]) -> None:
    """Fails where a group goes its own way, or where those that move together are counted as one: it is what comes of
    a problem that has them as one group, whose curve and cost are the sums."""
    rng = np.random.default_rng(seed)
    curves, prices = [convex_curve(6, rng) for _ in range(4)], (1.0, 2.0, 3.0, 1.0)
    limit = rng.uniform(0.3, 0.8) * 6 * sum(prices)
    found = allocate(curves, separate(prices), Budget(limit, every((6,) * 4), alike=alike))
    sets = [*alike, *((g,) for g in range(4) if all(g not in groups for groups in alike))]
    sums = [np.sum([curves[g] for g in groups], axis=0) for groups in sets]
    merged = separate(tuple(sum(prices[g] for g in groups) for groups in sets))
    expected = allocate(sums, merged, Budget(limit, every((6,) * len(sets))))
    assert {g: k for groups, k in zip(sets, expected.kept, strict=True) for g in groups} == dict(enumerate(found.kept))
    assert found.reached and found.cost == separate(prices).at(found.kept) <= limit


def test_the_nearest_width_is_taken_and_of_two_the_wider() -> None:
    assert [nearest((8, 16, 24), wanted) for wanted in (3.0, 11.9, 12.0, 30.0)] == [8, 8, 16, 24]
