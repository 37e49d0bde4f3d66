"""Greedy imitation of any discrepancy: global imitation with the true network (arXiv 2010.15969).

The steps are those of `imitation`, A ← (1 - γ) A + γ e_i with (i, γ) minimised jointly, but D is evaluated. Screening:
along the line of unit i, D changes by
    dD/dγ = m ∂D/∂a_i - Σ_j a_j ∂D/∂a_j,   m = Σ a,
the Taylor score of the paper for all units from one gradient. Units where it is negative may come in (γ > 0), units of
A where it is positive may go (γ < 0); the steepest `candidates` of both are searched, the best becomes the step. The
first step, γ = 1, is screened by the gradient at a = 0.

Line search: a parabola through D(0), dD/dγ and one probe gives γ*, clipped to U_i; D is evaluated there. The probe is
the end of U_i that removes the unit, or the weight of one more unit among equals. Where D(γ*) is off the parabola by
more than a tenth of the promised gain, that point becomes the probe of another one, up to `LINE` evaluations; the best
point evaluated counts, and none that is no improvement. On a quadratic the first parabola is D itself: with all units
as candidates the steps are those of `imitation`.

Time per step: one gradient, and 2 evaluations per candidate (1 where the parabola ends at a removal; `LINE` where D is
far from quadratic); O(N) beside. Exhaustive search is candidates = N: O(N) evaluations per step and O(N²) for a path.
Memory: O(N) beside D's own. Oracle: exhaustive search over (i, γ) (tests).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import numpy as np

from onnxprune.numerics.arrays import Doubles, Ints, Mask
from onnxprune.selection.imitation import SLACK
from onnxprune.selection.path import Path
from onnxprune.selection.quadratic import Discrepancy
from onnxprune.selection.steps import Step, path_of

LINE = 4
_TRUSTED = 0.1
_NEGLIGIBLE = 1e-12


class ExactWalk:
    """A `steps.Walk` on any discrepancy.

    candidates: units searched per step. rounding: relative to D(0), the gain that counts as none (about 1e-6 for a
    network in float32). patience: steps for a size that is filled up. evaluations, gradients: how many there were.
    """

    _gradient: Doubles | None

    def __init__(
        self,
        d: Discrepancy,
        units: int,
        *,
        candidates: int = 8,
        removal: bool = True,
        rounding: float = 1e-12,
        patience: int = 2,
    ) -> None:
        self._d = d
        self._candidates = candidates
        self._removal = removal
        self.patience: int = patience
        self.evaluations: int = 0
        self.gradients: int = 0
        self.jump(np.zeros(units))
        self._rounding = rounding * abs(self.loss)

    def jump(self, a: Doubles) -> None:
        """Continue at a: one evaluation."""
        self._place(a, self._at(a))

    def advance(self, allowed: Mask) -> Step | None:
        """The best (i, γ) of the candidates; None where none of them improves."""
        if not self.a.any():
            return self._begin(allowed)
        slopes = self._slopes()
        low = self._low()
        score = np.where(slopes < 0, -slopes, np.where(low < 0, slopes, 0.0))
        best: tuple[float, int, float] | None = None
        for i in self._steepest(np.where(allowed, score, 0.0)):
            probe = float(low[i]) if slopes[i] > 0 else 1.0 / (np.count_nonzero(self.a) + 1.0)
            value, gamma = self._search(partial(self._moved, i), float(slopes[i]), float(low[i]), 1.0, probe)
            if best is None or value < best[0]:
                best = (value, i, gamma)
        if best is None or not best[0] < self.loss - self._rounding:
            return None
        value, i, gamma = best
        self._place(self._moved(i, gamma), value)
        return Step(i, gamma, self.loss, self.a)

    def addition(self, allowed: Mask) -> int:
        """The unit of `allowed` with the steepest line: no evaluation."""
        return int(np.argmin(np.where(allowed, self._slopes(), np.inf)))

    def rescale(self) -> None:
        """Search along the coefficients: 1 to `LINE` evaluations."""
        a, total = self.a, float(self.a.sum())
        if not total:
            return
        slope = -float(self._slope @ a)
        low = min(1.0 - a.size / total, 0.0)
        probe = 0.5 if slope < 0 else low
        if slope and probe:
            value, gamma = self._search(lambda g: (1 - g) * a, slope, low, 1.0, probe)
            if value < self.loss - self._rounding:
                self._place((1 - gamma) * a, value)

    def steps(self) -> Iterator[Step]:
        """Steps from here until no candidate improves; the caller stops earlier, by count or by `Step.loss`."""
        everything = np.ones(self.a.size, bool)
        while (step := self.advance(everything)) is not None:
            yield step

    def _begin(self, allowed: Mask) -> Step | None:
        """γ = 1, from a = 0."""
        slopes = self._slopes()
        ranked = np.argsort(np.where(allowed, slopes, np.inf), kind="stable")
        ranked = ranked[: min(self._candidates, int(allowed.sum()))]
        values = [(self._at(self._moved(int(i), 1.0)), int(i)) for i in ranked]
        value, i = min(values)
        self._place(self._moved(i, 1.0), value)
        return Step(i, 1.0, self.loss, self.a)

    def _steepest(self, score: Doubles) -> list[int]:
        ranked = np.argsort(-score, kind="stable")[: self._candidates]
        return [int(i) for i in ranked if score[i] > 0]

    def _search(
        self, point: Callable[[float], Doubles], slope: float, low: float, high: float, probe: float
    ) -> tuple[float, float]:
        """(D, γ) of the best point evaluated along a line, from its slope at γ = 0."""
        tried: list[tuple[float, float]] = []
        gamma, promised = probe, np.inf
        for _ in range(LINE):
            value = self._at(point(gamma))
            tried.append((value, gamma))
            if abs(value - promised) <= _TRUSTED * (self.loss - promised):
                break
            curve = (value - self.loss - slope * gamma) / gamma**2
            ahead = float(np.clip(-slope / (2 * curve), low, high)) if curve > 0 else high if slope < 0 else low
            if any(ahead == g for _, g in tried):
                break
            gamma, promised = ahead, self.loss + slope * ahead + curve * ahead**2
        return min(tried)

    def _moved(self, i: int, gamma: float) -> Doubles:
        """(1 - γ) a + γ m e_i."""
        total = self._total()
        a: Doubles = (1 - gamma) * self.a
        a[i] += gamma * total
        small = np.abs(a) <= _NEGLIGIBLE * total
        if (a[small] != 0).any():
            a[small] = 0.0
            a *= total / a.sum()
        return a

    def _low(self) -> Doubles:
        """The lower ends of U_i, (N,)."""
        share = self.a / self._total()
        inside = (share < 1) & self._removal
        low: Doubles = np.where(inside, -share / np.where(inside, 1 - share, 1.0), 0.0)
        return low

    def _total(self) -> float:
        return float(self.a.sum()) or float(self.a.size)

    def _slopes(self) -> Doubles:
        """dD/dγ of every unit's line, (N,)."""
        slopes: Doubles = self._total() * self._slope - float(self._slope @ self.a)
        return slopes

    @property
    def _slope(self) -> Doubles:
        """∂D/∂a here, computed once."""
        if self._gradient is None:
            self._gradient = self._d.gradient(self.a)
            self.gradients += 1
        return self._gradient

    def _at(self, a: Doubles) -> float:
        self.evaluations += 1
        return self._d.at(a)

    def _place(self, a: Doubles, loss: float) -> None:
        self.a: Doubles = a
        self.loss: float = loss
        self._gradient = None


def imitate(walk: ExactWalk, *, slack: int = SLACK, rows: Ints | None = None) -> Path:
    """The path of at most slack · N steps from where `walk` is (`steps.path_of`). rows: the balanced sets, (N,)."""
    return path_of(islice(walk.steps(), slack * walk.a.size), walk, rows)
