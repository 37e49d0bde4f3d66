"""What is known of the processor, from the file in which Linux describes it, and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.runtime import processor as module
from onnxprune.runtime.processor import processor

INFO = "model name\t: AMD EPYC\ncpu family\t: 25\nflags\t\t: fpu avx2{}\n\nmodel name\t: another\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n"


@pytest.fixture
def info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(module, "_PROC", path)
    return path


def test_processors_of_one_name_differ_by_what_they_can(info: Path):
    found = []
    for more in ("", " avx512f avx512_vnni", "", " avx_vnni"):
        info.write_text(INFO.format(more), encoding="utf-8")
        found.append(processor())
    assert all(p.name.startswith("AMD EPYC ") for p in found)
    assert found[0] == found[2] != found[1]
    assert [p.instructions for p in found[:2]] == [("avx2",), ("avx2", "avx512", "vnni")]
    assert found[3].instructions == ("avx2", "vnni")
    assert str(found[1]) == f"{found[1].name} (avx2, avx512, vnni)"


def test_another_architecture(info: Path):
    info.write_text(ARM, encoding="utf-8")
    assert processor().name.startswith("0xd0c ")
    assert processor().instructions == ("neon", "dotprod")


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe: \x80"], ids=["missing", "empty", "no text"])
def test_a_machine_that_does_not_tell_has_a_name_all_the_same(info: Path, content: bytes | None):
    if content is not None:
        info.write_bytes(content)
    assert processor().name
    assert processor().instructions == ()
