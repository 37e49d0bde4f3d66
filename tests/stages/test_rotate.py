"""Runs that turn a stream before they select."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxprune import PruneConfig, PruneResult, plan, prune
from onnxprune.errors import UsageError
from onnxprune.numerics import rotation
from onnxprune.stages import rotate
from tests.topologies.text import Topology

# What a and c write lies in three directions of the twelve, none of them an axis, and a little in all others.
_DIRECTIONS = 3
_TEXT = """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
    r = Conv <pads=[1,1,1,1]> (x, w1[16,3,3,3], b1[16])
    s = Relu(r)
    a = Conv (s, w2[12,16,1,1], b2[12])
    t = Conv (a, w3[16,12,1,1], b3[16])
    u = Relu(t)
    c = Conv (u, w5[12,16,1,1], b5[12])
    d = Add(a, c)
    e = Conv (d, w6[16,12,1,1], b6[16])
    g = Relu(e)
    y = Conv (g, w7[5,16,1,1], b7[5])
}"""
# Of the stream alone nine channels of twelve go.
QUICK = PruneConfig(ratio=0.3, round_to=1, fast=True, rotate="auto", ratio_of=("w2=75%",), exclude=("r", "t", "e"))


def _in_few(model: onnx.ModelProto, rest: float) -> None:
    """rest: what is left of the other directions."""
    spanned = np.random.default_rng(3).standard_normal((12, _DIRECTIONS))
    project = (1 - rest) * spanned @ np.linalg.pinv(spanned) + rest * np.eye(12)
    for t in model.graph.initializer:
        if t.name in ("w2", "b2", "w5", "b5"):
            array = onnx.numpy_helper.to_array(t)
            turned = np.tensordot(project, array, (1, 0)).astype(np.float32)
            t.CopyFrom(onnx.numpy_helper.from_array(turned, t.name))


MODEL = Topology(_TEXT, (), edit=partial(_in_few, rest=0.1))


def data(count: int = 96, seed: int = 0) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def turned() -> PruneResult:
    return prune(MODEL.model(), None, data(), config=QUICK)


def width(result: PruneResult) -> int:
    return next(g.channels_after for g in result.report.groups if g.channels_before == 12)


def test_a_stream_of_few_directions_keeps_these(turned: PruneResult):
    """Fails where turning does not concentrate the stream, or what is written is not what the figures are of."""
    assert turned.plan.rotated == ("w2",)
    assert 0 < turned.report.checks["normalised_against_original"] < 1e-5
    assert any("turned" in n and "w2" in n for n in turned.report.notes)
    off = prune(MODEL.model(), None, data(), config=QUICK, rotate="off")
    assert off.plan.rotated == ()
    assert turned.report.output_error is not None and off.report.output_error is not None
    assert width(turned) == width(off) == _DIRECTIONS
    assert turned.report.output_error < 0.8 * off.report.output_error


def test_a_replay_turns_the_same(turned: PruneResult, tmp_path: Path):
    """Fails where a plan says nothing of it, or its numbers are taken for channels of the model as it is."""
    file = tmp_path / "plan.json"
    file.write_text(turned.plan.to_json(), encoding="utf-8")
    again = prune(MODEL.model(), None, data(), from_plan=file)
    assert again.model is not None and turned.model is not None
    assert again.model.SerializeToString() == turned.model.SerializeToString()
    assert again.plan.rotated == ("w2",)
    with pytest.raises(UsageError, match="--rotate off leaves them"):
        prune(MODEL.model(), None, data(), from_plan=file, rotate="off")
    with pytest.raises(UsageError, match="that only that data tells"):
        prune(MODEL.model(), None, data(seed=5), from_plan=file, force=True)
    other = plan.Plan(**{**turned.plan.__dict__, "rotated": ("w1",)})
    with pytest.raises(UsageError, match="'w1' cannot be turned"):
        prune(MODEL.model(), None, data(), from_plan=other)


def test_a_plan_without_is_replayed_without():
    """Fails where the options of a replay turn what its plan was not made for, as those of earlier versions."""
    made = prune(MODEL.model(), None, data(), config=QUICK, rotate="off", dry_run=True).plan
    older = plan.Plan(**{**made.__dict__, "config": {k: v for k, v in made.config.items() if k != "rotate"}})
    result = prune(MODEL.model(), None, data(), from_plan=older, dry_run=True)
    assert result.plan.rotated == ()
    assert not any("turned" in n for n in result.report.notes)


def test_a_wrong_turn_is_found_before_anything_is_cut(monkeypatch: pytest.MonkeyPatch):
    """Fails where the turned model is not held against the original: by another matrix it differs."""
    monkeypatch.setattr(rotate, "telling", lambda m, h: 1.01 * rotation.telling(m, h))
    result = prune(MODEL.model(), None, data(), config=QUICK, dry_run=True)
    assert result.plan.rotated == ()
    assert any(n.startswith("no stream was turned (--rotate): ") for n in result.report.notes)


@pytest.mark.parametrize(
    ("options", "given", "why"),
    [
        ({"method": "magnitude"}, data(), "the method or the refit"),
        ({"refit": "none"}, data(), "the method or the refit"),
        ({"target": "tensorrt-int8"}, data(), "the target tensorrt-int8"),
        ({"exclude": ("a",), "ratio_of": ()}, data(), "no stream"),
        ({}, None, "random inputs"),
    ],
    ids=["weights", "unfitted", "codes", "excluded", "random"],
)
def test_where_directions_tell_nothing_no_stream_is_turned(options: dict[str, Any], given: Any, why: str):
    """Fails where a stream is turned that the options keep, or by data that say nothing, or nothing is said of it."""
    result = prune(MODEL.model(), None, given, config=QUICK.with_options(**options), dry_run=True)
    (said,) = [w for w in result.report.warnings if "--rotate" in w]
    assert said.startswith(f"--rotate auto turned nothing: {why}")
    assert result.plan.rotated == ()
