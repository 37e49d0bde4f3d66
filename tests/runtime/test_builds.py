"""Builds of onnxruntime: two in one folder, none, and what an uninstalled one leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune.cli import program, start
from onnxprune.errors import RunError
from onnxprune.runtime.builds import Builds
from tests import digits


def site(folder: Path, installed: dict[str, str], runs: str = "", *, code: bool = True, init: bool = True) -> None:
    """A folder as pip leaves it: metadata of distributions, and the files of the one that was installed last."""
    for name, version in installed.items():
        own = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        own.mkdir()
        (own / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    capi = folder / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    if init:
        (capi.parent / "__init__.py").write_text("", encoding="utf-8")
    if code:
        (capi / "onnxruntime_pybind11_state.so").write_bytes(b"")
    if runs:
        text = f"package_name = '{runs}'\n__version__ = '{installed[runs]}'\n"
        (capi / "build_and_package_info.py").write_text(text, encoding="utf-8")


def seen(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Builds:
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    return Builds.found()


def test_one_build_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    site(tmp_path, {"onnxruntime": "1.30.0"}, "onnxruntime")
    found = seen(monkeypatch, tmp_path)
    found.check()
    assert found.doubt() == ""


def test_a_build_of_ones_own_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    site(tmp_path, {})
    found = seen(monkeypatch, tmp_path)
    found.check()
    assert found.doubt() == ""


def test_two_builds_run_and_one_line_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    site(tmp_path, {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.29.0"}, "onnxruntime-gpu")
    found = seen(monkeypatch, tmp_path)
    found.check()
    assert found.doubt() == (
        "2 builds of onnxruntime are in one folder (onnxruntime 1.30.0, onnxruntime-gpu 1.29.0): onnxruntime-gpu "
        "1.29.0 runs, and uninstalling one would break both; pip uninstall -y onnxruntime onnxruntime-gpu && pip "
        "install onnxruntime-gpu"
    )


@pytest.mark.parametrize(
    ("installed", "code", "init", "match"),
    [
        ({}, False, False, "is what an uninstalled build of onnxruntime has left: remove it, then pip install"),
        ({"onnxruntime-gpu": "1.29.0"}, False, False, "--force-reinstall --no-deps onnxruntime-gpu==1.29.0"),
        ({"onnxruntime": "1.29.0"}, False, True, "--force-reinstall --no-deps onnxruntime==1.29.0"),
        ({"onnxruntime": "1.29.0", "onnxruntime-gpu": "1.29.0"}, False, True, "have spoilt each other"),
    ],
)
def test_what_cannot_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    installed: dict[str, str],
    code: bool,
    init: bool,
    match: str,
):
    site(tmp_path, installed, code=code, init=init)
    with pytest.raises(RunError, match=match):
        seen(monkeypatch, tmp_path).check()


def test_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RunError, match="onnxruntime is not installed: pip install onnxruntime-gpu"):
        seen(monkeypatch, tmp_path).check()


def test_what_an_uninstalled_build_left_is_no_defect(tmp_path: Path):
    """Fails where the package speaks of an attribute that a module does not have."""
    site(tmp_path, {}, code=False, init=False)
    lines = "import sys; sys.path.insert(0, sys.argv[1])\nfrom onnxprune.errors import RunError\n"
    lines += "sys.path = [p for p in sys.path if not __import__('os').path.exists(p + '/onnxruntime/__init__.py')]\n"
    lines += "from onnxprune.runtime.builds import Builds\n"
    lines += "try:\n    Builds.found().check()\nexcept RunError as e:\n    print(e)\n"
    run = [sys.executable, "-c", lines, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=digits.FOLDER.parent)
    assert "is what an uninstalled build of onnxruntime has left" in done.stdout


def test_the_command_says_it_once_options_are_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    two = Builds((("onnxruntime", "1.30.0"), ("onnxruntime-gpu", "1.29.0")), tmp_path, True)
    monkeypatch.setattr(start.Builds, "found", lambda: two)
    assert program.main(["inspect", "missing.onnx"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("onnxprune: warning: 2 builds of onnxruntime are in one folder")
    assert "which of them runs is a matter of luck" in err
    assert program.main(["missing.onnx", "--ratio", "0.5"]) == 2
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr(start.Builds, "found", lambda: Builds((), None, False))
    assert program.main(["inspect", "missing.onnx"]) == 1
    assert capsys.readouterr().err.startswith("onnxprune: error: onnxruntime is not installed: pip install")
