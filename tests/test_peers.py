"""The comparison's table says what was measured: shares, failures in words, and the last result of each pair."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import peers

if os.name != "posix":  # `resource` bounds the tools' memory
    pytest.skip("the comparison runs on Linux and macOS", allow_module_level=True)

GOOD = {"params": 0.26124, "macs": 0.26633, "runs": "yes", "seconds": 1.0}
BROKEN = {"params": 0.25933, "runs": "no: RuntimeError: shape '[1]' is invalid"}
FAILED = {"failure": "ZeroDivisionError: integer division or modulo by zero"}


def test_cells():
    """Fails where a pruned model that does not run, or a tool that failed, looks like a success."""
    assert peers.cells(GOOD) == ("0.261", "0.266", "yes")
    assert peers.cells(BROKEN) == ("0.259", "", "no")
    assert peers.cells(BROKEN | {"runs": "not valid: InferenceError: sizes differ"}) == ("0.259", "", "not valid")
    assert peers.cells(FAILED) == ("fails", "", "no")
    assert peers.cells(None) == ("", "", "")


def test_table_and_failures():
    results = {
        ("resnet18", "onnxprune"): GOOD,
        ("vit_b_32", "torch-pruning"): BROKEN,
        ("shufflenet_v2_x1_0", "torch-pruning"): FAILED,
    }
    lines = peers.table(results).splitlines()
    assert len(lines) == 2 + len(peers.MODELS)
    assert "| resnet18 | 0.261 | 0.266 | yes |  |  |  |  |  |  |" in lines
    assert {line.count("|") for line in lines} == {2 + 3 * len(peers.TOOLS)}
    said = peers.failures(results)
    assert "- vit_b_32, torch-pruning: RuntimeError: shape '[1]' is invalid\n" in said
    assert "- shufflenet_v2_x1_0, torch-pruning: ZeroDivisionError" in said
    assert "resnet18" not in said
    assert peers.failures({("resnet18", "onnxprune"): GOOD}) == ""


def test_gaps():
    """Fails where a network that onnxprune does worse on is passed over, or one is named without need."""
    pinned = [
        "Gather: Gather picks this single channel",
        "Add: meets axis 1 of '/a/b' (Reshape '/a'), which carries no channels",
        "output: the graph output 'output' keeps its shape",
    ]
    worse, near = ({"params": p, "macs": p, "runs": "yes", "pinned": pinned} for p in (0.34, 0.26))
    results = {
        ("vit_b_32", "onnxprune"): worse,
        ("vit_b_32", "torch-pruning"): BROKEN,
        ("resnet18", "onnxprune"): near,
        ("resnet18", "torch-pruning"): GOOD,
        ("shufflenet_v2_x1_0", "onnxprune"): worse,
        ("shufflenet_v2_x1_0", "torch-pruning"): FAILED,
    }
    said = peers.gaps(results)
    reasons = "Add: meets axis 1 of another tensor, which carries no channels; Gather: Gather picks this single channel"
    assert said.endswith(f"\n\n- vit_b_32: {reasons}\n")
    assert peers.gaps({k: v for k, v in results.items() if k[0] != "vit_b_32"}) == ""


def test_the_last_result_counts(tmp_path: Path):
    lines = tmp_path / "results.jsonl"
    assert peers.read(lines) == {}
    rows = [
        {"model": "a", "tool": "t"} | FAILED,
        {"model": "b", "tool": "t"} | GOOD,
        {"model": "a", "tool": "t"} | GOOD,
    ]
    lines.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    found = peers.read(lines)
    assert found["a", "t"]["runs"] == "yes"
    assert len(found) == 2


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        ("import time; time.sleep(600)", "did not finish in 1 s"),
        ("import sys; sys.exit('no such thing')", "no such thing"),
        ("", "no answer"),
    ],
)
def test_a_tool_that_goes_wrong_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, words: str):
    """Fails where a crash or a hang of one tool ends the whole comparison."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "__init__.py").touch()  # else a package of that name that lies further down the path comes first
    (package / "peers.py").write_text(program, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seconds = 1.0 if "sleep" in program else 120.0
    assert peers.apart("resnet18", "onnxprune", tmp_path, seconds, 1.0) == {"failure": words}
