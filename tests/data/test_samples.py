"""Calibration files: what is accepted, how it is handed out, and every refusal by name."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from onnxprune.data import array_files
from onnxprune.data.array_files import Rows
from onnxprune.data.inputs import InputSpec, input_specs
from onnxprune.data.samples import Samples
from onnxprune.data.sources import load
from onnxprune.errors import CalibrationError
from tests.compare import assert_same

Array = NDArray[Any]

FLOAT = np.dtype(np.float32)
IMAGE = (InputSpec("image", FLOAT, (None, 3, 4, 4)),)
PAIR = (InputSpec("image", FLOAT, (None, 3)), InputSpec("ids", np.dtype(np.int64), (None, 2)))


def images(count: int = 5) -> Array:
    return np.random.default_rng(0).standard_normal((count, 3, 4, 4)).astype(np.float32)


def saved(folder: Path, **arrays: Array) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def npy(folder: Path, values: Array, name: str = "data.npy", *, pickle: bool = False) -> Path:
    np.save(folder / name, values, allow_pickle=pickle)
    return folder / name


def raw(folder: Path, name: str, blob: bytes) -> Path:
    (folder / name).write_bytes(blob)
    return folder / name


def archive(folder: Path, member: str, blob: bytes) -> Path:
    with zipfile.ZipFile(folder / "data.npz", "w") as z:
        z.writestr(member, blob)
    return folder / "data.npz"


def spoiled(value: float) -> Array:
    a = images()
    a[2, 1, 0, 3] = value
    return a


def cut_short(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def deflated_garbage(folder: Path) -> Path:
    """A compressed member whose stream is overwritten in the middle."""
    path = folder / "data.npz"
    np.savez_compressed(path, image=images(50))
    blob = bytearray(path.read_bytes())
    middle = len(blob) // 2
    blob[middle : middle + 40] = b"\xff" * 40
    return raw(folder, "data.npz", bytes(blob))


def claims_too_much(folder: Path) -> Path:
    """A header that asks for more memory than any machine has."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000, 3, 4, 4), }"
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    blob = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64
    return archive(folder, "image.npy", blob)


def folder_of(folder: Path, **arrays: Array) -> Path:
    for name, values in arrays.items():
        np.savez(folder / f"{name}.npz", image=values)
    return folder


