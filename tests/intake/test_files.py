"""Files that a user names: what is no regular file of a sane size is refused before a byte of it is read."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from onnxprune import plan, regular_files
from onnxprune.data.inputs import InputSpec
from onnxprune.data.sources import load
from onnxprune.errors import CalibrationError, InputError, ModelError
from onnxprune.intake.model_file import load as load_model
from tests import digits

SPECS = (InputSpec("x", np.dtype(np.float32), (None, 2)),)


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """A reader that waits for a pipe's writer would wait for ever: it is woken, and the test fails."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError("a reader waited")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def plug(path: Path) -> Path:
    s = socket.socket(socket.AF_UNIX)
    s.bind(str(path))
    s.close()
    return path


def hollow(path: Path, size: int = 3 << 30) -> Path:
    with path.open("wb") as f:
        f.truncate(size)
    return path


def link_to(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a pipe": (pipe, "is a pipe; give a regular file"),
    "a socket": (plug, "is a socket; give a regular file"),
    "a folder": (lambda p: p.mkdir() or p, "is a folder; give a regular file"),
    "a device": (lambda p: link_to(p, "/dev/zero"), "is a device; give a regular file"),
    "a link to itself": (lambda p: link_to(p, p.name), "cannot be read"),
    "nothing": (lambda p: p, "does not exist"),
    "too large": (hollow, r"has 3\.0 GiB"),
}
READERS: dict[str, tuple[Callable[[Path], object], type[InputError]]] = {
    "model.onnx": (load_model, ModelError),
    "plan.json": (plan.load, InputError),
    "data.npy": (lambda p: load(p, SPECS), CalibrationError),
    "data.npz": (lambda p: load(p, SPECS), CalibrationError),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_by_every_reader(kind: str, name: str, tmp_path: Path):
    """Fails where a reader opens files in a way of its own, and so waits, reads without end, or fills the memory."""
    make, match = KINDS[kind]
    read, error = READERS[name]
    path = make(tmp_path / name)
    if kind == "a folder" and error is CalibrationError:
        match = r"holds no \.npz or \.npy"  # of data a folder may be given
    with pytest.raises(error, match=match) as e:
        read(path)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)


def test_a_pipe_in_a_folder_of_data(tmp_path: Path):
    """Fails where only the path that is given is looked at, and not what a folder holds."""
    pipe(tmp_path / "a.npz")
    with pytest.raises(CalibrationError, match=r"a\.npz is a pipe"):
        load(tmp_path, SPECS)


@pytest.mark.parametrize("name", ["a\0b", "n" * 5000])
def test_names_that_no_system_takes(name: str):
    """Fails where such a name ends in a traceback, or is repeated in full."""
    with pytest.raises(ModelError, match="cannot be read") as e:
        load_model(name)
    assert len(str(e.value)) < 300


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
def test_a_name_that_is_not_utf_8(tmp_path: Path):
    """Fails where a whole model is said to be none because of the name of its file."""
    path = tmp_path / os.fsdecode(b"\xe4.onnx")
    path.write_bytes(digits.path("resnet").read_bytes())
    with pytest.raises(ModelError, match="is not UTF-8; rename it"):
        load_model(path)


def test_what_is_put_in_the_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where the file that was looked at need not be the one that is opened."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x")
    seen = path.stat()
    path.unlink()
    pipe(path)
    monkeypatch.setattr(Path, "stat", lambda self: seen)
    with pytest.raises(ModelError, match="is a pipe"):
        regular_files.content(path, ModelError, 10)


def test_the_limit_is_that_of_the_bytes(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert regular_files.content(path, InputError, 5) == b"12345"
    with pytest.raises(InputError, match="has 5 bytes; at most 4 bytes are read"):
        regular_files.content(path, InputError, 4)


def test_no_descriptor_stays_open(tmp_path: Path):
    """Fails where a refusal after opening leaks: a long run would end with too many open files."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")

    def next_free() -> int:
        with path.open("rb") as f:
            return f.fileno()

    before = next_free()
    with regular_files.opened(path, InputError, most=5):
        pass
    path.unlink()
    pipe(path)
    with pytest.MonkeyPatch.context() as patched:
        seen = Path(__file__).stat()
        patched.setattr(Path, "stat", lambda self: seen)
        with pytest.raises(InputError, match="is a pipe"):
            regular_files.opened(path, InputError)
    path.unlink()
    path.write_bytes(b"")
    assert next_free() == before
