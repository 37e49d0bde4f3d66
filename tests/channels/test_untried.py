"""Branches of an If that no sample takes: named, and kept whole unless asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import prune
from onnxprune.errors import NothingPrunable, UsageError
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session
from tests.topologies.text import Topology

RNG = np.random.default_rng(0)
QUICK: dict[str, Any] = {"ratio": 0.2, "method": "magnitude", "refit": "none", "round_to": 1}
LOW, HIGH = 8000, 16000

# A stem of its own, then a branch by rate; what lies behind reads both.
BY_RATE = """(float[N,3,8,8] x, int64[1] rate) => (float[N,5,8,8] y) {
    s = Conv (x, w0[12,3,1,1])
    sr = Relu (s)
    a = Conv (sr, w1[16,12,1,1])
    ar = Relu (a)
    cond = Equal (rate, r{16000})
    z = If (cond) <
        then_branch = t () => (t_out) { t_out = Conv (ar, w2[16,16,1,1]) },
        else_branch = e () => (e_out) { %s }
    >
    y = Conv (z, w3[5,16,1,1])
}"""
COMPUTES = "e_out = Tanh (ar)"
PASSES_ON = "e_out = Identity (ar)"


def data(*rates: int) -> dict[str, Array]:
    """Samples, each with a rate of its own, in turns."""
    rate = np.resize(np.array(rates, np.int64), 32)
    return {"x": RNG.standard_normal((32, 3, 8, 8)).astype(np.float32), "rate": rate}


def model(inside: str, name: str = "by_rate") -> onnx.ModelProto:
    """The network with this as its branch for other rates."""
    proto = Topology(BY_RATE % inside, ()).model()
    next(n for n in proto.graph.node if n.op_type == "If").name = name
    return proto


def widths(result: Any) -> dict[str, tuple[int, int, str]]:
    """Channels before and after of every group, and why it stayed."""
    return {g.name: (g.channels_before, g.channels_after, g.note) for g in result.report.groups}


def test_what_an_untried_branch_reaches_stays():
    """Fails where a channel goes that such a branch reads or writes, or where the others stay too."""
    proto, heard = model(COMPUTES), []
    result = prune(proto, None, data(HIGH), warn=heard.append, **QUICK)
    assert result.report.warnings == tuple(heard)
    (warning,) = heard
    assert warning.startswith("no sample takes the else branch of by_rate")
    found = sorted(widths(result).values())
    assert [(before, bool(note)) for before, _, note in found] == [(12, False), (16, True)]
    assert found[0][1] < 12
    assert found[1] == (16, 16, "no sample takes the else branch of by_rate")
    assert result.model is not None
    # Nothing of what the other branch computes has changed but by what the stem lost.
    for rate in (LOW, HIGH):
        feeds = {"x": data(LOW)["x"][:1], "rate": np.array([rate])}
        assert np.isfinite(Session(result.model).run(feeds)["y"]).all()


def test_the_branch_is_named_by_what_ran():
    (warning,) = prune(model(COMPUTES), None, data(LOW), **QUICK).report.warnings
    assert warning.startswith("no sample takes the then branch of by_rate")


def test_all_branches_ran():
    """Fails where a branch that some sample takes is called untried."""
    result = prune(model(COMPUTES), None, data(LOW, HIGH), **QUICK)
    assert result.report.warnings == ()
    assert not any(note for _, _, note in widths(result).values())


def test_a_branch_that_only_passes_on_is_no_matter():
    """Fails where the If that exporters write around Squeeze keeps channels, or gets a warning."""
    result = prune(model(PASSES_ON), None, data(HIGH), **QUICK)
    assert result.report.warnings == ()
    assert not any(note for _, _, note in widths(result).values())


def test_cut_all_the_same():
    result = prune(model(COMPUTES), None, data(HIGH), untried_branches="cut", **QUICK | {"uniform": 0.5, "ratio": None})
    assert all(after < before for before, after, _ in widths(result).values())
    (warning,) = result.report.warnings
    assert "were open to cuts that nothing has measured" in warning


def test_nothing_else_to_cut():
    """Fails where the run ends without the name of the If, or what to do."""
    with pytest.raises(NothingPrunable, match=r"the else branch of by_rate.*--untried-branches cut"):
        prune(model(COMPUTES), None, data(HIGH), **QUICK, include=("a",))
    with pytest.raises(UsageError, match="untried_branches"):
        prune(model(COMPUTES), None, data(HIGH), **QUICK, untried_branches="maybe")
