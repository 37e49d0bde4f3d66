"""Block elimination, against least squares recomputed from scratch after every removal."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg

from onnxprune.numerics.least_squares import JITTER, restricted
from onnxprune.numerics.ridge import OF_SELECTION
from onnxprune.process.spill import spilling
from onnxprune.selection import Regression, obs
from onnxprune.selection import path as paths
from onnxprune.selection.obs import eliminate
from tests.compare import assert_same
from tests.selection.problems import Problem, problem

Array = NDArray[np.float64]
# float64: down-dates of an inverse against fresh factorisations, over at most ten removals.
RTOL = 1e-7

# name: consumers, each as (seed, block sizes, free columns, always-zero units, weight)
PROBLEMS: dict[str, list[tuple[int, tuple[int, ...], int, tuple[int, ...], float]]] = {
    "single columns": [(0, (1,) * 8, 0, (), 1.0)],
    "equal blocks": [(1, (3,) * 5, 2, (), 1.0)],
    "blocks of different size": [(2, (1, 4, 2, 3, 1), 1, (), 1.0)],
    "a unit without columns": [(3, (2, 0, 3, 1), 1, (), 1.0)],
    "several consumers": [(4, (1,) * 6, 2, (), 1.0), (5, (2,) * 6, 0, (), 0.3), (6, (1, 2, 0, 3, 1, 1), 1, (), 2.0)],
    "only free columns beside": [(7, (2, 2, 2), 6, (), 1.0)],
    "a zero unit": [(8, (2, 2, 2, 2), 1, (2,), 1.0)],
    "a zero unit among single columns": [(9, (1,) * 6, 1, (0,), 1.0)],
    "a unit that is zero for one consumer": [(10, (1, 2, 1, 2), 0, (1,), 1.0), (11, (2, 1, 1, 1), 0, (), 1.0)],
}


def consumers(name: str) -> list[tuple[Problem, float]]:
    return [(problem(seed, sizes, free=free, zero=zero), weight) for seed, sizes, free, zero, weight in PROBLEMS[name]]


def regressions(data: Sequence[tuple[Problem, float]]) -> list[Regression]:
    return [Regression(p.moments(), p.w, p.unit, weight) for p, weight in data]


def error(data: Sequence[tuple[Problem, float]], kept: NDArray[np.bool_], ridge: float) -> float:
    """Least error of all consumers with only the kept units, refitted by QR-based least squares.

    Rows √Λ, Λ = (JITTER + ridge) diag(P), stand for the regularisation of P itself.
    """
    total = 0.0
    for p, weight in data:
        root = np.sqrt((JITTER + ridge) * (p.x**2).mean(axis=0))
        x = np.vstack([p.x / np.sqrt(len(p.x)), np.diag(root)])
        stays = (p.unit < 0) | kept[p.unit]
        # Columns that are always zero may take any weight; they must not make the reference rank-deficient.
        alive = stays & (np.linalg.norm(x, axis=0) > 0)
        y = x @ p.w
        fitted = linalg.lstsq(x[:, alive], y)[0]
        total += weight * float(((y - x[:, alive] @ fitted) ** 2).sum())
    return total


@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_removal_is_the_cheapest_and_costs_what_it_says(name: str, ridge: float) -> None:
    """Fails where a down-date drifts from the refit, a consumer is forgotten, or a dearer unit is removed first."""
    data = consumers(name)
    units = data[0][0].units
    path = eliminate(regressions(data), units, ridge)
    assert sorted(path.order.tolist()) == list(range(units))
    kept = np.ones(units, bool)
    scale = error(data, ~kept, ridge)
    assert path.loss[units] == 0.0
    for removed, unit in enumerate(path.order.tolist()):
        options: dict[int, float] = {}
        for other in np.flatnonzero(kept).tolist():
            kept[other] = False
            options[other] = error(data, kept, ridge)
            kept[other] = True
        assert options[unit] <= min(options.values()) + RTOL * scale
        kept[unit] = False
        found = path.loss[units - removed - 1]
        assert_same(found, np.float64(options[unit]), rtol=0.0, atol=RTOL * scale)
    assert (np.diff(path.loss) <= 0.0).all()


@pytest.mark.parametrize("name", ["equal blocks", "blocks of different size", "several consumers"])
def test_loss_is_that_of_the_restricted_refit(name: str) -> None:
    """Fails where selection and refit disagree on what a removal costs."""
    data = consumers(name)
    units = data[0][0].units
    path = eliminate(regressions(data), units, 0.0)
    for n in range(units):
        kept = path.kept(n)
        total = 0.0
        for p, weight in data:
            stays = (p.unit < 0) | kept[p.unit]
            moments = p.moments()
            change = -p.w
            change[stays] += restricted(moments, p.w, stays)
            regularised = moments + JITTER * np.diag(np.diag(moments))
            total += weight * float(np.sum(change * (regularised @ change)))
        assert_same(path.loss[n], np.float64(total), rtol=RTOL, atol=RTOL * path.loss[0])


def test_ridge_of_a_regression_is_honoured() -> None:
    """Fails where the ridge that calibration chose is ignored when it is the larger one."""
    p = problem(12, (1, 2, 1, 2))
    own = eliminate([Regression(p.moments(), p.w, p.unit, ridge=0.5)], 4, 0.1)
    asked = eliminate([Regression(p.moments(), p.w, p.unit)], 4, 0.5)
    assert_same(own.loss, asked.loss, rtol=0.0, atol=0.0)


def test_inputs_are_left_alone() -> None:
    """Fails where the elimination works inside the arrays that it was given."""
    p = problem(13, (2, 2, 2))
    moments, w = p.moments(), p.w.copy()
    before = moments.copy()
    eliminate([Regression(moments, p.w, p.unit)], 3)
    assert_same(moments, before, rtol=0.0, atol=0.0)
    assert_same(p.w, w, rtol=0.0, atol=0.0)


def test_many_units_go_several_at_a_time_at_their_true_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where removals that share a step are charged at the cost that they had before the step."""
    monkeypatch.setattr(obs, "EXACT_UNITS", 130)
    units = 160
    rng = np.random.default_rng(14)
    x = rng.standard_normal((400, 40)) @ rng.standard_normal((40, units)) + 0.5 * rng.standard_normal((400, units))
    p = Problem(x, rng.standard_normal((units, 2)), np.arange(units), units)
    path = obs.eliminate([Regression(p.moments(), p.w, p.unit, centred=False)], units)
    assert sorted(path.order.tolist()) == list(range(units))
    kept, whole_steps = units, []
    while kept > 100:
        kept -= kept // obs.STEPS_PER_HALVING
        whole_steps.append(kept)
    assert all(np.diff(path.loss) <= 0)
    for n in whole_steps:
        expected = error([(p, 1.0)], path.kept(n), 0.1)
        assert_same(path.loss[n], np.float64(expected), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("exact_units", [256, 3])
def test_balanced_sets_lose_one_each_in_turn(monkeypatch: pytest.MonkeyPatch, exact_units: int) -> None:
    """Fails where a round takes two of one set, where the cheapest of a set stays, or where the cost is another's."""
    monkeypatch.setattr(obs, "EXACT_UNITS", exact_units)
    sets, size = 3, 40
    data = [(problem(5, (1,) * (sets * size), free=1), 1.0)]
    rows = np.random.default_rng(1).permutation(np.repeat(np.arange(sets), size))
    path = eliminate(regressions(data), sets * size, 0.1, rows)
    assert sorted(path.order.tolist()) == list(range(sets * size))
    for n in range(0, sets * size + 1, sets):
        assert (np.bincount(rows[path.kept(n)], minlength=sets) == n // sets).all()
    half = sets * size // 2
    at_half = error(data, path.kept(half), 0.1) - error(data, path.kept(sets * size), 0.1)
    assert_same(np.float64(path.loss[half]), np.float64(at_half), rtol=RTOL, atol=0.0)
    random = np.concatenate([np.random.default_rng(r).permutation(np.flatnonzero(rows == r))[:20] for r in range(sets)])
    worse = error(data, np.isin(np.arange(sets * size), random), 0.1) - error(data, path.kept(sets * size), 0.1)
    assert at_half < worse


def plainly(r: Regression, units: int, ridge: float) -> tuple[list[int], Array]:
    """Block OBS as its equations stand, on full matrices that never shrink: (order, loss by units kept)."""
    p = r.p + (JITTER + ridge) * np.diag(np.diag(r.p))
    inverse, w = np.linalg.inv(p), r.w.copy()
    blocks = [np.flatnonzero(r.unit == u) for u in range(units)]
    alive, order, loss = list(range(units)), [], np.zeros(units + 1)
    large = units > obs.EXACT_UNITS or sum(map(len, blocks)) > obs.EXACT_COLUMNS
    while alive:
        costs = [float(np.sum(w[b] * np.linalg.solve(inverse[np.ix_(b, b)], w[b]))) for b in (blocks[u] for u in alive)]
        worst = np.argsort(costs, kind="stable")[: max(1, len(alive) // obs.STEPS_PER_HALVING) if large else 1]
        s = np.concatenate([blocks[alive[i]] for i in worst])
        solved = np.linalg.solve(inverse[np.ix_(s, s)], np.hstack([inverse[s], w[s]]))
        cost = float(np.sum(w[s] * solved[:, len(p) :]))
        w -= inverse[:, s] @ solved[:, len(p) :]
        inverse -= inverse[:, s] @ solved[:, : len(p)]
        w[s], inverse[s], inverse[:, s] = 0.0, 0.0, 0.0
        share = np.cumsum([costs[i] for i in worst]) / sum(costs[i] for i in worst)
        before = units - len(order)
        loss[before - 1 - np.arange(len(worst))] = loss[before] + cost * share
        order += [alive[i] for i in worst]
        alive = [u for i, u in enumerate(alive) if i not in set(worst.tolist())]
    return order, loss


@pytest.mark.parametrize("sizes", [(1,) * 90, (3,) * 60, tuple(np.random.default_rng(0).integers(1, 6, 50).tolist())])
@pytest.mark.parametrize("exact", [True, False])
def test_a_shrinking_elimination_equals_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], exact: bool
) -> None:
    """Fails where rows that are dropped leave the others in another place, or one triangle is not kept up to date."""
    monkeypatch.setattr(obs, "EXACT_UNITS", 1000 if exact else 10)
    p = problem(21, sizes, free=2)
    r = Regression(p.moments(), p.w, p.unit)
    order, loss = plainly(r, p.units, 0.1)
    path = eliminate([r], p.units, 0.1)
    assert path.order.tolist() == order
    assert_same(path.loss, loss, rtol=RTOL, atol=0.0)


def test_single_precision_hardly_changes_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where rounding of wide layers costs more than a thousandth of the loss at any width."""
    monkeypatch.setattr(obs, "EXACT_UNITS", 10)
    p = problem(22, (3,) * 60, free=2)
    r = Regression(p.moments(), p.w, p.unit)
    precise = eliminate([r], p.units)
    monkeypatch.setattr(obs, "EXACT_COLUMNS", 100)
    single = eliminate([r], p.units)
    for n in range(p.units):
        data = [(p, 1.0)]
        at = error(data, single.kept(n), OF_SELECTION), error(data, precise.kept(n), OF_SELECTION)
        assert at[0] <= 1.001 * at[1]
    assert_same(single.loss, precise.loss, rtol=1e-3, atol=0.0)


def test_a_part_of_an_inverse_stands_for_the_whole_regression() -> None:
    """Fails where the columns of other groups count as removed, or as not there."""
    p = problem(23, (2,) * 6, free=7)
    whole = Regression(p.moments(), p.w, p.unit)
    own = np.flatnonzero(p.unit >= 0)
    inverse = np.linalg.inv(whole.p + (JITTER + OF_SELECTION) * np.diag(np.diag(whole.p)))
    part = Regression(whole.p[np.ix_(own, own)], p.w[own], p.unit[own], inverse=inverse[np.ix_(own, own)])
    expected, found = eliminate([whole], 6), eliminate([part], 6)
    assert found.order.tolist() == expected.order.tolist()
    assert_same(found.loss, expected.loss, rtol=RTOL, atol=0.0)
    assert_same(part.contributions(6), whole.contributions(6), rtol=RTOL, atol=0.0)


def test_one_moment_off_by_a_hundredth_is_seen() -> None:
    """The mutation check: an entry of P that is 1 % off fails the comparison above."""
    p = problem(1, (3,) * 5, free=2)
    moments = p.moments()
    i = int(np.diag(moments)[:-1].argmax())
    moments[i, i] *= 1.01
    path = eliminate([Regression(moments, p.w, p.unit)], 5, 0.0)
    kept = path.kept(3)
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(path.loss[3], np.float64(error([(p, 1.0)], kept, 0.0)), rtol=RTOL, atol=RTOL * path.loss[0])


@pytest.mark.parametrize("kept", [0, 1])
def test_regressions_in_files_are_eliminated_as_those_in_memory(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a state comes back turned or old, all of them stay in memory, or what is in files is never read."""
    data = [problem(s, (1, 2, 3, 1) * 5, free=2) for s in (31, 32, 33)]
    parts = [Regression(p.moments(), p.w, p.unit, weight) for p, weight in zip(data, (1.0, 0.3, 2.0), strict=True)]
    expected = eliminate(parts, 20, 0.1)
    rows = np.arange(20) % 4
    in_turns = eliminate(parts, 20, 0.1, rows)
    limit = kept * (parts[0].p.nbytes + parts[0].w.nbytes)
    monkeypatch.setattr(paths, "HELD_BYTES", limit)
    monkeypatch.setattr(obs, "HELD_BYTES", limit)
    made: list[obs._State] = []
    in_memory: list[int] = []
    make, costs = obs._State.__init__, obs._State.costs

    def noted(self: obs._State, *arguments: Any) -> None:
        make(self, *arguments)
        made.append(self)

    def counted(self: obs._State, alive: Array) -> Array:
        in_memory.append(sum(s.w.size > 0 for s in made))
        return costs(self, alive)

    with spilling():
        filed = paths.Regressions(parts)
        assert filed.held == parts[0].p.nbytes
        assert [type(r) for r in filed] == [Regression] * 3
        assert not any(isinstance(r, Regression) for r in filed._parts)
        found = eliminate(filed, 20, 0.1)
        assert found.order.tolist() == expected.order.tolist()
        assert_same(found.loss, expected.loss, rtol=0.0, atol=0.0)
        assert_same(eliminate(filed, 20, 0.1, rows).loss, in_turns.loss, rtol=0.0, atol=0.0)
        assert_same(filed[1:][0].contributions(20), parts[1].contributions(20), rtol=0.0, atol=0.0)
        again = pickle.loads(pickle.dumps(filed))
        assert_same(again[2].p, parts[2].p, rtol=0.0, atol=0.0)
        monkeypatch.setattr(obs._State, "__init__", noted)
        monkeypatch.setattr(obs._State, "costs", counted)
        eliminate(filed, 20, 0.1)
    assert set(in_memory) <= {0, 1}  # 0: a state without columns is left
