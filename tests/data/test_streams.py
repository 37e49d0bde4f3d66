"""Batches from programs: whatever gives them, the samples are those that a file with the same values holds."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import evaluate, prune
from onnxprune.data import spool
from onnxprune.data.accepted import ALL, Wanted
from onnxprune.data.array_files import Rows
from onnxprune.data.inputs import InputSpec
from onnxprune.data.ragged import Ragged
from onnxprune.data.samples import Samples
from onnxprune.data.sources import checked, given
from onnxprune.errors import CalibrationError
from onnxprune.process import spill
from tests import digits

X = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
Y = np.arange(10)
ONE = (InputSpec("x", np.dtype(np.float32), (None, 2, 3), symbols=("N", "", "")),)
FOUR = (InputSpec("x", np.dtype(np.float32), (4, 2, 3)),)
TWO = (*ONE, InputSpec("z", np.dtype(np.int64), (None,), symbols=("N",)))


class Reader:
    """As onnxruntime's CalibrationDataReader."""

    def __init__(self) -> None:
        self._left = iter([{"x": X[:4]}, {"x": X[4:]}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


class Tf:
    """As a tf.data set, which iterates over its own tensors too."""

    def as_numpy_iterator(self) -> Iterator[Any]:
        return iter(X)

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError


class Indexed:
    """As a data set of torch."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]


def in_one_buffer() -> Iterator[Any]:
    """Batches in memory that is used again for the next."""
    buffer = np.empty((2, 2, 3), np.float32)
    for start in range(0, 10, 2):
        buffer[:] = X[start : start + 2]
        yield {"x": buffer}


MADE: dict[str, Callable[[], Any]] = {
    "an array": lambda: X,
    "a list of batches": lambda: [X[:3], X[3:]],
    "single samples": lambda: list(X),
    "samples with an axis": lambda: (x[None] for x in X),
    "dicts": lambda: [{"x": X[:9]}, {"x": X[9:]}],
    "a generator": lambda: ({"x": X[i : i + 3]} for i in range(0, 10, 3)),
    "a generator function": lambda: lambda: ({"x": x} for x in X),
    "batches and labels": lambda: [(X[:3], Y[:3]), (X[3:], Y[3:])],
    "lists of batch and labels": lambda: [[X[:3], Y[:3]], [X[3:], Y[3:]]],
    "dicts and labels": lambda: [({"x": X[:3]}, Y[:3]), ({"x": X[3:]}, Y[3:])],
    "samples and labels": lambda: list(zip(X, Y, strict=True)),
    "nested lists": lambda: [{"x": X[:5].astype(np.float64).tolist()}, {"x": X[5:].astype(np.float64).tolist()}],
    "a reader": Reader,
    "a tf.data set": Tf,
    "a data set by index": Indexed,
    "one buffer": in_one_buffer,
}


@pytest.fixture(params=[False, True], ids=["in memory", "on disk"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Run in memory, and with everything spilled from the first byte on."""
    if request.param:
        monkeypatch.setattr(spool, "LARGE_BYTES", 0)
    with spill.spilling():
        yield bool(request.param)


def same(a: Samples, b: Samples) -> bool:
    return a.sha256() == b.sha256() and all(
        np.array_equal(x[k], y[k]) for x, y in zip(a.batches(3), b.batches(3), strict=True) for k in x
    )


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("specs", [ONE, FOUR], ids=["any batch", "four in a run"])
def test_the_samples_are_those_of_an_array(kind: str, specs: tuple[InputSpec, ...], place: bool):
    """Fails where a batch is lost, moved or read twice, or where its memory is kept instead of its values."""
    samples = given(MADE[kind](), specs)
    assert same(samples, checked({"x": X}, specs))
    assert samples.per_run == (4 if specs is FOUR else None)
    if "label" in samples.extras:
        assert np.array_equal(samples.extras["label"], Y[: len(samples)])
    assert ("label" in samples.extras) == ("labels" in kind or kind == "a data set by index")
    if place and kind != "an array":
        assert isinstance(samples.arrays["x"], Rows)


@pytest.mark.parametrize("kind", ["dicts", "tuples", "nested"])
def test_several_inputs(kind: str, place: bool):
    """Fails where tuples are not taken in the order of the inputs."""
    batches = {
        "dicts": [{"z": Y[:4], "x": X[:4]}, {"z": Y[4:], "x": X[4:]}],
        "tuples": [(X[:4], Y[:4]), (X[4:], Y[4:])],
        "nested": [((X[:4], Y[:4]), Y[:4]), ((X[4:], Y[4:]), Y[4:])],
    }[kind]
    assert same(given(batches, TWO), checked({"x": X, "z": Y}, TWO))


def test_samples_of_different_sizes(place: bool):
    """Fails where texts of several lengths are padded, cut, or held in memory once they are on disk."""
    specs = (InputSpec("x", np.dtype(np.int64), (None, None), symbols=("batch", "length")),)
    batches = [np.arange(2 * n).reshape(2, n) for n in (3, 5, 4)]
    samples = given([{"x": b} for b in batches], specs)
    assert isinstance(samples.arrays["x"], Ragged)
    assert not place or not any(isinstance(e, np.ndarray) for e in samples.arrays["x"].entries)
    rows = [f["x"] for f in samples.batches(8)]
    assert [r.tolist() for r in rows] == [b[i : i + 1].tolist() for b in batches for i in range(2)]
    assert [f["x"].shape for f in samples.take([5, 0]).batches(1)] == [(1, 4), (1, 3)]


def test_samples_along_another_axis(place: bool):
    """Fails where states (layers, N, width) are joined along their first axis."""
    specs = (*ONE, InputSpec("h", np.dtype(np.float32), (2, None, 5), symbols=("", "N", "")))
    h = np.random.default_rng(0).standard_normal((2, 10, 5)).astype(np.float32)
    samples = given([{"x": X[a:b], "h": h[:, a:b]} for a, b in itertools.pairwise((0, 3, 9, 10))], specs)
    assert same(samples, checked({"x": X, "h": h}, specs))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """Fails where batches are gathered in memory before or while they are written."""
    monkeypatch.setattr(spool, "LARGE_BYTES", 1 << 20)
    specs = (InputSpec("x", np.dtype(np.float32), (None, 64, 1024)),)
    with spill.spilling():
        tracemalloc.start()
        samples = given((np.full((2, 64, 1024), i, np.float32) for i in range(64)), specs)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(samples) == 128  # 32 MiB
        assert peak < 5 << 20
        assert [b["x"][0, 0, 0] for b in samples.batches(2)] == list(range(64))


def test_a_source_without_an_end():
    """Fails where more is read than was asked for, or where nothing says how to end it."""
    taken = []

    def endless() -> Iterator[Any]:
        for i in itertools.count():
            taken.append(i)
            yield X[:3]

    assert len(given(endless, ONE, Wanted(7))) == 9
    assert len(taken) == 3
    assert len(given(endless, FOUR, Wanted(1))) == 4


def test_what_has_been_read_is_told():
    """Fails where a run that reads for minutes says nothing, or counts more than there will be."""
    told: list[tuple[int, int]] = []
    given([X[:3]] * 3, ONE, Wanted(told=lambda *far: told.append(far)))
    given([X[:3]] * 3, ONE, Wanted(7, told=lambda *far: told.append(far)))
    assert told == [(3, 0), (6, 0), (9, 0), (3, 7), (6, 7), (7, 7)]
    heard: list[str] = []
    feeds = {"input": np.load(digits.CALIB)["input"][:16]}
    prune(digits.path("resnet"), None, [feeds], dry_run=True, watch=lambda p: heard.append(str(p)))
    assert heard[:2] == ["load", "load 16"]


def test_a_disk_that_runs_full_is_left_some_room(monkeypatch: pytest.MonkeyPatch):
    """Fails where a source without an end fills the disk before anything is said."""
    monkeypatch.setattr(spool, "LARGE_BYTES", 0)
    monkeypatch.setattr(spool, "_LOOKED_AT", 1000)
    monkeypatch.setattr(spool, "_LEFT_FREE", 1 << 60)
    with spill.spilling(), pytest.raises(CalibrationError, match=r"has only .* left; .*--samples"):
        given((X for _ in itertools.count()), ONE)


def test_a_data_set_by_index_is_asked_for_the_chosen_ones():
    """Fails where all samples are made, or others than the same choice of an array's."""
    samples = given(Indexed(), ONE, Wanted(4, 7))
    order = np.sort(np.random.default_rng(7).permutation(10)[:4])
    assert same(samples, checked({"x": X[order]}, ONE))


def raising() -> Iterator[Any]:
    yield X
    raise OSError("the disk\nis gone")


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": ([], "there are no batches from a list"),
    "a used generator": (iter([]), "the data is empty"),
    "a function that gives nothing": (lambda: None, r"gave nothing; it has to yield batches"),
    "a function that gives a dict": (lambda: {"x": X}, r"gave a dict; it has to yield batches"),
    "a function that fails": (lambda: 1 / 0, "raised ZeroDivisionError: division by zero"),
    "a failure on the way": (raising, "reading batch 2 raised OSError: the disk is gone"),
    "three of one": ([(X, Y, Y)], r"batch 1 of the data is a tuple of 3, and the model has 1 input \('x'\)"),
    "another shape later": ([X, X[:, :1]], "batch 2 of the data: input 'x' has shape 10x1x3, the model wants Nx2x3"),
    "another key": ([{"x": X}, {"y": X}], "batch 2 of the data: no data for input 'x'"),
    "not a number": ([X, X * np.float32(np.nan)], "batch 2 of the data: input 'x' holds NaN"),
    "None": ([None], "batch 1 of the data: input 'x' is object"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals(kind: str):
    """Fails where a batch that does not fit passes, or is not named, or where an error has several lines."""
    data, match = REFUSED[kind]
    with pytest.raises(CalibrationError, match=match) as e:
        given(data, ONE)
    assert "\n" not in str(e.value)


def test_labels_that_are_no_numbers_of_one_shape_are_left_out():
    """Fails where boxes of a detector's loader stop a run that does not read them."""
    boxes = [{"boxes": np.zeros((n, 4))} for n in range(10)]
    assert given([(x[None], b) for x, b in zip(X, boxes, strict=True)], ONE).extras == {}
    assert given([(x[None], np.zeros((n, 4))) for n, x in enumerate(X)], ONE).extras == {}


def test_types_are_said_once():
    """Fails where a conversion is noted for every batch."""
    assert given([X.astype(np.float64)] * 3, ONE).notes == (
        "the data: input 'x' is float64, the model wants float32: converted",
    )


def test_tensors_of_torch():
    """Fails where a loader, a data set, gradients or bfloat16 need a conversion by the user."""
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    for source in (data, torch.utils.data.DataLoader(data, batch_size=3), torch.from_numpy(X).requires_grad_()):
        assert same(given(source, ONE), checked({"x": X}, ONE))
    half = given([torch.from_numpy(X).bfloat16()], ONE)
    assert np.array_equal(half.slice(0, 10)["x"], torch.from_numpy(X).bfloat16().float().numpy())


def test_a_reader_of_onnxruntime():
    """Fails where the class that onnxruntime's quantizers read is not taken for what it is."""
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Own(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self._reader = Reader()

        def get_next(self) -> Any:
            return self._reader.get_next()

    assert same(given(Own(), ONE), checked({"x": X}, ONE))


def test_prune_and_eval_take_them(tmp_path: Path):
    """Fails where a generator gives another plan than the file with its samples, or labels are lost on the way."""
    with np.load(digits.CALIB) as f:
        images = f["input"][:64]
    options: Any = {"ratio": 0.5, "refit": "scale", "method": "magnitude", "dry_run": True}
    np.savez(tmp_path / "x.npz", input=images)
    plans = [
        prune(digits.path("resnet"), None, data, **options).plan.to_json()
        for data in (tmp_path / "x.npz", lambda: (images[i : i + 10] for i in range(0, 64, 10)))
    ]
    assert plans[0] == plans[1]
    with np.load(digits.TEST) as f:
        test = {k: f[k][:50] for k in ("input", "label")}
    batches = [(test["input"][i : i + 8], test["label"][i : i + 8]) for i in range(0, 50, 8)]
    assert evaluate(digits.path("resnet"), batches, labels="label").accuracy == (
        evaluate(digits.path("resnet"), test, labels="label").accuracy
    )
    assert evaluate(digits.path("resnet"), batches, labels="label", samples=20).samples == 20


def test_all_is_wanted_unless_said():
    """Fails where a source leaves samples out that nobody asked to."""
    assert ALL.chosen(3).tolist() == [0, 1, 2]
    assert Wanted(2).chosen(3).tolist() == [0, 1]