def folder_with_extras(folder: Path) -> Path:
    np.savez(folder / "a.npz", image=images(), labels=np.zeros(5))
    np.savez(folder / "b.npz", image=images(), labels=np.zeros((5, 2)))
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path], tuple[InputSpec, ...], str]] = {
    "missing": (lambda d: d / "none.npz", IMAGE, "does not exist"),
    "another kind": (lambda d: raw(d, "data.txt", b"1 2 3"), IMAGE, r"neither a \.npz"),
    "empty folder": (lambda d: d, IMAGE, r"holds no \.npz or \.npy"),
    "wrong key": (lambda d: saved(d, picture=images()), IMAGE, "no data for input 'image'.*'picture'"),
    "no key": (saved, IMAGE, "the file has nothing"),
    "wrong type": (lambda d: saved(d, image=images().astype(np.int64)), IMAGE, "is int64, the model wants float32"),
    "wrong size": (lambda d: saved(d, image=images()[:, :2]), IMAGE, "shape 5x2x4x4, the model wants Nx3x4x4"),
    "wrong rank": (lambda d: saved(d, image=images()[None]), IMAGE, "shape 1x5x3x4x4"),
    "a scalar": (lambda d: saved(d, image=np.float32(1)), IMAGE, "the model wants Nx3x4x4"),
    "not a number": (lambda d: saved(d, image=spoiled(np.nan)), IMAGE, "NaN or infinite"),
    "infinite": (lambda d: saved(d, image=spoiled(np.inf)), IMAGE, "NaN or infinite"),
    "no samples": (lambda d: saved(d, image=images(0)), IMAGE, "is empty"),
    "samples without an entry": (
        lambda d: saved(d, past=np.zeros((16, 0, 4), np.float32)),
        (InputSpec("past", FLOAT, (None, None, 4)),),
        "'past' has the shape 16x0x4 and no entries",
    ),
    "pickled": (lambda d: npy(d, np.array([{"a": 1}], object), pickle=True), IMAGE, "cannot be read"),
    "pickled inside": (lambda d: saved(d, image=np.array([{"a": 1}], object)), IMAGE, "cannot be read"),
    "several inputs": (lambda d: npy(d, images()), PAIR, "several inputs.*'image', 'ids'"),
    "one input missing": (lambda d: saved(d, image=np.zeros((2, 3), np.float32)), PAIR, "no data for input 'ids'"),
    "counts differ": (
        lambda d: saved(d, image=np.zeros((2, 3), np.float32), ids=np.zeros((3, 2), np.int64)),
        PAIR,
        "'ids' has 3 samples, input 'image' has 2",
    ),
    "no archive": (lambda d: raw(d, "data.npz", b"PK\x03\x04nothing"), IMAGE, "cannot be read"),
    "empty file": (lambda d: raw(d, "data.npy", b""), IMAGE, "cannot be read"),
    "npy cut short": (lambda d: cut_short(npy(d, images())), IMAGE, "cannot be read"),
    "npz cut short": (lambda d: cut_short(saved(d, image=images())), IMAGE, "cannot be read"),
    "broken compression": (deflated_garbage, IMAGE, "cannot be read"),
    "a header that lies": (claims_too_much, IMAGE, "cannot be read"),
    "a member that is no array": (lambda d: archive(d, "image", b"hello"), IMAGE, "cannot be read"),
    "ranks differ over files": (
        lambda d: (
            (npy(d, np.zeros((2, 4), np.float32), "a.npy"), npy(d, np.zeros((2, 4, 1), np.float32), "b.npy"))[0].parent
        ),
        (InputSpec("x", FLOAT, (None, None)),),
        r"b\.npy: input 'x' has shape 2x4x1",
    ),
    "other keys differ over files": (folder_with_extras, IMAGE, "'labels'"),
}


@pytest.mark.parametrize("large", [array_files.LARGE_BYTES, 1])
@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_file_and_the_reason(
    name: str, large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where bad data passes, raises anything but CalibrationError, or gets a message that says something else."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", large)
    make, specs, reason = REFUSED[name]
    path = make(tmp_path)
    with pytest.raises(CalibrationError, match=reason) as e:
        load(path, specs)
    assert str(path.name) in str(e.value) or path == tmp_path
    assert "\n" not in str(e.value)


