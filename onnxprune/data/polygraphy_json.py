"""Inputs as polygraphy saves them (`polygraphy run --save-inputs`): JSON with an array of numpy, in base64, for each.

A file holds a list of runs, each a dict by input name, or one run; a folder holds such files in the order of their
names. Only arrays of numpy are read, without pickles; a tensor of torch is a pickle, and refused.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from onnxprune.data import streams
from onnxprune.data.accepted import Wanted
from onnxprune.data.array_files import from_bytes
from onnxprune.data.given import Given
from onnxprune.data.inputs import InputSpec
from onnxprune.errors import CalibrationError
from onnxprune.numerics.arrays import Array
from onnxprune.regular_files import brief, content, reason

SUFFIX = ".json"
_MOST_BYTES = 2 << 30
_CLASS, _ARRAY = "polygraphy_class", "array"
# What wraps an array that was swapped to disk.
_WRAPPERS = ("LazyArray", "LazyNumpyArray")


def any_in(path: Path) -> bool:
    """Whether a path is such a file, or a folder that holds some."""
    try:
        return path.suffix == SUFFIX or (path.is_dir() and any(f.suffix == SUFFIX for f in path.iterdir()))
    except (OSError, ValueError):
        return False


def opened(path: Path, specs: tuple[InputSpec, ...], wanted: Wanted) -> Given:
    """The runs of a file, or of all files of a folder. Raises CalibrationError."""
    try:
        files = sorted(f for f in path.iterdir() if f.suffix == SUFFIX) if path.is_dir() else [path]
    except OSError as e:
        raise CalibrationError(f"{brief(path)} cannot be read: {reason(e)}") from e
    return streams.of((run for f in files for run in _runs(f)), str(path), specs, wanted)


def _runs(path: Path) -> Iterator[dict[str, Array]]:
    try:
        data = json.loads(content(path, CalibrationError, _MOST_BYTES))
    except RecursionError:
        raise CalibrationError(f"{path} is nested too deeply for inputs of polygraphy") from None
    except ValueError as e:  # no UTF-8, or no JSON
        raise CalibrationError(f"{path} is no JSON: {' '.join(str(e).split())[:200]}") from e
    for number, run in enumerate(data if isinstance(data, list) else [data], 1):
        if not isinstance(run, Mapping) or not run or _CLASS in run:
            raise CalibrationError(
                f"{path} holds no inputs of polygraphy: a list of runs, each with arrays by input name, as "
                "`polygraphy run --save-inputs` writes them"
            )
        yield {str(name): _array(value, f"{path}: run {number}, {name!r}") for name, value in run.items()}


def _array(value: object, where: str) -> Array:
    while isinstance(value, Mapping) and value.get(_CLASS) in _WRAPPERS:
        value = value.get("values")
    if not isinstance(value, Mapping) or not isinstance(value.get(_ARRAY), str):
        kind = value.get(_CLASS) if isinstance(value, Mapping) else type(value).__name__
        advice = "; save it as an array of numpy, as a tensor is a pickle" if kind == "Tensor" else ""
        raise CalibrationError(f"{where} is no array of numpy but {kind or 'something else'}{advice}")
    try:
        return from_bytes(base64.b64decode(value[_ARRAY], validate=True))
    except binascii.Error as e:
        raise CalibrationError(f"{where} is not in base64: {e}") from e
    except Exception as e:  # as of a file: numpy, zipfile and tokenize share no base class
        raise CalibrationError(f"{where} is no array: {' '.join(str(e).split())[:200]}") from e
