"""Block OBS: backward elimination with a full least-squares refit inside every step.

Removing block j from a least-squares solution W with input Gram P costs tr(W_jᵀ (P⁻¹_jj)⁻¹ W_j); afterwards
W ← W - P⁻¹_:j (P⁻¹_jj)⁻¹ W_j and P⁻¹ ← P⁻¹ - P⁻¹_:j (P⁻¹_jj)⁻¹ P⁻¹_j:. Only the rows of removable columns are needed.
Hassibi & Stork 1993 (OBS); Frantar, Kurtic & Alistarh 2023 (ZipLM) for blocks.
Oracle: the loss equals that of `numerics.least_squares.restricted` on the kept columns.

Cost: O(|R|²) per removed column with R the removable columns that are left. Above `EXACT_UNITS` units or
`EXACT_COLUMNS` columns a few units, one in `STEPS_PER_HALVING`, are removed per step. Where the inverses of all
regressions are large together, as for a stream that every layer of a deep network reads, those that are not at work lie
in files: memory is that of one of them, and each step reads and writes all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from scipy.linalg import lapack

from onnxprune.numerics.arrays import Doubles, Floats, Ints
from onnxprune.numerics.lapack import add_products
from onnxprune.numerics.least_squares import SolveFailed, inverse_spd
from onnxprune.numerics.ridge import OF_SELECTION
from onnxprune.process.spill import Spilled
from onnxprune.selection.known import Choice, Known
from onnxprune.selection.path import Path, Regression, in_turns

# Inverses and weights of a group that take more together lie in files between the steps.
HELD_BYTES = 1 << 30
EXACT_UNITS = 256
EXACT_COLUMNS = 1024
STEPS_PER_HALVING = 24


def path(group: Known, choice: Choice) -> Path:
    """Elimination, refitted after every step."""
    del choice
    return eliminate(group.regressions, group.size, rows=group.rows)


class _State:
    """One regression during the elimination: columns sorted by unit, so that a unit is a contiguous block.

    Of the inverse only the lower triangle is kept up to date. Rows of removed units are never read again; they are
    dropped when they are a quarter of all.
    """

    def __init__(self, r: Regression, units: int, ridge: float) -> None:
        columns = np.flatnonzero(r.unit >= 0)
        columns = columns[np.argsort(r.unit[columns], kind="stable")]
        ridge = max(ridge, r.ridge)
        # Where units go several at a time anyway, and the ridge bounds the condition, single precision is enough.
        dtype = np.float32 if columns.size > EXACT_COLUMNS and ridge >= OF_SELECTION else np.float64
        inverse = inverse_spd(r.p, ridge, dtype) if r.inverse is None else r.inverse
        self.inverse = _block(inverse.astype(dtype, copy=False), columns)
        self.w = (r.w[columns] * np.sqrt(r.weight)).astype(dtype)
        self.potrf, self.trtrs = lapack.get_lapack_funcs(("potrf", "trtrs"), (self.w,))
        # A column that is always zero contributes nothing: its weight does not count, and its block stays invertible.
        dead = np.flatnonzero(np.diag(self.inverse) <= 0.0)
        self.inverse[dead, dead] = 1.0
        self.w[dead] = 0.0
        self.columns = len(columns)
        self.sizes = np.bincount(r.unit[columns], minlength=units)
        self.alive = np.ones(units, bool)
        self._aside: tuple[Spilled, Spilled] | None = None
        self._place()

    @property
    def nbytes(self) -> int:
        """What its arrays take in memory, or would."""
        arrays = self._aside or (self.inverse, self.w)
        return sum(a.nbytes for a in arrays)

    def put_aside(self) -> None:
        """Leave the arrays in files until they are at work."""
        # Rows lie one after the other in a file, and the columns of the inverse do in memory.
        self._aside = Spilled(self.inverse.T, briefly=True), Spilled(self.w, briefly=True)
        self.inverse, self.w = self.inverse[:0, :0], self.w[:0]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While this lasts, the arrays are in memory."""
        if self._aside is None:
            yield
            return
        inverse, w = self._aside
        self.inverse, self.w = inverse.load().T, w.load()
        yield
        self.put_aside()

    def _place(self) -> None:
        """Where the columns of each unit start, once those of some are dropped."""
        self.start = np.concatenate([[0], np.cumsum(self.sizes)])
        present = self.sizes[self.sizes > 0]
        self.uniform = int(present[0]) if present.size and bool((present == present[0]).all()) else 0

    def costs(self, alive: Ints) -> Doubles:
        """Cost of removing each unit of `alive`, (n,)."""
        by_unit = np.zeros(self.alive.size)
        if self.uniform == 1:
            least = np.finfo(self.w.dtype).tiny
            by_unit[self.sizes > 0] = np.einsum("cm,cm->c", self.w, self.w) / np.maximum(self.inverse.diagonal(), least)
        elif self.uniform:
            columns = np.arange(len(self.w)).reshape(-1, self.uniform)
            lower = (
                np.maximum(columns[:, :, None], columns[:, None, :]),
                np.minimum(columns[:, :, None], columns[:, None, :]),
            )
            w = self.w.reshape(*columns.shape, -1)
            powers = w @ w.transpose(0, 2, 1)
            by_unit[self.sizes > 0] = np.einsum("ubc,ubc->u", np.linalg.inv(self.inverse[lower]), powers)
        else:
            by_unit[alive] = [self._cost(int(u)) for u in alive]
        costs: Doubles = by_unit[alive]
        return costs

    def _cost(self, u: int) -> float:
        s = slice(int(self.start[u]), int(self.start[u + 1]))
        if s.start == s.stop:
            return 0.0
        block = np.tril(self.inverse[s, s])
        return float(np.sum(self.w[s] * np.linalg.solve(block + np.tril(block, -1).T, self.w[s])))

    def remove(self, units: Ints) -> float:
        """Eliminate units together and down-date what is left; what their removal costs. Raises SolveFailed."""
        units = np.sort(units)
        self.alive[units] = False
        s = np.concatenate([units[:0], *(np.arange(self.start[u], self.start[u + 1]) for u in units)])
        if not s.size:
            return 0.0
        n = len(self.inverse)
        across = np.where(np.arange(n)[:, None] >= s, self.inverse[:, s], self.inverse[s].T)
        # LAPACK itself: scipy's checks of the arguments would take longer than most of these small systems.
        factor, failed = self.potrf(across[s], lower=1)
        if failed:
            raise SolveFailed("the inverse of a Gram matrix is not positive definite")
        left, solved = (self.trtrs(factor, b, lower=1)[0] for b in (across.T, self.w[s]))
        self.w -= left.T @ solved
        add_products(left, self.inverse.T, -1.0, upper=True)
        # The rows of a removed unit are exactly zero now; its block stays invertible.
        self.w[s] = 0.0
        self.inverse[s[:, None], s] = np.eye(s.size)
        self._drop()
        return float(np.sum(solved**2, dtype=np.float64))

    def _drop(self) -> None:
        """Drop the rows of removed units, once they are enough to be worth a copy."""
        stays = np.repeat(self.alive, self.sizes)
        if 4 * np.count_nonzero(stays) > 3 * stays.size:
            return
        kept = np.flatnonzero(stays)
        self.inverse, self.w = _block(self.inverse, kept), self.w[kept]
        self.sizes = np.where(self.alive, self.sizes, 0)
        self._place()


