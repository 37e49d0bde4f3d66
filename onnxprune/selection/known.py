"""What a method of selection gets of one group, and how its function is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from onnxprune.methods import METHODS
from onnxprune.numerics.arrays import Doubles, Ints
from onnxprune.selection.path import Path, Regressions
from onnxprune.selection.quadratic import Quadratic


@dataclass(frozen=True, eq=False)
class Known:
    """What selection knows of one group of `size` units.

    method: the one that is run on it: a stand-in where nothing is known that another could judge by. rows: the balanced
    set of each unit, (size,), or None. regressions: of the layers that read it. outputs: the discrepancy of the
    network's outputs, where the method looks at these. scores: (size,), where it ranks by them.
    """

    method: str
    group: int
    size: int
    rows: Ints | None
    regressions: Regressions
    outputs: Quadratic | None = None
    scores: Doubles | None = None

    @property
    def layers(self) -> Quadratic:
        """The discrepancy of the outputs of all layers that read it together."""
        total: Doubles = np.zeros((self.size, self.size))
        for r in self.regressions:
            total += r.contributions(self.size)
        return Quadratic.of_gram(total)


@dataclass(frozen=True)
class Choice:
    """What the run chose: its seed, and whether coefficients are free (`PruneConfig.coefficients`)."""

    seed: int = 0
    free: bool = False


def function_of(method: str) -> Callable[[Known, Choice], Path]:
    """The function that computes the path of a method, as its row of METHODS names it."""
    file, _, function = METHODS[method].function.partition(".")
    path_function: Callable[[Known, Choice], Path] = getattr(import_module(f"onnxprune.selection.{file}"), function)
    return path_function
