"""Random choices, the same for the same generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Rng = np.random.Generator
T = TypeVar("T")


def pick(rng: Rng, things: Sequence[T]) -> T:
    """One of them."""
    return things[int(rng.integers(len(things)))]
