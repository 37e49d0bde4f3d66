"""More samples from those that there are: images moved by some pixels, turned left to right, or laid over each other,
and texts with other tokens.

The original network answers the changed samples itself, so no label has to hold for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from onnxprune.data.array_files import chunks
from onnxprune.data.samples import Samples
from onnxprune.numerics.arrays import Array, is_float

Feeds = Mapping[str, Array]
Augment = Callable[[Feeds, np.random.Generator], Feeds]

_LEAST_SIZE = 16
_COLOURS = (1, 3, 4)
_REACH = 8  # an image moves by up to one part in so many of its size
_BLENDED = 0.5  # share of the images that another one is laid over
_EXCHANGED, _TOKENS = 0.5, 0.3  # share of the texts that change, and of the tokens of each that others stand for
_COMMON = 0.5  # of the samples: an id in more of them marks a start, an end or padding
_ENOUGH = 0.5  # of a vocabulary: texts that hold more of it need no others


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


def tokens(name: str, samples: Samples, ids: Array) -> Augment:
    """In half of the samples, exchange three in ten tokens of the input `name` for any of `ids`.

    Those that most samples hold mark starts, ends and padding: they stay, and no others become them. A few hundred
    texts hold a small part of a vocabulary, and of the rest a student would learn nothing; where they hold more than
    half of it, they stay as they are.
    """
    holding = _samples_with(samples, name)
    common = np.array([k for k, n in holding.items() if n > _COMMON * len(samples)], np.int64)
    others = np.setdiff1d(ids, common)
    if not others.size or len(holding) > _ENOUGH * len(ids):
        return unchanged
    return partial(_exchanged, name=name, axis=samples.arrangement.axes[name] or 0, ids=others, common=common)


def _samples_with(samples: Samples, name: str) -> Counter[int]:
    """How many samples hold each id of an input of integers."""
    holding: Counter[int] = Counter()
    for part in chunks(samples.arrays[name]):
        for own in part:
            holding.update(np.unique(own).tolist())
    return holding


def in_turn(first: Augment, second: Augment) -> Augment:
    """The second on what the first made of the samples; the first itself where the second changes nothing."""
    return first if second is unchanged else lambda feeds, rng: second(first(feeds, rng), rng)


def _exchanged(
    feeds: Feeds, rng: np.random.Generator, *, name: str, axis: int, ids: Array, common: Array
) -> dict[str, Array]:
    x = np.moveaxis(feeds[name], axis, 0)
    changes = (rng.random(len(x)) < _EXCHANGED).reshape(-1, *[1] * (x.ndim - 1))
    goes = changes & (rng.random(x.shape) < _TOKENS) & ~np.isin(x, common)
    exchanged: Array = np.where(goes, rng.choice(ids, x.shape), x).astype(x.dtype)
    return {**feeds, name: np.moveaxis(exchanged, 0, axis)}


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
