"""Greedy forward selection (Ye et al., ICML 2020, arXiv 2003.01794): the predecessor of `imitation`.

Step k + 1 takes γ = 1/(k + 1) whatever the unit, so that A is the plain mean of the units chosen so far, repeats
counted; nothing is ever removed. D need not fall from step to step: where the full layer lies inside the hull of the
units it falls as 1/k², and as 1/k in general, while the joint step of `imitation` falls exponentially.

Time: O(N) per step for all N units, and one row of K. Memory: O(N) beside K. Oracle: exhaustive search (tests).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

from onnxprune.numerics.arrays import Doubles, Ints, Mask
from onnxprune.selection.imitation import SLACK, QuadraticWalk
from onnxprune.selection.known import Choice, Known
from onnxprune.selection.path import Path
from onnxprune.selection.quadratic import Quadratic
from onnxprune.selection.steps import Step, best_within, path_of


def path_of_layers(group: Known, choice: Choice) -> Path:
    """Forward selection towards the outputs of the layers."""
    del choice
    return select(group.layers, rows=group.rows)


def path_of_outputs(group: Known, choice: Choice) -> Path:
    """Forward selection towards the outputs of the network. Raises TypeError where nothing is known of these."""
    del choice
    if group.outputs is None:
        raise TypeError("forward selection by the outputs of a group without gradients")
    return select(group.outputs, rows=group.rows)


def forward(q: Quadratic) -> Iterator[Step]:
    """Steps without end: the caller stops, by count or by `Step.loss`. Units may repeat."""
    walk = QuadraticWalk(q)
    k = 0
    while True:
        yield walk.fixed(1.0 / (k + 1))
        k += 1


def select(q: Quadratic, *, slack: int = SLACK, rows: Ints | None = None) -> Path:
    """The path of slack · N steps (`steps.path_of`: supports by these, coefficients as any method's). rows: sets."""
    return path_of(islice(forward(q), slack * q.units), QuadraticWalk(q), rows)


def best_of_size(q: Quadratic, n: int, rows: Ints | None = None) -> tuple[Mask, Doubles, float]:
    """(mask (N,), coefficients (N,), D) of n units by steps of fixed size that never hold more, settled and filled up
    (`steps.best_within`). rows: the balanced sets, (N,)."""
    walk, steps = QuadraticWalk(q), count(1)
    return best_within(walk, n, SLACK * q.units, rows, lambda allowed: walk.fixed(1.0 / next(steps), allowed))
