"""Caches that data leave out: keys and values of earlier positions, of which a first run has none.

An input of real numbers with a free size behind the samples is empty on that axis, where the model runs so. Its other
sizes are those with which random inputs run.
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
from onnxprune.intake.first_run import Trial
from onnxprune.numerics.arrays import is_float

_LEAST_AXES = 3


def fillable(proto: onnx.ModelProto, specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The inputs of a model, of which caches know what stands for them where data leave them out."""
    names = [s.name for s in specs if may_be_cache(s)]
    if not names or len(names) == len(specs):
        return tuple(specs)

    @cache
    def shapes() -> Mapping[str, tuple[int, ...]]:
        return empty_shapes(proto, specs)

    def absent(name: str) -> tuple[int, ...] | None:
        return shapes().get(name) if name in names else None

    return tuple(replace(s, absent=absent) if s.name in names else s for s in specs)


def empty_shapes(proto: onnx.ModelProto, specs: Sequence[InputSpec]) -> dict[str, tuple[int, ...]]:
    """The shape of a sample of each input that may be empty: with all sizes but one as in random inputs that run."""
    trial = Trial(proto)
    try:
        example = stand_ins.random(proto, tuple(specs), 1, 0, trial, shapes=trial.shapes).example()
    except (CalibrationError, RunError):
        return {}
    own = [s for s in specs if may_be_cache(s)]
    shapes = {s.name: example[s.name].shape for s in own}
    for axis in range(1, max(len(shape) for shape in shapes.values())):
        free = {s.name for s in own if axis < len(s.dims) and s.dims[axis] is None}
        empty = {k: (*v[:axis], 0, *v[axis + 1 :]) if k in free else v for k, v in shapes.items()}
        if free and trial({**example, **{s.name: np.zeros(empty[s.name], s.dtype) for s in own}}):
            return {k: v[1:] for k, v in empty.items() if k in free}
    return {}


def may_be_cache(s: InputSpec) -> bool:
    """Whether an input is of the kind that caches are: real numbers, with a free size behind that of the samples."""
    return is_float(s.dtype) and len(s.dims) >= _LEAST_AXES and s.dims[0] is None and None in s.dims[1:]
