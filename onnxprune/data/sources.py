"""Data as users give them, read and checked against the model's inputs: what is accepted, a row for each kind.

Data lie in files and folders as arrays (`files.py`, `polygraphy_json.py`), images (`images.py`) or texts
(`texts.py`), are arrays in memory (`in_memory.py`), or come batch by batch from a program (`streams.py`, `scripts.py`).
Each kind has a row of `KINDS`: what tells it, of a path by what lies there, and what reads it. Everything is hostile
until checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from onnxprune.data import files, image_files, in_memory, polygraphy_json, streams, text_files
from onnxprune.data.accepted import ALL, BatchReader, Indexed, NumpyIterable, Source, Wanted
from onnxprune.data.given import Given
from onnxprune.data.images import Images
from onnxprune.data.inputs import InputSpec, is_sequence, other_inputs
from onnxprune.data.readings import readings
from onnxprune.data.samples import Samples
from onnxprune.errors import CalibrationError


@dataclass(frozen=True)
class Kind:
    """One kind of data. name: for the message that says what is accepted. tells: whether something is of it."""

    name: str
    tells: Callable[[Any], bool]
    read: Callable[[Any, tuple[InputSpec, ...], Wanted], Given]


def _at(tells: Callable[[Path], bool]) -> Callable[[Any], bool]:
    """Tells a path, by what lies there. An empty one is none, which Path would take for the present folder."""
    return lambda x: isinstance(x, (str, os.PathLike)) and bool(os.fspath(x)) and tells(Path(x))


def _arrays(path: str | os.PathLike[str], specs: tuple[InputSpec, ...], _: Wanted) -> Given:
    if not os.fspath(path):
        raise CalibrationError("the path of the data is empty")
    return opened(Path(path), specs)


def _texts(path: str | os.PathLike[str], *_: object) -> Given:
    """Raises CalibrationError: a tokenizer has to be named."""
    raise CalibrationError(
        f"{Path(path)} holds texts: give the model's tokenizer.json too (--tokenizer; onnxprune.Texts)"
    )


# The first row that tells what it is given reads it; a row without a name is told by that of another.
KINDS = (
    Kind("", lambda x: isinstance(x, Source), lambda x, specs, wanted: x.given(specs, wanted)),
    Kind(
        "",
        _at(lambda p: polygraphy_json.any_in(p) and not files.any_in(p)),
        lambda x, specs, wanted: polygraphy_json.opened(Path(x), specs, wanted),
    ),
    Kind("", _at(lambda p: p.suffix in text_files.SUFFIXES and p.is_file()), _texts),
    Kind(
        "",
        _at(lambda p: image_files.any_in(p) and not files.any_in(p)),
        lambda x, specs, wanted: Images(x).given(specs, wanted),
    ),
    Kind("the path of a file or folder", lambda x: isinstance(x, (str, os.PathLike)), _arrays),
    Kind("arrays by input name", lambda x: isinstance(x, Mapping), lambda x, s, _: in_memory.by_name(x, s)),
    Kind("an array or a tensor", lambda x: hasattr(x, "shape"), lambda x, s, _: in_memory.alone(x, s)),
    Kind("a CalibrationDataReader", lambda x: isinstance(x, BatchReader), streams.by_reader),
    Kind("a tf.data set", lambda x: isinstance(x, NumpyIterable), streams.by_numpy_iterator),
    Kind(
        "an iterable of batches such as a DataLoader",
        lambda x: isinstance(x, Iterable) and not isinstance(x, (bytes, type)),
        streams.by_iterable,
    ),
    Kind(
        "a data set by index", lambda x: isinstance(x, Indexed) and not isinstance(x, (bytes, type)), streams.by_index
    ),
    Kind("a function that yields batches", lambda x: callable(x) and not isinstance(x, type), streams.by_function),
)


def load(path: str | Path, specs: tuple[InputSpec, ...]) -> Samples:
    """Read and check data for a model with these inputs, in the likeliest way. Raises CalibrationError."""
    return likeliest(opened(path, specs))


def given(source: object, specs: tuple[InputSpec, ...], wanted: Wanted = ALL) -> Samples:
    """What a user gives: data of any of the `KINDS`. Raises CalibrationError."""
    return likeliest(taken(source, specs, wanted))


def checked(arrays: Mapping[str, Any], specs: tuple[InputSpec, ...]) -> Samples:
    """Check arrays in memory, as `load` does those of files. Raises CalibrationError."""
    return likeliest(in_memory.by_name(arrays, specs))


def likeliest(data: Given) -> Samples:
    """The samples, where no run of the model is there to tell how they lie in the data."""
    found = readings(data)
    sure = (r for r in found if not (r.doubtful and (r.per_run or 1) > 1))
    return data.read(next(sure, found[0]))


def taken(source: object, specs: tuple[InputSpec, ...], wanted: Wanted = ALL) -> Given:
    """As `given`, before it is known how samples lie in the data. Raises CalibrationError."""
    kind = next((k for k in KINDS if k.tells(source)), None)
    if kind is None:
        names = [k.name for k in KINDS if k.name]
        raise CalibrationError(
            f"the data is of type {type(source).__name__}; give {', '.join(names[:-1])}, or {names[-1]}"
        )
    return kind.read(source, specs, wanted)


def opened(path: str | Path, specs: tuple[InputSpec, ...]) -> Given:
    """What lies at a path. Raises CalibrationError."""
    return files.opened(Path(path), specs)


def files_of(source: object) -> tuple[Path, ...]:
    """The file or folder that data are read from, which nothing may be written over; () for what is in memory."""
    path = source.path if isinstance(source, Source) else source
    return (Path(path),) if isinstance(path, (str, os.PathLike)) and os.fspath(path) else ()


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
