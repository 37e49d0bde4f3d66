"""Work on the columns of a matrix in blocks, one core each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.numerics.arrays import Doubles
from onnxprune.threads import mapped

_BLOCK = 256


def by_columns(function: Callable[[Doubles], Doubles], b: Doubles) -> Doubles:
    """function(b) of b (D, M), where it treats every column alike.

    The blocks do not depend on the number of cores, and so neither does the result.
    """
    if b.shape[1] <= _BLOCK:
        return function(b)
    blocks = (b[:, i : i + _BLOCK] for i in range(0, b.shape[1], _BLOCK))
    return np.concatenate(list(mapped(function, blocks)), axis=1)
