"""The outputs of a model over all samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxprune.data.layouts import Layouts, samples_first
from onnxprune.data.samples import Samples
from onnxprune.data.states import State
from onnxprune.errors import CheckFailed, RunError
from onnxprune.numerics.arrays import Array, is_float
from onnxprune.runtime import extent
from onnxprune.runtime.session import Session, concatenated

# Of the inputs of one run, and the least and most samples in it.
_BATCH_BYTES = 8 << 20
_BATCHES = 4, 32
_PLAIN: Layouts = {}


def outputs_of(proto: onnx.ModelProto, samples: Samples, layouts: Layouts = _PLAIN) -> dict[str, Array]:
    """Outputs over all samples, concatenated, samples first where `layouts` tells where they lie; those that are no
    tensors, or have sizes of their own in every batch, are left out; of samples that differ in size they are filled up
    (`session.concatenated`). Raises RunError, also where they would take too much.
    """
    session = Session(proto)
    first = samples.slice(0, samples.run_size(1))
    # what a model computes grows with what it reads
    one = sum(v.nbytes for v in first.values() if isinstance(v, np.ndarray)) // samples.run_size(1)
    batch = int(np.clip(_BATCH_BYTES // max(one, 1), *_BATCHES))
    while batch > 2 and len(samples) % batch == 1:  # a Squeeze without axes takes that of a single sample too
        batch -= 1
    parts: list[Mapping[str, Array]] = []
    for feeds in samples.batches(batch):
        outputs, count = session.run(feeds), samples.count(feeds)
        if not parts:  # before there are more
            extent.check_all(outputs, proto, feeds, len(samples) / count)
        parts.append(samples_first(outputs, count, layouts))
    return concatenated(parts, strict=False, padded=samples.ragged)


def outputs_of_each(proto: onnx.ModelProto, samples: Samples, names: Sequence[str]) -> dict[str, Array]:
    """Outputs whose sizes depend on what is computed, of one sample at a time, first axis = samples.

    Those that are smaller than the largest are filled up with NaN, integers with -1; a first axis of size 1 in front of
    two more is that of the sample. What is no tensor of numbers, or has another rank each time, is left out.
    """
    session = Session(proto)
    parts: list[Mapping[str, Array]] = []
    for i in range(len(samples)):
        feeds = samples.slice(i, i + 1)
        parts.append(session.run(feeds, list(names)))
        if i == 0:
            extent.check_all(parts[0], proto, feeds, len(samples))
    found = {k: _filled_up([p[k] for p in parts]) for k in names if all(isinstance(p[k], np.ndarray) for p in parts)}
    return {k: v for k, v in found.items() if v is not None}


def _filled_up(values: Sequence[Array]) -> Array | None:
    alike = len({v.ndim for v in values}) == 1 and values[0].ndim > 0
    if not alike or not (is_float(values[0].dtype) or np.issubdtype(values[0].dtype, np.integer)):
        return None
    values = [v[0] for v in values] if values[0].ndim > 2 and all(len(v) == 1 for v in values) else values
    sizes = np.max([v.shape for v in values], axis=0)
    whole = np.full((len(values), *sizes), np.nan if is_float(values[0].dtype) else -1, values[0].dtype)
    for row, v in zip(whole, values, strict=True):
        row[tuple(slice(n) for n in v.shape)] = v
    return whole


def outputs_fed_back(
    proto: onnx.ModelProto, samples: Samples, states: Sequence[State], layouts: Layouts = _PLAIN
) -> dict[str, Array]:
    """As `outputs_of`, of a model that is fed its own states from the first step of each sequence on, where it gets
    those of the samples."""
    session, size = Session(proto), samples.run_size(1)
    parts: list[Mapping[str, Array]] = []
    state: dict[str, Array] = {}
    before: int | None = None
    for place in range(0, len(samples), size):
        feeds = samples.slice(place, place + size)
        now = None if samples.sequence is None else int(samples.sequence[place])
        outputs = session.run({**feeds, **(state if now == before else {})})
        if not parts:
            extent.check_all(outputs, proto, feeds, len(samples) / size)
        before, state = now, {s.input: outputs[s.output] for s in states}
        parts.append(samples_first(outputs, size, layouts))
    return concatenated(parts, strict=False, padded=samples.ragged)


def runs_on(proto: onnx.ModelProto, samples: Samples, layouts: Layouts = _PLAIN) -> dict[str, Array]:
    """As `outputs_of`, for a pruned model. Raises CheckFailed where onnxruntime refuses it."""
    try:
        return outputs_of(proto, samples, layouts)
    except RunError as e:
        raise CheckFailed(f"the pruned model does not run: {e}; nothing was written") from e
