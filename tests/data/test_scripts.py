"""Data by a function in a file, and inputs as polygraphy saves them: both without anything that nobody named."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import Script
from onnxprune.__main__ import main
from onnxprune.data.accepted import Wanted
from onnxprune.data.inputs import InputSpec
from onnxprune.data.samples import Samples
from onnxprune.data.sources import checked, given
from onnxprune.errors import CalibrationError
from tests import digits

X = np.arange(24, dtype=np.float32).reshape(8, 3)
ONE = (InputSpec("x", np.dtype(np.float32), (None, 3), symbols=("N", "")),)


def same(samples: Samples) -> bool:
    return samples.sha256() == checked({"x": X}, ONE).sha256()


def written(folder: Path, body: str, name: str = "script.py") -> Path:
    (folder / name).write_text(body, encoding="utf-8")
    return folder / name


SCRIPT = """
import pickle
from dataclasses import dataclass
import beside

@dataclass
class Held:
    x: object

def load_data():
    print("reading")
    for row in pickle.loads(pickle.dumps(Held(beside.ROWS))).x:
        yield {"x": row}

def endless():
    while True:
        yield {"x": beside.ROWS}
"""


def test_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a function is not found, its neighbours are not, or what it prints mixes with results."""
    written(tmp_path, "import numpy\nROWS = numpy.arange(24, dtype=numpy.float32).reshape(8, 3)\n", "beside.py")
    script = written(tmp_path, SCRIPT)
    before = list(sys.path), "onnxprune_data_script" in sys.modules
    samples = given(Script(script), ONE)
    assert same(samples)
    assert samples.origin == f"{script}:load_data"
    digest = hashlib.sha256(script.read_bytes()).hexdigest()[:16]
    assert samples.prepared == f"script: what load_data() yields, of a file with sha256 {digest}…"
    assert len(given(Script(script, "endless"), ONE, Wanted(9))) == 16
    assert (list(sys.path), "onnxprune_data_script" in sys.modules) == before
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "reading\n")


ONES = "import numpy\ndef load_data():\n    yield {'x': numpy.ones((1, 3), 'f4')}\n"
FAILING: dict[str, tuple[str, str]] = {
    "no such function": (
        "def other():\n    pass\n",
        r"has no function load_data\(\); name another one: .*it has other",
    ),
    "no Python": ("def load_data(:\n", r"script.py, line 1: "),
    "a failing import": ("import nothing_like_this\n", r"script.py, line 1: ModuleNotFoundError"),
    "a failing function": ("def load_data():\n    return 1 / 0\n", r"line 2: load_data\(\) raised ZeroDivisionError"),
    "a failure on the way": (ONES + "    raise OSError('gone')\n", r"line 4: reading batch 2 raised OSError: gone"),
    "an exit": ("raise SystemExit(0)\n", r"script.py, line 1: SystemExit"),
    "another shape": (ONES.replace("(1, 3)", "(1, 2)"), "batch 1 of the data: "),
    "nothing": ("def load_data():\n    pass\n", "gave nothing"),
}


@pytest.mark.parametrize("kind", FAILING)
def test_scripts_that_fail(kind: str, tmp_path: Path):
    """Fails where an error of a script is a traceback, or does not say its line."""
    body, match = FAILING[kind]
    with pytest.raises(CalibrationError, match=match) as e:
        given(Script(written(tmp_path, body)), ONE)
    assert "\n" not in str(e.value)


def array(a: Any) -> dict[str, str]:
    """As polygraphy writes an array."""
    f = io.BytesIO()
    np.save(f, a, allow_pickle=False)
    return {"array": base64.b64encode(f.getvalue()).decode(), "polygraphy_class": "ndarray"}


# The arrays of what polygraphy 0.53.6 wrote: save_json([{"x": np.float32([[1, 2, 3]])}, {"x": …[[4, 5, 6]]}], path).
SAVED = (
    "k05VTVBZAQB2AHsnZGVzY3InOiAnPGY0JywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDEsIDMpLCB9ICAgICAg"
    "ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAIA/AAAAQAAAQEA=",
    "k05VTVBZAQB2AHsnZGVzY3InOiAnPGY0JywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDEsIDMpLCB9ICAgICAg"
    "ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAIBAAACgQAAAwEA=",
)


