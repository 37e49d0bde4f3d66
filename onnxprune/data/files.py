"""Arrays in files: a `.npz` keyed by input names, a `.npy` for a model with one input, and folders.

A folder holds some samples in each file, or a `.npy` for each input. Files are read without pickles, a folder one file
at a time. Everything is hostile until checked. A large array that is not compressed stays in its file, and its samples
are read when they are run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from onnxprune.data import parts
from onnxprune.data.array_files import SUFFIXES, Rows, listed, read
from onnxprune.data.given import Given, Part
from onnxprune.data.inputs import InputSpec
from onnxprune.data.spool import check_held
from onnxprune.errors import CalibrationError
from onnxprune.numerics.arrays import Array


def any_in(path: Path) -> bool:
    """Whether a path is a file of arrays, or a folder that holds one."""
    try:
        return path.suffix in SUFFIXES or (path.is_dir() and any(f.suffix in SUFFIXES for f in path.iterdir()))
    except (OSError, ValueError):  # what it is, reading it says
        return True


def opened(path: Path, specs: tuple[InputSpec, ...]) -> Given:
    """What lies at a path. Raises CalibrationError."""
    notes: list[str] = []
    own = tuple(_parts(path, listed(path), specs, notes))
    return Given(specs, own, str(path), tuple(notes))


def _parts(path: Path, files: Sequence[Path], specs: tuple[InputSpec, ...], notes: list[str]) -> Iterator[Part]:
    """What each file holds, checked; several are held in memory, so they have a limit together."""
    if path.is_dir() and _by_input(files, specs):
        yield parts.checked({f.stem: _single(f) for f in files}, specs, path, notes)
        return
    total = 0
    for f in files:
        part = parts.checked(_keyed(f, specs), specs, f, notes)
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
