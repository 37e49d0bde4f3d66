"""What the README has a newcomer paste."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a name in it fits nothing of the bundled model, or where it runs only once."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.py"))
    monkeypatch.chdir(tmp_path)
    before = onnx.load("models/digits_resnet.onnx").graph
    kept = {t.name for n in before.node if n.name.startswith("/6/") for t in before.initializer if t.name in n.input}
    assert kept
    for _ in range(2):
        names: dict[str, object] = {}
        exec(compile(found[1], "README.md", "exec"), names)
    after = onnx.load("slim.onnx").graph
    shapes = [{t.name: numpy_helper.to_array(t).shape for t in g.initializer} for g in (before, after)]
    assert any(shapes[0][k] != v for k, v in shapes[1].items() if k in shapes[0])
    assert {k: shapes[0][k] for k in kept} == {k: shapes[1].get(k) for k in kept}
