"""Greedy imitation (Ye, Wu & Liu, NeurIPS 2020, arXiv 2010.15969, equations 3 to 5) on any quadratic discrepancy.

In the paper's scaling a pruned layer is f_A = Σ_i α_i s_i with α ≥ 0, Σ α_i = 1, where s_i = N times the contribution
of unit i, so that the full layer is α_i = 1/N. A step A ← (1 - γ) A + γ e_i takes the (i, γ) that minimises D jointly:
    γ* = clip(<f - f_A, s_i - f_A> / ||s_i - f_A||², U_i),   U_i = [-α_i / (1 - α_i), 1],
where the negative end removes unit i: α_i + γ (1 - α_i) = 0 there. With a = N α, the coefficients of the units
themselves, and m = Σ a (N, unless a common factor has been taken out):
    <f - f_A, s_i - f_A> = m t_i - tᵀa - m (Ka)_i + aᵀKa,   ||s_i - f_A||² = m² K_ii - 2 m (Ka)_i + aᵀKa,
so a linear term in t is an inner product like any other, and where K_ii vanishes γ goes to an end of U_i.

Time: O(N) per step for all N units together: Ka is carried along, with one row of K per step, and computed anew once in
N steps. Memory: O(N) beside K. The path keeps the coefficients of every size, O(N²), as much as K.
Oracle: exhaustive search over (i, γ) (tests).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from onnxprune.numerics.arrays import Doubles, Ints, Mask
from onnxprune.selection.known import Choice, Known
from onnxprune.selection.path import Path
from onnxprune.selection.quadratic import Quadratic
from onnxprune.selection.steps import Step, best_within, path_of

# Smaller α than this, and smaller gains than the second relative to the terms of D, are rounding.
_NEGLIGIBLE = 1e-12
_ROUNDING = 1e-14
_TINY = 1e-200
# Ka is computed anew after so many steps, or N if that is more: what rounding adds up to until then stays small.
_REFRESH = 64
# Steps for a support that is optimised, this and the second by N: convergence with few units, and with many, which
# continue from a size that is optimised already, a cost of O(N) per size.
_PATIENCE = (32, 1 << 11)
# Steps per unit: they also rescale and remove.
SLACK = 3


def path_of_layers(group: Known, choice: Choice) -> Path:
    """Local imitation: of the outputs of the layers that read the group."""
    return imitate(group.layers, rows=group.rows, free=choice.free)


def path_of_outputs(group: Known, choice: Choice) -> Path:
    """Global imitation: of the outputs of the network. Raises TypeError where nothing is known of these."""
    if group.outputs is None:
        raise TypeError("global imitation of a group without gradients")
    return imitate(group.outputs, rows=group.rows, free=choice.free)


class QuadraticWalk:
    """A `steps.Walk` on a quadratic. free: every step ends with `rescale`."""

    _ka: Doubles
    _steps: int

    def __init__(self, q: Quadratic, *, removal: bool = True, free: bool = False) -> None:
        self._q = q
        self._removal = removal
        self._free = free
        self._diagonal: Doubles = np.diag(q.k).copy()
        self.patience: int = _PATIENCE[0] + _PATIENCE[1] // max(q.units, 1)
        self.jump(np.zeros(q.units))

    def jump(self, a: Doubles) -> None:
        """Continue at a: O(N²)."""
        self.a: Doubles = a
        self._total = float(a.sum()) or float(a.size)
        self._started = bool(a.any())
        self._refresh()

    def advance(self, allowed: Mask) -> Step | None:
        """The best (i, γ) jointly: O(N), and one row of K."""
        gamma, value = self._candidates(negative=self._removal)
        value = np.where(allowed, value, np.inf)
        i = int(np.argmin(value))
        if (self._started or self._free) and not value[i] < self.loss - _ROUNDING * self._scale:
            return None
        return self._take(i, float(gamma[i]))

    def fixed(self, gamma: float, allowed: Mask | None = None) -> Step:
        """The best unit, of those `allowed`, for this γ, even where it makes D larger: O(N), and one row of K."""
        inner, distance = self._lines()
        value = gamma**2 * distance - 2 * gamma * inner
        return self._take(int(np.argmin(value if allowed is None else np.where(allowed, value, np.inf))), gamma)

    def addition(self, allowed: Mask) -> int:
        """The best unit to add: O(N)."""
        _, value = self._candidates(negative=False)
        if self._started and not value[allowed].min() < self.loss - _ROUNDING * self._scale:
            value = -self._lines()[0]
        return int(np.argmin(np.where(allowed, value, np.inf)))

    def rescale(self) -> None:
        """The factor that minimises D: O(N)."""
        ta, aka = float(self._q.t @ self.a), float(self.a @ self._ka)
        # Where the curvature vanishes D is linear along a, and goes to an end.
        factor = float(np.clip(ta / max(aka, _TINY), 0.0, self.a.size / self._total))
        self._total *= factor
        self.a, self._ka = factor * self.a, factor * self._ka
        self._started = bool(self.a.any())
        if not self._started:
            self._total = float(self.a.size)
        self._evaluate()

    def _candidates(self, *, negative: bool) -> tuple[Doubles, Doubles]:
        """(γ, D after the step) of each unit's best step, (N,) each."""
        inner, distance = self._lines()
        if not self._started:
            gamma = np.ones(self.a.size)
            if self._free:
                factor = np.clip(inner / np.maximum(distance, _TINY), 0.0, 1.0)
                return gamma, self.loss - 2 * factor * inner + factor**2 * distance
        else:
            share = self.a / self._total
            rest = np.where(share < 1, 1 - share, 1.0)
            low = np.where(share < 1, -share / rest, 0.0) if negative else 0.0
            gamma = np.clip(inner / np.maximum(distance, _TINY), low, 1.0)
        return gamma, self.loss - 2 * gamma * inner + gamma**2 * distance

    def _lines(self) -> tuple[Doubles, Doubles]:
        """Minus half the slope, and the curvature, of D along γ towards each unit, (N,) each."""
        m, ka = self._total, self._ka
        ta, aka = float(self._q.t @ self.a), float(self.a @ ka)
        inner = m * (self._q.t - ka) - ta + aka
        distance = np.maximum(m * (m * self._diagonal - 2 * ka) + aka, 0.0)
        return inner, distance

    def _take(self, i: int, gamma: float) -> Step:
        a = (1 - gamma) * self.a
        a[i] += gamma * self._total
        small = np.abs(a) <= _NEGLIGIBLE * self._total
        dropped = a[small & (a != 0)]
        a[small] = 0.0
        self._started = True
        self._steps += 1
        self.a = a
        if dropped.size:
            # What is cut off goes to the others, so that the sum does not drift.
            self.a = a * (self._total / float(a.sum()))
        if self._steps % max(_REFRESH, a.size) == 0:
            self._refresh()
        else:
            self._ka = (1 - gamma) * self._ka + gamma * self._total * self._q.k[i]
            self._evaluate()
        if self._free:
            self.rescale()
        return Step(i, gamma, self.loss, self.a)

    def _refresh(self) -> None:
        self._steps = 0
        support = np.flatnonzero(self.a)
        self._ka = self.a[support] @ self._q.k[support] if support.size else np.zeros(self.a.size)
        self._evaluate()

    def _evaluate(self) -> None:
        ta, aka = float(self._q.t @ self.a), float(self.a @ self._ka)
        self.loss: float = self._q.c - 2 * ta + aka
        self._scale = abs(self._q.c) + 2 * abs(ta) + aka


