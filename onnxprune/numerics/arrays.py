"""What arrays are called everywhere: one name for each type of entries, and what depends on that type alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_dtypes import finfo
from numpy.typing import NDArray

# Of any type; of any floating-point type; of float64; of int64; of bool.
Array = NDArray[Any]
Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
# By group index: the mask over its units that says which stay.
Masks = Mapping[int, Mask]
# What each unit of a group is multiplied with, (units,).
Coefficients = Doubles


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type can be fitted: numpy's floating-point types and bfloat16, which is none of them."""
    return bool(np.issubdtype(dtype, np.floating)) or dtype.name == "bfloat16"


def lowest(dtype: np.dtype[Any]) -> float:
    """The lowest finite number of such a type."""
    return float(finfo(dtype).min)  # type: ignore[no-untyped-call]  # numpy knows no bfloat16


def cast(values: Array, dtype: np.dtype[Any]) -> Array:
    """`values` in another type; what is beyond its range becomes infinite."""
    with np.errstate(over="ignore"):
        converted: Array = np.asarray(values).astype(dtype, order="C")
    return converted


def in_rows(y: Array) -> Array:
    """(N, entries) of an array (N, …), which may be empty: numpy's -1 cannot divide by no rows."""
    rows: Array = y.reshape(len(y), int(np.prod(y.shape[1:])))
    return rows
