"""Checks on the pruned model; a file is written only when all of them hold.

1. ONNX's checker and strict shape inference.  2. The normalised model equals the original, and the slice equals the
masked oracle, before anything is fitted; models in half precision are held against it in single precision.
3. onnxruntime runs the result, at a second size of every symbolic dimension.  4. Outputs are finite; the discrepancy is
measured on samples that the fit did not see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx

from onnxprune import model as m
from onnxprune import twin
from onnxprune.calibrate.samples import Samples
from onnxprune.errors import CheckFailed, RunError
from onnxprune.graph import Array, is_float
from onnxprune.normalise import accepts, resized
from onnxprune.rounding import is_quantized, without_rounding
from onnxprune.runtime import Feeds, Session, concatenated

TOLERANCE = 1e-4
HALF_TOLERANCE = 1e-2
# Of the inputs of one run, and the least and most samples in it.
_BATCH_BYTES = 8 << 20
_BATCHES = 4, 32


@dataclass(frozen=True)
class Exactness:
    """Largest relative differences: normalised against original, slice against oracle."""

    normalised: float
    slice: float
    tolerance: float


def structure(proto: onnx.ModelProto, original: onnx.ModelProto | None = None) -> None:
    """ONNX's checker and strict shape inference; the latter only where `original` passes it. Raises CheckFailed.

    Exporters write bfloat16 into operators of versions that do not know it, which runtimes accept.
    """
    try:
        m.check(proto, strict=original is None or _passes(original))
    except Exception as e:  # the checker's and the inference's errors share no base class
        raise CheckFailed(f"the pruned model is not valid ONNX: {' '.join(str(e).split())[:300]}") from e


def _passes(proto: onnx.ModelProto) -> bool:
    try:
        m.check(proto)
    except Exception:  # noqa: BLE001  as above
        return False
    return True


def exactness(
    original: onnx.ModelProto,
    normalised: onnx.ModelProto,
    sliced: onnx.ModelProto,
    oracle: onnx.ModelProto,
    feeds: Feeds,
) -> Exactness:
    """Compare the four models on one batch. Raises CheckFailed beyond the tolerance.

    Slice and oracle of a quantized model are compared without the rounding of activations (see `rounding`); those of
    one in half precision in single, as sums over many channels differ in float16 for reasons of their own; those of one
    in float64 as the graph stands, as onnxruntime reads the epsilon of what it fuses as float32.
    """
    half, quantized = twin.uses(original, twin.HALF), is_quantized(normalised)
    # Kernels that compute with integers round at other places, and are fused where they can be: none of them here.
    reference = Session(original, optimize=not quantized).run(feeds)
    before = largest_difference(Session(normalised, optimize=not quantized).run(feeds), reference)
    if not before <= (HALF_TOLERANCE if half else TOLERANCE):
        raise CheckFailed(f"the normalised model differs from the original by {before:.1e}: please report this model")
    plain = not quantized and not twin.uses(original, twin.DOUBLE)
    found, expected = (
        Session(without_rounding(p) if quantized else p, single=half, optimize=plain).run(feeds)
        for p in (sliced, oracle)
    )
    after = largest_difference(found, expected)
    if not after <= TOLERANCE:
        raise CheckFailed(f"the sliced model differs from the masked original by {after:.1e}: please report this model")
    return Exactness(before, after, TOLERANCE)


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
        if not isinstance(b, np.ndarray) or not (np.issubdtype(b.dtype, np.number) or is_float(b.dtype)):
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
    for variant in (dict(feeds), *resized(feeds, original, partial(accepts, before))):
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


def outputs_of(proto: onnx.ModelProto, samples: Samples) -> dict[str, Array]:
    """Outputs over all samples, concatenated; outputs that are no tensors are left out."""
    session = Session(proto)
    one = sum(
        v.nbytes for v in samples.slice(0, 1).values() if isinstance(v, np.ndarray)
    )  # what a model computes grows with what it reads
    batch = int(np.clip(_BATCH_BYTES // max(one, 1), *_BATCHES))
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
        if is_float(y.dtype) and np.isfinite(reference[name]).all() and not np.isfinite(y).all():
            raise CheckFailed(f"output {name!r} of the pruned model is not finite on the calibration data")
