"""How much a model may give out: all of it is kept, and compared in float64, so a few bytes must not claim gigabytes.

Honest outputs grow with what a model reads: scores of a segmentation are some ten times an image, logits of a language
model are fewer than its weights. So the bound does, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnxprune.errors import RunError
from onnxprune.graph import external
from onnxprune.numerics.arrays import Array

# Entries of all outputs together, of one run and of all samples that are looked at; and so many for each byte of model
# and inputs.
_OF_A_RUN, _OF_ALL = 1 << 25, 1 << 28
_EACH_BYTE = 64


def check_run(outputs: Mapping[str, Array], model_bytes: int, feeds: Mapping[str, Array]) -> None:
    """Raises RunError where one run gives out too much."""
    _check(outputs, 1.0, _OF_A_RUN + _EACH_BYTE * (model_bytes + _bytes_of(feeds)), "in one run")


def check_all(outputs: Mapping[str, Array], proto: onnx.ModelProto, batch: Mapping[str, Array], runs: float) -> None:
    """Raises RunError where so many runs as one that took `batch` and gave `outputs` give out too much together."""
    most = _OF_ALL + _EACH_BYTE * (external.model_bytes(proto) + round(runs * _bytes_of(batch)))
    _check(outputs, runs, most, "over all samples")


def _check(outputs: Mapping[str, Array], times: float, most: int, when: str) -> None:
    sizes = {k: round(times * v.size) for k, v in outputs.items() if isinstance(v, np.ndarray)}
    if sum(sizes.values()) > most:
        largest = max(sizes, key=lambda k: sizes[k])
        raise RunError(
            f"the model gives out {sum(sizes.values()):,} numbers {when}, most of them as {largest!r}, where at most "
            f"{most:,} are compared for a model and inputs of this size; leave out that output, or give fewer or "
            "smaller samples"
        )


def _bytes_of(feeds: Mapping[str, Array]) -> int:
    return sum(v.nbytes for v in feeds.values() if isinstance(v, np.ndarray))
