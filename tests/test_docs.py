"""README and the pages name what there is: files, rooms, modules and what they hold."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from scripts.house import ROOT

PACKAGE = ROOT / "onnxprune"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
# Files of other projects, of the user, and of folders that a command is given; members of other packages.
FOREIGN = {
    *("main.py", "mobile2_finetune.py", "kit.py", "onnxprune.toml", "models/*.onnx", "arch/", "wild/", "before.json"),
    "build/site/",
    *("sweep.md", "onnx.backend.test.case.node", "torch.onnx.export"),
}
A_PATH = re.compile(r"\.?[A-Za-z_][\w.\-]*(?:/[\w.\-]+)*(?:/|\.(?:py|md|json|jsonl|svg|onnx|npz|toml|yml))")
A_MEMBER = re.compile(r"[a-z_][a-z_0-9]*(?:\.[A-Za-z_]\w*)+")


def in_backticks(text: str) -> Iterator[str]:
    """What stands in single backticks on one line, outside of fenced blocks."""
    fenced = False
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield from re.findall(r"`([^`\n]+)`", line)


@cache
def members() -> dict[str, set[str]]:
    """What each module, room and class has, by the last part of its name: functions, classes, variables, imports."""
    found: dict[str, set[str]] = {}
    for folder in ("onnxprune", "benchmarks", "experiments", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            own = found.setdefault(path.parent.name if path.stem == "__init__" else path.stem, set())
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    own.add(node.name)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    own.add(node.id)
                elif isinstance(node, ast.ImportFrom):
                    own.update(a.asname or a.name for a in node.names)
                if isinstance(node, ast.ClassDef):
                    inner = found.setdefault(node.name, set())
                    inner.update(p.name for p in node.body if isinstance(p, ast.FunctionDef))
                    fields = (p.target for p in node.body if isinstance(p, ast.AnnAssign))
                    inner.update(f.id for f in fields if isinstance(f, ast.Name))
    return found


@cache
def source() -> str:
    """The text of the package: options of libraries and keys of JSON stand there in quotes."""
    return "\n".join(p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py"))


def path_exists(name: str, page: Path) -> bool:
    """From the root, the package or the page's folder; what a user calls so is not looked for."""
    if name.isupper() or name.startswith(("OUT.", ".OUT.")):
        return True
    if Path(name).suffix in {".onnx", ".npz", ".json"} and "/" not in name:
        return True
    return any((base / name).exists() for base in (ROOT, PACKAGE, page.parent))


def member_exists(name: str) -> bool:
    """A module, what it or a class has, or words that the sources have in quotes."""
    parts, known = name.split("."), members()
    if f'"{name}"' in source() or all(f'"{p}"' in source() for p in parts):
        return True
    for base in (ROOT, PACKAGE):
        if base.joinpath(*parts).is_dir() or base.joinpath(*parts).with_suffix(".py").exists():
            return True
    if parts[0] == PACKAGE.name or parts[0] in known or (PACKAGE / parts[0]).is_dir():
        return parts[-1] in known.get(parts[-2], set())
    return name in source()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_is_named_exists(page: Path):
    """Fails where a file, a module or what it holds has moved and the page was left behind."""
    missing = []
    for name in in_backticks(page.read_text(encoding="utf-8")):
        if name not in FOREIGN and (
            (A_PATH.fullmatch(name) and not path_exists(name, page))
            or (A_MEMBER.fullmatch(name) and not A_PATH.fullmatch(name) and not member_exists(name))
        ):
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path):
    """Fails where a relative link names a file that is not there, or a heading that its page does not have."""
    broken = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        other = page.parent / target if target else page
        if not other.exists():
            broken.append(target)
        elif anchor and other.suffix == ".md" and anchor not in anchors(other):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", t).replace("`", "").lower() for t in titles)
    return {re.sub(r"[^\w\- ]", "", t).replace(" ", "-") for t in plain}


def test_a_wrong_name_would_be_seen(tmp_path: Path):
    """The mutation check: neither a path nor a member that is not there passes."""
    assert not path_exists("onnxprune/stages/polish.py", tmp_path / "page.md")
    assert not member_exists("stages.polish")
    assert member_exists("stages.finish")
