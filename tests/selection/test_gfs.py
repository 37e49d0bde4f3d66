"""Greedy forward selection: fixed steps, against exhaustive search over units."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxprune.selection import gfs
from tests.compare import assert_same
from tests.selection.exhaustive import FAMILIES, Samples, family

RTOL = 1e-9


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", FAMILIES)
def test_every_step_takes_the_best_unit_at_its_fixed_weight(name: str, seed: int) -> None:
    """Fails where the plain mean of the units chosen is another than the best extension of the one before."""
    p = family(name, seed)
    chosen: list[int] = []
    for step in itertools.islice(gfs.forward(p.quadratic()), 3 * p.units):
        # The mean over a list of units is the paper's own definition: no γ in it.
        means = [np.bincount([*chosen, i], minlength=p.units) / (len(chosen) + 1) for i in range(p.units)]
        best = min(p.at(m) for m in means)
        assert_same(np.float64(step.gamma), np.float64(1 / (len(chosen) + 1)), rtol=1e-12, atol=0.0)
        assert_same(np.float64(step.loss), np.float64(best), rtol=RTOL, atol=RTOL * p.scale)
        assert_same(step.coefficients / p.units, means[step.unit], rtol=1e-9, atol=1e-11)
        chosen.append(step.unit)


def test_units_repeat() -> None:
    """Fails where a unit that is chosen once is out: a unit that must weigh two thirds is taken twice."""
    p = family("crowded", 3)
    f = p.s[:, :2] @ np.array([2 / 3, 1 / 3])
    q = Samples(p.s[:, :2], f, np.zeros(2)).quadratic()
    units = [s.unit for s in itertools.islice(gfs.forward(q), 3)]
    assert sorted(units) == [0, 0, 1]
