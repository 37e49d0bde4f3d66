"""Measurements on disk: kept by machine, and never in the way."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from onnxprune.latency.cache import Cache, default_folder
from onnxprune.latency.table import Sample

MACHINE = {"processor": "a", "onnxruntime": "1"}
SAMPLES = (Sample((8.0, 16.0), 1e-6), Sample((16.0, 16.0), 2e-6))


def test_what_was_stored_is_found_again(tmp_path: Path):
    Cache(tmp_path, MACHINE).store("conv", SAMPLES)
    assert Cache(tmp_path, MACHINE).load("conv", 2) == SAMPLES
    assert Cache(tmp_path, MACHINE).load("another", 2) == ()


@pytest.mark.parametrize("key", list(MACHINE))
def test_another_machine_or_version_measures_anew(tmp_path: Path, key: str):
    Cache(tmp_path, MACHINE).store("conv", SAMPLES)
    assert Cache(tmp_path, MACHINE | {key: "other"}).load("conv", 2) == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({"format": 1, "machine": MACHINE, "signature": "conv", "samples": [[[8, 8], 10**400]]}).encode(),
        b'{"format": 1' + b"0" * 10_000 + b"}",
        b"[]",
        b"{}",
        b'{"format": 99, "machine": {}, "signature": "conv", "samples": []}',
        b'{"format": 1, "machine": {"processor": "a", "onnxruntime": "1"}, "signature": "other", "samples": []}',
        *(
            json.dumps({"format": 1, "machine": MACHINE, "signature": "conv", "samples": samples}).encode()
            for samples in (
                3,
                [[1, 2, 3]],
                [[[8], 1e-6]],
                [[[8, 8], -1]],
                [[[8, 8], float("nan")]],
                [[["x", 8], 1]],
                [[[8, 8], 10**400]],
            )
        ),
    ],
)
def test_a_broken_file_is_ignored_with_a_note_and_replaced(tmp_path: Path, content: bytes):
    cache = Cache(tmp_path, MACHINE)
    cache.store("conv", SAMPLES)
    cache.path("conv").write_bytes(content)
    assert cache.load("conv", 2) == ()
    assert len(cache.notes) == 1
    assert str(cache.path("conv")) in cache.notes[0]
    cache.store("conv", SAMPLES)
    assert cache.load("conv", 2) == SAMPLES


def test_a_folder_that_cannot_be_written_is_a_note(tmp_path: Path):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    cache = Cache(tmp_path / "file", MACHINE)
    cache.store("conv", SAMPLES)
    cache.store("other", SAMPLES)
    assert cache.load("conv", 2) == ()
    assert any("ONNXPRUNE_CACHE" in note for note in cache.notes)


def test_many_writers_leave_whole_files_only(tmp_path: Path):
    def work(i: int) -> bool:
        cache = Cache(tmp_path, MACHINE)
        cache.store("conv", SAMPLES * (i % 5 + 1))
        found = cache.load("conv", 2)
        return not cache.notes and len(found) % len(SAMPLES) == 0 and bool(found)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    assert [p.suffix for p in Cache(tmp_path, MACHINE).path("conv").parent.iterdir()] == [".json"]


def test_a_user_without_a_folder(monkeypatch: pytest.MonkeyPatch):
    """Fails where a container's user without a name, and without HOME, cannot time anything."""
    for name in ("ONNXPRUNE_CACHE", "XDG_CACHE_HOME", "HOME", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert default_folder() is None
    cache = Cache(default_folder(), MACHINE)
    cache.store("conv", SAMPLES)
    assert cache.load("conv", 1) == ()
    assert cache.notes == [
        "measurements cannot be kept for the next run: the user has no folder; ONNXPRUNE_CACHE names another folder"
    ]


def test_the_folder_is_the_users_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ONNXPRUNE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "onnxprune"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "onnxprune"
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own"
