"""Data as users give them: files, folders and arrays in memory, read and checked against the model's inputs.

Accepted: a `.npz` keyed by input names, a `.npy` for a model with one input, a folder of either with some samples in
each file, or a folder with a `.npy` for each input. Files are read without pickles, a folder one file at a time.
Everything is hostile until checked. A large array that is not compressed stays in its file, and its samples are read
when they are run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.data.array_files import Rows, chunks, listed, read
from onnxprune.data.element_types import converted
from onnxprune.data.given import Given, Part, check_held
from onnxprune.data.inputs import InputSpec, is_sequence, other_inputs
from onnxprune.data.readings import readings
from onnxprune.data.samples import Samples
from onnxprune.errors import CalibrationError
from onnxprune.numerics.arrays import Array, is_float


def load(path: str | Path, specs: tuple[InputSpec, ...]) -> Samples:
    """Read and check data for a model with these inputs, in the likeliest way. Raises CalibrationError."""
    return likeliest(opened(path, specs))


def given(source: object, specs: tuple[InputSpec, ...]) -> Samples:
    """What a user gives: the path of data, or arrays by input name. Raises CalibrationError."""
    return likeliest(taken(source, specs))


def checked(arrays: Mapping[str, Any], specs: tuple[InputSpec, ...]) -> Samples:
    """Check arrays in memory, as `load` does those of files. Raises CalibrationError."""
    return likeliest(in_memory(arrays, specs))


def likeliest(data: Given) -> Samples:
    """The samples, where no run of the model is there to tell how they lie in the data."""
    found = readings(data)
    sure = (r for r in found if not (r.doubtful and (r.per_run or 1) > 1))
    return data.read(next(sure, found[0]))


def taken(source: object, specs: tuple[InputSpec, ...]) -> Given:
    """As `given`, before it is known how samples lie in the data. Raises CalibrationError."""
    if isinstance(source, Mapping):
        return in_memory(source, specs)
    if isinstance(source, (str, os.PathLike)):
        if not os.fspath(source):  # Path would take it for the present folder
            raise CalibrationError("the path of the data is empty")
        return opened(Path(source), specs)
    raise CalibrationError(f"the data is a {type(source).__name__}; give a path, or arrays by input name")


def opened(path: str | Path, specs: tuple[InputSpec, ...]) -> Given:
    """What lies at a path. Raises CalibrationError."""
    p = Path(path)
    notes: list[str] = []
    parts = tuple(_parts(p, listed(p), specs, notes))
    return Given(specs, parts, str(p), tuple(notes))


def in_memory(arrays: Mapping[str, Any], specs: tuple[InputSpec, ...]) -> Given:
    """Arrays by input name. Raises CalibrationError."""
    notes: list[str] = []
    data = {_key(k): _as_array(k, v) for k, v in arrays.items()}
    return Given(specs, (_checked(data, specs, "the data", notes),), "arrays in memory", tuple(notes))


def with_others(samples: Samples, proto: onnx.ModelProto) -> Samples:
    """The samples with the inputs that are no tensors, whose entries are extra keys of the data (`entries_of`).

    Raises CalibrationError where a sequence has none.
    """
    extras, fixed = dict(samples.extras), dict[str, Any]()
    for v in other_inputs(proto):
        if v.name in extras:
            whole = extras.pop(v.name)
            fixed[v.name] = [] if is_sequence(v.type) and not whole.size else whole
            continue
        entries = [extras.pop(f"{v.name}[{i}]") for i in range(len(extras)) if f"{v.name}[{i}]" in extras]
        if not entries and not v.type.HasField("optional_type"):
            raise CalibrationError(f"no data for input {v.name!r}, a sequence: store its entries as '{v.name}[0]', ...")
        fixed[v.name] = entries or None
    return replace(samples, extras=extras, fixed=fixed) if fixed else samples


def _parts(path: Path, files: Sequence[Path], specs: tuple[InputSpec, ...], notes: list[str]) -> Iterator[Part]:
    """What each file holds, checked; several are held in memory, so they have a limit together."""
    if path.is_dir() and _by_input(files, specs):
        yield _checked({f.stem: _single(f) for f in files}, specs, path, notes)
        return
    total = 0
    for f in files:
        part = _checked(_keyed(f, specs), specs, f, notes)
        total += sum(a.size * a.dtype.itemsize for a in (*part.inputs.values(), *part.extras.values()))
        if len(files) > 1:
            check_held(total, path, f.name)
        yield part


def _by_input(files: Sequence[Path], specs: tuple[InputSpec, ...]) -> bool:
    """Whether the files of a folder are arrays of one data set, named after the inputs of the model."""
    names = {s.name for s in specs}
    return all(f.suffix == ".npy" for f in files) and any(f.stem in names for f in files)


def _single(path: Path) -> Array | Rows:
    stored = read(path)
    if isinstance(stored, dict):
        raise CalibrationError(f"{path} is an archive, and named as if it were a single array: call it .npz")
    return stored


def _keyed(path: Path, specs: tuple[InputSpec, ...]) -> Mapping[str, Array | Rows]:
    stored = read(path)
    if isinstance(stored, dict):
        return stored
    if len(specs) != 1:
        names = ", ".join(repr(s.name) for s in specs)
        raise CalibrationError(
            f"{path}: the model has several inputs ({names}); use a .npz keyed by their names, or a folder with a .npy "
            "named after each"
        )
    return {specs[0].name: stored}


def _key(name: object) -> str:
    if not isinstance(name, str):
        raise CalibrationError(f"the data has the key {name!r}; keys are names of inputs")
    return name


def _as_array(name: object, value: object) -> Array:
    """Raises CalibrationError for what is no array: rows of different lengths, or values that are masked out."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise CalibrationError(f"the data: {name!r} has values that are masked out; fill them in first")
    try:
        return np.asarray(value)
    except Exception as e:
        raise CalibrationError(f"the data: {name!r} is no array: {' '.join(str(e).split())[:200]}") from e


def _checked(
    data: Mapping[str, Array | Rows], specs: tuple[InputSpec, ...], path: Path | str, notes: list[str]
) -> Part:
    """The inputs and the other keys, with every input's presence, type and values checked."""
    checked: dict[str, Array | Rows] = {}
    for s in specs:
        if s.name not in data:
            wanted = ", ".join(repr(x.name) for x in specs)
            keys = ", ".join(repr(k) for k in data) or "nothing"
            held = "the folder has" if Path(path).is_dir() else "the file has"
            raise CalibrationError(f"{path}: no data for input {s.name!r}: the model wants {wanted}, {held} {keys}")
        where = f"{path}: input {s.name!r}"
        a, note = converted(data[s.name], s.dtype, where)
        if note:
            notes.append(note)
        if is_float(a.dtype) and not all(np.isfinite(part).all() for part in chunks(a)):
            raise CalibrationError(f"{where} holds NaN or infinite values; clean the data first")
        checked[s.name] = _with_axis(a, s)
    _check_entries(checked, specs, path)
    return Part(
        checked, {k: v[:] if isinstance(v, Rows) else v for k, v in data.items() if k not in checked}, str(path)
    )


def _with_axis(a: Array | Rows, s: InputSpec) -> Array | Rows:
    """A single sample gets the axis that it was stored without."""
    return a[:][None] if s.batched and a.ndim == len(s.dims) - 1 else a


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
