"""What type checkers and editors get to know of the package, beyond what mypy asks of its own code."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import onnxprune
from scripts.house import ROOT

_LEAST = 0.98


def functions() -> Iterator[tuple[str, Any]]:
    """The public functions, and the public methods and constructors of the public classes, by name."""
    for name in onnxprune.__all__:
        thing = getattr(onnxprune, name)
        if inspect.isfunction(thing):
            yield name, thing
        elif inspect.isclass(thing):
            methods = inspect.getmembers(thing, lambda m: inspect.isfunction(m) or inspect.ismethod(m))
            own = [(k, m) for k, m in methods if m.__module__.startswith("onnxprune")]
            yield from ((f"{name}.{k}", m) for k, m in own if k == "__init__" or not k.startswith("_"))


@pytest.mark.parametrize(("name", "function"), list(functions()), ids=[name for name, _ in functions()])
def test_no_public_parameter_is_anything(name: str, function: Any):
    """Fails where an editor cannot say what a parameter takes."""
    hints = typing.get_type_hints(function)
    parameters = [p for p in inspect.signature(function).parameters if p != "self"]
    assert all(hints.get(p) not in (None, Any) for p in parameters), (name, hints)


def test_pyright_knows_the_types():
    """Fails where a type checker has to infer what is public; its own diagnostics name each symbol."""
    pyright = shutil.which("pyright")
    if pyright is None:
        pytest.skip('pyright is not installed: pip install "pyright[nodejs]"')
    command = [pyright, "--verifytypes", "onnxprune", "--ignoreexternal", "--outputjson"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)["typeCompleteness"]
    unknown = [s["name"] for s in found["symbols"] if s["isExported"] and not s["isTypeKnown"]]
    assert found["completenessScore"] >= _LEAST, unknown
