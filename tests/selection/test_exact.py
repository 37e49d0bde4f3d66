"""Imitation of any discrepancy: the same as on a quadratic, and as exhaustive search on a convex one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import expit

from onnxprune.selection import exact
from onnxprune.selection.exact import ExactWalk
from onnxprune.selection.imitation import greedy
from tests.compare import assert_same
from tests.selection.exhaustive import FAMILIES, Array, best_on_line, best_step, family, lowest, moved

RTOL = 1e-9
# The line search stops where D is within a tenth of what its parabola promised.
SHARE = 0.9


@dataclass(frozen=True, eq=False)
class Logistic:
    """Mean logistic loss of Σ a_i x_i against labels ±1: convex, not quadratic. x (T, N), y (T,)."""

    x: Array
    y: Array

    def at(self, a: Array) -> float:
        return float(np.logaddexp(0, -self.y * (self.x @ a)).mean())

    def gradient(self, a: Array) -> Array:
        found: Array = -(self.x * (self.y * expit(-self.y * (self.x @ a)))[:, None]).mean(axis=0)
        return found


@dataclass(frozen=True, eq=False)
class Wavy:
    """(Σ a_i x_i)² with waves on it: lines are not convex, and curve downwards in places."""

    x: Array

    def at(self, a: Array) -> float:
        z = float(self.x @ a)
        return z**2 + 3 * float(np.sin(3 * z)) + 3

    def gradient(self, a: Array) -> Array:
        z = float(self.x @ a)
        found: Array = (2 * z + 9 * np.cos(3 * z)) * self.x
        return found


def logistic(seed: int) -> Logistic:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    x = rng.standard_normal((60, n)) * rng.uniform(0.1, 1) + 0.2
    return Logistic(x, np.sign(x @ rng.uniform(0, 1, n) + 0.5 * rng.standard_normal(60)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", FAMILIES)
def test_on_a_quadratic_all_candidates_give_the_steps_of_imitation(name: str, seed: int) -> None:
    """Fails where the parabola through two points and a slope, or the screening, loses the joint minimum."""
    p = family(name, seed)
    limit = 3 * p.units
    walk = ExactWalk(p.quadratic(), p.units, candidates=p.units)
    found = list(itertools.islice(walk.steps(), limit))
    expected = list(itertools.islice(greedy(p.quadratic()), limit))
    both = min(len(found), len(expected))
    for a, b in zip(found, expected, strict=False):
        assert_same(np.float64(a.loss), np.float64(b.loss), rtol=0.0, atol=RTOL * p.scale)
    # One may stop a step of rounding before the other.
    for rest in (found[both - 1 :], expected[both - 1 :]):
        assert rest[0].loss - rest[-1].loss <= RTOL * p.scale


@pytest.mark.parametrize("seed", range(12))
def test_on_a_convex_discrepancy_steps_are_the_best_to_the_accuracy_of_the_line(seed: int) -> None:
    """Fails where a step gains less than nine tenths of what the best (i, γ) gains."""
    d = logistic(seed)
    n = d.x.shape[1]
    walk = ExactWalk(d, n, candidates=n)
    steps = list(itertools.islice(walk.steps(), 3 * n))
    first = min(d.at(n * e) for e in np.eye(n))
    assert_same(np.float64(steps[0].loss), np.float64(first), rtol=1e-12, atol=0.0)
    compared = 0
    for before, step in itertools.pairwise(steps):
        best = best_step(lambda alpha: d.at(n * alpha), before.coefficients / n)
        assert step.loss == d.at(step.coefficients)
        gain = before.loss - best
        assert before.loss - step.loss >= SHARE * gain - 1e-7
        compared += gain > 1e-6
    assert compared


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_few_candidates_are_the_steepest(candidates: int, seed: int) -> None:
    """Fails where screening takes other lines than those with the steepest slopes inside U_i, or evaluates more."""
    p = family("plain", seed)
    n, q = p.units, p.quadratic()
    walk = ExactWalk(q, n, candidates=candidates)
    everything = np.ones(n, bool)
    before = walk.advance(everything)
    assert before is not None
    for _ in range(2 * n):
        alpha, h = before.coefficients / n, 1e-5
        slopes = np.array([(p.at(moved(alpha, i, h)) - p.at(moved(alpha, i, -h))) / (2 * h) for i in range(n)])
        possible = (slopes < 0) | (alpha > 0)
        steepest = np.argsort(np.where(possible, -np.abs(slopes), 0.0))[:candidates]
        lines = [
            best_on_line(lambda g, i=i, alpha=alpha: p.at(moved(alpha, i, g)), lowest(alpha[i]), 1.0)[0]
            for i in steepest.tolist()
        ]
        spent, gradients = walk.evaluations, walk.gradients
        step = walk.advance(everything)
        assert walk.evaluations - spent <= 2 * candidates
        assert walk.gradients - gradients == 1
        if step is None:
            assert before.loss - min(lines) <= RTOL * p.scale
            return
        assert_same(np.float64(step.loss), np.float64(min(lines)), rtol=0.0, atol=RTOL * p.scale)
        before = step


@pytest.mark.parametrize("seed", range(20))
def test_lines_that_are_not_convex_never_raise_the_discrepancy(seed: int) -> None:
    """Fails where a parabola that opens downwards, or misses, is believed."""
    rng = np.random.default_rng(seed)
    d = Wavy(rng.standard_normal(6))
    walk = ExactWalk(d, 6, candidates=6)
    losses = [step.loss for step in itertools.islice(walk.steps(), 12)]
    assert all(b < a for a, b in itertools.pairwise(losses))
    walk.rescale()
    assert walk.loss <= losses[-1]
    assert walk.loss == d.at(walk.a)


@pytest.mark.parametrize("name", ["logistic", "plain", "pruned inputs"])
@pytest.mark.parametrize("rows", [False, True])
def test_path_says_what_its_coefficients_cost(name: str, rows: bool) -> None:
    """Fails where a size has another discrepancy than its coefficients, or more than a smaller size."""
    d = logistic(1) if name == "logistic" else family(name, 1).quadratic()
    n = d.x.shape[1] if isinstance(d, Logistic) else d.units
    sets = np.arange(n) % 2 if rows else None
    path = exact.imitate(ExactWalk(d, n, candidates=3), rows=sets)
    assert (np.diff(path.loss) <= 0).all()
    assert path.loss[n] == 0.0
    for size in range(n + 1):
        a = path.coefficients_of(size)
        assert a is not None
        assert (a >= 0).all()
        assert not a[~path.kept(size)].any()
        assert_same(np.float64(path.floor + path.loss[size]), np.float64(d.at(a)), rtol=1e-9, atol=0.0)
