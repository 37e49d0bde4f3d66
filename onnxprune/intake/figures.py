"""What the calibration data holds: figures of every input, and what makes the data doubtful whatever the model is.

A broken loader gives the same image for every sample, or zeros; then the fits know one point of the input space, and
every figure of the report is one about that point. Nothing is refused here, as a model may want any of it: what is said
of the data is loud instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, sqrt

import numpy as np

from onnxprune.data.array_files import chunks
from onnxprune.data.inputs import InputSpec
from onnxprune.data.samples import Samples
from onnxprune.numerics.arrays import Array, in_rows, is_float

# The share of samples that may be copies of others, and the least entries of a sample that is expected to vary inside.
_COPIES = 0.1
# So many entries of every sample are looked at together.
_PIECE = 1 << 16
_ENTRIES = 16
# What takes fewer values in a sample is a mask, a rate, a state of zeros, or a few sizes and scales.
_DENSE = 8
# Two images are one, but for noise and brightness, from this correlation on, in every channel of so many entries.
_ONE_IMAGE, _OF_AN_IMAGE = 0.999, 64
# Of samples that are nearly the same: how many are compared, by what share of its size an entry may move, and what
# share of the entries moves by no more.
_COMPARED, _NOISE, _MOST_STILL = 32, 1e-3, 0.95


@dataclass(frozen=True)
class InputFigures:
    """One input over all samples: shape with the samples, and the figures of its entries, None where it has no numbers.

    flat: whether every sample is a single value throughout, though not the same in all of them. same: whether all
    samples are the same, whatever they are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    least: float | None = None
    most: float | None = None
    mean: float | None = None
    std: float | None = None
    flat: bool = False
    same: bool = False


def figures_of(samples: Samples) -> tuple[InputFigures, ...]:
    """The figures of every input, from one pass over the data in pieces."""
    return tuple(_figures(s, samples) for s in samples.specs)


def _figures(spec: InputSpec, samples: Samples) -> InputFigures:
    array = samples.arrays[spec.name]
    shape = tuple(array.shape)
    if not array.size or not (is_float(spec.dtype) or spec.dtype.kind in "biu"):
        return InputFigures(spec.name, str(spec.dtype), shape)
    # Sums of chunks are merged as deviations from their means, so that a large mean costs no digits (Chan et al. 1983).
    count, mean, squares, least, most = 0, 0.0, 0.0, np.inf, -np.inf
    sampled = spec in samples.sampled
    flat = sampled and array.size // max(len(array), 1) >= _ENTRIES
    same, first = sampled and len(array) > 1, np.asarray(array[:1]) if sampled else None
    for part in chunks(array):
        if not part.size:  # of samples that differ in size, such as the first step of a past
            continue
        x = np.asarray(part).astype(np.float64)
        own = float(x.mean())
        squares += float(np.square(x - own).sum()) + (own - mean) ** 2 * count * x.size / (count + x.size)
        mean += (own - mean) * x.size / (count + x.size)
        count += x.size
        least, most = min(least, float(x.min())), max(most, float(x.max()))
        flat = flat and bool((np.ptp(in_rows(x), axis=1) == 0.0).all())
        same = same and first is not None and (not samples.ragged or part.shape == first.shape)
        same = same and bool((np.asarray(part) == first).all())
    std = 0.0 if least == most else sqrt(squares / count)
    return InputFigures(spec.name, str(spec.dtype), shape, least, most, mean, std, flat and least < most, same)


def doubts(samples: Samples, figures: tuple[InputFigures, ...], checksums: Sequence[bytes]) -> list[str]:
    """Warnings that hold for any model: samples, or one input of them, that are all the same, copies, or flat.

    checksums: of each sample (`digests`).
    """
    said: list[str] = []
    total = len(samples)
    numbers = [f for f in figures if f.std is not None]
    zero = bool(numbers) and all(f.least == f.most == 0.0 for f in numbers)
    different = total if total < 2 else len(set(checksums))
    if zero:
        said.append(
            "the calibration data is zero throughout, so the fits and every figure of the report are about that one "
            "input; give data as the model sees it in use"
        )
    elif total > 1 and different == 1:
        said.append(
            f"all {total} calibration samples are the same, so the fits and every figure of the report are about that "
            "one input; give data as the model sees it in use"
        )
    elif total > 1 and _nearly_same(samples):
        said.append(
            f"all {total} calibration samples are nearly the same, so the fits and every figure of the report are "
            "about that one input; give data as the model sees it in use"
        )
    else:
        if total - different > _COPIES * total:
            said.append(
                f"{total - different} of {total} calibration samples are copies of others: they add nothing, and "
                "copies of what is held out are left out of the fits; give each sample once"
            )
        said += _alike(samples, figures)
    said += [
        f"in input {f.name!r} every calibration sample is a single value throughout: is it what the model sees in use?"
        for f in figures
        if f.flat
    ]
    return said


