"""Images that are moved and turned, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.data.arrangement import Arrangement
from onnxprune.data.inputs import InputSpec
from onnxprune.data.ragged import Ragged
from onnxprune.data.samples import Samples
from onnxprune.numerics.arrays import Array
from onnxprune.recovery.augment import images, in_turn, tokens, unchanged

SIZE = 16


def _pictures(channels_last: bool) -> Array:
    """Pixel (row, column) of image i holds 10⁴ i + 100 row + column, in three colours."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    x = np.stack([np.stack([10_000 * i + 100 * rows + columns] * 3) for i in range(40)]).astype(np.float32)
    return x.transpose(0, 2, 3, 1) if channels_last else x


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("shifts", [False, True])
def test_images_move_as_a_whole_and_turn(shifts: bool, flips: bool, channels_last: bool):
    """Fails where axes are confused, samples are mixed, or an image moves by more than an eighth."""
    x = _pictures(channels_last)
    y = images(shifts=shifts, flips=flips)({"x": x}, np.random.default_rng(0))["x"]
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    found = y.transpose(0, 3, 1, 2) if channels_last else y
    seen = set()
    for i, image in enumerate(found):
        assert (image == image[0]).all()
        pixels = image[0] - 10_000 * i
        rows, columns = pixels // 100, pixels % 100
        assert (rows == rows[:, :1]).all()
        assert (columns == columns[:1]).all()
        turned = columns[0, 0] > columns[0, -1]
        line = columns[0, ::-1] if turned else columns[0]
        down, right = int(rows[SIZE // 2, 0]) - SIZE // 2, int(line[SIZE // 2]) - SIZE // 2
        assert (rows[:, 0] == np.clip(np.arange(SIZE) + down, 0, SIZE - 1)).all()
        assert (line == np.clip(np.arange(SIZE) + right, 0, SIZE - 1)).all()
        seen.add((down, right, bool(turned)))
    assert {abs(d) for d, _, _ in seen} == {abs(r) for _, r, _ in seen} == ({0, 1, 2} if shifts else {0})
    assert {t for *_, t in seen} == ({False, True} if flips else {False})


@pytest.mark.parametrize(
    "x",
    [
        np.ones((4, 3, 15, 15), np.float32),
        np.ones((4, 5, 16, 16), np.float32),
        np.ones((4, 3, 16, 16), np.uint8),
        np.ones((4, 64), np.float32),
    ],
    ids=["small", "channels", "integers", "vectors"],
)
def test_what_is_no_image_stays(x: Array):
    assert images(flips=True)({"x": x}, np.random.default_rng(0))["x"] is x


def test_unchanged_draws_nothing():
    rng = np.random.default_rng(0)
    feeds = {"x": _pictures(False)}
    assert unchanged(feeds, rng) is feeds
    assert rng.random() == np.random.default_rng(0).random()


def test_half_of_the_images_are_blended_with_another():
    """Fails where a blend leaves the line between two images, or where all or none are blended."""
    x = _pictures(channels_last=False)
    y = images(shifts=False, blends=True)({"x": x}, np.random.default_rng(0))["x"]
    assert y.dtype == x.dtype
    alone = 0
    for i, image in enumerate(y):
        # Images differ by whole multiples of 10⁴, so the mean tells which point of the line between two this is.
        offset = (image - x[0]) / 10_000
        np.testing.assert_allclose(offset, np.full_like(offset, offset.mean()), atol=1e-2)
        assert 0 <= offset.mean() < len(x)
        alone += bool(np.array_equal(image, x[i]))
    assert 10 <= alone <= 30


def test_a_single_image_is_not_blended():
    x = _pictures(channels_last=False)[:1]
    np.testing.assert_array_equal(images(shifts=False, blends=True)({"x": x}, np.random.default_rng(0))["x"], x)


COMMON, FREE = np.array([1, 2]), np.arange(3, 40)
IDS = np.concatenate([COMMON, FREE])


def _texts(axis: int, most: int = 10) -> Samples:
    """200 samples of 30 ids: 1 at the start, 2 at the end, and in between one and the same of the ids from 3 on."""
    x = np.repeat(np.random.default_rng(1).integers(3, most, (200, 1), np.int32), 30, 1)
    x[:, 0], x[:, -1] = COMMON
    specs = InputSpec("ids", np.dtype(np.int32), (None, None)), InputSpec("mask", np.dtype(np.int64), (None, None))
    arrays = {"ids": x, "mask": np.ones((200, 30), np.int64)}
    return Samples(specs, arrays, arrangement=Arrangement({"ids": axis, "mask": axis}))


@pytest.mark.parametrize("axis", [0, 1])
def test_some_tokens_of_half_the_texts_become_any_of_the_vocabulary(axis: int):
    """Fails where marks change or are made, where all texts change or none, or where tokens never seen stay unseen."""
    samples = _texts(axis)
    feeds = samples.slice(0, len(samples))
    fed = tokens("ids", samples, IDS)(feeds, np.random.default_rng(0))
    assert fed["mask"] is feeds["mask"]
    x, y = feeds["ids"], fed["ids"]
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    np.testing.assert_array_equal(np.isin(x, COMMON), np.isin(y, COMMON))
    assert not (x != y)[np.isin(x, COMMON)].any()
    assert set(np.unique(y[x != y])) == set(FREE.tolist())
    changed = np.moveaxis(x != y, axis, 0)
    assert 0.35 < changed.any(1).mean() < 0.65
    # A token that is drawn again looks as if it had stayed: 1 in 37.
    assert 0.2 < changed[changed.any(1)][:, 1:-1].mean() < 0.4


def test_texts_that_hold_most_of_a_vocabulary_stay():
    assert tokens("ids", _texts(0, most=40), IDS) is unchanged
    assert tokens("ids", _texts(0), COMMON) is unchanged


@pytest.mark.parametrize("kind", ["array", "ragged"])
def test_common_tokens_are_those_of_more_than_half_of_the_samples(kind: str):
    """Fails where occurrences are counted, instead of samples: 5 is often in one sample."""
    rows = [1, 5, 5, 5, 5, 2], [1, 6, 7, 8, 9, 2], [1, 6, 4, 4, 2, 0], [1, 3, 2, 0, 0, 0]
    texts = [np.array(t, np.int64) for t in rows]
    arrays = {"ids": np.stack(texts)} if kind == "array" else {"ids": Ragged(tuple(texts))}
    samples = Samples((InputSpec("ids", np.dtype(np.int64), (None, None)),), arrays)
    augment = tokens("ids", samples, np.arange(1000))
    asked = np.tile(np.arange(10), (100, 10))
    fed = augment({"ids": asked}, np.random.default_rng(0))["ids"]
    assert {i for i in range(10) if (fed[asked == i] == i).all()} == {1, 2}


def test_changes_follow_each_other():
    both = in_turn(lambda f, _: {"x": f["x"] + 1}, lambda f, _: {"x": f["x"] * 2})
    assert both({"x": np.array(3)}, np.random.default_rng(0))["x"] == 8


def test_what_changes_nothing_adds_nothing():
    """Fails where recovery of samples that nothing is exchanged in would be tried twice when it fails."""
    first = images()
    assert in_turn(first, unchanged) is first
