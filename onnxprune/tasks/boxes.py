"""Boxes of one image: what is left of what a detector gives, and how two sets of boxes lie on each other.

IoU(a, b) = area of a ∩ b / area of a ∪ b
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.numerics.arrays import Doubles, Ints, Mask

# Of what a network gives for every place of a grid: scores below the first are noise, boxes of one class that lie on a
# better one by the second are the same thing. COCO's evaluation looks at no more than 100 boxes of an image.
LEAST_SCORE, _SAME, _MOST_SEEN, _MOST = 0.001, 0.6, 2000, 300


@dataclass(frozen=True, eq=False)
class Boxes:
    """corners: x1, y1, x2, y2, (boxes, 4). scores: (boxes,), the best first. classes: (boxes,)."""

    corners: Doubles
    scores: Doubles
    classes: Ints

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, chosen: Ints | Mask) -> Boxes:
        """Some of them."""
        return Boxes(self.corners[chosen], self.scores[chosen], self.classes[chosen])


def cleaned(boxes: Boxes, *, suppress: bool) -> Boxes:
    """The boxes that are finite and no noise, the best first; with `suppress` each thing once."""
    fine = np.isfinite(boxes.corners).all(axis=1) & (boxes.scores >= LEAST_SCORE)
    kept = boxes.at(fine)
    kept = kept.at(np.argsort(-kept.scores, kind="stable")[:_MOST_SEEN])
    return suppressed(kept) if suppress else kept.at(np.arange(min(len(kept), _MOST)))


def suppressed(boxes: Boxes) -> Boxes:
    """Without those that lie on a better one of their class: greedy, the best first."""
    left = np.ones(len(boxes), bool)
    kept: list[int] = []
    for i in range(len(boxes)):
        if left[i] and len(kept) < _MOST:
            kept.append(i)
            rest = np.flatnonzero(left[i + 1 :] & (boxes.classes[i + 1 :] == boxes.classes[i])) + i + 1
            left[rest[iou(boxes.corners[i : i + 1], boxes.corners[rest])[0] > _SAME]] = False
    return boxes.at(np.asarray(kept, np.int64))


def iou(a: Doubles, b: Doubles) -> Doubles:
    """The IoU of each of `a` with each of `b`, (len a, len b); 0 for boxes without an area."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0.0), axis=2)
    either = _areas(a)[:, None] + _areas(b)[None, :] - both
    return np.asarray(both / np.where(either > 0.0, either, 1.0))


def _areas(a: Doubles) -> Doubles:
    return np.asarray(np.prod(np.maximum(a[:, 2:] - a[:, :2], 0.0), axis=1))


def matched(boxes: Boxes, originals: Boxes, least: float) -> list[tuple[int, int, float]]:
    """(box, original, IoU) of those that are the same thing: one class, an IoU of at least `least`, each once.

    The box with the best score takes the original that it lies on most.
    """
    overlap = np.where(boxes.classes[:, None] == originals.classes[None, :], iou(boxes.corners, originals.corners), 0.0)
    pairs: list[tuple[int, int, float]] = []
    for i in np.argsort(-boxes.scores, kind="stable"):
        if not overlap.shape[1]:
            break
        j = int(overlap[i].argmax())
        if overlap[i, j] >= least:
            pairs.append((int(i), j, float(overlap[i, j])))
            overlap[:, j] = -1.0
    return pairs