def _nearly_same(samples: Samples) -> bool:
    """Whether hardly an entry of any input moves between the first samples: by noise alone, beside its own size."""
    moved = False
    if samples.ragged:
        return False
    for s in samples.sampled:
        rows = np.asarray(samples.arrays[s.name][:_COMPARED])
        if not is_float(s.dtype):
            if any(a != b for a, b in pairwise(_rows(rows))):
                return False
            continue
        still = _still(rows)
        if still is not None and still < _MOST_STILL:
            return False
        moved = moved or still is not None
    return moved


def _still(rows: Array) -> float | None:
    """The share of entries, of those that are not zero in all rows, that stay as they are but for noise."""
    x, still, moving = in_rows(rows), 0, 0
    for start in range(0, x.shape[1], _PIECE):  # samples may be large
        part = x[:, start : start + _PIECE].astype(np.float64)
        size = np.abs(part).max(axis=0)
        own = np.ptp(part, axis=0)[size > 0.0] <= _NOISE * size[size > 0.0]
        still, moving = still + int(own.sum()), moving + own.size
    return still / moving if moving else None


def _alike(samples: Samples, figures: Sequence[InputFigures]) -> Iterator[str]:
    """Warnings of inputs that say much in every sample, and the same in all: what a loader broken for one gives."""
    for s, f in zip(samples.specs, figures, strict=True):
        array = samples.arrays[s.name]
        if samples.ragged or s not in samples.sampled or len(array) < 2 or f.std is None:
            continue
        first = np.asarray(array[:1])
        if not _is_dense(first):
            continue
        how = "is the same"
        if not f.same:
            if not all(_is_one(np.concatenate([first, part])) for part in chunks(array)):
                continue
            how += ", but for noise or brightness,"
        yield (
            f"input {s.name!r} {how} in all {len(array)} calibration samples, so the fits and every figure of the "
            "report are about that one value of it: is it what the model sees in use?"
        )


def _is_dense(sample: Array) -> bool:
    """Whether the entries of a sample are numbers of their own: neither tokens nor a few values nor positions."""
    if not is_float(sample.dtype) and sample.dtype.itemsize > 1:
        return False
    x = np.squeeze(sample).astype(np.float64)
    if np.unique(x).size < _DENSE:
        return False
    # Positions, and the coordinates of a grid, rise in equal steps along every axis.
    bends = [np.diff(x, 2, axis=a) for a in range(x.ndim) if x.shape[a] > 2]
    return any(float(np.abs(b).max()) > _NOISE * float(np.abs(x).max()) for b in bends)


def _is_one(rows: Array) -> bool:
    """Whether these rows are all the first one, but for noise, and images but for their brightness."""
    return (_still(rows) or 0.0) >= _MOST_STILL or _is_one_image(rows)


def _is_one_image(images: Array) -> bool:
    """Whether images in (samples, channels, height, width) or (samples, height, width) are all the first one."""
    if images.ndim not in (3, 4):
        return False
    x = images.reshape(len(images), 1 if images.ndim == 3 else images.shape[1], -1).astype(np.float64)
    if x.shape[2] < _OF_AN_IMAGE:
        return False
    x -= x.mean(axis=2, keepdims=True)
    size = np.sqrt(np.square(x).sum(axis=2))
    some = (size > 0.0).all(axis=0)
    product = (x[1:] * x[:1]).sum(axis=2)[:, some]
    return bool(some.any() and (product >= _ONE_IMAGE * size[1:, some] * size[:1, some]).all())


def digests(samples: Samples) -> tuple[bytes, ...]:
    """A checksum of each sample over all inputs that have samples, () where none has."""
    return tuple(_digests(samples))


def _digests(samples: Samples) -> Iterator[bytes]:
    streams = [(row for part in chunks(samples.arrays[s.name]) for row in _rows(part)) for s in samples.sampled]
    for rows in zip(*streams, strict=True):
        digest = hashlib.blake2b(digest_size=16)
        for row in rows:
            digest.update(row)
        yield digest.digest()


def _rows(part: Array) -> Iterator[bytes]:
    for row in part:
        # Two equal strings lie at different places: what counts is what they say.
        yield repr(np.asarray(row).tolist()).encode() if part.dtype.kind == "O" else row.tobytes()


def text_of(figures: InputFigures) -> str:
    """The figures of an input as one line for the report."""
    head = f"{figures.name}: {figures.dtype} {'x'.join('?' if n < 0 else str(n) for n in figures.shape) or 'scalar'}"
    numbers = (("min", figures.least), ("max", figures.most), ("mean", figures.mean), ("std", figures.std))
    return ", ".join([head, *(f"{k} {v:.4g}" for k, v in numbers if v is not None and isfinite(v))])
