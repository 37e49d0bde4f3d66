"""What no sample does inside Loop and Scan is named, and its channels stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import prune
from onnxprune.runtime.session import Session
from tests.topologies.text import Topology

QUICK: dict[str, Any] = {"ratio": 0.2, "method": "magnitude", "refit": "none", "round_to": 1}
LOOP = """(float[N,6] x, int64 turns) => (float[N,5] y) {
    q = MatMul (x, v1[6,9])
    r = Relu (q)
    a = MatMul (r, w1[9,12])
    s = Relu (a)
    on = Constant <value = bool {1}> ()
    h = Loop (turns, on, s) <body = step (int64 turn, bool go_in, float[N,12] state) => (bool go, float[N,12] next) {
        go = Identity (go_in)
        %s
    }>
    y = MatMul (h, w3[12,5])
}"""
IF = """late = Greater (turn, limit{:2})
        next = If (late) <
            then_branch = t () => (t_out) { t_out = MatMul (state, w2[12,12]) },
            else_branch = e () => (e_out) { e_out = Tanh (state) }
        >"""
PLAIN = "next = MatMul (state, w2[12,12])"
SCAN = """(float[N,6] x, bool[T] late) => (float[N,5] y) {
    q = MatMul (x, v1[6,9])
    r = Relu (q)
    a = MatMul (r, w1[9,12])
    s = Relu (a)
    h = Scan <num_scan_inputs = 1, body = step (float[N,12] state, bool now) => (float[N,12] next) {
        next = If (now) <
            then_branch = t () => (t_out) { t_out = MatMul (state, w2[12,12]) },
            else_branch = e () => (e_out) { e_out = Tanh (state) }
        >
    }> (s, late)
    y = MatMul (h, w3[12,5])
}"""


def model(text: str) -> onnx.ModelProto:
    """The network, with a name for its Loop or Scan, and for the If inside."""
    proto = Topology(text, ()).model()
    for n in proto.graph.node:
        if n.op_type in ("Loop", "Scan"):
            n.name = "steps"
            for inner in n.attribute[-1].g.node:
                inner.name = "choice" if inner.op_type == "If" else inner.name
    return proto


def data(**more: Any) -> dict[str, Any]:
    return {"x": np.random.default_rng(0).standard_normal((32, 6)).astype(np.float32), **more}


def kept(result: Any) -> set[str]:
    """Why groups stayed whole."""
    return {g.note for g in result.report.groups if "no sample takes" in g.note}


@pytest.mark.parametrize(
    ("text", "more", "named"),
    [
        (LOOP % IF, {"turns": np.array(2)}, "the then branch of choice"),
        (LOOP % IF, {"turns": np.array(5)}, ""),
        (LOOP % PLAIN, {"turns": np.array(0)}, "the body of steps"),
        (LOOP % PLAIN, {"turns": np.array(3)}, ""),
        (SCAN, {"late": np.zeros(32, bool)}, "the then branch of choice"),
        (SCAN, {"late": np.arange(32) > 20}, ""),
    ],
    ids=["if, late", "if, both", "loop, none", "loop, some", "scan, one", "scan, both"],
)
def test_what_no_sample_does_stays(text: str, more: dict[str, Any], named: str):
    """Fails where a branch or a body that never ran is cut without a word, or one that ran is called untried."""
    proto = model(text)
    result = prune(proto, None, data(**more), **QUICK)
    warned = [w for w in result.report.warnings if "no sample takes" in w]
    assert len(warned) == bool(named)
    assert all(named in w for w in warned)
    assert bool(kept(result)) == bool(named)
    assert result.model is not None
    freely = prune(proto, None, data(**more), untried_branches="cut", **QUICK)
    assert kept(freely) == set()
    assert Session(result.model).run(data(**more))["y"].shape == (32, 5)
