"""Padding in front of attention that reads lengths and no mask.

GroupQueryAttention is told of each sample how many positions it has, which exporters compute as the sum of the mask,
and takes the first ones. So padding goes behind the tokens: where it lies in front it is read as text, and as many
tokens at the end are not. A sample of padding alone has a length that is none, and caches of a window
(`sliding_window_cache`) take as many positions as there are ids, so no padding at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from onnxprune.data.samples import Samples
from onnxprune.data.texts import MASKS
from onnxprune.errors import CalibrationError
from onnxprune.graph.kept_inputs import GROUPED, windows
from onnxprune.intake.first_run import Trial
from onnxprune.numerics.arrays import Array, Mask

# Slots of the operator.
_LENGTHS, _BIAS = 5, 10
_Feeds = Mapping[str, Array]


def check(proto: onnx.ModelProto, samples: Samples) -> tuple[str, ...]:
    """What to warn of in the mask of the samples. Raises CalibrationError where it is why the model does not run."""
    mask = counted(proto)
    stored = samples.arrays.get(mask)
    if stored is None or samples.synthetic or len(stored.shape) != 2:
        return ()
    empty, left, right = -1, list[int](), -1
    for k in range(len(stored)):
        row = np.asarray(stored[k : k + 1][0])
        if row.all() or not row.size:
            continue
        if not row.any():
            empty = k if empty < 0 else empty
        elif not row[0]:
            left.append(k)
        else:
            right = k if right < 0 else right
    accepts = Trial(proto)
    size = samples.run_size(1)
    for k in (empty, left[0] if left else -1, right):
        if k < 0:
            continue
        feeds = samples.slice(k - k % size, k - k % size + size)
        if not accepts(feeds) and (why := cause(proto, feeds, accepts)):
            raise CalibrationError(f"sample {k + 1} of {samples.origin} does not run: {why}")
    if not left:
        return ()
    return (
        f"{mask!r} begins with zeros in {len(left)} of {len(stored)} samples: {GROUPED} takes its sum as the length, "
        "and reads the first positions, so that padding counts there and the last tokens do not; put padding behind "
        "the tokens",
    )


def cause(proto: onnx.ModelProto, feeds: _Feeds, accepts: Callable[[_Feeds], bool]) -> str:
    """Why a model does not run with some inputs, and what to do, where it is the padding of them; else "".

    accepts: whether the model runs with inputs.
    """
    mask = counted(proto)
    values = feeds.get(mask)
    if values is None or values.ndim != 2 or values.all() or not accepts({**feeds, mask: np.ones_like(values)}):
        return ""
    alone: Mask = np.logical_not(values.any(axis=1))
    filled = np.where(alone[:, None], np.ones_like(values), values)
    if alone.any() and accepts({**feeds, mask: filled}):
        return (
            f"its {mask!r} is 0 throughout, and {GROUPED} takes the sum of that as a length: leave out samples and "
            "steps of padding alone; sequences that are padded on the left start at their first token"
        )
    if accepts({**feeds, mask: -np.sort(-filled, axis=1)}):
        return f"its {mask!r} begins with zeros, and {GROUPED} reads the first positions: put padding behind the tokens"
    where = "for the caches of a window" if windows(proto) else "here"
    return (
        f"{mask!r} holds zeros, and {GROUPED} takes no padding {where}: give samples as long as their tokens, as "
        "batches or files of one length each"
    )


def counted(proto: onnx.ModelProto) -> str:
    """The mask of whose values attention gets its lengths; "" where it gets none, or from elsewhere, or may be told by
    a bias on its scores too which positions are padding."""
    given = {v.name for v in proto.graph.input}
    producer = {o: n for n in proto.graph.node for o in n.output if o}
    own = [n for n in proto.graph.node if n.op_type == GROUPED and len(n.input) > _LENGTHS]
    if any("".join(n.input[_BIAS : _BIAS + 1]) for n in own):
        return ""
    left = [n.input[_LENGTHS] for n in own]
    seen: set[str] = set()
    while left:
        name = str(left.pop())
        if name in seen:
            continue
        seen.add(name)
        if name in given and name.partition(":")[0].lower() in MASKS:
            return name
        left += [i for i in producer[name].input if i] if name in producer else []
    return ""
