"""Numbers that stand for minus infinity are no part of what is measured, and quantities with an offset are."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.measures.answers import Answers
from onnxprune.measures.figures import figures_of
from onnxprune.measures.masked import counting
from onnxprune.measures.observed import Observed, Whole
from onnxprune.numerics.arrays import Array
from onnxprune.recovery.student import Spread
from onnxprune.verification.checks import largest_difference

N = 40
HIDDEN = np.random.default_rng(7).random((N, 6)) > 0.6


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filled(y: Array, fill: float, hidden: Array = HIDDEN) -> Array:
    return np.where(hidden, np.float32(fill), y)


@pytest.mark.parametrize("fill", [-1e3, -1e4, -65504.0, -1e9, -1e30, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_mask_is_what_minus_infinity_is(fill: float, fixed: bool):
    """Fails where the errors of what counts vanish beside the spread, or the squares, of masks."""
    hidden = np.broadcast_to(np.arange(6) % 3 == 0, (N, 6)) if fixed else HIDDEN
    y0, y = normal(N, 6), normal(N, 6) + 0.5 * normal(N, 6, seed=1)
    errors = []
    for value in (-np.inf, fill):
        answers = Answers.of({"o": filled(y0, value, hidden)}, N)
        assert not answers.left_out
        found = {"o": filled(y, value, hidden)}
        per_sample = answers.per_sample(answers.parts[0], found)
        assert per_sample is not None
        errors.append([answers.error(found), *np.concatenate(per_sample)])
    assert errors[1] == pytest.approx(errors[0], rel=1e-9)
    assert errors[0][0] > 0.1
    assert Answers.of({"o": filled(y0, fill, hidden)}, N).error({"o": y}) == float("inf")


def test_masks_that_are_added():
    y0, y, added = normal(N, 6), normal(N, 6) + 0.5 * normal(N, 6, seed=1), np.where(HIDDEN, -1e4, 0.0)
    error = Answers.of({"o": y0 + added}, N).error({"o": y + added})
    assert error == pytest.approx(Answers.of({"o": filled(y0, -np.inf)}, N).error({"o": filled(y, -np.inf)}), rel=1e-9)


@pytest.mark.parametrize("case", ["offset", "heavy tail", "outliers", "small", "positive"])
def test_quantities_count(case: str):
    y = {
        "offset": np.concatenate([normal(N, 5), normal(N, 1, seed=1) - 1013], axis=1),
        "heavy tail": normal(N, 6) ** 7 * 10,
        "outliers": np.where(HIDDEN, -1000 * (3 + normal(N, 6)), normal(N, 6)),
        "small": filled(normal(N, 6), -30.0),
        "positive": filled(normal(N, 6), 1e6),
    }[case]
    assert counting(y).all()


def test_a_mask_hides_no_wrong_slice():
    """Fails where a difference is told relative to a mask: any slice equals its oracle beside -1e9."""
    y0 = normal(N, 6)
    assert largest_difference({"o": filled(y0 + 0.1, -1e9)}, {"o": filled(y0, -1e9)}) > 1e-2
    assert largest_difference({"o": filled(y0, -1.1e9)}, {"o": filled(y0, -1e9)}) == pytest.approx(0.1, rel=1e-6)
    assert largest_difference({"o": filled(y0, -1e9)}, {"o": filled(y0, -1e9)}) == 0.0


def test_masks_have_no_part_in_the_spread_of_training():
    """Fails where the loss of recovery is told relative to masks, and so stands still."""
    y = normal(N, 6)
    found = []
    for fill in (-np.inf, -1e9):
        spread = Spread()
        for part in np.split(filled(y, fill), 4):
            spread.update({"o": part}, len(part))
        assert spread.masked == {"o"}
        found.append(spread.per_sample()["o"])
    assert found[1] == pytest.approx(found[0], rel=1e-9)


@pytest.mark.parametrize("factor", [10.0, 1.5, 0.5, 1.01])
def test_large_numbers_that_vary_are_no_masks(factor: float):
    """Fails where a penalty of -2000 to -2200 in a tenth of the samples is never compared, whatever becomes of it."""
    y0 = normal(100, 2)
    y0[::10, 0] -= np.linspace(2000, 2200, 10, dtype=np.float32)
    y = y0.copy()
    y[::10, 0] *= factor
    by_hand = ((y - y0) ** 2).sum(dtype=np.float64) / ((y0 - y0.mean(axis=0)) ** 2).sum(dtype=np.float64)
    assert counting(y0).all()
    assert Answers.of({"o": y0}, 100).error({"o": y}) == pytest.approx(by_hand, rel=1e-4)


def test_one_number_is_no_mask():
    y0 = normal(N, 6)
    y0[3, 2] = -2000.0
    assert counting(y0).all()


@pytest.mark.parametrize(
    ("other", "same"), [(-1e5, False), (-5e3, False), (-1.02e4, False), (-1e4 + 2, True), (-np.inf, True)]
)
def test_masks_are_compared(other: float, same: bool):
    """Fails where anything at all may stand where the original masks, or where -inf may not stand for -1e4."""
    y0 = normal(N, 6)
    answers = Answers.of({"o": filled(y0, -1e4)}, N)
    found = answers.error({"o": filled(y0, other)})
    assert found == (0.0 if same else float("inf"))
    figures = figures_of(Observed(("o",), (Whole(("o",), ("o",)),)), answers, {"o": filled(y0, other)}, held_out=True)
    why = [f.why for f in figures.each]
    assert why == ([""] if same else ["its numbers are others where the original's are masked (-10000)"])


def test_small_numbers_beside_large_ones_are_checked_by_their_own_size():
    """Fails where a slice may be wrong by a hundredth beside quantities of -2000, as it may not beside masks."""
    y0 = normal(N, 6)
    y0[::4, 0] -= np.linspace(2000, 2200, 10, dtype=np.float32)
    wrong = y0.copy()
    wrong[:, 1] += 0.05
    assert largest_difference({"o": wrong}, {"o": y0}) > 1e-2
