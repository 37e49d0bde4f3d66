"""What the data look like to the model: figures of every input and of its channels, their range in words, and pictures.

Nothing is judged by it; it is for the eye, before a run is.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt

import numpy as np

from onnxprune.data import image_files
from onnxprune.data.array_files import chunks
from onnxprune.data.inputs import InputSpec
from onnxprune.data.samples import Samples
from onnxprune.errors import UsageError
from onnxprune.intake.figures import InputFigures
from onnxprune.numerics.arrays import Array, is_float

# More are no colours but features, of which nobody looks at each.
_MOST_CHANNELS = 16
_OF_IMAGES = (1, 3, 4)
_PICTURES, _COLUMNS, _LARGEST_SIDE, _THUMBNAIL = 64, 8, 256, 48
_REDUCED_FROM = 1024  # pixels of a side, from which thumbnails are means; of more every so manieth is taken
# Of what pixels become: the most of raw ones, and how far a mean and a spread may be from 0 and 1.
_RAW, _NEAR = 255.0, 0.75


@dataclass(frozen=True)
class Channel:
    """The entries of one channel over all samples."""

    least: float
    most: float
    mean: float
    std: float


@dataclass(frozen=True)
class InputView:
    """One input: its figures over all samples, those of each channel, () where it has none, and its range in words."""

    figures: InputFigures
    channels: tuple[Channel, ...]
    looks: str


@dataclass(frozen=True, repr=False)
class Preview:
    """What a model would be calibrated on.

    origin, prepared, sha256: of the samples, as in a report. labels: what other keys hold, a line for each. warnings:
    what makes the data doubtful; notes: what else there is to say.
    """

    model: str
    origin: str
    prepared: str
    sha256: str
    samples: int
    inputs: tuple[InputView, ...]
    labels: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        """In a line: what matters of each input."""
        told = (f"{v.figures.name} {v.figures.dtype}{[*v.figures.shape]} {v.looks}".rstrip() for v in self.inputs)
        doubts = f"; {len(self.warnings)} warnings" if self.warnings else ""
        return f"<preview of {self.origin!r} for {self.model!r}: {', '.join(told)}{doubts}>"

    def to_json(self) -> str:
        """The preview as JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"


def views_of(parts: Sequence[Samples], figures: Sequence[InputFigures]) -> tuple[InputView, ...]:
    """Every input, from one more pass over the data in pieces. parts: all samples, in any division."""
    return tuple(
        InputView(f, _channels(parts, s), _looks(f) if is_float(s.dtype) else "")
        for s, f in zip(parts[0].specs, figures, strict=True)
    )


def unscaled(views: Sequence[InputView], said: Sequence[str]) -> list[str]:
    """Warnings of images that look as if nobody had scaled them, but for what others have `said` of."""
    return [
        f"input {v.figures.name!r} holds values from {v.figures.least:.4g} to {v.figures.most:.4g}, as raw pixels do: "
        "if the network was trained on scaled ones, say how (--preset, or --scale, --mean and --std)"
        for v in views
        if len(v.figures.shape) == 4
        and v.looks.startswith("raw")
        and not any(repr(v.figures.name) in text and "raw pixels" in text for text in said)
    ]


def labels_of(parts: Sequence[Samples]) -> tuple[str, ...]:
    """What the keys beside the inputs hold for each sample, of integers how often the classes occur."""
    said: list[str] = []
    total = sum(map(len, parts))
    for key, first in parts[0].extras.items():
        a = first if len(parts) == 1 else np.concatenate([p.extras[key] for p in parts])
        shape = "x".join(map(str, a.shape)) or "scalar"
        if a.dtype.kind in "iu" and a.size == total and total:
            classes, counts = np.unique(a, return_counts=True)
            times = "-".join(map(str, dict.fromkeys((counts.min(), counts.max()))))
            said.append(f"{key}: {len(classes)} classes from {classes[0]} to {classes[-1]}, each {times} times")
        else:
            said.append(f"{key}: {a.dtype} {shape}")
    return tuple(said)


def contact_sheet(samples: Samples, figures: Sequence[InputFigures]) -> bytes:
    """The first input of images as a PNG: some samples, as the model reads them, from its least value to its most.

    Raises UsageError where no input holds images of one size, and without Pillow.
    """
    pictures = _pictures(samples, figures, _PICTURES, _LARGEST_SIDE)
    if not pictures:
        raise UsageError(
            "no input holds images of one size, so that there is nothing for a sheet to show: leave --sheet out"
        )
    return image_files.sheet(pictures, _COLUMNS)


