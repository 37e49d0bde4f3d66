"""Checks on the pruned model; a file is written only when all of them hold.

1. ONNX's checker and strict shape inference.  2. The normalised model equals the original, and the slice equals the
masked oracle, before anything is fitted.  3. onnxruntime runs the result, at a second size of every symbolic dimension.
4. Outputs are finite; the discrepancy is measured on samples that the fit did not see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxprune import model as m
from onnxprune.calibrate.samples import Samples
from onnxprune.errors import CheckFailed, RunError
from onnxprune.graph import Array
from onnxprune.normalise import resized
from onnxprune.rounding import is_quantized, without_rounding
from onnxprune.runtime import Feeds, Session, concatenated

TOLERANCE = 1e-4
HALF_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Exactness:
    """Largest relative differences: normalised against original, slice against oracle."""

    normalised: float
    slice: float
    tolerance: float


def structure(proto: onnx.ModelProto) -> None:
    """ONNX's checker and strict shape inference. Raises CheckFailed."""
    try:
        m.check(proto)
    except Exception as e:  # the checker's and the inference's errors share no base class
        raise CheckFailed(f"the pruned model is not valid ONNX: {' '.join(str(e).split())[:300]}") from e


def exactness(
    original: onnx.ModelProto,
    normalised: onnx.ModelProto,
    sliced: onnx.ModelProto,
    oracle: onnx.ModelProto,
    feeds: Feeds,
) -> Exactness:
    """Compare the four models on one batch. Raises CheckFailed beyond the tolerance.

    Of a quantized model slice and oracle are compared without the rounding of activations (see `rounding`).
    """
    half = any(t.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) for t in original.graph.initializer)
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    quantized = is_quantized(normalised)
    # Kernels that compute with integers round at other places, and are fused where they can be: none of them here.
    reference = Session(original, optimize=not quantized).run(feeds)
    before = largest_difference(Session(normalised, optimize=not quantized).run(feeds), reference)
    if not before <= tolerance:
        raise CheckFailed(f"the normalised model differs from the original by {before:.1e}: please report this model")
    found, expected = (
        Session(without_rounding(p) if quantized else p, optimize=not quantized).run(feeds) for p in (sliced, oracle)
    )
    after = largest_difference(found, expected)
    if not after <= tolerance:
        raise CheckFailed(f"the sliced model differs from the masked original by {after:.1e}: please report this model")
    return Exactness(before, after, tolerance)


def largest_difference(outputs: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Largest |a - b| over the outputs, relative to the largest |b| of that output; infinite where shapes differ.

    Values that are not finite must be the same on both sides.
    """
    worst = 0.0
    found, expected = flat(outputs), flat(reference)
    if set(found) != set(expected):
        return float("inf")
    for name, b in expected.items():
        a = found[name]
        if isinstance(a, np.ndarray) != isinstance(b, np.ndarray):
            return float("inf")
        if not isinstance(b, np.ndarray) or not np.issubdtype(b.dtype, np.number):
            continue
        if a.shape != b.shape:
            return float("inf")
        x, y = a.astype(np.float64), b.astype(np.float64)
        fine = np.isfinite(y)
        if not np.array_equal(x[~fine], y[~fine], equal_nan=True) or not np.isfinite(x[fine]).all():
            return float("inf")
        if fine.any():
            scale = max(float(np.abs(y[fine]).max()), 1e-30)
            worst = max(worst, float(np.abs(x[fine] - y[fine]).max()) / scale)
    return worst


def flat(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs with the entries of sequences each by itself; an optional output without a value is None."""
    found: dict[str, Any] = {}
    for name, v in outputs.items():
        found.update(flat({f"{name}[{i}]": x for i, x in enumerate(v)}) if isinstance(v, list) else {name: v})
    return found


def runs_at_other_sizes(proto: onnx.ModelProto, original: onnx.ModelProto, feeds: Feeds) -> int:
    """Run at every size at which the original runs, with outputs of the same shapes; the number of sizes.

    Raises CheckFailed.
    """
    before, after = Session(original), Session(proto)
    sizes = 0
    for variant in (dict(feeds), *resized(feeds, original)):
        try:
            expected = before.run(variant)
        except RunError:
            continue  # the original does not accept that size either
        try:
            got = after.run(variant)
        except RunError as e:
            raise CheckFailed(f"the pruned model does not run at another input size: {e}") from e
        after_shapes, before_shapes = _shapes(got), _shapes(expected)
        for name in {**before_shapes, **after_shapes}:
            a, b = after_shapes.get(name), before_shapes.get(name)
            if a != b:
                raise CheckFailed(f"output {name!r} has shape {a}, the original gives {b}")
        sizes += 1
    return sizes


def _shapes(outputs: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {k: v.shape for k, v in flat(outputs).items() if isinstance(v, np.ndarray)}


def outputs_of(proto: onnx.ModelProto, samples: Samples, batch: int = 32) -> dict[str, Array]:
    """Outputs over all samples, concatenated; outputs that are no tensors are left out."""
    session = Session(proto)
    return concatenated([session.run(b) for b in samples.batches(batch)])


def runs_on(proto: onnx.ModelProto, samples: Samples) -> dict[str, Array]:
    """As `outputs_of`, for a pruned model. Raises CheckFailed where onnxruntime refuses it."""
    try:
        return outputs_of(proto, samples)
    except RunError as e:
        raise CheckFailed(f"the pruned model does not run: {e}; nothing was written") from e


def finite(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> None:
    """Outputs are finite wherever the original's are. Raises CheckFailed."""
    for name, y in outputs.items():
        if np.issubdtype(y.dtype, np.floating) and np.isfinite(reference[name]).all() and not np.isfinite(y).all():
            raise CheckFailed(f"output {name!r} of the pruned model is not finite on the calibration data")