def test_npz_and_npy_give_the_same_samples(tmp_path: Path) -> None:
    """Fails where values, order or count change on the way."""
    a = images()
    for s in (load(saved(tmp_path, image=a), IMAGE), load(npy(tmp_path, a), IMAGE)):
        assert len(s) == 5
        assert_same(s.arrays["image"], a, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_large_arrays_stay_in_their_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where rows are read from another place of the file, or chosen ones in another order."""
    path = npy(tmp_path, images()) if kind == "npy" else saved(tmp_path, labels=np.arange(5), image=images())
    held = load(path, IMAGE)
    monkeypatch.setattr(array_files, "LARGE_BYTES", 1)
    found = load(path, IMAGE)
    assert isinstance(found.arrays["image"], Rows)
    assert len(found) == 5
    assert found.arrays["image"].shape == images().shape
    order = np.array([3, 0, 4])
    for a, b in (
        (found, held),
        (found.take(order), held.take(order)),
        (found.take(order).take([2, 0]), held.take([4, 3])),
    ):
        assert a.sha256() == b.sha256()
        for x, y in zip(a.batches(2), b.batches(2), strict=True):
            assert_same(x["image"], y["image"], rtol=0.0, atol=0.0)
        assert_same(a.example()["image"], b.example()["image"], rtol=0.0, atol=0.0)
    assert found.extras.keys() == held.extras.keys()


def test_what_cannot_be_read_row_by_row_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where columns are taken for rows, compressed bytes for values, or one sample for many."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", 1)
    by_columns = npy(tmp_path, np.asfortranarray(images()), "columns.npy")
    packed = tmp_path / "packed.npz"
    np.savez_compressed(packed, image=images())
    for path in (by_columns, packed):
        assert_same(load(path, IMAGE).arrays["image"], images(), rtol=0.0, atol=0.0)
    single = load(npy(tmp_path, images()[0], "single.npy"), IMAGE)
    assert_same(single.arrays["image"], images()[:1], rtol=0.0, atol=0.0)


def test_values_in_a_file_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where data that is not read at once is not checked either, or not in all of its pieces."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", 1)
    monkeypatch.setattr(array_files, "_CHUNK_BYTES", 1)
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        load(npy(tmp_path, spoiled(np.nan)), IMAGE)


def test_a_file_that_is_cut_short_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where that ends in numpy's own error, or in a crash."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", 1)
    path = npy(tmp_path, images())
    found = load(path, IMAGE)
    cut_short(path)
    with pytest.raises(CalibrationError, match="leave it as it is"):
        found.slice(0, 2)


def no_reads(*_: object, **__: object) -> None:
    raise AssertionError("a file was read")


SEVERAL = (*IMAGE, InputSpec("ids", np.dtype(np.int64), (None, 2)), InputSpec("table", FLOAT, (7, 2)))


@pytest.mark.parametrize(("large", "in_files"), [(1 << 20, set()), (900, {"image"}), (1, {"image", "ids"})])
def test_parts_of_several_inputs_some_of_them_in_files(
    large: int, in_files: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where inputs in files and in memory get out of step, or a table in a file is taken for samples."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", large)
    ids, table, labels = np.arange(10).reshape(5, 2), np.arange(14, dtype=np.float32).reshape(7, 2), np.arange(5) + 20
    found = load(saved(tmp_path, labels=labels, table=table, ids=ids, image=images()), SEVERAL)
    assert {k for k, v in found.arrays.items() if isinstance(v, Rows)} == in_files

    def check(feeds: dict[str, Array], rows: list[int], *names: str) -> None:
        expected = {"image": images()[rows], "ids": ids[rows], "table": table}
        assert set(feeds) == set(names or expected)
        for name, values in feeds.items():
            assert_same(values, expected[name], rtol=0.0, atol=0.0)

    for some, rows in ((found, [0, 1, 2, 3, 4]), (found.take([4, 0, 3]), [4, 0, 3]), (found.part(1, 4), [1, 2, 3])):
        assert len(some) == len(rows)
        for start, feeds in enumerate(some.batches(2)):
            check(feeds, rows[2 * start : 2 * start + 2])
        check(some.slice(1, 3), rows[1:3])
        for name in ("image", "ids", "table"):
            check(some.slice(1, 9, (name,)), rows[1:9], name)
    assert found.extras["labels"].tolist() == labels.tolist()
    assert found.take([4, 0, 3]).extras["labels"].tolist() == [24, 20, 23]
    assert found.part(1, 4).extras == {}


def test_choosing_samples_reads_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a subset of a file that does not fit in memory is read to choose it."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", 1)
    found = load(npy(tmp_path, images()), IMAGE)
    monkeypatch.setattr(np, "memmap", no_reads)
    chosen = found.take(np.array([3, 0])).arrays["image"]
    assert isinstance(chosen, Rows)
    assert (len(chosen), chosen.shape, chosen.ndim, chosen.size) == (2, (2, 3, 4, 4), 4, 96)
    assert len(found.take([])) == 0
    some = found.part(1, 3)
    assert isinstance(some.arrays["image"], Rows) and len(some) == 2
    with pytest.raises(AssertionError, match="a file was read"):
        found.slice(0, 1)


def test_samples_in_a_file_travel_as_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a worker on another machine is sent the path of a file on this one, or all that lies in it."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", 1)
    path = npy(tmp_path, images())
    sent = pickle.dumps(load(path, IMAGE).part(1, 3))
    path.unlink()
    received = pickle.loads(sent)
    assert len(received) == 2
    assert_same(received.slice(0, 2)["image"], images()[1:3], rtol=0.0, atol=0.0)


def test_samples_that_are_read_are_not_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where pages of the file count as this process's memory for as long as a batch lives."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", 1)
    found = load(npy(tmp_path, images()), IMAGE)
    for some in (found, found.take([2, 1]), found.part(0, 2)):
        batch = some.slice(0, 2)["image"]
        while batch.base is not None:
            batch = batch.base
        assert type(batch) is np.ndarray


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_large_arrays_of_every_version_of_the_format(
    version: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a header of another length shifts the values."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", 1)
    path = tmp_path / "data.npy"
    with path.open("wb") as f:
        np.lib.format.write_array(f, images(), version=version)
    assert_same(load(path, IMAGE).slice(0, 5)["image"], images(), rtol=0.0, atol=0.0)


def test_a_large_array_of_another_type_is_rounded_or_refused_as_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where bytes of a file are read as values of the type that the model wants."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", 1)
    half = InputSpec("image", np.dtype(np.float16), (None, 3, 4, 4))
    path = npy(tmp_path, images())
    assert_same(load(path, (half,)).slice(0, 5)["image"], images().astype(np.float16), rtol=0.0, atol=0.0)
    with pytest.raises(CalibrationError, match="is float32, the model wants int32"):
        load(path, (InputSpec("image", np.dtype(np.int32), (None, 3, 4, 4)),))


def test_a_folder_of_large_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the files of a folder are not put together because they are not read yet."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", 1)
    folder_of(tmp_path, b=images(2), a=images(3) + 1)
    s = load(tmp_path, IMAGE)
    assert len(s) == 5
    assert_same(s.slice(1, 5)["image"], np.concatenate([images(3)[1:] + 1, images(2)]), rtol=0.0, atol=0.0)


def claims_one_more(folder: Path) -> Path:
    """A member that says it has a sample more than it holds; another member follows it."""
    path = saved(folder, image=images(), other=images())
    with zipfile.ZipFile(path) as z:
        members = {n: z.read(n) for n in z.namelist()}
    members["image.npy"] = members["image.npy"].replace(b"(5, 3, 4, 4)", b"(6, 3, 4, 4)")
    with zipfile.ZipFile(path, "w") as z:
        for name, blob in members.items():
            z.writestr(name, blob)
    return path


def pickled_beside(folder: Path) -> Path:
    """Pickles that take more bytes than as many addresses of objects."""
    return saved(folder, image=images(), other=np.array([f"object number {i}" for i in range(200)], object))


@pytest.mark.parametrize("large", [array_files.LARGE_BYTES, 900, 1])
@pytest.mark.parametrize("make", [claims_one_more, pickled_beside])
def test_an_archive_is_refused_for_one_bad_member(
    make: Callable[[Path], Path], large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where bytes of the next member are taken for samples, or pickles for addresses of objects."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", large)
    monkeypatch.setattr(np, "memmap", no_reads)
    with pytest.raises(CalibrationError, match=r"data\.npz cannot be read as numpy data"):
        load(make(tmp_path), IMAGE)


def test_a_single_sample_may_lack_the_batch_axis(tmp_path: Path) -> None:
    """Fails where one image without a leading axis is refused."""
    s = load(npy(tmp_path, images()[0]), IMAGE)
    assert len(s) == 1
    assert_same(s.arrays["image"], images()[:1], rtol=0.0, atol=0.0)


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    """Fails where the order depends on the file system, or other files disturb."""
    folder_of(tmp_path, b=images(2), a=images(3) + 1)
    raw(tmp_path, "notes.txt", b"other")
    s = load(tmp_path, IMAGE)
    assert_same(s.arrays["image"], np.concatenate([images(3) + 1, images(2)]), rtol=0.0, atol=0.0)


def test_other_keys_are_kept_aside(tmp_path: Path) -> None:
    """Fails where labels are dropped, or taken along with the wrong samples."""
    labels = np.arange(5)
    s = load(saved(tmp_path, image=images(), labels=labels), IMAGE)
    assert_same(s.extras["labels"], labels, rtol=0.0, atol=0.0)
    picked = s.take([3, 1])
    assert_same(picked.extras["labels"], labels[[3, 1]], rtol=0.0, atol=0.0)
    assert_same(picked.arrays["image"], images()[[3, 1]], rtol=0.0, atol=0.0)


def test_inputs_without_a_batch_are_fed_whole(tmp_path: Path) -> None:
    """Fails where a scalar or a fixed table is cut into batches, or counted as samples."""
    specs = (*IMAGE, InputSpec("scale", FLOAT, ()), InputSpec("table", FLOAT, (7, 2)))
    table, scale = np.ones((7, 2), np.float32), np.float32(0.5)
    s = load(saved(tmp_path, image=images(), scale=scale, table=table), specs)
    assert len(s) == 5
    assert not s.fixed_batch
    parts = list(s.batches(2))
    assert [len(p["image"]) for p in parts] == [2, 2, 1]
    for p in (*parts, s.example(), s.slice(1, 3), dict(s.take([0]).arrays)):
        assert_same(p["scale"], np.asarray(scale), rtol=0.0, atol=0.0)
        assert_same(p["table"], table, rtol=0.0, atol=0.0)


def test_only_inputs_without_a_batch_make_one_sample() -> None:
    """Fails where a model without any batch axis has no sample at all."""
    s = Samples((InputSpec("table", FLOAT, (7, 2)),), {"table": np.ones((7, 2), np.float32)})
    assert len(s) == 1
    assert len(list(s.batches(64))) == 1


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_batches_cover_every_sample_once(size: int) -> None:
    """Fails where the last, smaller batch is lost."""
    s = Samples(IMAGE, {"image": images()})
    parts = [p["image"] for p in s.batches(size)]
    assert max(len(p) for p in parts) <= size
    assert_same(np.concatenate(parts), images(), rtol=0.0, atol=0.0)


def test_a_fixed_batch_runs_one_at_a_time() -> None:
    """Fails where a model with batch 1 is fed more."""
    s = Samples((InputSpec("image", FLOAT, (1, 3, 4, 4)),), {"image": images()})
    assert s.fixed_batch
    assert len(s) == 5
    assert [len(p["image"]) for p in s.batches(64)] == [1] * 5
    assert len(s.example()["image"]) == 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_example_has_two_samples(count: int) -> None:
    """Fails where a symbolic batch would be taken for a fixed 1."""
    assert len(Samples(IMAGE, {"image": images(count)}).example()["image"]) == 2


def test_sha256_sees_values_names_and_shapes() -> None:
    """Fails where different data has the same fingerprint, or the same data two."""

    def of(name: str, a: Array) -> str:
        return Samples((InputSpec(name, a.dtype, (None,) * a.ndim),), {name: a}).sha256()

    changed = images()
    changed[0, 0, 0, 0] += 1e-3
    same = of("x", images())
    assert of("x", images()) == same
    assert of("x", np.asfortranarray(images())) == same
    assert len({same, of("y", images()), of("x", changed), of("x", images().reshape(5, -1))}) == 4


def model(*inputs: onnx.ValueInfoProto, weights: tuple[onnx.TensorProto, ...] = ()) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([], "g", inputs, [], weights))


def test_specs_of_a_model() -> None:
    """Fails where an initializer is taken for an input, or a symbolic size for a fixed one."""
    weight = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "w")
    proto = model(
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["N", 3, None]),
        helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [3]),
        helper.make_tensor_value_info("s", onnx.TensorProto.INT64, []),
        weights=(weight,),
    )
    assert input_specs(proto) == (
        InputSpec("x", np.dtype(np.float16), (None, 3, None), symbols=("N", "", "")),
        InputSpec("s", np.dtype(np.int64), ()),
    )


def test_inputs_that_are_no_tensors_are_refused() -> None:
    """Fails where a sequence input leads to an error without a name."""
    proto = model(helper.make_tensor_sequence_value_info("boxes", onnx.TensorProto.FLOAT, [4]))
    with pytest.raises(CalibrationError, match="'boxes' is not a tensor"):
        input_specs(proto)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_files_are_refused_or_read_never_anything_else(data: st.DataObject) -> None:
    """Fails where a file with a few bytes changed raises an error of numpy's, zip's or zlib's own."""
    import tempfile
    import warnings
    from unittest.mock import patch

    large = data.draw(st.sampled_from([array_files.LARGE_BYTES, 1]))

    kind = data.draw(st.sampled_from(["npz", "compressed", "npy"]))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zip warns of duplicate names, numpy of old headers: both are accepted
        path = Path(folder) / ("data.npy" if kind == "npy" else "data.npz")
        if kind == "npy":
            np.save(path, images(2))
        else:
            (np.savez if kind == "npz" else np.savez_compressed)(path, image=images(2))
        blob = bytearray(path.read_bytes())
        places = [*range(min(150, len(blob))), *range(max(len(blob) - 120, 0), len(blob))]
        for _ in range(data.draw(st.integers(1, 3))):
            blob[data.draw(st.sampled_from(places))] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(blob))
        try:
            with patch.object(array_files, "LARGE_BYTES", large):
                s = load(path, IMAGE)
        except CalibrationError:
            return
        assert np.isfinite(s.arrays["image"][:]).all()


