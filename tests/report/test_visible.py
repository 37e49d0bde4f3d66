"""Names from outside reach the terminal as text: no escape sequence, no line of its own, no mark-up."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune import Progress, inspect
from onnxprune.benchmark.measure import Bench, Comparison, Latency
from onnxprune.benchmark.profile import NodeTime
from onnxprune.cli import program
from onnxprune.evaluation import Evaluation
from onnxprune.report import live, terminal
from onnxprune.report.terminal import Screen
from onnxprune.report.visible import made_visible, one_line, visible
from tests import digits
from tests.digits import pruned

EVIL = "\x1b[31mE\x1b]0;title\x07\x9b2J\r\n\b\x7f\x00\u202eevil\u2066\u2028"
MARKUP = "[red]x[/red][link=http://a]y[/link]:smile:[/]"
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def spoiled(value: Any, more: str) -> Any:
    """A report with `more` behind every text in it that is a name or a reason; keys stay, as code reads them."""
    if isinstance(value, str):
        return value + more
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: spoiled(getattr(value, f.name), more) for f in fields(value)})
    if isinstance(value, dict):
        return {k: spoiled(v, more) for k, v in value.items()}
    return type(value)(spoiled(v, more) for v in value) if isinstance(value, (tuple, list)) else value


def a_bench() -> Bench:
    node = (NodeTime("node", "Conv", "CPU", 0.1, 1.0),)
    models = tuple(Latency(n, 0.1, 0.2, 10.0, 100, 0.1, node) for n in ("a.onnx", "b.onnx"))
    comparison = Comparison(1.0, (0.9, 1.1), (0.8, 1.2))
    texts = ("CPU", "onnxruntime 1", "model", "cpu")
    return Bench(models, comparison, *texts, 0, 1, {"x" + EVIL: (1, 2)}, "random", 20, 3, ("a note",))


def an_evaluation() -> Evaluation:
    return Evaluation("a.onnx", "b.onnx", "data.npz", "00", 4, 0.5, 0.5, 0.5, 0.1, ("a note",))


RENDERED: dict[str, Callable[[Screen, str], str]] = {
    "prune": lambda s, more: terminal.prune_report(
        spoiled(replace(pruned("resnet", method="magnitude", refit="none").report, output="out.onnx"), more), s
    ),
    "inspect": lambda s, more: terminal.inspection(spoiled(inspect(digits.path("resnet"), digits.CALIB), more), s),
    "eval": lambda s, more: terminal.evaluation(spoiled(an_evaluation(), more), s),
    "bench": lambda s, more: terminal.benchmark(spoiled(a_bench(), more), s),
}


@pytest.mark.parametrize("kind", RENDERED)
def test_no_control_character_reaches_the_terminal(kind: str):
    """Fails where a field of a report is printed as it came."""
    text = RENDERED[kind](Screen(400), EVIL)
    assert not CONTROLS.findall(text)
    assert r"\x1b[31mE\x1b]0;title\x07\x9b2J" in text
    assert r"\u202eevil\u2066\u2028" in text
    assert not re.search(r"^\s*\\x08", text, re.MULTILINE)


@pytest.mark.parametrize("kind", RENDERED)
def test_colours_are_the_reports_own(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Fails where a name sets colours, or anything else than colours reaches a terminal."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    text = RENDERED[kind](Screen(400, colour=True), EVIL)
    assert "\x1b[1m" in text
    assert not CONTROLS.findall(re.sub(r"\x1b\[[0-9;]*m", "", text))


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("kind", RENDERED)
def test_mark_up_is_text(kind: str, colour: bool):
    """Fails where a name in brackets is taken for a style or a link."""
    text = RENDERED[kind](Screen(400, colour=colour), MARKUP)
    assert MARKUP in text
    assert "\x1b]8;" not in text


@given(st.text())
def test_visible_is_one_printable_line(text: str):
    shown = visible(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()
    assert one_line(text).isprintable()


def test_printable_text_stays_as_it_is():
    """Fails where letters of other scripts are escaped."""
    for text in ("", "conv_1/Relu:0", "Größe 模型 مودل → ≤ × …", "a b"):
        assert visible(text) == text
        assert one_line(text) == text
    assert made_visible({"a": ("b", [1, None])}) == {"a": ("b", [1, None])}


def test_long_messages_are_cut():
    assert len(one_line("a" * 10**6)) < 2100
    assert one_line("first " + "a" * 10**6 + " last").startswith("first ")
    assert one_line("first " + "a" * 10**6 + " last").endswith(" last")


def named(folder: Path, more: str) -> Path:
    """A network of two layers whose names all end in `more`."""
    w = [np.random.default_rng(i).standard_normal((8, 8)).astype(np.float32) for i in range(2)]
    nodes = [
        onnx.helper.make_node("MatMul", ["x", f"a{more}"], [f"h{more}"], f"first{more}"),
        onnx.helper.make_node("Relu", [f"h{more}"], [f"r{more}"], f"relu{more}"),
        onnx.helper.make_node("MatMul", [f"r{more}", f"b{more}"], [f"y{more}"], f"second{more}"),
    ]
    ports = [onnx.helper.make_tensor_value_info(n, 1, ["N", 8]) for n in ("x", f"y{more}")]
    weights = [onnx.numpy_helper.from_array(a, f"{n}{more}") for a, n in zip(w, "ab", strict=True)]
    graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    opset = onnx.helper.make_opsetid("", 17)
    path = folder / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    "args",
    [
        ("inspect", "model.onnx"),
        ("model.onnx", "out.onnx", "--ratio", "0.3", "--fast", "--calib", "calib.npz"),
        ("model.onnx", "out.onnx", "--ratio", "0.3", "--fast", "--calib", "wrong.npz"),
        ("model.onnx", "out.onnx", "--ratio", "0.9999", "--fast", "--calib", "calib.npz"),
        ("model.onnx", "out.onnx", "--ratio", "0.3", "--fast", "--calib", f"{EVIL[1:9]}\n.npz"),
        ("inspect", f"missing{EVIL[:9]}.onnx"),
        ("model.onnx", f"--{EVIL[:9]}"),
    ],
)
def test_commands(args: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    """Fails where an error, a warning or a report of a whole run carries a control character."""
    monkeypatch.chdir(tmp_path)
    named(tmp_path, EVIL)
    np.savez("calib.npz", x=np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32))
    np.savez("wrong.npz", **{f"x{EVIL[:5]}": np.zeros((64, 8), np.float32)})
    program.main(list(args))
    out, err = capsys.readouterr()
    assert out or err
    assert not CONTROLS.findall(out + err)
    assert all(line.startswith("onnxprune: ") for line in err.splitlines())


def test_json_keeps_names_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where JSON is made unreadable for programs, or raw for terminals."""
    path = named(tmp_path, EVIL)
    assert program.main(["inspect", str(path), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.isascii() and not CONTROLS.findall(out)
    assert any(EVIL in p["node"] for g in json.loads(out)["groups"] for p in g["producers"])


def test_the_bar_of_a_stage_is_text(monkeypatch: pytest.MonkeyPatch):
    """Fails where the name of a stage, which may hold that of a file, is taken for mark-up, or moves the cursor."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stderr", Terminal())
    with live.bars() as show:
        show(Progress(f"start {MARKUP}{EVIL}", 1, 2, 0.1, 0.2, left=3.0))
    shown = sys.stderr.getvalue()
    assert f"start {MARKUP}{visible(EVIL)}" in shown
    assert EVIL not in shown