class _States:
    """The states of all regressions of a group. columns: of the largest."""

    def __init__(self, regressions: Sequence[Regression], units: int, ridge: float) -> None:
        self._states: list[_State] = []
        self.columns = nbytes = 0
        aside = False
        for r in regressions:
            state = _State(r, units, ridge)
            self.columns = max(self.columns, state.columns)
            nbytes += state.nbytes
            self._states.append(state)
            if nbytes > HELD_BYTES:
                for s in self._states[-1:] if aside else self._states:
                    s.put_aside()
                aside = True

    def remove(self, units: Ints, alive: Ints) -> tuple[float, Doubles]:
        """Eliminate units, if any; what that costs, and what the removal of each unit of `alive` costs then, (n,)."""
        cost, total = 0.0, np.zeros(alive.size)
        for s in self._states:
            with s.at_work():
                cost += s.remove(units)
                total += s.costs(alive)
        return max(cost, 0.0), np.maximum(total, 0.0)


def _block(a: Floats, indices: Ints) -> Floats:
    """Rows and columns `indices` of a, in Fortran order, which the rank-k update of BLAS changes in place."""
    block: Floats = a.T[indices[:, None], indices].T
    return block


def eliminate(
    regressions: Sequence[Regression], units: int, ridge: float = OF_SELECTION, rows: Ints | None = None
) -> Path:
    """The path of removing, at each step, the units that cost least over all consumers together.

    Where several units go in one step, its cost is shared among them in proportion to what each would cost alone.
    rows: the balanced set of each unit, (units,): one of each set goes in turn, so that every whole round is balanced.
    """
    states = _States(regressions, units, ridge)
    large = units > EXACT_UNITS or states.columns > EXACT_COLUMNS
    alive = np.arange(units)
    order: list[int] = []
    loss = np.zeros(units + 1)
    _, total = states.remove(alive[:0], alive)
    while alive.size:
        worst = np.argsort(total, kind="stable")
        count = max(1, alive.size // STEPS_PER_HALVING) if large else 1
        if rows is not None:
            worst, count = _of_each_set(worst, rows[alive], count)
        worst = worst[:count]
        gone, alive = alive[worst], np.delete(alive, worst)
        cost, following = states.remove(gone, alive)
        alone = np.cumsum(total[worst])
        share = alone / alone[-1] if alone[-1] > 0 else np.arange(1, worst.size + 1) / worst.size
        before = units - len(order)
        loss[before - 1 - np.arange(worst.size)] = loss[before] + cost * share
        order.extend(gone.tolist())
        total = following
    return Path(np.array(order, np.int64), loss)


def _of_each_set(worst: Ints, rows: Ints, count: int) -> tuple[Ints, int]:
    """(candidates in their turns, how many of them): single units from the fullest sets, or several whole rounds."""
    left = np.bincount(rows)
    sets = int((left > 0).sum())
    if count >= sets and (left[left > 0] == left.max()).all():
        return in_turns(worst, rows), count // sets * sets
    return worst[left[rows[worst]] == left.max()], 1
