"""Files of numpy that claim more than they hold, or other things than plain arrays."""

from __future__ import annotations

import io
import resource
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.data import array_files
from onnxprune.data.inputs import InputSpec
from onnxprune.data.sources import load
from onnxprune.errors import CalibrationError
from tests.compare import assert_same


def header(shape: str, descr: str = "'<f4'", version: int = 1) -> bytes:
    """A `.npy` header that says what it is told to."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY" + bytes((version, 0)) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


def archive(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as z:
        for name, blob in members.items():
            z.writestr(name, blob)
    return path


def plain(a: NDArray[Any]) -> bytes:
    f = io.BytesIO()
    np.save(f, a)
    return f.getvalue()


LIES = {
    "more than any machine has": (header("(1000000000000000000, 3)"), "it is cut short"),
    "a product beyond 64 bits": (header("(4294967296, 4294967296, 4)"), "it is cut short"),
    "a negative length": (header("(-1, 3)") + b"\0" * 64, "claims the shape"),
    "two negative lengths": (header("(-2, -3)") + b"\0" * 64, "claims the shape"),
    "elements of no size": (header("(1000000000000,)", "'|S0'"), "claims the shape"),
    "Python objects": (header("(2,)", "'|O'") + b"\x80\x04]\x94.", "pickles are never read"),
    "a field of Python objects": (header("(1,)", "[('a', '|O')]") + b"\0" * 64, "pickles are never read"),
    "one byte less": (plain(np.ones((3, 2), np.float32))[:-1], "it is cut short"),
    "a shape that is no tuple": (header("7"), "cannot be read"),
    "code instead of a dictionary": (b"\x93NUMPY\x01\x00\x10\x00" + b"__import__('os')", "cannot be read"),
    "a header that nests": (header("(" * 4000), "cannot be read"),
    "a later version": (header("(1,)", version=9) + b"\0\0\0\0", "at most 3.0 is read"),
}


@pytest.mark.parametrize("packed", [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("kind", LIES)
def test_claims_are_held_against_the_bytes(kind: str, packed: int | None, tmp_path: Path):
    """Fails where memory is asked for because a header says so, or numpy's own errors come through."""
    blob, match = LIES[kind]
    path = tmp_path / ("data.npy" if packed is None else "data.npz")
    if packed is None:
        path.write_bytes(blob)
    else:
        archive(path, {"x.npy": blob}, packed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CalibrationError, match=match) as e:
        array_files.read(path)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize(
    ("limit", "factor", "match"), [("INFLATED_BYTES", 10**9, "np.savez"), ("_BOMB_BYTES", 100, "np.savez")]
)
def test_what_expands_too_far_is_not_expanded(
    limit: str, factor: int, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Fails where a small file fills the memory; the sum over the members counts, and what the model does not read."""
    monkeypatch.setattr(array_files, limit, 300_000)
    monkeypatch.setattr(array_files, "_BOMB_FACTOR", factor)
    zeros = plain(np.zeros(50_000, np.float32))
    assert len(array_files.read(archive(tmp_path / "one.npz", {"x.npy": zeros}))) == 1
    with pytest.raises(CalibrationError, match=match):
        array_files.read(archive(tmp_path / "two.npz", {"x.npy": zeros, "unread.npy": zeros}))


def test_data_that_expand_a_little_may_be_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where honest compressed data fall under the limit of those that grow a hundredfold."""
    monkeypatch.setattr(array_files, "_BOMB_BYTES", 1000)
    values = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    found = array_files.read(archive(tmp_path / "data.npz", {"x.npy": plain(values)}))
    assert isinstance(found, dict)
    assert_same(np.asarray(found["x"]), values, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("second", ["x.npy", "x"])
def test_two_members_of_one_name(second: str, tmp_path: Path):
    """Fails where one of two arrays is taken without a word."""
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as z, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        z.writestr("x.npy", plain(np.ones(2)))
        z.writestr(second, plain(np.zeros(2)))
    with pytest.raises(CalibrationError, match="holds 'x' twice"):
        array_files.read(path)


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(kind: int, tmp_path: Path):
    """Fails where a member is unpacked by what may ask for gigabytes on its first byte."""
    with pytest.raises(CalibrationError, match="numpy does not write"):
        array_files.read(archive(tmp_path / "data.npz", {"x.npy": plain(np.ones(2))}, kind))


def test_member_names_are_names_and_nothing_else(tmp_path: Path):
    """Fails where a name with a path in it leads anywhere."""
    found = array_files.read(
        archive(tmp_path / "data.npz", {"../../up.npy": plain(np.ones(2)), "/x.npy": plain(np.ones(2))})
    )
    assert isinstance(found, dict)
    assert set(found) == {"../../up", "/x"}
    assert [p.name for p in tmp_path.parent.glob("*.npy")] == []


@pytest.mark.parametrize("large", [1, 1 << 20])
def test_a_folder_of_files_has_a_limit_together(large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where many files, each within its limit, fill the memory together; one file may be of any size."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", large)
    monkeypatch.setattr("onnxprune.data.spool.FOLDER_BYTES", 3000)
    specs = (InputSpec("x", np.dtype(np.float32), (None, 10)),)
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.ones((25, 10), np.float32))
        assert len(load(tmp_path, specs)) == 25 * (i + 1)
    with pytest.raises(CalibrationError, match=r"the files up to 2\.npy hold 2\.9 KiB"):
        monkeypatch.setattr("onnxprune.data.spool.FOLDER_BYTES", 2999)
        load(tmp_path, specs)
    np.save(tmp_path / "one.npy", np.ones((1000, 10), np.float32))
    assert len(load(tmp_path / "one.npy", specs)) == 1000


def test_directories_without_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where the directory of an archive is taken into memory before its length was looked at."""
    blob = plain(np.ones(2))
    path = archive(tmp_path / "data.npz", {f"x{i}.npy": blob for i in range(50)})
    assert len(array_files.read(path)) == 50
    monkeypatch.setattr(array_files, "_MOST_MEMBERS", 49)
    with pytest.raises(CalibrationError, match="has 50 members"):
        array_files.read(path)
    monkeypatch.setattr(array_files, "_MOST_AT_ONCE", 2000)
    with pytest.raises(CalibrationError, match="its directory has"):
        array_files.read(path)


def test_a_stored_member_that_ends_behind_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where a directory that lies about a member makes pages readable that are not there."""
    monkeypatch.setattr(array_files, "LARGE_BYTES", 1)
    blob = plain(np.ones(100, np.float32))
    path = archive(tmp_path / "data.npz", {"x.npy": header("(100000,)") + blob}, zipfile.ZIP_STORED)
    whole = path.read_bytes()
    size = len(header("(100000,)") + blob).to_bytes(4, "little")
    # Of the sizes in the directory at the end the second is that of the member's own bytes.
    at = whole.rindex(size)
    path.write_bytes(whole[:at] + (500_000).to_bytes(4, "little") + whole[at + 4 :])
    with pytest.raises(CalibrationError, match=r"cut short|cannot be read"):
        array_files.read(path)


def test_hollow_files(tmp_path: Path):
    """Fails where a file of empty gigabytes is gone through value by value."""
    path = tmp_path / "data.npy"
    with path.open("wb") as f:
        f.write(header("(70000000, 4)"))
        f.truncate(1_120_000_000 + f.tell())
    with pytest.raises(CalibrationError, match="of which the disk holds"):
        array_files.read(path)
