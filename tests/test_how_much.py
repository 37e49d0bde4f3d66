"""The commands of docs/how-much.md run as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from onnxprune.cli.program import main
from scripts.house import ROOT

PAGE = ROOT / "docs" / "how-much.md"


def commands() -> list[str]:
    """The lines of the page's shell blocks, those that end in a backslash joined."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where the page shows a command that is refused; they run in their order, in one folder."""
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.py"))
    monkeypatch.chdir(tmp_path)
    assert commands()
    for line in commands():
        program, *words = shlex.split(line, comments=True)
        assert (program, main(words)) == ("onnxprune", 0), line
