"""Times of nodes, from profiles that are written by hand and from one of onnxruntime's own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.benchmark.profile import NodeTime, by_operator, parse, profiled, typical
from onnxprune.errors import RunError
from onnxprune.runtime.session import CPU
from tests import digits


def run(start: int, length: int = 100) -> dict[str, Any]:
    return {"cat": "Session", "ph": "X", "name": "model_run", "ts": start, "dur": length, "tid": 1}


def node(name: str, start: int, length: int, op: str = "Conv", tid: int = 1) -> dict[str, Any]:
    about = {"op_name": op, "provider": "CPUExecutionProvider"}
    return {
        "cat": "Node",
        "ph": "X",
        "name": f"{name}_kernel_time",
        "ts": start,
        "dur": length,
        "tid": tid,
        "args": about,
    }


def seconds(found: tuple[NodeTime, ...]) -> dict[str, float]:
    return {n.name: pytest.approx(n.seconds * 1e6) for n in found}


def test_runs_before_those_that_count_are_left_out():
    events = [node("a", 1, 90), run(0), node("a", 101, 7), run(100), node("a", 201, 9), run(200)]
    (found,) = parse(events, warmup=1)
    assert found == NodeTime("a", "Conv", "CPUExecutionProvider", pytest.approx(8e-6), 1.0)


def test_what_is_no_node_does_not_count():
    """Fails where loading the model, fences or incomplete events are taken for work."""
    load = {"cat": "Session", "ph": "X", "name": "session_initialization", "ts": 0, "dur": 50}
    fence = node("a", 110, 5) | {"name": "a_fence_before"}
    early = node("a", 60, 5)
    events = [load, early, fence, {"ph": "M", "name": "process_name"}, node("a", 120, 5), run(100)]
    assert seconds(parse(events)) == {"a": 5.0}


def test_a_body_is_not_counted_twice():
    """Fails where the time of a Loop holds that of the nodes inside."""
    events = [run(0), node("loop", 10, 50, "Loop"), node("add", 10, 8, "Add"), node("add", 30, 6, "Add")]
    found = parse(events)
    assert seconds(found) == {"loop": 36.0, "add": 14.0}
    assert {n.name: n.calls for n in found} == {"loop": 1.0, "add": 2.0}


def test_other_threads_enclose_nothing():
    events = [run(0), node("a", 10, 50), node("b", 20, 8, tid=2)]
    assert seconds(parse(events)) == {"a": 50.0, "b": 8.0}


def test_interruptions_do_not_count():
    assert typical([10.0, 11.0, 10.0, 900.0]) == 10.5
    assert typical([3.0]) == 3.0


def test_operators():
    nodes = [NodeTime(n, op, "", s, 1.0) for n, op, s in [("a", "Conv", 3.0), ("b", "Relu", 1.0), ("c", "Conv", 4.0)]]
    conv, relu = by_operator(nodes)
    assert (conv.operator, conv.seconds, conv.share, conv.calls) == ("Conv", 7.0, 0.875, 2.0)
    assert (relu.operator, relu.share) == ("Relu", 0.125)
    assert by_operator([]) == ()


def test_nodes_of_a_real_model():
    """Fails where names, operators or the number of runs are not what onnxruntime writes."""
    model = onnx.load(digits.path("resnet"))
    feeds = {"input": np.zeros((1, 1, 8, 8), np.float32)}
    found = profiled(model, feeds, runs=3, warmup=1, optimize=False)
    assert {(n.name, n.operator) for n in found} == {(n.name, n.op_type) for n in model.graph.node}
    assert {n.calls for n in found} == {1.0}
    assert {n.provider for n in found} == {CPU}


def test_nodes_in_a_loop():
    """Fails where a node that runs five times in one run is taken for five runs."""
    text = """<ir_version: 8, opset_import: ["" : 13]> main (float[2] x) => (float[2] y) {
        n = Constant <value = int64 {5}> ()  c = Constant <value = bool {1}> ()
        y = Loop (n, c, x) <body = b (int64 i, bool ci, float[2] s) => (bool co, float[2] t) {
            co = Identity (ci)  t = Add (s, s) }> }"""
    found = profiled(onnx.parser.parse_model(text), {"x": np.ones(2, np.float32)}, runs=4, warmup=2)
    assert {n.operator: n.calls for n in found}["Add"] == 5.0


def test_files_are_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Fails where a profile, or that of a run that failed, stays behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = onnx.load(digits.path("resnet"))
    profiled(model, {"input": np.zeros((1, 1, 8, 8), np.float32)}, runs=1, warmup=0)
    with pytest.raises(RunError, match="cannot run the model"):
        profiled(model, {"input": np.zeros((1, 2, 8, 8), np.float32)}, runs=1, warmup=0)
    assert list(tmp_path.iterdir()) == []