def greedy(q: Quadratic, *, removal: bool = True, free: bool = False) -> Iterator[Step]:
    """Greedy steps until none improves by more than rounding; the caller stops earlier, by count or by `Step.loss`.

    The first is γ = 1, as the empty sum is no convex combination. `Step.loss` is D itself; it never grows.
    free: after every step all coefficients take the common factor that serves them best, so that Σ a = N becomes
    Σ a ≤ N: the removal of everything is one more corner of the hull. Not in the paper: a few units whose contributions
    are hardly correlated do best near 1 each, and Σ a = N, which makes them stand for all, costs more than nothing.
    """
    walk, everything = QuadraticWalk(q, removal=removal, free=free), np.ones(q.units, bool)
    while (step := walk.advance(everything)) is not None:
        yield step


def imitate(q: Quadratic, *, slack: int = SLACK, rows: Ints | None = None, free: bool = False) -> Path:
    """The path of at most slack · N steps of `greedy` (`steps.path_of`). rows: the balanced sets, (N,)."""
    return path_of(islice(greedy(q, free=free), slack * q.units), QuadraticWalk(q, free=free), rows)


def best_of_size(q: Quadratic, n: int, rows: Ints | None = None, *, free: bool = False) -> tuple[Mask, Doubles, float]:
    """(mask (N,), coefficients (N,), D) of n units by greedy steps that never hold more (`steps.best_within`).

    For a layer whose width is decided and whose inputs have changed since. rows: the balanced sets, (N,).
    """
    walk = QuadraticWalk(q, free=free)
    return best_within(walk, n, SLACK * q.units + walk.patience, rows)
