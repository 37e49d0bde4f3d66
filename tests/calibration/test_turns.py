"""What no sample does inside Loop and Scan is named, and its channels stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import prune
from onnxprune.calibration import turns
from onnxprune.errors import RunError
from onnxprune.graph import bodies
from onnxprune.runtime.session import Session
from onnxprune.stages import couple
from onnxprune.stages.couple import Coupled
from tests.topologies.text import Topology

QUICK: dict[str, Any] = {"ratio": 0.2, "method": "magnitude", "refit": "none", "round_to": 1}
STEM = """
    q = MatMul (x, v1[6,9])
    r = Relu (q)
    a = MatMul (r, w1[9,12])
    s = Relu (a)"""
LOOP = (
    "(float[N,6] x, int64 turns) => (float[N,5] y) {"
    + STEM
    + """
    on = Constant <value = bool {1}> ()
    h = Loop (turns, on, s) <body = step (int64 turn, bool go_in, float[N,12] state) => (bool go, float[N,12] next) {
        go = Identity (go_in)
        %s
    }>
    y = MatMul (h, w3[12,5])
}"""
)
IF = """late = Greater (turn, limit{:2})
        next = If (late) <
            then_branch = t () => (t_out) { t_out = MatMul (state, w2[12,12]) },
            else_branch = e () => (e_out) { e_out = Tanh (state) }
        >"""
PLAIN = "next = MatMul (state, w2[12,12])"
# An If in an If in a Loop: the outer one goes both ways.
DEEP = """late = Greater (turn, limit{:2})
        next = If (late) <
            then_branch = t () => (t_out) {
                later = Greater (turn, limit2{:5})
                t_out = If (later) <
                    then_branch = tt () => (tt_out) { tt_out = MatMul (state, w2[12,12]) },
                    else_branch = te () => (te_out) { te_out = Tanh (state) }
                >
            },
            else_branch = e () => (e_out) { e_out = Tanh (state) }
        >"""
# A Loop in a Loop, whose turns are those before it.
NESTED = """next = Loop (turn, go_in, state) <
            body = inner (int64 turn2, bool go_in2, float[N,12] state2) => (bool go2, float[N,12] next2) {
                go2 = Identity (go_in2)
                late = Greater (turn2, limit{:1})
                next2 = If (late) <
                    then_branch = t () => (t_out) { t_out = MatMul (state2, w2[12,12]) },
                    else_branch = e () => (e_out) { e_out = Tanh (state2) }
                >
            }
        >"""
# A Loop with two states, one of which nothing reads, and an output of each turn.
GIVING = (
    "(float[N,6] x, int64 turns) => (float[N,5] y) {"
    + STEM
    + """
    on = Constant <value = bool {1}> ()
    h, last, each = Loop (turns, on, s, s) <
        body = step (int64 turn, bool go_in, float[N,12] state, float[N,12] other)
            => (bool go, float[N,12] next, float[N,12] other2, float[N,12] seen) {
            go = Identity (go_in)
            other2 = Identity (other)
            late = Greater (turn, limit{:2})
            next = If (late) <
                then_branch = t () => (t_out) { t_out = MatMul (state, w2[12,12]) },
                else_branch = e () => (e_out) { e_out = Tanh (state) }
            >
            seen = Identity (next)
        }
    >
    m = ReduceMean <keepdims=0> (each, first{0})
    b = Add (h, m)
    y = MatMul (b, w3[12,5])
}"""
)
# A Loop in a branch of an If that goes both ways, sample by sample.
BRANCHED = (
    "(float[N,6] x, int64 turns, bool[1] way) => (float[N,5] y) {"
    + STEM
    + """
    on = Constant <value = bool {1}> ()
    h = If (way) <
        then_branch = t () => (t_out) {
            t_out = Loop (turns, on, s) <
                body = step (int64 turn, bool go_in, float[N,12] state) => (bool go, float[N,12] next) {
                    go = Identity (go_in)
                    next = MatMul (state, w2[12,12])
                }
            >
        },
        else_branch = e () => (e_out) { e_out = Tanh (s) }
    >
    y = MatMul (h, w3[12,5])
}"""
)
SCAN = (
    "(float[N,6] x, bool[T] late) => (float[N,5] y) {"
    + STEM
    + """
    h = Scan <num_scan_inputs = 1, body = step (float[N,12] state, bool now) => (float[N,12] next) {
        next = If (now) <
            then_branch = t () => (t_out) { t_out = MatMul (state, w2[12,12]) },
            else_branch = e () => (e_out) { e_out = Tanh (state) }
        >
    }> (s, late)
    y = MatMul (h, w3[12,5])
}"""
)


def model(text: str) -> onnx.ModelProto:
    """The network, with a name for its Loop or Scan, and for the If inside."""
    proto = Topology(text, ()).model()
    for n in proto.graph.node:
        if n.op_type in ("Loop", "Scan"):
            n.name = "steps"
    for n in bodies.every_node(proto.graph):
        if n.op_type in ("Loop", "Scan") and n.name != "steps":
            n.name = "inside"
        if n.op_type == "If":
            n.name = (
                "choice"
                if not any(i.op_type in ("If", "Loop") for _, b in bodies.bodies_of(n) for i in b.node)
                else "outer"
            )
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
        (LOOP % DEEP, {"turns": np.array(5)}, "the then branch of choice"),
        (LOOP % DEEP, {"turns": np.array(8)}, ""),
        (LOOP % DEEP, {"turns": np.array(2)}, "the then branch of outer"),
        (LOOP % NESTED, {"turns": np.array(3)}, "the then branch of choice"),
        (LOOP % NESTED, {"turns": np.array(4)}, ""),
        (LOOP % NESTED, {"turns": np.array(1)}, "the body of inside"),
        (LOOP % NESTED, {"turns": np.array(0)}, "the body of steps"),
        (GIVING, {"turns": np.array(2)}, "the then branch of choice"),
        (GIVING, {"turns": np.array(5)}, ""),
        (BRANCHED, {"turns": np.array(0), "way": np.arange(32) % 2 > 0}, "the body of inside"),
        (BRANCHED, {"turns": np.array(2), "way": np.arange(32) % 2 > 0}, ""),
        (SCAN, {"late": np.zeros(32, bool)}, "the then branch of choice"),
        (SCAN, {"late": np.arange(32) > 20}, ""),
    ],
    ids=[
        *("if, late", "if, both", "loop, none", "loop, some", "deep, late", "deep, both", "deep, none", "nested, late"),
        *("nested, both", "nested, none", "nested, nothing", "giving, late", "giving, both", "branched, none"),
        *("branched, some", "scan, one", "scan, both"),
    ],
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
    one = {k: v[:1] if k == "way" else v for k, v in data(**more).items()}
    assert Session(result.model).run(one)["y"].shape == (32, 5)


def test_names_that_look_like_flags():
    """Fails where the copy takes a name that the model has."""
    proto = model(LOOP % IF)
    for n in bodies.every_node(proto.graph):
        for names in (n.input, n.output):
            names[:] = ["flag0" if i == "r" else "flag1" if i == "late" else i for i in names]
    assert kept(prune(proto, None, data(turns=np.array(2)), **QUICK)) == {"no sample takes the then branch of choice"}


def test_what_cannot_be_seen_stays(monkeypatch: pytest.MonkeyPatch):
    """Fails where a copy that does not run is taken for one in which everything was taken."""

    def refuse(*_: Any) -> Any:
        raise RunError("no")

    monkeypatch.setattr(turns, "_seen", refuse)
    result = prune(model(LOOP % IF), None, data(turns=np.array(5)), **QUICK)
    (warning,) = [w for w in result.report.warnings if "cannot be seen" in w]
    assert warning.startswith("it cannot be seen what the samples do inside steps: no figure")
    assert "it cannot be seen what the samples do inside steps" in {g.note for g in result.report.groups}


def test_what_no_sample_reads_goes_last(monkeypatch: pytest.MonkeyPatch):
    """Fails where channels of which nothing is known are cut as if they counted for nothing."""
    inner = """late = Greater (turn, limit{:2})
        next = If (late) <
            then_branch = t () => (t_out) {
                u = MatMul (state, w2[12,40])
                v = Relu (u)
                t_out = MatMul (v, w4[40,12])
            },
            else_branch = e () => (e_out) { e_out = Tanh (state) }
        >"""
    found = {}

    def seen(coupled: Coupled, *_: Any) -> None:
        sizes = [g.size for g in coupled.channels.groups]
        found.update({sizes[g]: g in coupled.taken.idle for g in range(len(sizes))})

    monkeypatch.setattr(couple, "check_counted", seen)
    for count, idle in ((2, True), (5, False)):
        prune(model(LOOP % inner), None, data(turns=np.array(count)), untried_branches="cut", **QUICK)
        assert found == {9: False, 12: False, 40: idle}
