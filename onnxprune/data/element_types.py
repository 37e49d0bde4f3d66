"""Data of another element type than the model wants: converted where nothing is lost, and refused where something is.

Floating-point numbers are rounded to what the input can hold, as the model computes with those; one that would become
infinite is refused. Integers keep their values, or are refused. Numbers of another kind (pixels as bytes for an input
of floating-point numbers, floating-point numbers for indices) are more often a mistake than not, and stay refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.data.array_files import Rows, chunks
from onnxprune.errors import CalibrationError
from onnxprune.numerics.arrays import Array, cast, is_float


def converted(a: Array | Rows, dtype: np.dtype[Any], where: str) -> tuple[Array | Rows, str]:
    """(the array in the type that the model wants, what to say of it or "").

    where: the file and the input, for messages. Raises CalibrationError where values would be lost.
    """
    if dtype.kind == "O":
        return _text(a, where), ""
    if a.dtype == dtype:
        return a, ""
    _check(a, dtype, where)
    note = f"{where} is {a.dtype.name}, the model wants {dtype.name}: converted"
    if a.dtype.name == dtype.name:
        note = f"{where} is in the other order of bytes: converted"
    return (a.as_type(dtype) if isinstance(a, Rows) else cast(a, dtype)), note


def _check(a: Array | Rows, dtype: np.dtype[Any], where: str) -> None:
    """Raises CalibrationError where the values of an array cannot be had in another type."""
    kind = a.dtype.kind
    if is_float(a.dtype) and is_float(dtype):
        if not _within(a.dtype, dtype):
            for part in chunks(a):
                if not (np.isfinite(cast(part, dtype)) | ~np.isfinite(part)).all():
                    raise CalibrationError(
                        f"{where} has values beyond {dtype.name}, which the model wants; scale the data first"
                    )
    elif kind in "biu" and (dtype.kind in "iu" or dtype == np.bool_):
        least, most = (0, 1) if dtype == np.bool_ else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        for part in chunks(a):
            if part.size and not (least <= int(part.min()) and int(part.max()) <= most):
                raise CalibrationError(
                    f"{where} is {a.dtype}, the model wants {dtype.name}, and its values from {part.min()} to "
                    f"{part.max()} do not fit in that"
                )
    else:
        raise CalibrationError(f"{where} is {a.dtype}, the model wants {dtype}; convert it with .astype")


def _within(a: np.dtype[Any], b: np.dtype[Any]) -> bool:
    """Whether every number of one floating-point type is one of the other, or becomes no infinite one."""
    return a.name == b.name or (b.itemsize >= 4 and a.itemsize <= b.itemsize)


def _text(a: Array | Rows, where: str) -> Array:
    values = a[:] if isinstance(a, Rows) else a
    if values.dtype.kind in "US":
        return values.astype(object)  # as onnxruntime gives strings out
    if values.dtype.kind != "O":
        raise CalibrationError(f"{where} is {values.dtype}, the model wants text; convert it with .astype")
    if not all(isinstance(v, str) for v in np.ravel(values)):
        raise CalibrationError(f"{where} holds other things than text")
    return values
