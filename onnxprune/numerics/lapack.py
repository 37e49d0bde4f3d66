"""The routines of BLAS and LAPACK that large symmetric matrices need, without the interpreter's lock.

scipy's own wrappers hold it, so that threads take turns. These call the same routines, by the addresses that
`scipy.linalg.cython_blas` and `cython_lapack` export, through ctypes, which lets it go. All work in place, on
contiguous float32 or float64. BLAS counts in columns: a symmetric matrix in C's order is the same in Fortran's, and the
lower triangle of the one is the upper triangle of the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

from onnxprune.numerics.arrays import Floats

_name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_address_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@cache
def _routine(name: str) -> tuple[Callable[..., None], Any]:
    """The routine, and its type of integers: builds of scipy for very large matrices count in 64 bits."""
    exported = next(m.__pyx_capi__ for m in (cython_blas, cython_lapack) if name in m.__pyx_capi__)
    signature = _name_of(exported[name])
    address = _address_of(exported[name], signature)
    arguments = signature.decode().count(",") + 1
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)
    return function, ctypes.c_int if " int *" in signature.decode() else ctypes.c_int64


def _call(name: str, array: Floats, *arguments: str | int | float | Floats) -> int:
    """Call a routine in the precision of `array`; returns its last argument where that is an integer (INFO), else 0."""
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} computes in float32 and float64, not in {array.dtype}")
    double = array.dtype == np.float64
    function, integer = _routine(("d" if double else "s") + name)
    real = ctypes.c_double if double else ctypes.c_float
    held: list[Any] = []  # every argument is an address
    number: Any = None
    for a in arguments:
        if isinstance(a, np.ndarray):
            if a.dtype != array.dtype or not (a.flags.c_contiguous or a.flags.f_contiguous):
                raise ValueError(f"{name} takes contiguous arrays of one type")
            held.append(ctypes.c_void_p(a.ctypes.data))
        elif isinstance(a, str):
            held.append(ctypes.create_string_buffer(a.encode()))
        else:
            number = integer(a) if isinstance(a, int) else real(a)
            held.append(ctypes.byref(number))
    function(*held)
    return int(number.value) if isinstance(arguments[-1], int) else 0


def add_products(rows: Floats, total: Floats, alpha: float = 1.0, beta: float = 1.0, *, upper: bool = False) -> None:
    """total ← alpha XᵀX + beta total, one triangle of it: rows X (R, D) in either order, total (D, D) in C's.

    upper: the triangle, the lower one otherwise; with beta = 0 what `total` held does not count.
    """
    count, columns = rows.shape
    if total.shape != (columns, columns) or not total.flags.c_contiguous or not total.flags.writeable:
        raise ValueError(f"the total of products is {columns} x {columns} in C's order")
    alpha, beta = float(alpha), float(beta)  # a whole number would be passed as an integer
    in_order = rows.flags.c_contiguous
    triangle, transposed, stride = "L" if upper else "U", "N" if in_order else "T", columns if in_order else count
    if columns:
        _call("syrk", total, triangle, transposed, columns, count, alpha, rows, max(stride, 1), beta, total, columns)


def add_packed_products(rows: Floats, packed: Floats) -> None:
    """packed += XᵀX: rows X (R, D) in C's order, packed (D (D + 1) / 2,), lower, rectangular full packed format."""
    count, columns = rows.shape
    if packed.shape != (columns * (columns + 1) // 2,) or not packed.flags.c_contiguous or not packed.flags.writeable:
        raise ValueError(f"the packed total of products has {columns * (columns + 1) // 2} entries")
    if not rows.flags.c_contiguous:
        raise ValueError("the rows of packed products have to be in C's order")
    if columns:
        _call("sfrk", packed, "N", "L", "N", columns, count, 1.0, rows, columns, 1.0, packed)


def unpacked(packed: Floats, columns: int) -> Floats:
    """The lower triangle (D, D), in Fortran's order, of what `add_packed_products` adds to; above it are zeros."""
    if packed.shape != (columns * (columns + 1) // 2,) or not packed.flags.c_contiguous:
        raise ValueError(f"{columns} columns have {columns * (columns + 1) // 2} packed entries")
    triangle: Floats = np.zeros((columns, columns), packed.dtype, order="F")
    if columns:
        _call("tfttr", packed, "N", "L", columns, packed, triangle, columns, 0)
    return triangle


def cholesky(a: Floats) -> bool:
    """a (D, D) in Fortran's order ← its factor L, lower triangle alone; whether it is positive definite."""
    _check_square(a)
    return not len(a) or _call("potrf", a, "L", len(a), a, len(a), 0) == 0


def cholesky_solve(factor: Floats, b: Floats) -> None:
    """b (D, M) in Fortran's order ← (L Lᵀ)⁻¹ b, of the factor by `cholesky`."""
    _check_square(factor)
    if len(b) != len(factor) or b.ndim != 2 or not b.flags.f_contiguous or not b.flags.writeable:
        raise ValueError("the right-hand sides have to be a matrix in Fortran's order")
    if b.size:
        _call("potrs", factor, "L", len(factor), b.shape[1], factor, len(factor), b, len(b), 0)


def cholesky_inverse(factor: Floats) -> None:
    """factor (D, D) ← (L Lᵀ)⁻¹, lower triangle alone."""
    _check_square(factor)
    if len(factor):
        _call("potri", factor, "L", len(factor), factor, len(factor), 0)


def _check_square(a: Floats) -> None:
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not a.flags.f_contiguous or not a.flags.writeable:
        raise ValueError("the matrix has to be square and in Fortran's order")