def thumbnails(samples: Samples, figures: Sequence[InputFigures]) -> str:
    """The same in few kilobytes, of a few samples, as the address of data that a page embeds.

    Empty where no input holds images, where they are random numbers, and without Pillow.
    """
    pictures = [] if samples.synthetic else _pictures(samples, figures, _COLUMNS, _REDUCED_FROM)
    if not pictures:
        return ""
    try:
        kind, picture = image_files.thumbnails(pictures, _COLUMNS, _THUMBNAIL)
    except UsageError:  # a report goes without Pillow
        return ""
    return f"data:{kind};base64,{base64.b64encode(picture).decode()}"


def _pictures(samples: Samples, figures: Sequence[InputFigures], most: int, side: int) -> list[Array]:
    """Some samples of the first input that holds images of one size, of 8 bits; none where there is none."""
    for s, f in zip(samples.specs, figures, strict=True):
        array = samples.arrays[s.name]
        axis = None if samples.ragged or s not in samples.sampled else _axis(f.shape)
        if axis is None or f.shape[axis] not in _OF_IMAGES or len(f.shape) != 4 or f.least is None or f.most is None:
            continue
        chosen = np.unique(np.linspace(0, len(array) - 1, min(most, len(array))).round().astype(np.int64))
        step = max(1, -(-max(np.delete(f.shape[1:], axis - 1)) // side))
        return [_picture(np.asarray(array[i : i + 1])[0], axis - 1, f.least, f.most, step) for i in chosen]
    return []


def _picture(x: Array, axis: int, least: float, most: float, step: int) -> Array:
    """One sample as (height, width) or (height, width, 3) of 8 bits, every so manieth row and column of it."""
    scaled = (np.moveaxis(x, axis, -1)[::step, ::step].astype(np.float64) - least) / ((most - least) or 1.0)
    pixels = np.rint(255.0 * scaled).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3])


def _axis(shape: Sequence[int]) -> int | None:
    """The axis of the channels in samples of this shape, which lie along the first one; None where there is none."""
    if len(shape) == 4 and shape[1] not in _OF_IMAGES and shape[3] in _OF_IMAGES:
        return 3
    return 1 if len(shape) in (3, 4, 5) and 1 <= shape[1] <= _MOST_CHANNELS else None


def _channels(parts: Sequence[Samples], s: InputSpec) -> tuple[Channel, ...]:
    array = parts[0].arrays[s.name]
    axis = _axis(array.shape) if s in parts[0].sampled else None
    if axis is None or not array.size or not (is_float(s.dtype) or s.dtype.kind in "biu"):
        return ()
    size = array.shape[axis]
    count, mean, squares = 0, np.zeros(size), np.zeros(size)
    least, most = np.full(size, np.inf), np.full(size, -np.inf)
    for part in (piece for p in parts for piece in chunks(p.arrays[s.name])):
        x = np.moveaxis(np.asarray(part), axis, 0).reshape(size, -1).astype(np.float64)
        if not x.shape[1]:
            continue
        # As in `figures`: sums of pieces are merged as deviations from their means.
        own = x.mean(axis=1)
        new = count + x.shape[1]
        squares += np.square(x - own[:, None]).sum(axis=1) + np.square(own - mean) * count * x.shape[1] / new
        mean += (own - mean) * x.shape[1] / new
        count = new
        least, most = np.minimum(least, x.min(axis=1)), np.maximum(most, x.max(axis=1))
    rows = zip(least, most, mean, squares, strict=True)
    return tuple(Channel(float(a), float(b), float(m), sqrt(q / count)) for a, b, m, q in rows)


def _looks(f: InputFigures) -> str:
    """What the range of an input is like, in words; empty where it is like nothing that is common."""
    if f.least is None or f.most is None or f.mean is None or f.std is None or f.least == f.most:
        return ""
    if f.least >= 0.0 and 2.0 < f.most <= _RAW and f.std > 2.0:
        return "raw pixels, 0 to 255"
    if f.least >= 0.0 and 0.5 < f.most <= 1.0:
        return "0 to 1"
    if -1.0 <= f.least < -0.5 and 0.5 < f.most <= 1.0:
        return "-1 to 1"
    return "mean near 0, spread near 1" if abs(f.mean) < _NEAR and abs(f.std - 1.0) < _NEAR else ""
