"""Whether what a model says at a position depends on what stands behind it."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.data.samples import Samples
from onnxprune.errors import RunError
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session

# What a change at the end may move in front of it by rounding, beside the largest number there.
_ROUNDING = 1e-4


def is_causal(model: onnx.ModelProto, samples: Samples, ids: str, output: str) -> bool:
    """Whether other tokens at the end of a sample leave everything in front of it as it was.

    ids: the input of tokens, (samples, length). False where that cannot be told: for a length of 1, where no other
    token is in the sample, or where the model does not run.
    """
    feeds = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in samples.slice(0, samples.run_size(1)).items()}
    tokens: Array = feeds[ids]
    others = tokens[tokens != tokens[..., -1:]]
    if tokens.ndim != 2 or tokens.shape[1] < 2 or not others.size:
        return False
    try:
        session = Session(model)
        before = session.run(feeds, [output])[output]
        tokens[:, -1] = others[0]
        after = session.run(feeds, [output])[output]
    except RunError:
        return False
    if before.shape != after.shape or before.ndim != 3 or before.shape[1] != tokens.shape[1]:
        return False
    a, b = before[:, :-1].astype(np.float64), after[:, :-1].astype(np.float64)
    with np.errstate(invalid="ignore"):
        moved = np.abs(np.where(a == b, 0.0, a - b)).max()
    return bool(moved <= _ROUNDING * np.abs(a[np.isfinite(a)]).max(initial=0.0))
