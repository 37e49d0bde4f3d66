"""Block OBS: backward elimination with a full least-squares refit inside every step.

Removing block j from a least-squares solution W with input Gram P costs tr(W_jᵀ (P⁻¹_jj)⁻¹ W_j); afterwards
W ← W - P⁻¹_:j (P⁻¹_jj)⁻¹ W_j and P⁻¹ ← P⁻¹ - P⁻¹_:j (P⁻¹_jj)⁻¹ P⁻¹_j:. Only the rows of removable columns are needed.
Hassibi & Stork 1993 (OBS); Frantar, Kurtic & Alistarh 2023 (ZipLM) for blocks.
Oracle: the loss equals that of `numerics.least_squares.restricted` on the kept columns.

Cost: O(|R|²) per removed column with R the removable columns. Above `EXACT_UNITS` units, a few are removed per step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.numerics.least_squares import inverse_spd
from onnxprune.select.path import Array, Ints, Path, Regression

EXACT_UNITS = 256
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

    def remove(self, u: int) -> None:
        """Eliminate unit u and down-date what is left."""
        s = slice(int(self.start[u]), int(self.start[u + 1]))
        if s.start == s.stop:
            return
        left = np.linalg.solve(self.inverse[s, s], self.inverse[s, :])
        self.w -= left.T @ self.w[s]
        self.inverse -= self.inverse[:, s] @ left
        # The rows of a removed unit are exactly zero now; rounding must not bring them back.
        self.w[s] = 0.0
        self.inverse[s, :] = 0.0
        self.inverse[:, s] = 0.0
        self.inverse[s, s] = np.eye(s.stop - s.start)


def eliminate(regressions: Sequence[Regression], units: int, ridge: float = RIDGE) -> Path:
    """The path of removing, at each step, the units that cost least over all consumers together."""
    states = [_State(r, units, ridge) for r in regressions]
    alive = np.arange(units)
    order: list[int] = []
    loss = np.zeros(units + 1)
    while alive.size:
        total = np.zeros(alive.size)
        for s in states:
            total += s.costs(alive)
        batch = 1 if alive.size <= EXACT_UNITS else max(1, alive.size // 64)
        worst = np.argsort(total, kind="stable")[:batch]
        for i in worst.tolist():
            u = int(alive[i])
            cost = float(total[i]) if batch == 1 else float(sum(s.costs(np.array([u]))[0] for s in states))
            loss[units - len(order) - 1] = loss[units - len(order)] + max(cost, 0.0)
            order.append(u)
            for s in states:
                s.remove(u)
        alive = np.delete(alive, worst)
    return Path(np.array(order, np.int64), loss)
