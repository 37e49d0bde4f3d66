"""From the steps of a greedy method to a path: the best support of every size, and its coefficients.

Every method of Ye, Wu & Liu (arXiv 2010.15969) and its predecessor (arXiv 2003.01794) moves a convex combination
A ← (1 - γ) A + γ e_i. In the papers' scaling the contributions are N s_i and Σ α_i = 1; here the coefficients are
a = N α, so that 1 is the full layer, and a step is a ← (1 - γ) a + γ N e_i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxprune.numerics.arrays import Doubles, Ints, Mask
from onnxprune.selection.path import Path, falling, in_turns

# Relative to D(0): between coefficients that are equal up to this, the layer as it is, a = 1, is taken.
_ROUNDING = 1e-12
# Relative gain of a step that ends the optimisation of a support.
_SETTLED = 1e-7


@dataclass(frozen=True, eq=False)
class Step:
    """a ← (1 - gamma) a + gamma · N e_unit led to these coefficients (N,) and this discrepancy."""

    unit: int
    gamma: float
    loss: float
    coefficients: Doubles


class Walk(Protocol):
    """A place among the coefficients, and the greedy moves from it.

    a: the place, (N,), never changed in place. loss: D(a). patience: how many steps a filled-up size is worth.
    """

    a: Doubles
    loss: float
    patience: int

    def jump(self, a: Doubles) -> None:
        """Continue at a."""

    def advance(self, allowed: Mask) -> Step | None:
        """Take the best step among the units `allowed` (N,); None where none improves by more than rounding.

        From a = 0, which is no convex combination, γ = 1, whatever it costs.
        """

    def addition(self, allowed: Mask) -> int:
        """The unit of `allowed` (N,) with the best step γ ≥ 0; where none improves, the one nearest to improving."""

    def rescale(self) -> None:
        """Multiply a by the common factor that serves it best, Σ a ≤ N: never to a larger loss.

        So removing everything is one more corner of the hull. Without a bound, D may have no minimum (`quadratic`).
        """


@dataclass(frozen=True, eq=False)
class _State:
    """One size: which units, their coefficients, the discrepancy."""

    support: Mask
    a: Doubles
    loss: float


def path_of(steps: Iterable[Step], walk: Walk, rows: Ints | None = None) -> Path:
    """The path of a greedy method: of every size, the best support that the steps visit, with its coefficients.

    A size that was not visited takes that of the next smaller size and one unit more. The coefficients of every size
    are optimised on its support by the same steps and a common factor (`settle`), so that those of all sizes and all
    methods are of one class, a ≥ 0 and Σ a ≤ N, and their discrepancies can be compared: a greedy walk passes through a
    size on its way, and leaves it as it stands. A visited size that is then worse than a smaller one counts as not
    visited. Thus the discrepancy never grows with the units kept. All N units may also stay as they are, a = 1.

    rows: the balanced set of each unit, (N,). The greedy knows nothing of sets; the units that are in fewest of its
    supports then go first, one of each set in turn, and the coefficients are optimised on what that leaves, from the
    smallest size to the largest.

    Memory: O(N²) for the coefficients of all sizes.
    """
    n = walk.a.size
    states = _free_choice(steps, walk)
    importance = np.sum([s.support for s in states], axis=0)
    order = in_turns(np.argsort(importance, kind="stable").astype(np.int64), rows)
    if rows is not None:
        states = states[:1]
        for size in range(1, n + 1):
            states.append(_grown(walk, states[-1], int(order[n - size])))
        states[n] = _at_most_full(walk, states)
    loss, floor = falling(np.array([s.loss for s in states]))
    supports = None if rows is not None else {size: np.flatnonzero(s.support) for size, s in enumerate(states)}
    return Path(order, loss, supports, {size: s.a for size, s in enumerate(states)}, floor)


def _free_choice(steps: Iterable[Step], walk: Walk) -> list[_State]:
    """The states of sizes 0..N."""
    n = walk.a.size
    best: dict[int, Step] = {}
    for step in steps:
        size = int(np.count_nonzero(step.coefficients))
        if size not in best or step.loss < best[size].loss:
            best[size] = step
    walk.jump(np.zeros(n))
    states = [_State(np.zeros(n, bool), walk.a, walk.loss)]
    for size in range(1, n + 1):
        visited = _visited(walk, best[size], states[-1].loss) if size in best else None
        states.append(visited or _grown(walk, states[-1]))
    states[n] = _at_most_full(walk, states)
    return states


def _visited(walk: Walk, step: Step, limit: float) -> _State | None:
    """The state after a step, optimised; None where it is above `limit`."""
    support = step.coefficients != 0
    walk.jump(step.coefficients)
    settle(walk, support)
    return _State(support, walk.a, walk.loss) if walk.loss <= limit else None


def _grown(walk: Walk, before: _State, unit: int | None = None) -> _State:
    """One unit more, and coefficients optimised on the support."""
    if walk.a is not before.a:
        walk.jump(before.a)
    support = before.support.copy()
    support[walk.addition(~support) if unit is None else unit] = True
    settle(walk, support)
    return _State(support, walk.a, walk.loss)


def _at_most_full(walk: Walk, states: Sequence[_State]) -> _State:
    """The layer as it is, where no other coefficients for all its units are better. states: the first is a = 0."""
    walk.jump(np.ones(walk.a.size))
    last = states[-1]
    as_it_is = walk.loss <= last.loss + _ROUNDING * abs(states[0].loss)
    return _State(last.support, walk.a, walk.loss) if as_it_is else last


def settle(walk: Walk, support: Mask) -> None:
    """Steps within the support and common factors, until none of either improves D by a ten-millionth.

    `walk.patience` steps at most.
    """
    left = walk.patience
    while left > 0:
        before = walk.loss
        while left > 0:
            left -= 1
            loss = walk.loss
            if walk.advance(support) is None or loss - walk.loss <= _SETTLED * abs(loss):
                break
        walk.rescale()
        if before - walk.loss <= _SETTLED * abs(before) or not walk.a.any():
            return


def best_within(
    walk: Walk, n: int, limit: int, rows: Ints | None = None, step_of: Callable[[Mask], Step | None] | None = None
) -> tuple[Mask, Doubles, float]:
    """(mask, coefficients, D) of n units: at most `limit` steps that never hold more than n, settled and filled up.

    Once n units are in, only they are moved, until one of them is removed and its place is free again. rows: the
    balanced set of each unit, (N,): no set ever holds more than its share, which differs by one at most. step_of: how
    `walk` steps among the units that are allowed, where not by the best step.
    """
    total = walk.a.size
    walk.jump(np.zeros(total))
    if not n:
        return np.zeros(total, bool), walk.a, walk.loss
    nothing = _State(np.zeros(total, bool), walk.a, walk.loss)
    support = nothing.support
    for _ in range(limit):
        step = (step_of or walk.advance)(_open(support, n, rows))
        if step is None:
            break
        support = step.coefficients != 0
    settle(walk, support)
    state = _State(support, walk.a, walk.loss)
    while int(state.support.sum()) < n:
        state = _grown(walk, state, walk.addition(_open(state.support, n, rows) & ~state.support))
    if n == total:
        state = _at_most_full(walk, (nothing, state))
    return state.support, state.a, state.loss


def _open(support: Mask, n: int, rows: Ints | None) -> Mask:
    """The units that a step may move when at most n, in balanced sets, are held."""
    sets: Ints = np.zeros(support.size, np.int64) if rows is None else rows
    held, sizes = (np.bincount(sets, where, int(sets.max()) + 1) for where in (support, None))
    share, extra = divmod(n, int((sizes > 0).sum()))
    places = share + int(extra > int((held > share).sum()))
    result: Mask = support | (held < places)[sets]
    return result
