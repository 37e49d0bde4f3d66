"""Which axis of which input counts samples, told from symbols and shapes alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.data.inputs import InputSpec
from onnxprune.data.readings import readings
from onnxprune.data.samples import Samples
from onnxprune.data.sources import load, opened
from onnxprune.errors import CalibrationError
from tests.compare import assert_same

Array = NDArray[Any]
Shape = tuple[int, ...]
FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)


def spec(name: str, *dims: int | str, dtype: np.dtype[Any] = FLOAT) -> InputSpec:
    """An input; "" is a free dimension without a name."""
    names = tuple(d if isinstance(d, str) else "" for d in dims)
    sizes = tuple(None if isinstance(d, str) else d for d in dims)
    return InputSpec(name, dtype, sizes, symbols=names if any(names) else ())


def saved(folder: Path, files: list[dict[str, Shape]], dtypes: dict[str, np.dtype[Any]]) -> Path:
    """Files of arrays of these shapes, no two of whose entries are the same."""
    start = 0
    for k, shapes in enumerate(files):
        arrays = {}
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            arrays[name] = np.arange(start, start + size).reshape(shape).astype(dtypes[name])
            start += size
        np.savez(folder / f"{k}.npz", **arrays)
    return folder if len(files) > 1 else folder / "0.npz"


def read(folder: Path, specs: tuple[InputSpec, ...], files: list[dict[str, Shape]]) -> Samples:
    return load(saved(folder, files, {s.name: s.dtype for s in specs}), specs)


LSTM = (spec("x", "N", "T", 4), spec("h", 2, "N", 3))
# inputs, shapes by file, samples, axes, samples of a run
READ: dict[str, tuple[tuple[InputSpec, ...], list[dict[str, Shape]], int, dict[str, int | None], int | None]] = {
    "states": (LSTM, [{"x": (8, 5, 4), "h": (2, 8, 3)}], 8, {"x": 0, "h": 1}, None),
    "states, a file each": (LSTM, [{"x": (1, 5, 4), "h": (2, 1, 3)}] * 6, 6, {"x": 0, "h": 1}, None),
    "sequence first": ((spec("x", "T", "batch", 4),), [{"x": (5, 9, 4)}], 9, {"x": 1}, None),
    "fixed steps": ((spec("x", 5, "N", 4),), [{"x": (5, 9, 4)}], 9, {"x": 1}, None),
    "one sequence at a time": ((spec("x", "T", 1, 4),), [{"x": (5, 9, 4)}], 9, {"x": 1}, 1),
    "time and batch, both in front": (
        (spec("x", "T", "B", 4), spec("ids", "B", dtype=INT)),
        [{"x": (5, 9, 4), "ids": (9,)}],
        9,
        {"x": 1, "ids": 0},
        None,
    ),
    "two names": ((spec("a", "na", 3), spec("b", "nb", 2)), [{"a": (6, 3), "b": (6, 2)}], 6, {"a": 0, "b": 0}, None),
    "a table": ((spec("x", "N", 3), spec("t", "K", 2)), [{"x": (6, 3), "t": (4, 2)}], 6, {"x": 0}, None),
    "no axis": ((spec("x", 3, "H", "W"),), [{"x": (3, 4, 5)}] * 7, 7, {"x": None}, 1),
    "no axis, stacked": ((spec("x", 3, "H", "W"),), [{"x": (7, 3, 4, 5)}], 7, {"x": None}, 1),
    "four at a time": ((spec("x", 4, 3),), [{"x": (12, 3)}], 12, {"x": 0}, 4),
    "four at a time, with a rest": ((spec("x", 4, 3),), [{"x": (14, 3)}], 12, {"x": 0}, 4),
    "four at a time, with a state": (
        (spec("x", 4, 6, 3), spec("h", 2, 4, 5)),
        [{"x": (12, 6, 3), "h": (2, 12, 5)}],
        12,
        {"x": 0, "h": 1},
        4,
    ),
    "one at a time": ((spec("x", 1, 3),), [{"x": (7, 3)}], 7, {"x": 0}, 1),
    "a state for all": ((spec("x", "N", 3), spec("h", 1, 1, 2)), [{"x": (7, 3), "h": (1, 1, 2)}], 7, {"x": 0}, None),
    "a state for each": (
        (spec("x", "N", 3), spec("h", 1, 1, 2)),
        [{"x": (7, 3), "h": (7, 1, 1, 2)}],
        7,
        {"x": 0, "h": None},
        1,
    ),
    "a scalar for all": ((spec("x", "N", 3), spec("s")), [{"x": (7, 3), "s": ()}], 7, {"x": 0}, None),
    "a scalar for each": ((spec("x", "N", 3), spec("s")), [{"x": (7, 3), "s": (7,)}], 7, {"x": 0, "s": None}, 1),
    "a scalar in each file": (
        (spec("x", "N", 3), spec("s")),
        [{"x": (1, 3), "s": ()}] * 5,
        5,
        {"x": 0, "s": None},
        1,
    ),
    "graphs": (
        (spec("x", "nodes", 3), spec("e", 2, "edges", dtype=INT), spec("w", "edges")),
        [{"x": (n, 3), "e": (2, 2 * n), "w": (2 * n,)} for n in (4, 5, 6)],
        3,
        {"x": None, "e": None, "w": None},
        1,
    ),
    "graphs of one size": (
        (spec("x", "N", 3), spec("e", 2, "E", dtype=INT)),
        [{"x": (4, 3), "e": (2, 9)}] * 3,
        3,
        {"x": None, "e": None},
        1,
    ),
    "an adjacency": (
        (spec("x", "n", 3), spec("a", "n", "n")),
        [{"x": (4, 3), "a": (4, 4)}],
        1,
        {"x": None, "a": None},
        1,
    ),
    "sizes": ((spec("x", "N", 3, "H"),), [{"x": (2, 3, h)} for h in (4, 5, 4)], 6, {"x": 0}, 1),
    "an empty past": (
        (spec("x", "N", "T", 3), spec("past", "N", 2, "P", 3)),
        [{"x": (6, 5, 3), "past": (6, 2, 0, 3)}],
        6,
        {"x": 0, "past": 0},
        None,
    ),
    "single samples without the axis": ((spec("x", "N", 3),), [{"x": (3,)}] * 4, 4, {"x": 0}, None),
    "nothing counts": ((spec("x", 7, 2),), [{"x": (7, 2)}], 1, {}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_how_data_are_read(name: str, tmp_path: Path):
    """Fails where another axis is taken for the samples, or a run is fed other shapes than the model declares."""
    specs, files, count, axes, per_run = READ[name]
    samples = read(tmp_path, specs, files)
    assert (len(samples), dict(samples.arrangement.axes), samples.per_run) == (count, axes, per_run)
    seen = 0
    for feeds in samples.batches(3):
        seen += samples.count(feeds)
        for s in specs:
            assert feeds[s.name].ndim == len(s.dims) and feeds[s.name].dtype == s.dtype
            assert all(d in (None, n) for d, n in zip(s.dims, feeds[s.name].shape, strict=True))
    assert seen == count


def test_every_value_is_fed_once(tmp_path: Path):
    """Fails where rows of a state on another axis go with those of another sample, or where a subset mixes them."""
    samples = read(tmp_path, LSTM, [{"x": (3, 5, 4), "h": (2, 3, 3)}, {"x": (2, 5, 4), "h": (2, 2, 3)}])
    first, second = (dict(np.load(tmp_path / f"{k}.npz")) for k in (0, 1))
    x, h = np.concatenate([first["x"], second["x"]]), np.concatenate([first["h"], second["h"]], axis=1)
    feeds = samples.slice(0, 5)
    assert_same(feeds["x"], x, rtol=0.0, atol=0.0)
    assert_same(feeds["h"], h, rtol=0.0, atol=0.0)
    assert feeds["h"].flags.c_contiguous
    assert_same(samples.take([4, 1]).slice(0, 2)["h"], h[:, [4, 1]], rtol=0.0, atol=0.0)
    assert_same(samples.part(2, 5).slice(1, 2)["h"], h[:, 3:4], rtol=0.0, atol=0.0)


def test_large_states_stay_in_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where rows of another axis of a file are read."""
    path = saved(tmp_path, [{"x": (6, 5, 4), "h": (2, 6, 3)}], {"x": FLOAT, "h": FLOAT})
    held = load(path, LSTM)
    monkeypatch.setattr("onnxprune.data.array_files.LARGE_BYTES", 1)
    lazy = load(path, LSTM)
    assert not isinstance(lazy.arrays["h"], np.ndarray) and lazy.arrays["h"].shape == (6, 2, 3)
    for a, b in ((lazy, held), (lazy.take([5, 0, 2]), held.take([5, 0, 2]))):
        assert_same(a.slice(1, 3)["h"], b.slice(1, 3)["h"], rtol=0.0, atol=0.0)
    assert lazy.sha256() == held.sha256()


