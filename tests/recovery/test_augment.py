"""Images that are moved and turned, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.numerics.arrays import Array
from onnxprune.recovery.augment import images, unchanged

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
