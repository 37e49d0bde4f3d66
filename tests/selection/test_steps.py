"""From steps to paths: every size has a support, coefficients and the discrepancy of these."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import nnls

from onnxprune.selection import Path, gfs
from onnxprune.selection.imitation import best_of_size, greedy, imitate
from tests.compare import assert_same
from tests.selection.exhaustive import FAMILIES, Samples, family

RTOL = 1e-9
METHODS = {
    "imitate": imitate,
    "free": lambda q, rows=None: imitate(q, rows=rows, free=True),
    "forward": gfs.select,
    "few steps": lambda q, rows=None: imitate(q, slack=1, rows=rows),
}


def check_path(p: Samples, path: Path) -> None:
    """The invariants of every path with coefficients."""
    n = p.units
    assert sorted(path.order.tolist()) == list(range(n))
    assert path.loss[n] == 0.0
    assert (np.diff(path.loss) <= 0.0).all()
    for size in range(n + 1):
        kept, a = path.kept(size), path.coefficients_of(size)
        assert int(kept.sum()) == size
        assert a is not None
        assert (a >= 0.0).all()
        assert not a[~kept].any()
        assert a.sum() <= n * (1 + 1e-9)
        expected = p.at(a / n)
        assert_same(np.float64(path.floor + path.loss[size]), np.float64(expected), rtol=0.0, atol=RTOL * p.scale)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(FAMILIES), st.sampled_from(sorted(METHODS)), st.integers(1, 3))
def test_paths_keep_their_promises(seed: int, name: str, method: str, sets: int) -> None:
    """Fails where a size is missing, costs more than a smaller one, or has other coefficients than its discrepancy."""
    p = family(name, seed)
    balanced = sets > 1 and p.units % sets == 0
    rows = np.random.default_rng(seed).permutation(np.arange(p.units) % sets) if balanced else None
    path = METHODS[method](p.quadratic(), rows=rows)
    check_path(p, path)
    if rows is not None:
        for size in range(0, p.units + 1, sets):
            assert (np.bincount(rows[path.kept(size)], minlength=sets) == size // sets).all()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["plain", "opposite", "crowded"])
def test_the_full_layer_stays_as_it_is(name: str, seed: int) -> None:
    """Fails where a layer that loses nothing is rescaled, or costs something."""
    p = family(name, seed)
    path = imitate(p.quadratic())
    a = path.coefficients_of(p.units)
    assert a is not None
    assert (a == 1.0).all()
    assert_same(np.float64(path.floor), np.float64(0.0), rtol=0.0, atol=1e-12 * p.scale)
    assert_same(np.float64(path.loss[0]), np.float64(p.scale), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("seed", range(12))
def test_with_pruned_inputs_the_full_layer_may_be_rescaled(seed: int) -> None:
    """Fails where the floor of a path is above the layer as it is."""
    p = family("pruned inputs", seed)
    path = imitate(p.quadratic())
    assert path.floor <= p.at(np.full(p.units, 1 / p.units)) + RTOL * p.scale
    assert path.floor > 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", FAMILIES)
def test_a_visited_size_keeps_the_best_support_visited(name: str, seed: int) -> None:
    """Fails where a size has another support than the greedy found, though that is no worse than the smaller sizes."""
    p = family(name, seed)
    path = imitate(p.quadratic())
    visited: dict[int, list[tuple[float, tuple[int, ...]]]] = {}
    for step in itertools.islice(greedy(p.quadratic()), 3 * p.units):
        support = np.flatnonzero(step.coefficients)
        visited.setdefault(support.size, []).append((step.loss, tuple(support.tolist())))
    compared = 0
    for size, found in visited.items():
        loss, support = min(found)
        if size < p.units:
            assert path.floor + path.loss[size] <= loss + RTOL * p.scale
            if loss <= path.floor + path.loss[size - 1] - RTOL * p.scale:
                compared += 1
                assert tuple(np.flatnonzero(path.kept(size)).tolist()) == support
    # With two units there may be none.
    assert compared or p.units <= 3 or name not in ("plain", "crowded")


def least(p: Samples, kept: NDArray[np.bool_]) -> float:
    """The least D of these units with a ≥ 0 and Σ a ≤ N, by non-negative least squares with a slack."""
    penalty = 1e3 * np.sqrt(p.scale)
    columns = np.concatenate([p.s[:, kept], np.zeros((len(p.s), 1))], axis=1)
    row = np.full((1, columns.shape[1]), penalty)
    alpha, _ = nnls(np.concatenate([columns, row]), np.append(p.f, penalty))
    return float(np.sum((columns @ alpha - p.f) ** 2))


@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["plain", "pruned inputs"])
def test_every_size_has_the_best_coefficients_of_its_units(name: str, method: str, sets: int) -> None:
    """Fails where a size keeps the coefficients that a walk passed through, or is of another class than the others."""
    compared = 0
    for seed in range(6):
        p = family(name, seed)
        n = p.units
        path = METHODS[method](p.quadratic(), rows=np.arange(n) % sets if sets > 1 else None)
        for size in range(1, n):
            found = path.floor + path.loss[size]
            if path.loss[size] < path.loss[size - 1] - RTOL * p.scale:
                compared += 1
                assert_same(np.float64(found), np.float64(least(p, path.kept(size))), rtol=1e-3, atol=1e-5 * p.scale)
    assert compared > 10


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(FAMILIES), st.booleans(), st.integers(1, 3))
def test_best_of_size_has_that_size_in_balance(seed: int, name: str, free: bool, sets: int) -> None:
    """Fails where a set holds more than its share, the size is another, or D is not that of the coefficients."""
    p = family(name, seed)
    rows = np.arange(p.units) % sets if sets > 1 and p.units % sets == 0 else None
    for n in range(0, p.units + 1, sets):
        mask, a, loss = best_of_size(p.quadratic(), n, rows, free=free)
        assert int(mask.sum()) == n
        assert (a >= 0.0).all()
        assert not a[~mask].any()
        assert_same(np.float64(loss), np.float64(p.at(a / p.units)), rtol=0.0, atol=RTOL * p.scale)
        assert loss <= p.at(np.zeros(p.units)) + RTOL * p.scale
        if rows is not None:
            assert (np.bincount(rows[mask], minlength=sets) == n // sets).all()


@pytest.mark.parametrize("seed", range(12))
def test_best_of_size_is_no_worse_than_the_first_visit(seed: int) -> None:
    """Fails where stopping at a size loses against the whole greedy's first support of that size."""
    p = family("plain", seed)
    first: dict[int, float] = {}
    for step in itertools.islice(greedy(p.quadratic()), 3 * p.units):
        first.setdefault(int(np.count_nonzero(step.coefficients)), step.loss)
    for n, loss in first.items():
        assert best_of_size(p.quadratic(), n)[2] <= loss + RTOL * p.scale
