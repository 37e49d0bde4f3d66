"""Streaming moments, against one computation over all rows."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.numerics import gram
from onnxprune.numerics.gram import Gram, NormalEquations, augmented, mirror, product
from tests.compare import assert_same

# float64 sums in another order.
ROUNDING = 1e-13


def rows(seed: int, groups: int = 2, count: int = 60, columns: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((groups, count, columns))


def test_augmented_appends_a_constant_of_the_same_type() -> None:
    """Fails where the column of ones widens float32 data or lands in front."""
    x = rows(0).astype(np.float32)
    found = augmented(x)
    assert_same(found[..., :-1], x, rtol=0.0, atol=0.0)
    assert_same(found[..., -1], np.ones(x.shape[:2], np.float32), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("cuts", [(60,), (1, 60), (20, 40, 60), (7, 8, 59, 60)])
def test_gram_of_parts_equals_one_pass(cuts: tuple[int, ...]) -> None:
    """Fails where a part is counted twice or divided by the wrong number of rows."""
    x = rows(1)
    whole = Gram.zeros(2, 5)
    parts = [Gram.zeros(2, 5) for _ in cuts]
    merged = Gram.zeros(2, 5)
    for start, stop, part in zip((0, *cuts), cuts, parts, strict=False):
        whole.update(x[:, start:stop])
        part.update(x[:, start:stop])
        merged.merge(part)
    assert merged.rows == whole.rows == 60
    expected = np.einsum("grd,gre->gde", x, x) / 60
    assert_same(whole.result(), expected, rtol=ROUNDING, atol=0.0)
    assert_same(merged.result(), expected, rtol=ROUNDING, atol=0.0)
    assert_same(merged.total, whole.total, rtol=ROUNDING, atol=0.0)


def test_sums_are_kept_in_double_precision() -> None:
    """Fails where many small float32 batches are summed in float32: the last digits would be lost."""
    x = np.full((1, 1, 1), 0.1, np.float32)
    g = Gram.zeros(1, 1)
    for _ in range(20_000):
        g.update(x)
    assert_same(g.result(), (x * x).astype(np.float64), rtol=1e-10, atol=0.0)


def test_an_empty_gram_is_zero() -> None:
    """Fails where no rows at all divide by zero."""
    assert_same(Gram.zeros(1, 3).result(), np.zeros((1, 3, 3)), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("groups", [1, 3])
def test_normal_equations_of_parts_equal_one_pass(groups: int) -> None:
    """Fails where one of the three sums misses a part; a single group takes another path than several."""
    x, y = rows(2, groups), rows(3, groups, columns=4)
    merged = NormalEquations.zeros(groups, 5, 4)
    for part in np.split(np.arange(60), [13, 14, 50]):
        other = NormalEquations.zeros(groups, 5, 4)
        other.update(x[:, part], y[:, part])
        merged.merge(other)
    assert merged.rows == 60
    assert_same(merged.xx, np.einsum("grd,gre->gde", x, x), rtol=ROUNDING, atol=0.0)
    assert_same(merged.xy, np.einsum("grd,grm->gdm", x, y), rtol=ROUNDING, atol=0.0)
    assert_same(merged.yy, np.einsum("grm,grm->gm", y, y), rtol=ROUNDING, atol=0.0)


@pytest.mark.parametrize("groups", [1, 3])
def test_error_equals_that_of_the_rows(groups: int) -> None:
    """Fails where a term of the expanded square is missing, doubled or assigned to another group."""
    x, y = rows(4, groups), rows(5, groups, columns=4)
    w = np.random.default_rng(6).standard_normal((groups, 5, 4))
    sums = NormalEquations.zeros(groups, 5, 4)
    sums.update(x, y)
    assert_same(sums.error(w), ((y - x @ w) ** 2).sum(axis=1), rtol=1e-12, atol=0.0)
    gaps = sums.gaps(w)
    assert_same(gaps, x.transpose(0, 2, 1) @ (y - x @ w), rtol=1e-11, atol=1e-11)
    assert_same(sums.error(w, gaps), sums.error(w), rtol=0.0, atol=0.0)


def test_error_is_never_negative() -> None:
    """Fails where rounding of an exact fit turns into a negative error."""
    x = rows(7, 1)
    w = np.random.default_rng(8).standard_normal((1, 5, 4))
    sums = NormalEquations.zeros(1, 5, 4)
    sums.update(x, x @ w)
    assert (sums.error(w) >= 0.0).all()
    assert_same(sums.error(w), np.zeros((1, 4)), rtol=0.0, atol=1e-10)


# Tiles, triangles and packed sums: sizes on both sides of every limit, with a remainder.
WIDTHS = (5, 63, 64, 257, 520)


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_equals_the_plain_one(columns: int, dtype: type[np.floating]) -> None:
    """Fails where an entry of the lower triangle is another one, or a group is that of another."""
    x = rows(10, 2, 30, columns).astype(dtype)
    found = product(x)
    assert found.dtype == dtype
    mirror(found)
    wide = x.astype(np.float64)
    rtol = ROUNDING if dtype is np.float64 else 1e-6
    assert_same(found.astype(np.float64), np.einsum("grd,gre->gde", wide, wide), rtol=rtol, atol=0.0)


def test_a_mirror_keeps_the_lower_triangle_alone() -> None:
    """Fails where anything of what stood above the diagonal is left, even if it was no number."""
    a = np.full((300, 300), np.nan)
    a[np.tril_indices(300)] = np.arange(300 * 301 // 2)
    lower = np.tril(a)
    mirror(a)
    assert_same(a, np.where(np.tri(300, dtype=bool), lower, lower.T), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("cuts", [(40,), (1, 40), (7, 30, 40)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_packed_gram_equals_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...], dtype: type[np.floating]
) -> None:
    """Fails where packing exchanges entries, a merge forgets one, or rows in float64 are summed in float32."""
    x = rows(11, 2, 40, 9).astype(dtype)
    monkeypatch.setattr(gram, "PACKED", 9)
    parts = [Gram.zeros(2, 9) for _ in cuts]
    whole, merged = Gram.zeros(2, 9), Gram.zeros(2, 9)
    for start, stop, part in zip((0, *cuts), cuts, parts, strict=False):
        whole.update(x[:, start:stop])
        part.update(x[:, start:stop])
        merged.merge(part)
    assert whole.packed and whole.total.shape == (2, 45) and whole.columns == 9
    wide = x.astype(np.float64)
    expected = np.einsum("grd,gre->gde", wide, wide)
    rtol = ROUNDING if dtype is np.float64 else 1e-6
    for found in (whole, merged):
        assert_same(found.sums(), expected.astype(dtype), rtol=rtol, atol=0.0)
        assert_same(found.means(), (expected / 40).astype(dtype), rtol=rtol, atol=0.0)
        assert_same(found.result(), expected / 40, rtol=rtol, atol=0.0)
        assert_same(found.first(), (expected[0] / 40).astype(dtype), rtol=rtol, atol=0.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_plain_sum_is_merged_into_a_packed_one(monkeypatch: pytest.MonkeyPatch, dtype: type[np.floating]) -> None:
    """Fails where sums that were formed elsewhere, as full matrices, are added as if they were packed."""
    x = rows(12, 1, 40, 9).astype(dtype)
    other = Gram(product(x), x.shape[1])
    monkeypatch.setattr(gram, "PACKED", 9)
    found = Gram.zeros(1, 9)
    found.update(x)
    found.merge(other)
    wide = x.astype(np.float64)
    assert_same(found.result(), np.einsum("grd,gre->gde", wide, wide) / 40, rtol=1e-6, atol=0.0)


# LAPACK lays out triangles of odd and of even size in two ways.
PACKED_WIDTHS = (8, 9)


@pytest.mark.parametrize("columns", PACKED_WIDTHS)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("others", ["packed", "plain"])
def test_a_merge_keeps_groups_triangles_and_precision(
    monkeypatch: pytest.MonkeyPatch, others: str, groups: int, columns: int
) -> None:
    """Fails where a merge exchanges groups or triangles, or drops the last digits of packed sums in float64."""
    monkeypatch.setattr(gram, "PACKED", columns)
    x = rows(16, groups, 40, columns)
    # A few bits each, so that the sums are exact in single precision.
    coarse = (np.round(x[:, :20] * 4) / 4).astype(np.float32)
    found, other = Gram.zeros(groups, columns), Gram.zeros(groups, columns)
    found.update(coarse)
    assert found.packed and found.total.dtype == np.float32
    if others == "packed":
        other.update(x[:, 20:])
    else:
        other = Gram(np.einsum("grd,gre->gde", x[:, 20:], x[:, 20:]), 20)
    found.merge(other)
    whole = np.concatenate([coarse.astype(np.float64), x[:, 20:]], axis=1)
    expected = np.einsum("grd,gre->gde", whole, whole)
    assert found.packed and found.rows == 40 and found.columns == columns
    # A plain sum is one batch: it joins in the precision that it finds.
    precise = others == "packed"
    assert found.total.dtype == (np.float64 if precise else np.float32)
    assert_same(found.sums(), expected.astype(found.total.dtype), rtol=ROUNDING if precise else 1e-6, atol=0.0)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("columns", PACKED_WIDTHS)
def test_the_first_group_and_the_results_leave_the_sums_as_they_are(
    monkeypatch: pytest.MonkeyPatch, columns: int, packed: bool
) -> None:
    """Fails where another group is given, or the division goes into sums to which rows are still added."""
    monkeypatch.setattr(gram, "PACKED", columns if packed else columns + 1)
    x = rows(17, 3, 40, columns)
    found = Gram.zeros(3, columns)
    for start, stop in ((0, 15), (15, 40)):
        found.update(x[:, start:stop])
        part = x[:, :stop]
        expected = np.einsum("grd,gre->gde", part, part) / stop
        assert found.packed is packed
        assert_same(found.first(), expected[0], rtol=ROUNDING, atol=0.0)
        assert_same(found.result(), expected, rtol=ROUNDING, atol=0.0)
        assert_same(found.sums(), expected * stop, rtol=ROUNDING, atol=0.0)


def test_a_merge_leaves_the_other_sums_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where two sums share their entries from then on."""
    monkeypatch.setattr(gram, "PACKED", 9)
    x = rows(18, 2, 40, 9)
    for make in (lambda: Gram.zeros(2, 9), lambda: Gram(np.zeros((2, 9, 9)))):
        found, other = Gram.zeros(2, 9), make()
        other.update(x)
        before = other.total.copy()
        found.merge(other)
        found.update(x)
        assert other.rows == 40
        assert_same(other.total, before, rtol=0.0, atol=0.0)