def test_what_polygraphy_wrote(tmp_path: Path):
    """Fails where its own bytes are not read."""
    runs = [{"x": {"array": a, "polygraphy_class": "ndarray"}} for a in SAVED]
    (tmp_path / "x.json").write_text(json.dumps(runs, indent=4), encoding="utf-8")
    assert given(tmp_path / "x.json", ONE).slice(0, 2)["x"].tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def test_inputs_of_polygraphy(tmp_path: Path):
    """Fails where a list of runs, one run, a folder of them, wrapped arrays or old archives are read otherwise."""
    runs = [{"x": array(X[:5])}, {"x": array(X[5:])}]
    (tmp_path / "x.json").write_text(json.dumps(runs), encoding="utf-8")
    assert same(given(tmp_path / "x.json", ONE))
    (tmp_path / "x.json").write_text(json.dumps({"x": array(X)}), encoding="utf-8")
    assert same(given(tmp_path / "x.json", ONE))
    lazy = [{"x": {"values": array(X), "polygraphy_class": "LazyArray"}}]
    (tmp_path / "x.json").write_text(json.dumps(lazy), encoding="utf-8")
    assert same(given(tmp_path / "x.json", ONE))
    f = io.BytesIO()
    np.savez_compressed(f, X)
    old = {"array": base64.b64encode(f.getvalue()).decode(), "polygraphy_class": "ndarray"}
    (tmp_path / "x.json").write_text(json.dumps([{"x": old}]), encoding="utf-8")
    assert same(given(tmp_path / "x.json", ONE))
    (tmp_path / "x.json").unlink()
    for i, run in enumerate(runs):
        (tmp_path / f"{i:010}.json").write_text(json.dumps(run), encoding="utf-8")
    assert same(given(tmp_path, ONE))


def packed(data: bytes) -> dict[str, str]:
    return {"array": base64.b64encode(data).decode(), "polygraphy_class": "ndarray"}


def pickled() -> bytes:
    f = io.BytesIO()
    np.save(f, np.array([{}, {}, {}], object), allow_pickle=True)
    return f.getvalue()


def bomb() -> bytes:
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x.npy", b"\0" * 5_000_000)
    return f.getvalue()


HOSTILE: dict[str, tuple[Any, str]] = {
    "a pickle": ([{"x": packed(pickled())}], "pickles are never read"),
    "a tensor": ([{"x": {"tensor": "AAAA", "polygraphy_class": "Tensor"}}], "but Tensor; save it as an array of numpy"),
    "no base64": ([{"x": {"array": "ä", "polygraphy_class": "ndarray"}}], "no array|is not in base64"),
    "cut short": ([{"x": packed(base64.b64decode(array(X)["array"])[:-5])}], "it is cut short"),
    "a claim": ([{"x": packed(base64.b64decode(array(X)["array"]).replace(b"(8, 3)", b"(9999,3)"[:6]))}], "no array"),
    "no archive of arrays": ([{"x": packed(bomb())}], "no array"),
    "empty": ([{"x": packed(b"")}], "no array"),
    "a number": ([{"x": 3}], "is no array of numpy but int"),
    "no runs": ([], "the data is empty"),
    "results": ({"lst": [], "polygraphy_class": "RunResults"}, "holds no inputs of polygraphy"),
    "lists": ([[1, 2]], "holds no inputs of polygraphy"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_json(kind: str, tmp_path: Path):
    """Fails where something is unpickled, memory is taken for a claim, or an error has several lines."""
    data, match = HOSTILE[kind]
    (tmp_path / "x.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(CalibrationError, match=match) as e:
        given(tmp_path / "x.json", ONE)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["[" * 200_000, "{", "\x00", '{"x": NaN'])
def test_what_is_no_json(text: str, tmp_path: Path):
    """Fails where the parser's own errors come out."""
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(CalibrationError, match=r"x.json is (no JSON|nested too deeply)"):
        given(tmp_path / "x.json", ONE)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where --data-script does not take the place of --data, or is taken beside it."""
    script = written(
        tmp_path,
        f"import numpy\ndef some():\n    data = numpy.load({str(digits.TEST)!r})\n"
        "    for i in range(0, 500, 100):\n        yield {k: data[k][i : i + 100] for k in ('input', 'label')}\n",
    )
    model = str(digits.path("resnet"))
    assert main(["eval", model, "--data-script", f"{script}:some", "--labels", "label", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 0.992
    for args, code, text in (
        (["--data", str(digits.TEST), "--data-script", str(script)], 2, "leave out --data"),
        (["--data-script", str(script), "--preset", "raw"], 2, "leave out --preset"),
        ([], 2, "--data is missing"),
        (["--data-script", str(script)], 1, "has no function load_data()"),
        (["--data-script", str(tmp_path / "none.py")], 1, "does not exist"),
    ):
        assert main(["eval", model, "--labels", "label", *args]) == code
        assert text in capsys.readouterr().err
