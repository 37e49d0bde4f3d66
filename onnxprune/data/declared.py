"""Declared inputs: of an element type that exists, and of a size that a machine can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.regular_files import shown

# What one sample of one input may take: a volume of 800 x 800 x 800 voxels fits.
MOST_BYTES = 2 << 30
# What random samples of all inputs may take together, as they are drawn: fewer stand in where samples are large.
RANDOM_BYTES = 1 << 30
_SHOWN = 8


def dtype_of(v: onnx.ValueInfoProto) -> np.dtype[np.generic]:
    """The numpy type of a tensor input. Raises ModelError where there is none."""
    if not v.type.HasField("tensor_type"):
        raise ModelError(f"input {v.name!r} is declared without a type")
    element = v.type.tensor_type.elem_type
    if element not in onnx.TensorProto.DataType.values() or element == onnx.TensorProto.UNDEFINED:
        raise ModelError(f"input {v.name!r} is declared with the unknown element type {element}")
    dtype: np.dtype[np.generic] = helper.tensor_dtype_to_np_dtype(element)
    return dtype


def dims_of(v: onnx.ValueInfoProto, dtype: DTypeLike) -> tuple[int | None, ...]:
    """Declared sizes, None where symbolic. Raises ModelError for those that no run can have."""
    dims = tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim)
    text = _text(dims)
    if any(d is not None and d < 0 for d in dims):
        raise ModelError(f"input {v.name!r} is declared as {text}: a size is negative")
    size = math.prod(d for d in dims if d is not None) * np.dtype(dtype).itemsize
    if size > MOST_BYTES:
        raise ModelError(f"input {v.name!r} is declared as {text}, more than {shown(MOST_BYTES)} for one sample")
    return dims


def _text(dims: Sequence[int | None]) -> str:
    return "x".join("N" if d is None else str(d) for d in dims[:_SHOWN]) + ("x…" if len(dims) > _SHOWN else "")
