"""The house holds: imports point down, one room owns each outside library, engines see no options, nothing in circles.

`scripts/house.py` has the floors and draws them.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import onnxprune
from scripts import house

ROOT = house.ROOT
MODULES = house.modules()
NEEDS = house.needs(MODULES)
# Rooms in which arrays and graphs without protobuf are enough.
WITHOUT_ONNX = ("channels", "selection", "allocation", "refit", "numerics", "cost", "objective", "jobs", "process")
# Who may import a library: a room, or one module of it; two where a part of it has an owner of its own.
OWNERS: dict[str, str | tuple[str, ...]] = {
    "onnxruntime": ("runtime.session", "quantization.quantizer", "quantization.half"),
    "tensorrt": "benchmark.tensorrt_engine",
    "click": "cli",
    "rich": "report",
    "jinja2": "report.templates",
    "dask": "jobs.cluster",
    "distributed": "jobs.cluster",
    "multiprocessing": "jobs.processes",
    "onnx_graphsurgeon": "graph.surgeon",
    "pycocotools": "tasks.average_precision",
    "threadpoolctl": "threads",
    "PIL": "data.image_files",
    "safetensors": "handover.state_dict",
    "tokenizers": "data.tokenizer",
}
MOST_AT_THE_ROOT = 14


def _libraries(module: str) -> set[str]:
    return {name.partition(".")[0] for name in house.imports(MODULES[module])}


def _in(module: str, owner: str) -> bool:
    own = f"onnxprune.{owner}"
    return module == own or module.startswith(f"{own}.")


def test_modules_are_found():
    """Fails where the tests below would look at nothing."""
    assert {"onnxprune", "onnxprune.graph.view", "onnxprune.channels.groups"} <= set(MODULES)
    assert "onnxprune.graph.view" in NEEDS["onnxprune.channels.groups"]


def test_every_room_has_a_floor():
    """Fails where a folder or a module at the root is not in FLOORS, or stands there twice."""
    rooms = [room for floor in house.FLOORS for room in floor]
    assert sorted(rooms) == sorted({house.room_of(m) for m in MODULES})


def test_imports_point_down():
    """Fails where a room needs one above it, or beside it."""
    assert house.upward(house.arrows(NEEDS)) == []


def test_an_upward_import_would_be_found(monkeypatch: pytest.MonkeyPatch):
    """The mutation check of the test above: with two floors exchanged there is one."""
    floors = list(house.FLOORS)
    floors[-1], floors[-2] = floors[-2], floors[-1]
    monkeypatch.setattr(house, "FLOORS", tuple(floors))
    assert house.upward(house.arrows(NEEDS)) != []


@pytest.mark.parametrize("package", ["onnxprune", "benchmarks", "experiments", "tests"])
def test_no_circle(package: str):
    """Fails where two modules need each other, by a circle of any length."""
    found = house.needs(house.modules(package))
    assert found
    # The package itself gathers names of its modules on first use.
    assert house.circle({m: own - {"onnxprune"} for m, own in found.items()}) == []


def test_the_root_is_no_corridor():
    """Fails where modules gather at the root again."""
    at_the_root = [p.name for p in (ROOT / "onnxprune").glob("*.py")]
    assert len(at_the_root) <= MOST_AT_THE_ROOT, at_the_root


@pytest.mark.parametrize("room", WITHOUT_ONNX)
def test_arrays_and_graphs_are_enough(room: str):
    """Fails where a room reaches for protobuf, or for a runtime, that is to know neither."""
    own = [m for m in MODULES if _in(m, room)]
    assert own
    for module in own:
        assert not {"onnx", "onnx_graphsurgeon", "onnxruntime"} & _libraries(module), module


@pytest.mark.parametrize("room", ["numerics", "selection"])
def test_arithmetic_knows_no_model(room: str):
    """Fails where a numeric module needs a model, by whatever way: arrays go in, arrays come out."""
    stack, seen = [m for m in MODULES if _in(m, room)], set[str]()
    assert stack
    while stack:
        module = stack.pop()
        if module not in seen:
            seen.add(module)
            assert not {"onnx", "onnx_graphsurgeon", "onnxruntime"} & _libraries(module), module
            stack.extend(NEEDS[module] - {"onnxprune"})


def test_stages_alone_see_options():
    """Fails where an engine is given the options of a run, or what stages hand to each other."""
    above = ("cli", "pipeline", "sentence", "stages", "plan", "config", "__main__")
    for module, own in NEEDS.items():
        if module == "onnxprune" or house.room_of(module) in above:
            continue
        assert not {m for m in own if _in(m, "config") or _in(m, "stages")}, module


def test_the_oracle_is_independent_of_the_surgery():
    """Fails where what judges the cut is made by what cuts."""
    assert not {m for m in NEEDS["onnxprune.verification.oracle"] if _in(m, "surgery")}


@pytest.mark.parametrize("library", OWNERS)
def test_one_room_owns_each_library(library: str):
    """Fails where another module imports a library that has an owner, or the owner does no longer."""
    users = {m for m in MODULES if library in _libraries(m)}
    assert users
    owners = OWNERS[library] if isinstance(OWNERS[library], tuple) else (OWNERS[library],)
    assert {m for m in users if not any(_in(m, o) for o in owners)} == set()


@pytest.mark.parametrize(("module", "part"), [("quantizer", "quantization."), ("half", "transformers.float16")])
def test_the_quantizers_know_no_sessions(module: str, part: str):
    """Fails where the owner of a part of onnxruntime reaches for the rest of it."""
    used = {n for n in house.imports(MODULES[f"onnxprune.quantization.{module}"]) if n.startswith("onnxruntime")}
    assert used
    assert all(n.startswith(f"onnxruntime.{part}") for n in used)


@pytest.mark.parametrize("package", ["onnxprune", "benchmarks", "experiments", "scripts"])
def test_what_is_private_stays_in_its_module(package: str):
    """Fails where a name with an underscore is imported elsewhere: then it is not private."""
    for path in house.modules(package).values():
        for name in house.imports(path):
            if name.startswith(("onnxprune.", "benchmarks.", "experiments.", "scripts.")):
                last = name.rpartition(".")[2]
                assert not last.startswith("_") or last == "__version__", (path, name)


def test_the_picture_is_that_of_the_code():
    """Fails where docs/house.svg is older than the imports: `python -m scripts.house --draw` makes it anew."""
    assert house.PICTURE.read_text(encoding="utf-8") == house.drawn()


def test_importing_the_package_is_light():
    """Fails where `import onnxprune` alone loads the command line or a runtime."""
    heavy = {"click", "dask", "distributed", "jinja2", "onnxruntime", "rich"}
    code = f"import sys, onnxprune; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_version_is_the_newest_of_the_changelog():
    """Fails where a release forgets one of its two places."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^##\s*\[?v?(\d+\.\d+\.\d+\S*?)\]?(?:\s|$)", text, flags=re.MULTILINE)
    assert versions
    assert versions[0] == onnxprune.__version__
