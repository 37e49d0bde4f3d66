"""What a run says of its result is what `evaluate` says of the two models, also where it was not known before which
channels go."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import evaluate, prune
from onnxprune.data.inputs import tensor_specs
from onnxprune.data.sources import checked
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session
from onnxprune.stages.load import split
from tests.topologies.text import Topology

OPTIONS: dict[str, Any] = {"round_to": 1, "ratio": 0.3}
X = np.random.default_rng(0).standard_normal((160, 10)).astype(np.float32)
# How many numbers exceed a threshold: of a layer that keeps its channels, of one that loses some, and of both.
COUNT = """m = Greater (h, limit)
    i = Cast <to = 7> (m)
    count = ReduceSum <keepdims = 0> (i, axis{1})"""
KEPT = f"""(float[N,10] x) => (int64[N] count) {{
    a = MatMul (x, w1[10,32])
    r = Relu (a)
    h = MatMul (r, w2[32,20])
    {COUNT}
}}"""
CUT = f"""(float[N,10] x) => (int64[N] count) {{
    h = MatMul (x, w1[10,32])
    {COUNT}
}}"""
BESIDE = f"""(float[N,10] x) => (int64[N] count, float[N,5] y) {{
    a = MatMul (x, w1[10,32])
    h = Relu (a)
    y = MatMul (h, w2[32,5])
    {COUNT}
}}"""


def model(text: str) -> onnx.ModelProto:
    proto = Topology(text, ()).model()
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.3), "limit"))
    return proto


def figures(rows: Any) -> list[tuple[Any, ...]]:
    return [(f["outputs"], f["at"], f["kind"], f["why"], f["counts"]) for f in rows]


def judging(proto: onnx.ModelProto) -> dict[str, Array]:
    _, held = split(checked({"x": X}, tensor_specs(proto)), 0)
    assert held is not None
    return {"x": np.asarray(held.arrays["x"])}


@pytest.mark.parametrize("text", [KEPT, CUT, BESIDE], ids=["kept", "cut", "beside"])
@pytest.mark.parametrize("options", [{"fast": True}, {"recover": 2}], ids=["fast", "recovered"])
def test_prune_and_eval_say_the_same(text: str, options: dict[str, Any]):
    """Fails where one of the two says "not measured" of what the other measures, or their numbers differ."""
    proto = model(text)
    result = prune(proto, None, {"x": X}, **OPTIONS, **options)
    assert result.model is not None
    report, told = result.report, evaluate(result.model, judging(proto), against=proto)
    assert told.figures is not None
    others = told.figures.as_dicts()
    assert figures(report.outputs) == figures(others)
    assert [f["value"] for f in report.outputs] == pytest.approx([f["value"] for f in others], rel=1e-5)
    assert (report.output_error, report.error["why"]) == (
        pytest.approx(told.output_error, rel=1e-5) if told.output_error is not None else None,
        told.figures.why,
    )
    assert (report.output_error is None) == (text == CUT)
    a, b = (Session(m).run(judging(proto))["count"] for m in (result.model, proto))
    assert next(f["value"] for f in others if f["kind"].startswith("share")) == np.mean(a != b)


def test_what_went_is_not_compared():
    """Fails where a tensor that lost channels stands for an output in `evaluate`: its shape is another one."""
    proto = model(BESIDE)
    result = prune(proto, None, {"x": X}, fast=True, **OPTIONS)
    assert result.model is not None
    told = evaluate(result.model, {"x": X}, against=proto).figures
    assert told is not None
    assert not any(f.why for f in told.each)
    assert [f.outputs for f in told.each if f.at] == []


def test_the_refits_of_what_counts_are_compared():
    """Fails where candidates are chosen without a number: what is told by them is only known then."""
    result = prune(model(KEPT), None, {"x": X}, recover=2, **OPTIONS)
    errors = result.report.checks["held_out_error"]
    assert len(errors) > 1
    assert all(e > 0.0 for e in errors.values())
    assert result.report.checks["recovery"]["before"] > 0.0
    assert result.report.output_error == pytest.approx(errors[result.report.checks["refit"]], rel=1e-5)
