"""Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1), and a learning rate that rises, then falls along a cosine.

m ← β₁ m + (1 - β₁) g,  v ← β₂ v + (1 - β₂) g²,  w ← w - rate · m̂ / (√v̂ + ε),  m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ).
Oracle: torch.optim.Adam (tests).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


class Adam:
    """weights: changed in place by `step`; their moments have the same shapes and types. steps: so far."""

    def __init__(
        self, weights: Mapping[str, Floats], *, first: float = 0.9, second: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        self.weights = weights
        self.first, self.second, self.epsilon = first, second, epsilon
        self.steps = 0
        self._moments = {k: (np.zeros_like(w), np.zeros_like(w)) for k, w in weights.items()}

    def step(self, gradients: Mapping[str, Floats], rate: float) -> None:
        """One step down the gradients, which name every weight."""
        self.steps += 1
        scale = rate / (1 - self.first**self.steps)
        root = math.sqrt(1 - self.second**self.steps)
        for k, w in self.weights.items():
            g, (m, v) = gradients[k], self._moments[k]
            m += (1 - self.first) * (g - m)
            v += (1 - self.second) * (g * g - v)
            w -= scale * m / (np.sqrt(v) / root + self.epsilon)


def one_cycle(step: int, steps: int, *, warm_up: float = 0.1) -> float:
    """The share of the learning rate at a step, from 0 on: linear up over `warm_up` of all, then a cosine down to 0."""
    rising = max(round(warm_up * steps), 1)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
