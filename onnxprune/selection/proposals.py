"""What sequential selection proposes for one group: so many units, and their coefficients."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.numerics.arrays import Doubles, Ints, Mask
from onnxprune.numerics.gram import NormalEquations
from onnxprune.selection import gfs
from onnxprune.selection.exact import ExactWalk
from onnxprune.selection.imitation import SLACK, best_of_size
from onnxprune.selection.quadratic import Discrepancy, Quadratic
from onnxprune.selection.steps import best_within

# How many units → which ones, and their coefficients where the method gives any.
Proposal = Callable[[int], tuple[Mask, Doubles | None]]
_EXACT_CANDIDATES = 4
# Gains below this share of the discrepancy without any unit are noise of float32.
_EXACT_ROUNDING = 1e-6


def of_quadratic(q: Quadratic, rows: Ints | None, *, free: bool, fixed: bool = False) -> Proposal:
    """Propose by greedy steps on a quadratic. rows: the balanced sets, (N,). free: see `PruneConfig.coefficients`.

    fixed: take the steps of `gfs`.
    """

    def best(n: int) -> tuple[Mask, Doubles | None]:
        selected = gfs.best_of_size(q, n, rows) if fixed else best_of_size(q, n, rows, free=free)
        return selected[0], selected[1]

    return best


def of_network(d: Discrepancy, units: int, rows: Ints | None, *, free: bool) -> Proposal:
    """Propose by the true network, run for the best few candidates of each step."""
    walk = ExactWalk(d, units, candidates=_EXACT_CANDIDATES, rounding=_EXACT_ROUNDING)

    def best(n: int) -> tuple[Mask, Doubles | None]:
        mask, coefficients, _ = best_within(walk, n, SLACK * units, rows)
        if free:
            walk.rescale()
            coefficients = walk.a
        return mask, coefficients

    return best


def joined(train: NormalEquations, held: NormalEquations, group: int) -> tuple[Doubles, Doubles, Doubles]:
    """E[x xᵀ], E[x yᵀ] and E[y²] of one group of a convolution, over all rows."""
    rows = max(train.rows + held.rows, 1)
    xx, xy, yy = (getattr(train, k)[group] + getattr(held, k)[group] for k in ("xx", "xy", "yy"))
    return xx / rows, xy / rows, yy / rows
