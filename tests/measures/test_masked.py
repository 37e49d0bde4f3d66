"""Numbers that stand for minus infinity are no part of what is measured, and quantities with an offset are."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.graph import Array
from onnxprune.measures.answers import Answers
from onnxprune.measures.masked import counting
from onnxprune.training import Spread
from onnxprune.verify import largest_difference

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
