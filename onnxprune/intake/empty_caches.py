"""Caches that data leave out: keys and values of earlier positions, of which a first run has none.

An input of real numbers with a free size behind the samples is empty on that axis, where the model runs so. Its other
sizes are those with which random inputs run. What never is empty is zeros: a cache that has as many rows as a window
is wide, which count for nothing as long as nothing came before, and the state of a convolution or a recurrence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import onnx

from onnxprune.data import stand_ins
from onnxprune.data.inputs import InputSpec
from onnxprune.errors import CalibrationError, RunError
from onnxprune.graph import kept_inputs
from onnxprune.intake.first_run import Trial
from onnxprune.numerics.arrays import is_float

_LEAST_AXES = 3


def fillable(proto: onnx.ModelProto, specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The inputs of a model, of which caches know what stands for them where data leave them out."""
    states = kept_inputs.states(proto)
    names = [s.name for s in specs if may_be_cache(s) or s.name in states]
    if not names or len(names) == len(specs):
        return tuple(specs)

    @cache
    def shapes() -> Mapping[str, tuple[int, ...]]:
        return empty_shapes(proto, specs)

    def absent(name: str) -> tuple[int, ...] | None:
        if name not in names:
            return None
        try:
            return shapes().get(name)
        except (CalibrationError, RunError) as e:
            raise CalibrationError(f"what it is when empty is not known, as no random inputs run the model: {e}") from e

    return tuple(replace(s, absent=absent) if s.name in names else s for s in specs)


def empty_shapes(proto: onnx.ModelProto, specs: Sequence[InputSpec]) -> dict[str, tuple[int, ...]]:
    """The shape of a sample of each input that may be empty: with all sizes but one as in random inputs that run, and
    of zeros where none of its sizes can be 0.

    Raises CalibrationError with what onnxruntime says where it runs no random inputs, and RunError where it hangs.
    """
    trial = Trial(proto)
    try:
        example = stand_ins.random(proto, tuple(specs), 1, 0, trial, shapes=trial.shapes).example()
    except CalibrationError as e:
        raise CalibrationError(trial.why or str(e)) from e
    windows, states = kept_inputs.windows(proto), kept_inputs.states(proto)
    still = [s for s in specs if s.name in states]
    own = [s for s in specs if may_be_cache(s) and s.name not in states]
    shapes = {s.name: example[s.name].shape for s in (*own, *still)}
    longest = max((len(s.dims) for s in own), default=0)
    free = [{s.name for s in own if axis < len(s.dims) and s.dims[axis] is None} for axis in range(longest)]
    for axis in [a for a in range(1, longest) if free[a]] or [0]:
        moving = free[axis] if axis else set()
        empty = moving - windows.keys() if axis == kept_inputs.ROWS else moving
        sizes = {k: (*v[:axis], 0, *v[axis + 1 :]) if k in empty else v for k, v in shapes.items()}
        if trial({**example, **{s.name: np.zeros(sizes[s.name], s.dtype) for s in (*own, *still)}}):
            return {k: v[1:] for k, v in sizes.items() if k in moving or k in states}
    return {}


def may_be_cache(s: InputSpec) -> bool:
    """Whether an input is of the kind that caches are: real numbers, with a free size behind that of the samples."""
    return is_float(s.dtype) and len(s.dims) >= _LEAST_AXES and s.dims[0] is None and None in s.dims[1:]
