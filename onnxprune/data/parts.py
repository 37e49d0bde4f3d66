"""What one file or one batch holds, held against the inputs of the model: presence, type and values of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxprune.data.array_files import Rows, chunks
from onnxprune.data.element_types import converted
from onnxprune.data.given import Part
from onnxprune.data.inputs import InputSpec
from onnxprune.errors import CalibrationError
from onnxprune.numerics.arrays import Array, is_float


def checked(data: Mapping[str, Array | Rows], specs: tuple[InputSpec, ...], path: Path | str, notes: list[str]) -> Part:
    """The inputs and the other keys, with every input's presence, type and values checked.

    path: where they come from, for messages. notes: gets what to say of types that were converted.
    Raises CalibrationError.
    """
    inputs: dict[str, Array | Rows] = {}
    for s in specs:
        empty, why = None, ""
        if s.absent is not None and s.name not in data:
            try:
                empty = s.absent(s.name)
            except CalibrationError as e:
                why = f"; {e}"
        if empty is not None:
            data = {**data, s.name: np.zeros((_count(data, specs), *empty), s.dtype)}
        if s.name not in data:
            wanted = ", ".join(repr(x.name) for x in specs)
            keys = ", ".join(repr(k) for k in data) or "nothing"
            held = "the folder has" if Path(path).is_dir() else "the file has"
            lacks = f"no data for input {s.name!r}: the model wants {wanted}, {held} {keys}"
            raise CalibrationError(f"{path}: {lacks}{why}")
        where = f"{path}: input {s.name!r}"
        a, note = converted(data[s.name], s.dtype, where)
        if note:
            notes.append(note)
        if is_float(a.dtype) and not all(np.isfinite(part).all() for part in chunks(a)):
            raise CalibrationError(f"{where} holds NaN or infinite values; clean the data first")
        inputs[s.name] = _with_axis(a, s)
    _check_entries(inputs, specs, path)
    return Part(inputs, {k: v[:] if isinstance(v, Rows) else v for k, v in data.items() if k not in inputs}, str(path))


def _count(data: Mapping[str, Array | Rows], specs: tuple[InputSpec, ...]) -> int:
    """How many samples the first input has that counts any."""
    held = (data[s.name] for s in specs if s.batched and s.name in data and len(data[s.name].shape) == len(s.dims))
    return next((a.shape[0] for a in held), 1)


def key(name: object) -> str:
    """The name of an input. Raises CalibrationError for what is no text."""
    if not isinstance(name, str):
        raise CalibrationError(f"the data has the key {name!r}; keys are names of inputs")
    return name


def as_array(name: object, value: object) -> Array:
    """The values of an array, a tensor (of torch, say, wherever it lies) or nested lists.

    Raises CalibrationError for what is no array: rows of different lengths, or values that are masked out.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise CalibrationError(f"the data: {name!r} has values that are masked out; fill them in first")
    try:
        return np.asarray(_of_torch(value))
    except Exception as e:
        raise CalibrationError(f"the data: {name!r} is no array: {' '.join(str(e).split())[:200]}") from e


def _of_torch(value: object) -> object:
    """A tensor of torch as an array of numpy, which has no bfloat16; anything else as it is. Torch is not needed."""
    detach, bfloat = getattr(value, "detach", None), getattr(value, "bfloat16", None)
    if not callable(detach) or not callable(bfloat):
        return value
    tensor = detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()
    return tensor.numpy()


def _with_axis(a: Array | Rows, s: InputSpec) -> Array | Rows:
    """A single sample gets the axis that it was stored without; what is none stays, so that a message has its shape."""
    single = s.batched and a.ndim == len(s.dims) - 1
    fits = single and all(d in (None, n) for d, n in zip(s.dims[1:], a.shape, strict=True))
    return a[:][None] if fits else a


def _check_entries(arrays: Mapping[str, Array | Rows], specs: tuple[InputSpec, ...], path: Path | str) -> None:
    """Raises CalibrationError where there are no samples, or no input has an entry.

    A past of length 0 beside other inputs is what a first call has.
    """
    for s in specs:
        a = arrays[s.name]
        if a.size == 0 and a.ndim == len(s.dims) and s.batched and not len(a):
            raise CalibrationError(f"{path}: input {s.name!r} is empty; at least one sample is needed")
    empty = next((s for s in specs if arrays[s.name].size == 0 and 0 not in s.dims), None)
    if empty is not None and not any(arrays[s.name].size for s in specs):
        shape = "x".join(map(str, arrays[empty.name].shape))
        raise CalibrationError(
            f"{path}: input {empty.name!r} has the shape {shape} and no entries: there is nothing to learn from"
        )
