"""More samples from those that there are: images moved by some pixels, turned left to right, or laid over each other.

The original network answers the changed images itself, so no label has to hold for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from onnxprune.numerics.arrays import Array, is_float

Feeds = Mapping[str, Array]
Augment = Callable[[Feeds, np.random.Generator], Feeds]

_LEAST_SIZE = 16
_COLOURS = (1, 3, 4)
_REACH = 8  # an image moves by up to one part in so many of its size
_BLENDED = 0.5  # share of the images that another one is laid over


def unchanged(feeds: Feeds, rng: np.random.Generator) -> Feeds:
    """The samples as they are."""
    return feeds


def images(*, shifts: bool = True, flips: bool = False, blends: bool = False) -> Augment:
    """Change every input that holds images, each in its own way, and leave the others alone.

    shifts: by up to an eighth of the size on both axes; what moves in is the edge. flips: half of them left to right.
    blends: half of them with another image of the batch, in any proportion (mixup: Zhang et al. 2018, arXiv 1710.09412;
    for a student of another network: Beyer et al. 2022, arXiv 2106.05237).
    """
    return partial(_augmented, shifts=shifts, flips=flips, blends=blends)


def _augmented(feeds: Feeds, rng: np.random.Generator, *, shifts: bool, flips: bool, blends: bool) -> Feeds:
    augmented = dict(feeds)
    for k, x in feeds.items():
        if _is_images(x):
            moved = _changed(x, rng, shifts=shifts, flips=flips)
            augmented[k] = _blended(moved, rng) if blends else moved
    return augmented


def _rows_axis(x: Array) -> int:
    """2 for (N, C, H, W), 1 for (N, H, W, C)."""
    return 2 if x.shape[1] in _COLOURS else 1


def _is_images(x: Array) -> bool:
    if x.ndim != 4 or not is_float(x.dtype) or not (x.shape[1] in _COLOURS or x.shape[3] in _COLOURS):
        return False
    rows = _rows_axis(x)
    return bool(min(x.shape[rows : rows + 2]) >= _LEAST_SIZE)


def _changed(x: Array, rng: np.random.Generator, *, shifts: bool, flips: bool) -> Array:
    axis = _rows_axis(x)
    height, width = x.shape[axis : axis + 2]
    changed = np.empty_like(x)
    for i, image in enumerate(x):
        dy, dx = (int(rng.integers(-(n // _REACH), n // _REACH + 1)) if shifts else 0 for n in (height, width))
        rows = np.clip(np.arange(height) + dy, 0, height - 1)
        columns = np.clip(np.arange(width) + dx, 0, width - 1)
        if flips and rng.random() < 0.5:
            columns = columns[::-1]
        changed[i] = np.take(np.take(image, rows, axis=axis - 1), columns, axis=axis)
    return changed


def _blended(x: Array, rng: np.random.Generator) -> Array:
    own = np.where(rng.random(len(x)) < _BLENDED, rng.random(len(x)), 1.0).astype(x.dtype)[:, None, None, None]
    other = x[rng.permutation(len(x))]
    blended: Array = own * x + (1 - own) * other
    return blended
