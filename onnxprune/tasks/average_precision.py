"""COCO's mean average precision: the only user of pycocotools, which the extra `detection` installs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from onnxprune.errors import RunError
from onnxprune.tasks.boxes import Boxes


def average_precision(found: Sequence[Boxes], truth: Sequence[Boxes]) -> tuple[float, float] | None:
    """(mAP over IoU .50:.05:.95, that at .50), one entry of either for each image; None where nothing is there to find.

    Raises RunError where pycocotools is not installed.
    """
    coco, evaluation = _libraries()
    if not any(len(t) for t in truth):
        return None
    if not any(len(f) for f in found):
        return 0.0, 0.0
    classes = sorted({int(c) for t in (*truth, *found) for c in t.classes})
    # Identifiers count from 1: 0 means "not matched" there.
    with contextlib.redirect_stdout(io.StringIO()):
        original = coco.COCO()
        original.dataset = {
            "images": [{"id": i} for i in range(1, len(truth) + 1)],
            "categories": [{"id": c} for c in classes],
            "annotations": [
                a | {"id": n, "area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0}
                for n, a in enumerate(_annotations(truth), start=1)
            ],
        }
        original.createIndex()
        judged = evaluation.COCOeval(original, original.loadRes(_annotations(found)), "bbox")
        judged.evaluate()
        judged.accumulate()
    precision = judged.eval["precision"][:, :, :, 0, -1]  # of boxes of all sizes, at most 100 in an image
    each = [p[p > -1] for p in (precision, precision[0])]
    return float(np.mean(each[0])), float(np.mean(each[1]))


def _annotations(images: Sequence[Boxes]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": i,
            "category_id": int(c),
            "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])],
            "score": float(s),
        }
        for i, boxes in enumerate(images, start=1)
        for b, s, c in zip(boxes.corners, boxes.scores, boxes.classes, strict=True)
    ]


def _libraries() -> tuple[ModuleType, ModuleType]:
    try:
        from pycocotools import coco, cocoeval
    except ImportError as e:
        raise RunError("mAP needs pycocotools: pip install 'onnxprune[detection]'") from e
    return coco, cocoeval
