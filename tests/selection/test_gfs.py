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


@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_a_size_is_that_of_fixed_steps(seed: int, sets: int) -> None:
    """Fails where a size holds other units than the best extensions of a plain mean that never hold more."""
    p = family("plain", seed)
    n = p.units - p.units % 2
    rows = np.arange(p.units) % sets if sets > 1 else None
    if rows is not None and p.units % 2:
        return
    for size in range(sets, n, sets):
        chosen: list[int] = []
        for _ in range(3 * p.units):
            held = set(chosen)
            full = [rows is not None and sum(rows[i] == r for i in held) >= size // sets for r in range(sets)]
            open_ = [i for i in range(p.units) if i in held or (len(held) < size and not full[i % sets])]
            means = {i: p.at(np.bincount([*chosen, i], minlength=p.units) / (len(chosen) + 1)) for i in open_}
            chosen.append(min(means, key=lambda i: means[i]))
        mask, a, loss = gfs.best_of_size(p.quadratic(), size, rows)
        if len(set(chosen)) == size:
            assert set(np.flatnonzero(mask).tolist()) == set(chosen)
        assert int(mask.sum()) == size
        assert_same(np.float64(loss), np.float64(p.at(a / p.units)), rtol=0.0, atol=RTOL * p.scale)


def test_units_repeat() -> None:
    """Fails where a unit that is chosen once is out: a unit that must weigh two thirds is taken twice."""
    p = family("crowded", 3)
    f = p.s[:, :2] @ np.array([2 / 3, 1 / 3])
    q = Samples(p.s[:, :2], f, np.zeros(2)).quadratic()
    units = [s.unit for s in itertools.islice(gfs.forward(q), 3)]
    assert sorted(units) == [0, 0, 1]
