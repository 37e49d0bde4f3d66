"""The ridge: how strongly fitted weights are pulled towards what they were, and how that is chosen.

A fit on a few hundred samples is argmin ||Y - X W'||² + ||W' - W||²_Λ with Λ = (JITTER + ridge) diag(XᵀX), so that a
ridge of 1 weighs the old weights as much as the data, whatever the scale of a column. It is the one of RIDGES that does
best on samples that the fit has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter

import numpy as np

from onnxprune.numerics.arrays import Doubles, Floats, Ints
from onnxprune.numerics.least_squares import solve_spd
from onnxprune.threads import mapped

# From the largest on: where columns are many and samples few the least need no solve.
RIDGES = (1.0, 1e-1, 1e-2, 1e-3)
# That of selection by elimination, at least. The weights that remain will read inputs that upstream cuts have changed,
# so a selection that counts on delicate cancellations does not last.
OF_SELECTION = 0.1
# Of more outputs than this, as many random sums are enough to tell one ridge from another.
JUDGED_OUTPUTS = 64


def chosen(fit: Floats, held: Floats, w: Doubles, classes: Ints) -> float:
    """The ridge of RIDGES that does best on `held` (D, D) when a random half of the classes is removed.

    The layer w (D, M) is refitted with the moments `fit` (D, D); classes (D,): -1 for columns that stay. Of many
    outputs, a few random sums stand for all: the mean of their errors is that of all errors.
    """
    present = np.unique(classes[classes >= 0])
    cut = np.isin(classes, np.random.default_rng(present.size).permutation(present)[: max(present.size // 2, 1)])
    sums = random_sums(w.shape[1], JUDGED_OUTPUTS)
    w = w if sums is None else w @ sums
    keep, gone = np.flatnonzero(~cut), np.flatnonzero(cut)
    xx, lost = (m[np.ix_(keep, keep)].astype(np.float64) for m in (fit, held))
    xy, left = (m[np.ix_(keep, gone)].astype(np.float64) @ w[gone] for m in (fit, held))

    def error(ridge: float) -> float:
        step = solve_spd(xx, xy, ridge)
        # But for what the removed columns lose by themselves, which is the same for all.
        return float(np.sum(step * (lost @ step - 2.0 * left)))

    return min(until_it_rises(error, RIDGES), key=itemgetter(1))[0]


def until_it_rises(error: Callable[[float], float], ridges: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Ridges with their errors, up to the first that is worse than the one before it.

    The error falls and rises once. Two at a time: most searches end with the second or the third, and those behind
    would be for nothing.
    """
    last = float("inf")
    for pair in (ridges[:2], ridges[2:]):
        for ridge, current in zip(pair, mapped(error, pair), strict=True):
            yield ridge, current
            if current > last:
                return
            last = current


def random_sums(outputs: int, most: int = JUDGED_OUTPUTS) -> Doubles | None:
    """Signs (outputs, most) / √most: the squared error of the sums is that of all outputs in the mean.

    None where the outputs are no more than that.
    """
    if outputs <= most:
        return None
    signs = np.random.default_rng(outputs).choice((-1.0, 1.0), (outputs, most))
    sums: Doubles = signs / np.sqrt(most)
    return sums