STARTS = (InputSpec("starts", np.dtype(np.int64), (1,)), InputSpec("image", FLOAT, (None, 3)))


def archives(folder: Path, *parts: dict[str, Array]) -> Path:
    for i, part in enumerate(parts):
        np.savez(folder / f"{i}.npz", **part)
    return folder


def test_one_value_for_all_samples(tmp_path: Path):
    """Fails where a list of one entry, such as the starts of a Slice, is taken for a batch of one."""
    image = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
    samples = load(saved(tmp_path, starts=np.array([2]), image=image), STARTS)
    assert len(samples) == 16
    assert not samples.fixed_batch
    (feeds,) = samples.batches(16)
    assert feeds["starts"].tolist() == [2]
    assert_same(feeds["image"], image, rtol=0.0, atol=0.0)
    assert samples.take([3, 5]).slice(0, 2)["starts"].tolist() == [2]
    each = load(saved(tmp_path, starts=np.arange(16), image=image), STARTS)
    assert [f["starts"].tolist() for f in each.batches(16)] == [[i] for i in range(16)]


def test_one_value_for_all_files(tmp_path: Path):
    """The same where several files hold the samples: equal in each, or refused; one sample in each file is a batch."""
    image = np.zeros((16, 3), np.float32)
    same = {"starts": np.array([2]), "image": image}
    (tmp_path / "same").mkdir()
    assert load(archives(tmp_path / "same", same, same), STARTS).arrays["starts"].tolist() == [2]
    (tmp_path / "other").mkdir()
    with pytest.raises(CalibrationError, match="the files hold other values of input 'starts'"):
        load(archives(tmp_path / "other", same, {**same, "starts": np.array([1])}), STARTS)
    (tmp_path / "single").mkdir()
    one = {"image": image[:1]}
    found = load(
        archives(tmp_path / "single", {**one, "starts": np.array([1])}, {**one, "starts": np.array([2])}), STARTS
    )
    assert found.arrays["starts"].tolist() == [1, 2]


def test_a_free_size_of_one_is_a_batch(tmp_path: Path):
    """Fails where one sample of an input that could have more is spread over those of another."""
    path = saved(tmp_path, image=np.zeros((1, 3), np.float32), ids=np.zeros((3, 2), np.int64))
    with pytest.raises(CalibrationError, match="'ids' has 3 samples, input 'image' has 1"):
        load(path, PAIR)
