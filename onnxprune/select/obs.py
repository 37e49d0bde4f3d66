"""Block OBS: backward elimination with a full least-squares refit inside every step.

Removing block j from a least-squares solution W with input Gram P costs tr(W_jᵀ (P⁻¹_jj)⁻¹ W_j); afterwards
W ← W - P⁻¹_:j (P⁻¹_jj)⁻¹ W_j and P⁻¹ ← P⁻¹ - P⁻¹_:j (P⁻¹_jj)⁻¹ P⁻¹_j:. Only the rows of removable columns are needed.
Hassibi & Stork 1993 (OBS); Frantar, Kurtic & Alistarh 2023 (ZipLM) for blocks.
Oracle: the loss equals that of `numerics.least_squares.restricted` on the kept columns.

Cost: O(|R|²) per removed column with R the removable columns. Above `EXACT_UNITS` units or
`EXACT_COLUMNS` columns a few units, one in `STEPS_PER_HALVING`, are removed per step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.numerics.least_squares import inverse_spd
from onnxprune.select.path import Array, Ints, Path, Regression, in_turns

EXACT_UNITS = 256
EXACT_COLUMNS = 1024
STEPS_PER_HALVING = 24
# Relative ridge on P. The weights that remain will read inputs that upstream cuts have changed, so a selection that
# counts on delicate cancellations does not last.
RIDGE = 0.1


class _State:
    """One regression during the elimination: columns sorted by unit, so that a unit is a contiguous block."""

    def __init__(self, r: Regression, units: int, ridge: float) -> None:
        columns = np.flatnonzero(r.unit >= 0)
        columns = columns[np.argsort(r.unit[columns], kind="stable")]
        self.inverse = inverse_spd(r.p, max(ridge, r.ridge))[np.ix_(columns, columns)]
        self.w = r.w[columns] * np.sqrt(r.weight)
        # A column that is always zero contributes nothing: its weight does not count, and its block stays invertible.
        dead = np.flatnonzero(np.diag(self.inverse) <= 0.0)
        self.inverse[dead, dead] = 1.0
        self.w[dead] = 0.0
        counts = np.bincount(r.unit[columns], minlength=units)
        self.start = np.concatenate([[0], np.cumsum(counts)])
        self.uniform = int(counts[0]) if counts.size and bool((counts == counts[0]).all()) else 0

    def costs(self, alive: Ints) -> Array:
        """Cost of removing each unit of `alive`, (n,)."""
        if self.uniform == 1:
            single: Array = (self.w[alive] ** 2).sum(axis=1) / np.maximum(self.inverse[alive, alive], 1e-300)
            return single
        if self.uniform:
            b = self.uniform
            blocks = np.einsum("ubuc->ubc", self.inverse.reshape(-1, b, self.inverse.shape[0] // b, b))[alive]
            w = self.w.reshape(-1, b, self.w.shape[1])[alive]
            cost: Array = np.einsum("ubm,ubm->u", w, np.linalg.solve(blocks, w))
            return cost
        return np.array([self._cost(int(u)) for u in alive])

    def _cost(self, u: int) -> float:
        s = slice(int(self.start[u]), int(self.start[u + 1]))
        if s.start == s.stop:
            return 0.0
        return float(np.sum(self.w[s] * np.linalg.solve(self.inverse[s, s], self.w[s])))

    def remove(self, units: Ints) -> float:
        """Eliminate units together and down-date what is left; what their removal costs."""
        s = np.concatenate([np.arange(self.start[u], self.start[u + 1]) for u in units])
        if not s.size:
            return 0.0
        left = np.linalg.solve(self.inverse[np.ix_(s, s)], np.hstack([self.inverse[s], self.w[s]]))
        left, solved = left[:, : len(self.inverse)], left[:, len(self.inverse) :]
        cost = float(np.sum(self.w[s] * solved))
        self.w -= left.T @ self.w[s]
        self.inverse -= self.inverse[:, s] @ left
        # The rows of a removed unit are exactly zero now; rounding must not bring them back.
        self.w[s] = 0.0
        self.inverse[s, :] = 0.0
        self.inverse[:, s] = 0.0
        self.inverse[s, s] = 1.0
        return cost

    @property
    def columns(self) -> int:
        """Removable columns."""
        return len(self.inverse)


def eliminate(regressions: Sequence[Regression], units: int, ridge: float = RIDGE, rows: Ints | None = None) -> Path:
    """The path of removing, at each step, the units that cost least over all consumers together.

    Where several units go in one step, its cost is shared among them in proportion to what each would cost alone.
    rows: the balanced set of each unit, (units,): one of each set goes in turn, so that every whole round is balanced.
    """
    states = [_State(r, units, ridge) for r in regressions]
    large = units > EXACT_UNITS or any(s.columns > EXACT_COLUMNS for s in states)
    alive = np.arange(units)
    order: list[int] = []
    loss = np.zeros(units + 1)
    while alive.size:
        total = np.zeros(alive.size)
        for s in states:
            total += s.costs(alive)
        total = np.maximum(total, 0.0)
        worst = np.argsort(total, kind="stable")
        count = max(1, alive.size // STEPS_PER_HALVING) if large else 1
        if rows is not None:
            worst, count = _of_each_set(worst, rows[alive], count)
        worst = worst[:count]
        cost = max(sum(s.remove(alive[worst]) for s in states), 0.0)
        alone = np.cumsum(total[worst])
        share = alone / alone[-1] if alone[-1] > 0 else np.arange(1, worst.size + 1) / worst.size
        before = units - len(order)
        loss[before - 1 - np.arange(worst.size)] = loss[before] + cost * share
        order.extend(alive[worst].tolist())
        alive = np.delete(alive, worst)
    return Path(np.array(order, np.int64), loss)


def _of_each_set(worst: Ints, rows: Ints, count: int) -> tuple[Ints, int]:
    """(candidates in their turns, how many of them): single units from the fullest sets, or several whole rounds."""
    left = np.bincount(rows)
    sets = int((left > 0).sum())
    if count >= sets and (left[left > 0] == left.max()).all():
        return in_turns(worst, rows), count // sets * sets
    return worst[left[rows[worst]] == left.max()], 1
