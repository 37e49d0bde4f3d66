"""Who may import whom: one owner for each outside library, no cycles, and a light `import onnxprune`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import onnxprune

PACKAGE = Path(onnxprune.__file__).resolve().parent
ROOT = PACKAGE.parent


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(path: Path) -> set[str]:
    """Absolute names that a file imports anywhere, inside functions too; `from a import b` counts as a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{a.name}" for a in node.names)
    return found


def _library(name: str) -> str:
    return name.partition(".")[0]


def _users(library: str) -> set[str]:
    return {m for m, path in MODULES.items() if library in {_library(i) for i in _imports(path)}}


def test_modules_are_found():
    """Fails where the tests below would look at nothing."""
    assert {"onnxprune", "onnxprune.graph.protobuf", "onnxprune.channels.groups"} <= set(MODULES)


def test_imports_point_one_way():
    """Fails where two modules need each other."""
    graph = {}
    for name, path in MODULES.items():
        needs = {i for i in _imports(path) if i in MODULES and i != name}
        # A package's own __init__ gathers its modules: those may name the package's siblings, not the package.
        graph[name] = needs - {"onnxprune"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(f"import cycle: {' -> '.join(e.args[1])}")


@pytest.mark.parametrize("layer", ["numerics", "select", "budget", "objective"])
def test_arithmetic_knows_no_onnx(layer: str):
    """Fails where a numeric module reaches for a model: arrays go in, arrays come out."""
    inside = {m: p for m, p in MODULES.items() if m.split(".")[1:2] == [layer]}
    assert inside
    seen: set[str] = set()
    stack = list(inside)
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        imports = _imports(MODULES[name])
        assert not {"onnx", "onnx_graphsurgeon", "onnxruntime"} & {_library(i) for i in imports}, name
        stack.extend(i for i in imports if i in MODULES and i != "onnxprune")


@pytest.mark.parametrize(
    ("library", "owner"),
    [
        ("onnxruntime", "onnxprune.runtime.session"),
        ("tensorrt", "onnxprune.benchmark.tensorrt_engine"),
        ("click", "onnxprune.cli.main"),
        ("rich", "onnxprune.report.terminal"),
        ("dask", "onnxprune.jobs.cluster"),
        ("distributed", "onnxprune.jobs.cluster"),
        ("multiprocessing", "onnxprune.jobs.processes"),
    ],
)
def test_one_module_owns_each_library(library: str, owner: str):
    """Fails where a second module imports a library that has an owner."""
    assert _users(library) == {owner}


def test_importing_the_package_is_light():
    """Fails where `import onnxprune` alone loads the command line or a runtime."""
    heavy = {"click", "dask", "distributed", "onnxruntime", "rich"}
    code = f"import sys, onnxprune; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_version_is_the_newest_of_the_changelog():
    """Fails where a release forgets one of its two places."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^##\s*\[?v?(\d+\.\d+\.\d+\S*?)\]?(?:\s|$)", text, flags=re.MULTILINE)
    assert versions
    assert versions[0] == onnxprune.__version__
