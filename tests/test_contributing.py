"""The guide for whoever carries on is true: what it names is there."""

from __future__ import annotations

import ast
import re

import pytest

from scripts.house import ROOT

GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| `([^`]+)` \| `([^`]+)` \|$", GUIDE, flags=re.MULTILINE)


def names_in(path: str) -> set[str]:
    """What a module defines at its top level."""
    found: set[str] = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(t.id for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def test_the_questions_are_found():
    """Fails where the table is not read, so that nothing below is checked."""
    assert len(ROWS) >= 20


@pytest.mark.parametrize(("question", "path", "name"), ROWS, ids=[row[0] for row in ROWS])
def test_where_is(question: str, path: str, name: str):
    """Fails where the answer to a question of a newcomer has moved."""
    assert name in names_in(path), question


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:onnxprune|tests|benchmarks|scripts|docs|\.github)/[^`]*)`", GUIDE)))
)
def test_paths_of_the_guide_exist(path: str):
    """Fails where the guide names a file or a folder that is not there."""
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("module", "name"), re.findall(r"row[s]? of `(\w+)` in\s+`(onnxprune/[^`]+)`", GUIDE))
def test_tables_of_the_guide_exist(module: str, name: str):
    """Fails where a table that gets a new row is called otherwise."""
    assert module in names_in(name)
