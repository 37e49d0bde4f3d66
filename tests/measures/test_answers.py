"""Errors of parts against numbers by hand, and how tensors are parted by their scales."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.measures.answers import STILL, Answers, Part, Piece, parts_in
from onnxprune.numerics.arrays import Array
from tests.compare import assert_same

N = 40


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Array:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def by_hand(y: Array, y0: Array) -> float:
    a, b = y.astype(np.float64), y0.astype(np.float64)
    return float(((a - b) ** 2).sum() / ((b - b.mean(axis=0)) ** 2).sum())


def test_tensors_of_other_scale_are_parts():
    """Fails where boxes in pixels hide what became of scores, or four of them count as much as eighteen scores."""
    y0 = {"boxes": normal(N, 4, scale=100.0), "scores": normal(N, 18, scale=0.3, seed=1)}
    y = {"boxes": y0["boxes"] + normal(N, 4, scale=10.0, seed=2), "scores": normal(N, 18, scale=0.3, seed=3)}
    answers = Answers.of(y0, N, parts_in([(("boxes", "scores"), ("o",), True)], y0))
    assert [[str(x) for x in p.pieces] for p in answers.parts] == [["boxes"], ["scores"]]
    each = [by_hand(y[k], y0[k]) for k in ("boxes", "scores")]
    assert [answers.error_of(p, y) for p in answers.parts] == pytest.approx(each, rel=1e-9)
    roots = np.sqrt([4, 18])
    assert answers.error(y) == pytest.approx(float((roots * each).sum() / roots.sum()), rel=1e-9)
    whole = by_hand(np.hstack([*y.values()]), np.hstack([*y0.values()]))
    assert whole < 0.02
    assert answers.error(y) > 0.5


def test_tensors_of_one_scale_are_one_part():
    y0 = {"a": normal(N, 4), "b": normal(N, 18, scale=2.0, seed=1)}
    y = {k: v + normal(*v.shape, scale=0.2, seed=2) for k, v in y0.items()}
    answers = Answers.of(y0, N, parts_in([(("a", "b"), ("o",), True)], y0))
    assert len(answers.parts) == 1
    assert answers.error(y) == pytest.approx(by_hand(np.hstack([*y.values()]), np.hstack([*y0.values()])), rel=1e-9)


@pytest.mark.parametrize("shape", [(N, 22), (N, 30, 22), (N, 22, 5, 6)])
def test_channels_of_other_scale_are_parts(shape: tuple[int, ...]):
    """Fails where scales folded into one layer hide channels."""
    axis = 1 if len(shape) != 3 else 2
    factor = np.where(np.arange(22) < 4, 100.0, 0.5).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    y0 = {"o": normal(*shape) * factor.astype(np.float32)}
    (boxes, scores) = parts_in([(("o",), ("o",), True)], y0)
    assert boxes.pieces == (Piece("o", (axis, 0, 4)),)
    assert scores.pieces == (Piece("o", (axis, 4, 22)),)
    assert [len(parts_in([(("o",), ("o",), columns)], y0)) for columns in (False, True)] == [1, 2]
    answers = Answers.of(y0, N, (boxes, scores))
    y = {"o": y0["o"] + normal(*shape, seed=5)}
    pieces = [np.take(v["o"], range(4, 22), axis) for v in (y, y0)]
    assert answers.error_of(scores, y) == pytest.approx(by_hand(*pieces), rel=1e-9)
    weight = answers.weights["o"]
    assert float((weight * (y["o"].astype(float) - y0["o"]) ** 2).sum()) == pytest.approx(answers.error(y), rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_a_classifier_stays_whole(seed: int):
    """Fails where rare classes, whose scores vary less, are taken for something else."""
    rng = np.random.default_rng(seed)
    scores = (normal(N, 10, seed=seed) * rng.uniform(0.2, 2.0, 10)).astype(np.float32)
    assert parts_in([(("y",), ("y",), True)], {"y": scores}) == (Part((Piece("y"),), ("y",)),)
    few = normal(3, 3, seed=seed)
    assert len(parts_in([(("y",), ("y",), True)], {"y": few})) == 1


def test_what_says_nothing_is_left_out():
    y0 = {"y": normal(N, 3), "still": np.ones((N, 2), np.float32), "nan": normal(N, 2), "n": np.arange(N)}
    y0["nan"][3, 1] = np.nan
    answers = Answers.of(y0, N)
    assert [p.name for p in answers.parts] == ["y"]
    why = {p.name: text for p, text in answers.left_out.items()}
    assert why["still"] == STILL
    assert "not finite" in why["nan"]
    assert "n" not in why
    assert answers.error(y0) == 0.0


def test_where_nothing_varies_squares_are_what_to_select_by():
    y0 = {"y": np.full((N, 2), 3.0, np.float32)}
    answers = Answers.of(y0, N)
    assert answers.parts == tuple(answers.left_out)
    assert answers.error({"y": y0["y"] + 0.3}) == pytest.approx(0.01, rel=1e-5)


def test_equal_infinities_are_no_difference():
    y0, y = normal(N, 6), normal(N, 6, seed=1)
    masked = np.random.default_rng(2).random((N, 6)) < 0.4
    masked[:, 5] = True
    y0[masked] = y[masked] = -np.inf
    answers = Answers.of({"y": y0}, N)
    wide, b = (np.where(masked, np.nan, v.astype(np.float64)) for v in (y, y0))
    mean = np.array([b[~masked[:, j], j].mean() if not masked[:, j].all() else 0.0 for j in range(6)])
    expected = np.nansum((wide - b) ** 2) / np.nansum((b - mean) ** 2)
    assert answers.error({"y": y}) == pytest.approx(expected, rel=1e-9)
    errors, spreads = answers.per_sample(answers.parts[0], {"y": y}) or (np.zeros(1), np.ones(1))
    assert errors.sum() / spreads.sum() == pytest.approx(expected, rel=1e-9)
    for wrong in (np.inf, 0.0, np.nan):
        other = y.copy()
        other[masked] = wrong
        assert answers.error({"y": other}) == np.inf


def test_a_tensor_that_is_gone_is_no_success():
    """Fails where what a model does not compute counts as what it computes right."""
    answers = Answers.of({"y": normal(N, 3), "z": normal(N, 2)}, N)
    assert answers.error({"y": normal(N, 3)}) == np.inf
    assert answers.error({"y": normal(N, 3)}, partial=True) == 0.0
    assert answers.error({"y": normal(N, 3), "z": normal(N, 3)}, partial=True) == np.inf


def test_the_first_samples_and_what_counts():
    y0 = {"y": normal(N, 3), "n": np.arange(N)}
    first = Answers.of(y0, N).first(8)
    assert first.values.keys() == {"y"}
    assert_same(first.values["y"], y0["y"][:8], rtol=0.0, atol=0.0)
    y = normal(8, 3, seed=1)
    assert first.error({"y": y}) == pytest.approx(by_hand(y, y0["y"][:8]), rel=1e-9)


def test_channels_of_two_scales_that_take_turns():
    """Fails where boxes hide scores because every anchor has both: a part takes the channels of its scale, wherever."""
    large = np.isin(np.arange(24) % 8, (1, 2))
    y0 = {"o": normal(N, 24) * np.where(large, 100.0, 0.5).astype(np.float32)}
    y = {"o": y0["o"] + normal(N, 24, seed=5)}
    parts = parts_in([(("o",), ("o",), True)], y0)
    channels = [[c for x in p.pieces if x.columns for c in range(*x.columns[1:])] for p in parts]
    assert sorted(channels) == sorted([np.flatnonzero(~large).tolist(), np.flatnonzero(large).tolist()])
    answers = Answers.of(y0, N, parts)
    for p, own in zip(parts, channels, strict=True):
        assert answers.error_of(p, y) == pytest.approx(by_hand(y["o"][:, own], y0["o"][:, own]), rel=1e-9)


@pytest.mark.parametrize("dead", [[7], [7, 30]])
def test_a_few_dead_channels_are_no_part(dead: list[int]):
    y0 = {"o": normal(N, 64)}
    y0["o"][:, dead] *= 1e-3
    assert len(parts_in([(("o",), ("o",), True)], y0)) == 1