def test_samples_of_different_sizes(tmp_path: Path):
    """Fails where such samples are put into one array, get out of step, or are not told apart by the checksum."""
    samples = read(tmp_path, (spec("x", "N", "H"),), [{"x": (2, 3)}, {"x": (1, 6)}])
    assert samples.ragged and samples.arrays["x"].shape == (3, -1)
    assert [f["x"].shape for f in samples.batches(64)] == [(1, 3), (1, 3), (1, 6)]
    assert_same(samples.take([2, 0]).slice(0, 1)["x"], np.arange(6, 12, dtype=FLOAT)[None], rtol=0.0, atol=0.0)
    assert samples.take([0, 1]).sha256() != samples.take([1, 0]).sha256()


REFUSED: dict[str, tuple[tuple[InputSpec, ...], list[dict[str, Shape]], str]] = {
    "another number of samples": (
        (spec("a", "N", 3), spec("b", "N", 2)),
        [{"a": (6, 3), "b": (5, 2)}],
        "input 'b' has 5 samples, input 'a' has 6",
    ),
    "in one file": (
        (spec("a", "N", 3), spec("b", "N", 2)),
        [{"a": (6, 3), "b": (6, 2)}, {"a": (6, 3), "b": (5, 2)}],
        "1.npz: input 'b' has 5 samples, input 'a' has 6",
    ),
    "of the state": (LSTM, [{"x": (8, 5, 4), "h": (2, 7, 3)}], "input 'h' has 7 samples, input 'x' has 8"),
    "no multiple of a run": ((spec("x", 4, 3),), [{"x": (3, 3)}], "has shape 3x3, the model wants 4x3"),
    "another width": ((spec("x", 4, 3),), [{"x": (8, 6)}], "has shape 8x6, the model wants 4x3"),
    "a value for all in other values": (
        (spec("x", "", 3), spec("k", 1)),
        [{"x": (4, 3), "k": (1,)}, {"x": (4, 3), "k": (1,)}],
        "the files hold other values of input 'k'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, tmp_path: Path):
    """Fails where data that do not fit the model are read all the same, or the message says something else."""
    specs, files, reason = REFUSED[name]
    with pytest.raises(CalibrationError, match=re.escape(reason)) as e:
        read(tmp_path, specs, files)
    assert "\n" not in str(e.value)


def test_what_is_said(tmp_path: Path):
    """Fails where another axis than the first is taken, or samples are left out, without a word."""
    for name, words in (("sequence first", "axis 1 of input 'x' (batch)"), ("four at a time, with a rest", "2 of 14")):
        folder = tmp_path / name
        folder.mkdir()
        specs, files, *_ = READ[name]
        (note,) = read(folder, specs, files).notes
        assert words in note


def test_only_what_names_leave_open_is_doubtful(tmp_path: Path):
    """Fails where a model that says which axis counts samples has to be run for it, or one that does not has not."""
    for dims, doubtful in ((("N", "T", 4), False), (("T", "N", 4), True), (("steps", "rows", 4), True)):
        folder = tmp_path / "".join(map(str, dims))
        folder.mkdir()
        path = saved(folder, [{"x": (5, 9, 4)}], {"x": FLOAT})
        assert readings(opened(path, (spec("x", *dims),)))[0].doubtful == doubtful


def test_a_folder_with_a_file_for_each_input(tmp_path: Path):
    """Fails where such a folder is taken for samples file by file, or a missing input is not named."""
    specs = (spec("x", "N", 3), spec("gate", "N", 2))
    x, gate, label = np.ones((4, 3), FLOAT), np.ones((4, 2), FLOAT), np.arange(4)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "label.npy", label)
    with pytest.raises(CalibrationError, match=r"no data for input 'gate'.*the folder has 'label', 'x'"):
        load(tmp_path, specs)
    np.save(tmp_path / "gate.npy", gate[:3])
    with pytest.raises(CalibrationError, match="input 'gate' has 3 samples, input 'x' has 4"):
        load(tmp_path, specs)
    np.save(tmp_path / "gate.npy", gate)
    samples = load(tmp_path, specs)
    assert len(samples) == 4 and samples.extras["label"].tolist() == label.tolist()
