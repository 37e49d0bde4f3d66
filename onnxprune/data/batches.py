"""How many samples are run at once, and which batches judge what the others fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.graph.view import Shape, sample_bytes

# Every HOLD_OUT-th batch judges what the others fit.
HOLD_OUT = 4
BATCH = 64


def batch_size(
    shapes: Mapping[str, Shape], bound: int, names: Sequence[str], samples: int, limit_bytes: int = 128 << 20
) -> int:
    """Samples per batch, so that the tensors `names` fit in `limit_bytes` and there are batches to hold out.

    bound: samples with which the tensors have these shapes.
    """
    per_sample = sample_bytes(shapes, bound, names)
    most = min(BATCH, max(samples // (2 * HOLD_OUT), 1))
    return int(np.clip(limit_bytes // max(per_sample, 1), 1, most))
