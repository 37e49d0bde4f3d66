"""BLAS and LAPACK by their addresses, against numpy and `scipy.linalg`, and that they let other threads run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg

from onnxprune.numerics import lapack
from onnxprune.threads import one_blas_thread
from tests.compare import assert_same

Floats = NDArray[np.floating]
Real = type[np.floating]

# Odd and even: the packed format has another layout for each.
SIZES = (0, 1, 2, 3, 8, 33)
REALS = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# The systems below have condition numbers of at most 10.
RTOL = {np.float32: 1e-5, np.float64: 1e-13}


def random(dtype: Real, *shape: int) -> Floats:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def definite(dtype: Real, size: int) -> Floats:
    """A symmetric matrix with eigenvalues from 1 to 10, in Fortran's order."""
    turned = np.linalg.qr(np.random.default_rng(size).standard_normal((size, size)))[0]
    return np.asfortranarray((turned * np.linspace(1.0, 10.0, size)) @ turned.T, dtype)


def lower(a: Floats) -> Floats:
    return np.tril(a.astype(np.float64))


@REALS
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_products_are_added_to_one_triangle(count: int, columns: int, order: str, upper: bool, dtype: Real) -> None:
    """Fails where rows are taken for columns, the other triangle is written, or a factor goes elsewhere."""
    rows = np.asarray(random(dtype, count, columns), order=order)
    before = random(dtype, columns, columns)
    total, given = before.copy(), rows.copy()
    lapack.add_products(rows, total, 0.5, -2.0, upper=upper)
    wide = rows.astype(np.float64)
    inside = np.tri(columns, dtype=bool)
    inside = inside.T if upper else inside
    expected = np.where(inside, 0.5 * wide.T @ wide - 2.0 * before.astype(np.float64), before)
    assert_same(total, expected.astype(dtype), rtol=RTOL[dtype], atol=0.0)
    assert_same(total[~inside], before[~inside], rtol=0.0, atol=0.0)
    assert_same(rows, given, rtol=0.0, atol=0.0)


@REALS
def test_products_are_added_once_unless_told_otherwise(dtype: Real) -> None:
    """Fails where the usual factors are not one, or whole numbers are read as bits of another type."""
    rows, before = random(dtype, 9, 5), random(dtype, 5, 5)
    for factors in ((), (1, 1), (3, 2), (np.float32(3), np.int64(2))):
        total = before.copy()
        lapack.add_products(rows, total, *factors)
        alpha, beta = factors or (1.0, 1.0)
        expected = float(alpha) * rows.astype(np.float64).T @ rows + float(beta) * before.astype(np.float64)
        assert_same(np.tril(total), np.tril(expected).astype(dtype), rtol=RTOL[dtype], atol=0.0)


@REALS
@pytest.mark.parametrize("count", [0, 7])
def test_what_a_new_total_held_does_not_count(count: int, dtype: Real) -> None:
    """Fails where memory that was never written is multiplied by zero: it may hold what is no number."""
    rows, total = random(dtype, count, 5), np.full((5, 5), np.nan, dtype)
    lapack.add_products(rows, total, beta=0.0)
    assert_same(np.tril(total), np.tril(rows.T @ rows), rtol=RTOL[dtype], atol=0.0)
    assert np.isnan(total[np.triu_indices(5, 1)]).all()


