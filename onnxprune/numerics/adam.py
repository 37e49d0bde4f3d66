"""Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1), and a learning rate that rises, then falls along a cosine.

m ← β₁ m + (1 - β₁) g,  v ← β₂ v + (1 - β₂) g²,  direction = m̂ / (√v̂ + ε),  m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ).
Oracle: torch.optim.Adam (tests).

Where entries share v, it is the mean of g² over them, so that their steps keep the proportions of the gradient: entries
whose gradient is mostly noise move little, where Adam moves all alike (for rows and blocks of rows: Adam-mini, Zhang et
al. 2025, arXiv 2406.16793).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onnxprune.numerics.arrays import Floats


class Adam:
    """Adam's directions, against which arrays are to be moved, times a rate.

    shapes: of each array, by name. shared: those of which all entries with one index along the first axis share their
    second moment. steps: how many were taken so far.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        *,
        shared: Collection[str] = (),
        first: float = 0.9,
        second: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        self.first: float = first
        self.second: float = second
        self.epsilon: float = epsilon
        self.steps: int = 0
        self._shared = frozenset(shared)
        seconds = {k: (s[0], *(1 for _ in s[1:])) if k in self._shared else s for k, s in shapes.items()}
        self._moments = {k: (np.zeros(s, np.float32), np.zeros(seconds[k], np.float32)) for k, s in shapes.items()}

    def directions(self, gradients: Mapping[str, Floats]) -> dict[str, Floats]:
        """The directions of the next step, given the gradient of every array."""
        self.steps += 1
        scale = 1 / (1 - self.first**self.steps)
        root = math.sqrt(1 - self.second**self.steps)
        directions: dict[str, Floats] = {}
        for k, (m, v) in self._moments.items():
            g = gradients[k]
            m += (1 - self.first) * (g - m)
            square = g * g
            if k in self._shared:
                square = square.mean(axis=tuple(range(1, g.ndim)), keepdims=True)
            v += (1 - self.second) * (square - v)
            directions[k] = scale * m / (np.sqrt(v) / root + self.epsilon)
        return directions


def one_cycle(step: int, steps: int, *, warm_up: float = 0.1) -> float:
    """The share of the learning rate at a step, from 0 on: linear up over `warm_up` of all, then a cosine down to 0."""
    rising = max(round(warm_up * steps), 1)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
