"""The composed cost of a latency budget, against sums by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from onnxprune.cost import Length
from onnxprune.latency.latency_cost import LatencyCost, LayerCost
from onnxprune.latency.table import Sample, fit

FULL, FEW = (8, 6), (1, 1)


def layer(*lengths: Length) -> LayerCost:
    """Takes a microsecond and a nanosecond for each product of its lengths."""
    points = product(map(float, range(1, 17)), repeat=len(lengths))
    samples = [Sample(at, 1e-6 + 1e-9 * float(np.prod(at))) for at in points]
    return LayerCost(lengths, fit(samples, tuple(x.at(FULL) for x in lengths)))


A, B = Length(0, ((0, 1.0),)), Length(2, ((1, 2.0),))
LAYERS = (layer(A, B), layer(A), layer(B))


def by_hand(kept: tuple[int, ...]) -> float:
    a, b = kept[0], 2 + 2 * kept[1]
    return sum(1e-6 + 1e-9 * x for x in ((a * b, a) if a else ())) + 1e-6 + 1e-9 * b


def test_it_passes_through_both_measured_models():
    cost = LatencyCost.between(LAYERS, 2, (FULL, 0.9), (FEW, 0.4))
    assert cost.at(FULL) == pytest.approx(0.9)
    assert cost.at(FEW) == pytest.approx(0.4)


def test_between_them_it_is_the_sum_of_the_layers():
    cost = LatencyCost.between(LAYERS, 2, (FULL, 1.0), (FEW, 0.5))
    for kept in product(range(1, 9), range(1, 7)):
        share = (by_hand(kept) - by_hand(FEW)) / (by_hand(FULL) - by_hand(FEW))
        assert cost.at(kept) == pytest.approx(0.5 + 0.5 * share, rel=1e-6)


def test_savings_are_differences():
    cost = LatencyCost.between(LAYERS, 2, (FULL, 1.0), (FEW, 0.5))
    for kept in product(range(1, 9), range(1, 7)):
        for g in (0, 1):
            for fewer in range(kept[g] + 1):
                less = np.array(kept)
                less[g] -= fewer
                expected = cost.at(kept) - cost.at(less)
                assert cost.saving(np.array(kept), g, fewer) == pytest.approx(expected, abs=1e-12)


def test_a_branch_without_units_costs_nothing():
    cost = LatencyCost.between(LAYERS, 2, (FULL, 1.0), (FEW, 0.5))
    gone = cost.constant + cost.scale * by_hand((0, 3))
    assert cost.at((0, 3)) == pytest.approx(gone, rel=1e-6)
    assert cost.saving(np.array((1, 3)), 0, 1) > cost.saving(np.array((2, 3)), 0, 1)


def test_nothing_is_saved_where_fewer_units_are_not_quicker():
    cost = LatencyCost.between(LAYERS, 2, (FULL, 0.5), (FEW, 0.52))
    assert cost.at(FEW) == cost.at(FULL) == 0.5
    assert cost.saving(np.array(FULL), 0, 7) == 0.0


def test_a_layer_goes_with_the_group_that_it_needs():
    """Fails where the layers of a branch that is gone are still paid for, or saving does not see them go."""
    needy = LayerCost(LAYERS[2].lengths, LAYERS[2].table, (0,))
    cost = LatencyCost.between((LAYERS[0], LAYERS[1], needy), 2, (FULL, 1.0), (FEW, 0.5))
    assert cost.at((0, 3)) == pytest.approx(cost.constant)
    assert cost.saving(np.array([2, 3]), 0, 2) == pytest.approx(cost.at((2, 3)) - cost.constant)
