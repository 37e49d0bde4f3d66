"""Inputs without a shape: the data, or what runs, say how many axes they have; the result declares none either."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import evaluate, inspect, prune
from onnxprune.benchmark.measure import feeds_for
from onnxprune.intake import ranks
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.topologies.text import Topology

ROWS = {
    "rows": (
        Topology(
            """(float[N,6] x) => (float[N,3] y) {
                a = MatMul(x, w1[6,16])  b = Relu(a)  y = MatMul(b, w2[16,3])
            }""",
            (8,),
        ),
        2,
    ),
    "images": (
        Topology(
            """(float[N,3,8,8] x) => (float[N,3,4,4] y) {
                a = Conv(x, w1[16,3,3,3])  b = Relu(a)  y = Conv(b, w2[3,16,3,3])
            }""",
            (8,),
        ),
        4,
    ),
}


def without_shape(name: str) -> onnx.ModelProto:
    proto = ROWS[name][0].model()
    for v in (*proto.graph.input, *proto.graph.output):
        v.type.tensor_type.ClearField("shape")
    return proto


@pytest.mark.parametrize("name", ROWS)
def test_such_a_model_is_pruned_and_declared_as_it_was(name: str):
    """Fails where the input is taken for a scalar, or the result has sizes that the file did not have."""
    proto, row = without_shape(name), ROWS[name][0]
    result = prune(proto, None, row.feeds(64), ratio=0.3, round_to=1, fast=True)
    assert result.model is not None and result.report.calibration["samples"] == 64
    assert ranks.without_shape(result.model) == ("x",)
    first = prune(row.model(), None, row.feeds(64), ratio=0.3, round_to=1, fast=True)
    assert first.model is not None
    y, same = (Session(m).run(row.feeds(5))["y"] for m in (result.model, first.model))
    assert_same(y, same, rtol=1e-5, atol=1e-6)
    judged = evaluate(result.model, row.feeds(8), against=proto)
    assert judged.output_error is not None
    (feeds,) = feeds_for([proto], None, 2, {}).arrays.values()
    assert feeds.ndim == ROWS[name][1]


@pytest.mark.parametrize("name", ROWS)
def test_without_data_what_runs_tells(name: str):
    """Fails where inspect needs data to say how many axes an input has."""
    assert [g.units for g in inspect(without_shape(name)).groups] == [16]


def test_what_can_be_read_once_is_not_used_up():
    """Fails where batches of a program are gone before the samples are read."""
    rng = np.random.default_rng(0)

    def batches() -> Iterator[dict[str, Any]]:
        yield from ({"x": rng.standard_normal((16, 6)).astype(np.float32)} for _ in range(2))

    result = prune(without_shape("rows"), None, batches(), ratio=0.3, round_to=1, fast=True)
    assert result.report.calibration["samples"] == 32


def test_a_model_with_shapes_is_the_same():
    proto = ROWS["rows"][0].model()
    assert ranks.declared(proto) is proto and ranks.put_back(proto, ()) is proto
