"""How boxes are read from what a detector gives, by the shapes and values of its outputs.

| layout | outputs |
|---|---|
| v5 | (N, R, 5 + classes): center, size, how sure it is that there is a thing, and of each class |
| YOLOX | as v5, in cells of grids with strides s = 8, 16, 32: x = (x + column) · s, w = e^w · s; scores may be raw |
| v8 | (N, 4 + classes, R): center, size, and a score of each class |
| SSD | boxes (N, K, 4), and scores (N, K, classes), or (N, K) with classes (N, K) |
| rows | (N, K, 6): x1, y1, x2, y2, score, class, already without doubles; or (N, K, 7), in two orders |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.measures.figures import probabilities
from onnxprune.numerics.arrays import Array, Doubles, is_float
from onnxprune.tasks.boxes import Boxes, cleaned

# More rows than these are places of a grid, no things; fewer than those are none.
_MOST_THINGS, _LEAST_PLACES = 1000, 50
_STRIDES = (8, 16, 32, 64)


@dataclass(frozen=True, eq=False)
class Head:
    """How to read boxes. layout: in words. reads: the outputs. of_one: the boxes of one sample of these.

    suppress: whether one thing may have several boxes, of which the best stays.
    """

    layout: str
    reads: tuple[str, ...]
    of_one: Callable[..., Boxes]
    suppress: bool

    def boxes(self, outputs: Mapping[str, Array], sample: int) -> Boxes:
        """The boxes of one sample, the best first."""
        return cleaned(self.of_one(*(_flat(outputs[k])[sample] for k in self.reads)), suppress=self.suppress)


def head_of(outputs: Mapping[str, Array], samples: int, image: tuple[int, int] | None, *, sure: bool) -> Head | None:
    """How boxes are read from these outputs; None where they hold none.

    sure: only where hardly anything else looks so.
    """
    flat = {k: _flat(v) for k, v in outputs.items() if v.ndim >= 2 and len(v) == samples and v.size}
    found = _ssd(flat)
    if found is not None:
        return found
    for name, y in flat.items():
        if y.ndim == 3 and is_float(y.dtype):
            found = _rows(name, y) or _dense(name, y, image, _masks(flat), sure=sure)
            if found is not None:
                return found
    return None


def _flat(y: Array) -> Array:
    """Without axes of size 1, as in (N, 1, K, 7) and (N, K, 1, 4)."""
    return y.reshape(len(y), *(n for n in y.shape[1:] if n != 1)) if y.ndim == 4 else y


def _masks(flat: Mapping[str, Array]) -> int:
    """Coefficients of masks behind the classes: as many as prototypes, (N, masks, h, w), are given beside."""
    return next((v.shape[1] for v in flat.values() if v.ndim == 4), 0)


# boxes and scores


def _ssd(flat: Mapping[str, Array]) -> Head | None:
    boxes = next((k for k, v in flat.items() if v.ndim == 3 and v.shape[2] == 4 and is_float(v.dtype)), None)
    if boxes is None:
        return None
    rows = flat[boxes].shape[1]
    beside = {k: v for k, v in flat.items() if k != boxes and v.shape[1] == rows}
    flat_rows = {k: v for k, v in beside.items() if v.ndim == 2}
    scores = next((k for k, v in flat_rows.items() if is_float(v.dtype) and not _whole(v)), None)
    classes = next((k for k, v in flat_rows.items() if k != scores and _whole(v)), None)
    corners = _corners(flat[boxes])
    if scores is not None and classes is not None:
        return Head("boxes, scores and classes", (boxes, scores, classes), _listed(corners), rows > _MOST_THINGS)
    of_classes = next((k for k, v in beside.items() if v.ndim == 3 and is_float(v.dtype)), None)
    if of_classes is None:
        return None
    y = flat[of_classes]
    background = y.shape[2] > 1 and probabilities(y.reshape(-1, y.shape[2]))
    raw = bool(np.nanmin(y) < 0.0 or np.nanmax(y) > 1.0)
    return Head("boxes and scores", (boxes, of_classes), _scored(corners, background=background, raw=raw), True)


def _listed(corners: bool) -> Callable[[Array, Array, Array], Boxes]:
    def read(boxes: Array, scores: Array, classes: Array) -> Boxes:
        return Boxes(_as_corners(boxes, corners), scores.astype(np.float64), np.nan_to_num(classes).astype(np.int64))

    return read


def _scored(corners: bool, *, background: bool, raw: bool) -> Callable[[Array, Array], Boxes]:
    def read(boxes: Array, scores: Array) -> Boxes:
        s = scores.astype(np.float64)
        s = _sigmoid(s) if raw else s
        if background:  # class 0 is none
            s = np.concatenate([np.zeros_like(s[:, :1]), s[:, 1:]], axis=1)
        return _best(_as_corners(boxes, corners), s)

    return read


# rows of things


def _rows(name: str, y: Array) -> Head | None:
    """(N, K, 6), or 7 with the number of the image in front, of which the class comes before the score or behind it."""
    width = y.shape[2]
    if width not in (6, 7) or y.shape[1] > _MOST_THINGS:
        return None
    orders = ((0, 4, 5),) if width == 6 else ((1, 6, 5), (3, 2, 1))  # of the corners, the score, the class
    for place, score, kind in orders:
        s, c = y[..., score], y[..., kind]
        if _whole(c) and not _whole(s) and np.nanmin(s) >= 0.0 and np.nanmax(s) <= 1.0:
            return Head("rows of boxes", (name,), _row(place, score, kind), False)
    return None


def _row(place: int, score: int, kind: int) -> Callable[[Array], Boxes]:
    def read(y: Array) -> Boxes:
        wide = y.astype(np.float64)
        return Boxes(wide[:, place : place + 4], wide[:, score], np.nan_to_num(wide[:, kind]).astype(np.int64))

    return read


# places of a grid


def _dense(name: str, y: Array, image: tuple[int, int] | None, masks: int, *, sure: bool) -> Head | None:
    first = y.shape[1] < y.shape[2]  # the channels come first, as in v8
    rows = np.moveaxis(y, 1, 2) if first else y
    places, least = rows.shape[1], 5 if first else 6
    end = rows.shape[2] - (masks if first else 0)
    if end < least or places < _LEAST_PLACES:
        return None
    scores, boxes = rows[..., 4:end], rows[..., :4]
    fine = bool(np.nanmin(scores) >= 0.0 and np.nanmax(scores) <= 1.0)
    grid = None if image is None or first else _grid(image, places)
    if grid is not None and bool((boxes[..., 2:] < 0.0).any()):
        return Head("YOLOX", (name,), _objects(end, grid, raw=not fine), True)
    decoded = not bool((boxes[..., 2:] < 0.0).any())
    if not fine or not decoded or (sure and not (np.nanmax(boxes) > 2.0 and places > rows.shape[2])):
        return None
    return (
        Head("v8", (name,), _classes_alone(end), True)
        if first
        else Head("v5", (name,), _objects(end, None, raw=False), True)
    )


def _grid(image: tuple[int, int], places: int) -> Doubles | None:
    """(column, row, stride) of each place of the grids of an image; None where these have another number of places."""
    for strides in (_STRIDES[:3], _STRIDES):
        cells = [(image[0] // s, image[1] // s, s) for s in strides]
        if sum(h * w for h, w, _ in cells) == places:
            parts = []
            for h, w, s in cells:
                row, column = np.mgrid[:h, :w]
                parts.append(np.stack([column.ravel(), row.ravel(), np.full(h * w, s)], axis=1))
            return np.concatenate(parts).astype(np.float64)
    return None


def _objects(end: int, grid: Doubles | None, *, raw: bool) -> Callable[[Array], Boxes]:
    """raw: whether scores are those in front of a sigmoid."""

    def read(y: Array) -> Boxes:
        wide = y[:, :end].astype(np.float64)
        boxes, scores = wide[:, :4], _sigmoid(wide[:, 4:]) if raw else wide[:, 4:]
        if grid is not None:
            stride = grid[:, 2:]
            sizes = np.exp(np.clip(boxes[:, 2:], -60.0, 60.0))
            boxes = np.concatenate([(boxes[:, :2] + grid[:, :2]) * stride, sizes * stride], axis=1)
        return _best(_as_corners(boxes, corners=False), scores[:, :1] * scores[:, 1:])

    return read


def _classes_alone(end: int) -> Callable[[Array], Boxes]:
    def read(y: Array) -> Boxes:
        wide = y[:end].T.astype(np.float64)
        return _best(_as_corners(wide[:, :4], corners=False), wide[:, 4:])

    return read


# values


def _sigmoid(s: Doubles) -> Doubles:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(s, -60.0, 60.0))))


def _best(corners: Doubles, scores: Doubles) -> Boxes:
    """Each box with its best class; one with a NaN among its scores has none."""
    best = scores.max(axis=1)
    return Boxes(corners, np.where(np.isnan(best), -1.0, best), scores.argmax(axis=1).astype(np.int64))


def _corners(boxes: Array) -> bool:
    """Whether these are corners, of which the second lies behind the first; else they are centers and sizes."""
    with np.errstate(invalid="ignore"):
        ordered = np.asarray((boxes[..., 2:] >= boxes[..., :2]).all(axis=-1))
    known = np.asarray(np.isfinite(boxes).all(axis=-1))
    return bool(not known.any() or ordered[known].mean() >= 0.99)


def _as_corners(boxes: Array, corners: bool) -> Doubles:
    wide = boxes.astype(np.float64)
    half = wide[:, 2:] / 2.0
    return wide if corners else np.concatenate([wide[:, :2] - half, wide[:, :2] + half], axis=1)


def _whole(y: Array) -> bool:
    """Whether all numbers are whole, those that fill up apart."""
    if not is_float(y.dtype):
        return True
    fine = y[np.isfinite(y)]
    return bool((fine == np.rint(fine)).all())