def test_only_wide_sums_are_packed() -> None:
    """Fails where a wide Gram takes more than half of the floats, four bytes each, of its matrix and its diagonal."""
    plain, packed = Gram.zeros(2, gram.PACKED - 1), Gram.zeros(2, gram.PACKED)
    assert not plain.packed and plain.total.dtype == np.float64 and plain.columns == gram.PACKED - 1
    assert packed.packed and packed.columns == gram.PACKED
    assert packed.total.nbytes == 2 * 4 * gram.PACKED * (gram.PACKED + 1) // 2


def test_packed_normal_equations_equal_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the matrix that was unpacked once stays as it was when further rows are added."""
    x, y = rows(13, 1, columns=9), rows(14, 1, columns=4)
    w = np.random.default_rng(15).standard_normal((1, 9, 4))
    monkeypatch.setattr(gram, "PACKED", 9)
    sums, other = NormalEquations.zeros(1, 9, 4), NormalEquations.zeros(1, 9, 4)
    for stop, target in ((20, sums), (40, sums), (60, other)):
        target.update(x[:, stop - 20 : stop], y[:, stop - 20 : stop])
        assert target.xx.shape == (1, 9, 9)
    sums.merge(other)
    assert sums.rows == 60
    assert_same(sums.xx, np.einsum("grd,gre->gde", x, x), rtol=ROUNDING, atol=0.0)
    assert_same(sums.error(w), ((y - x @ w) ** 2).sum(axis=1), rtol=1e-12, atol=0.0)


def test_one_entry_off_by_a_hundredth_is_seen() -> None:
    """The mutation check: one Gram entry that is 1 % off fails the comparisons above."""
    x = rows(9)
    g = Gram.zeros(2, 5)
    g.update(x)
    g.total[1, 2, 2] *= 1.01
    with pytest.raises(AssertionError, match="times the bound"):
        assert_same(g.result(), np.einsum("grd,gre->gde", x, x) / 60, rtol=ROUNDING, atol=0.0)