@REALS
@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_packed_products_come_back_as_a_triangle(count: int, columns: int, dtype: Real) -> None:
    """Fails where an entry of the packed triangle is that of another pair, or a batch replaces the others."""
    parts = [random(dtype, count, columns), random(dtype, 5, columns)]
    packed = np.zeros(columns * (columns + 1) // 2, dtype)
    for rows in parts:
        lapack.add_packed_products(rows, packed)
    found = lapack.unpacked(packed, columns)
    assert found.flags.f_contiguous
    wide = np.concatenate(parts).astype(np.float64)
    assert_same(found, np.tril(wide.T @ wide).astype(dtype), rtol=RTOL[dtype], atol=0.0)


@REALS
@pytest.mark.parametrize("size", SIZES)
def test_the_factor_is_that_of_numpy(size: int, dtype: Real) -> None:
    """Fails where another triangle is read or written than the lower one: what is above it is no number here."""
    a = definite(dtype, size)
    factor = np.where(np.tri(size, dtype=bool), a, np.nan).astype(dtype, order="F")
    assert lapack.cholesky(factor)
    assert_same(np.tril(factor), np.linalg.cholesky(a.astype(np.float64)).astype(dtype), rtol=RTOL[dtype], atol=0.0)
    assert np.isnan(factor[np.triu_indices(size, 1)]).all()


@REALS
@pytest.mark.parametrize("size", [1, 2, 33])
def test_a_matrix_that_is_not_definite_is_told(size: int, dtype: Real) -> None:
    """Fails where the status of the routine is lost, and half a factor is used; the last pivot alone is wrong."""
    a = definite(dtype, size)
    a[-1, -1] = -a[-1, -1]
    assert lapack.cholesky(a) is False
    assert lapack.cholesky(np.zeros((size, size), dtype, order="F")) is False


@REALS
@pytest.mark.parametrize("outputs", [0, 1, 4])
@pytest.mark.parametrize("size", SIZES)
def test_solutions_are_those_of_scipy(size: int, outputs: int, dtype: Real) -> None:
    """Fails where one side of the factor is left out, or right-hand sides are mixed up."""
    a, b = definite(dtype, size), random(dtype, size, outputs)
    factor, x = a.copy(order="F"), b.copy(order="F")
    assert lapack.cholesky(factor)
    kept = factor.copy()
    lapack.cholesky_solve(factor, x)
    assert_same(factor, kept, rtol=0.0, atol=0.0)
    expected = linalg.solve(a.astype(np.float64), b.astype(np.float64)) if b.size else b.astype(np.float64)
    assert_same(x, expected.astype(dtype), rtol=10 * RTOL[dtype], atol=0.0)


@REALS
@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_is_that_of_numpy(size: int, dtype: Real) -> None:
    """Fails where the inverse of the factor is given, or the other triangle."""
    a = definite(dtype, size)
    factor = a.copy(order="F")
    assert lapack.cholesky(factor)
    factor[np.triu_indices(size, 1)] = np.nan
    lapack.cholesky_inverse(factor)
    expected = lower(np.linalg.inv(a.astype(np.float64)))
    assert_same(np.tril(factor), expected.astype(dtype), rtol=10 * RTOL[dtype], atol=0.0)
    assert np.isnan(factor[np.triu_indices(size, 1)]).all()


# refusals


def fixed(a: Floats) -> Floats:
    """The same, read-only."""
    a.flags.writeable = False
    return a


def fortran(*shape: int, dtype: Real = np.float64) -> Floats:
    return np.ones(shape, dtype, order="F")


ROWS = np.ones((4, 3))
HALVES, WHOLES, SWAPPED = np.float16, np.int64, np.dtype(np.float64).newbyteorder()
# What is called, what it would write, and the error.
WRONG: dict[str, tuple[Callable[..., object], tuple[Floats, ...], Floats, type[Exception]]] = {
    "total too small": (lapack.add_products, (ROWS,), np.ones((2, 2)), ValueError),
    "total too large": (lapack.add_products, (ROWS,), np.ones((4, 4)), ValueError),
    "total not square": (lapack.add_products, (ROWS,), np.ones((3, 4)), ValueError),
    "total in the other order": (lapack.add_products, (ROWS,), fortran(3, 3), ValueError),
    "total with gaps": (lapack.add_products, (ROWS,), np.ones((3, 6))[:, ::2], ValueError),
    "total read-only": (lapack.add_products, (ROWS,), fixed(np.ones((3, 3))), ValueError),
    "total of another precision": (lapack.add_products, (ROWS,), np.ones((3, 3), np.float32), ValueError),
    "rows with gaps": (lapack.add_products, (np.ones((4, 6))[:, ::2],), np.ones((3, 3)), ValueError),
    "rows backwards": (lapack.add_products, (ROWS[::-1],), np.ones((3, 3)), ValueError),
    "a stack of rows": (lapack.add_products, (np.ones((2, 4, 3)),), np.ones((3, 3)), ValueError),
    "one row": (lapack.add_products, (np.ones(3),), np.ones((3, 3)), ValueError),
    "half precision": (lapack.add_products, (ROWS.astype(HALVES),), np.ones((3, 3), HALVES), TypeError),
    "integers": (lapack.add_products, (ROWS.astype(WHOLES),), np.ones((3, 3), WHOLES), TypeError),
    "other bytes": (lapack.add_products, (ROWS.astype(SWAPPED),), np.ones((3, 3), SWAPPED), TypeError),
    "packed too short": (lapack.add_packed_products, (ROWS,), np.ones(5), ValueError),
    "packed too long": (lapack.add_packed_products, (ROWS,), np.ones(7), ValueError),
    "packed as a matrix": (lapack.add_packed_products, (ROWS,), np.ones((3, 3)), ValueError),
    "packed with gaps": (lapack.add_packed_products, (ROWS,), np.ones(12)[::2], ValueError),
    "packed read-only": (lapack.add_packed_products, (ROWS,), fixed(np.ones(6)), ValueError),
    "packed of another precision": (lapack.add_packed_products, (ROWS,), np.ones(6, np.float32), ValueError),
    "packed rows in the other order": (lapack.add_packed_products, (np.asfortranarray(ROWS),), np.ones(6), ValueError),
    "packed integers": (lapack.add_packed_products, (ROWS.astype(WHOLES),), np.ones(6, WHOLES), TypeError),
    "nothing to unpack": (lambda packed: lapack.unpacked(packed, 3), (), np.ones(5), ValueError),
    "to unpack with gaps": (lambda packed: lapack.unpacked(packed, 3), (), np.ones(12)[::2], ValueError),
    "to unpack integers": (lambda packed: lapack.unpacked(packed, 3), (), np.ones(6, WHOLES), TypeError),
    "to factor: not square": (lapack.cholesky, (), fortran(3, 4), ValueError),
    "to factor: in the other order": (lapack.cholesky, (), np.ones((3, 3)), ValueError),
    "to factor: a vector": (lapack.cholesky, (), np.ones(3), ValueError),
    "to factor: read-only": (lapack.cholesky, (), fixed(fortran(3, 3)), ValueError),
    "to factor: integers": (lapack.cholesky, (), fortran(3, 3, dtype=WHOLES), TypeError),
    "sides: too few": (lapack.cholesky_solve, (fortran(3, 3),), fortran(2, 3), ValueError),
    "sides: a vector": (lapack.cholesky_solve, (fortran(3, 3),), np.ones(3), ValueError),
    "sides: in the other order": (lapack.cholesky_solve, (fortran(3, 3),), np.ones((3, 2)), ValueError),
    "sides: read-only": (lapack.cholesky_solve, (fortran(3, 3),), fixed(fortran(3, 2)), ValueError),
    "sides: of another precision": (
        lapack.cholesky_solve,
        (fortran(3, 3),),
        fortran(3, 2, dtype=np.float32),
        ValueError,
    ),
    "the factor: in the other order": (lapack.cholesky_solve, (np.ones((3, 3)),), fortran(3, 2), ValueError),
    "the factor: not square": (lapack.cholesky_solve, (fortran(3, 2),), fortran(3, 2), ValueError),
    "to invert: not square": (lapack.cholesky_inverse, (), fortran(4, 3), ValueError),
    "to invert: in the other order": (lapack.cholesky_inverse, (), np.ones((3, 3)), ValueError),
    "to invert: integers": (lapack.cholesky_inverse, (), fortran(3, 3, dtype=WHOLES), TypeError),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_refused(kind: str) -> None:
    """Fails where a routine reads or writes beside an array: that ends in a crash, or in wrong numbers."""
    call, arguments, written, error = WRONG[kind]
    before = written.copy()
    with pytest.raises(error):
        call(*arguments, written)
    assert_same(written, before, rtol=0.0, atol=0.0)


# threads


def moved_during(call: Callable[[], object]) -> bool:
    """Whether another thread that waits for the interpreter's lock got it while `call` ran."""
    gate, ready, moved = threading.Lock(), threading.Event(), threading.Event()

    def other() -> None:
        ready.set()
        with gate:
            moved.set()

    thread = threading.Thread(target=other)
    with gate:
        thread.start()
        ready.wait()
    call()
    found = moved.is_set()
    thread.join()
    return found


@pytest.mark.parametrize("name", ["add_products", "cholesky"])
def test_other_threads_run_meanwhile(name: str) -> None:
    """Fails where a routine holds the interpreter's lock, so that threads take turns.

    Nothing else lets go of it here: the interpreter itself does so after an hour only.
    """
    rows, square = np.ones((1000, 1000)), 2000.0 * np.eye(1000)
    calls: dict[str, Callable[[], object]] = {
        "add_products": lambda: lapack.add_products(rows, square),
        "cholesky": lambda: lapack.cholesky(square.T),
    }
    calls[name]()  # the routine is looked up
    before = sys.getswitchinterval()
    sys.setswitchinterval(3600.0)
    try:
        assert not moved_during(lambda: sum(range(100_000)))
        with one_blas_thread():
            # Once is enough; a busy machine may not wake the other thread at once.
            assert any(moved_during(calls[name]) for _ in range(100))
    finally:
        sys.setswitchinterval(before)
