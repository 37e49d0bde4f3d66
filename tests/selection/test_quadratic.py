"""Quadratic discrepancies, against the samples that they come from."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.selection import Discrepancy, Quadratic
from tests.compare import assert_same
from tests.selection.exhaustive import FAMILIES, family

RTOL = 1e-10


@pytest.mark.parametrize("name", FAMILIES)
def test_value_is_that_of_the_samples(name: str) -> None:
    """Fails where t or c belong to another target than the samples'."""
    p = family(name, 0)
    a = np.random.default_rng(1).uniform(0, 2, p.units)
    assert_same(np.float64(p.quadratic().at(a)), np.float64(p.at(a / p.units)), rtol=RTOL, atol=RTOL * p.scale)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_is_that_of_central_differences(name: str) -> None:
    """Fails where a factor of two or the linear term is lost. On a quadratic central differences are exact."""
    p = family(name, 2)
    d: Discrepancy = p.quadratic()
    a = np.random.default_rng(3).uniform(0, 2, p.units)
    expected = [(p.at((a + e) / p.units) - p.at((a - e) / p.units)) / 2 for e in np.eye(p.units)]
    assert_same(d.gradient(a), np.array(expected), rtol=1e-9, atol=1e-9 * p.scale)


def test_of_gram_costs_nothing_in_full() -> None:
    """Fails where the full layer is not its own target."""
    p = family("plain", 4)
    k = p.s.T @ p.s
    q = Quadratic.of_gram(k)
    a = np.random.default_rng(5).uniform(0, 2, p.units)
    assert_same(np.float64(q.at(np.ones(p.units))), np.float64(0.0), rtol=0.0, atol=RTOL * q.c)
    assert_same(np.float64(q.at(a)), np.sum((p.s @ (1 - a)) ** 2), rtol=RTOL, atol=0.0)


def test_sum_is_the_sum_of_the_values() -> None:
    """Fails where one part of a sum is left out."""
    rng = np.random.default_rng(6)
    parts = [Quadratic(m.T @ m, rng.standard_normal(4), float(rng.standard_normal())) for m in rng.random((2, 6, 4))]
    a = rng.standard_normal(4)
    total = parts[0] + parts[1]
    assert_same(np.float64(total.at(a)), np.float64(sum(q.at(a) for q in parts)), rtol=RTOL, atol=0.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_removing_in_order_is_the_discrepancy_of_the_masks(name: str) -> None:
    """Fails where removal in order and a mask on the coefficients disagree."""
    p = family(name, 7)
    q, order = p.quadratic(), np.random.default_rng(8).permutation(p.units)
    masks = [np.isin(np.arange(p.units), order[m:]).astype(np.float64) for m in range(p.units + 1)]
    expected = np.array([p.at(mask / p.units) for mask in masks])
    assert_same(q.removing(order), expected, rtol=RTOL, atol=RTOL * p.scale)
