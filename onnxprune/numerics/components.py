"""Connected components: which of many things are the same, given pairs that are."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.numerics.arrays import Ints


def components(left: Ints, right: Ints, count: int) -> tuple[int, Ints]:
    """(how many components, the component of each of `count` things), where `left[i]` and `right[i]` are connected.

    Components are numbered by their first members. scipy gets int32: the graph code of 1.11 reads no other indices, and
    where it gets them it returns without an answer.
    """
    if count > np.iinfo(np.int32).max:
        raise ValueError(f"{count} things are more than 32 bits can number")
    ends = left.astype(np.int32), right.astype(np.int32)
    links = coo_array((np.ones(left.size, np.int8), ends), shape=(count, count))
    number, component_of = connected_components(links, directed=False)
    return int(number), component_of.astype(np.int64)
