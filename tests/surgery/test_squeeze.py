"""Squeeze without axes: what it takes from a single sample, and from channels of which one is left."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune import pipeline
from onnxprune.data.inputs import input_specs
from onnxprune.data.sources import given
from onnxprune.errors import NothingPrunable
from onnxprune.runtime.outputs import outputs_of
from onnxprune.runtime.session import Session
from tests.topologies.text import Topology

POOLED = """(float[N,3,H,W] x) => (float[A,B] y) {
    a = Conv (x, w1[8,3,1,1], b1[8])
    p = GlobalAveragePool(a)
    s = Squeeze(p)
    y = MatMul (s, w2[8,5])
}"""


def _masked(proto: onnx.ModelProto, kept: tuple[int, ...]) -> onnx.ModelProto:
    """The model without what other channels add to the product."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for t in result.graph.initializer:
        if t.name == "w2":
            w = onnx.numpy_helper.to_array(t).copy()
            w[np.setdiff1d(np.arange(8), kept)] = 0
            t.CopyFrom(onnx.numpy_helper.from_array(w, t.name))
    return result


@pytest.mark.parametrize("samples", [7, 33])
@pytest.mark.parametrize(("opset", "ir"), [(11, 6), (13, 7), (17, 8)])
@pytest.mark.parametrize("left", [1, 4])
def test_every_batch_is_squeezed_as_before(left: int, opset: int, ir: int, samples: int):
    """Fails where a batch of one keeps its axis, loses the channels', or stops the calibration."""
    model = Topology(POOLED, (8,), opset=opset, ir_version=ir).model()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 3, 4, 4)).astype(np.float32)
    result = pipeline.prune(model, None, {"x": x}, uniform=1 - left / 8, round_to=1, refit="none")
    assert result.model is not None
    assert result.report.output_error is not None
    (group,) = result.plan.groups
    assert len(group.kept) == left
    expected, found = Session(_masked(model, group.kept)), Session(result.model)
    for shape in ((1, 3, 4, 4), (2, 3, 4, 4), (3, 3, 5, 7), (1, 3, 1, 1)):
        feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
        np.testing.assert_allclose(found.run(feeds)["y"], expected.run(feeds)["y"], rtol=1e-4, atol=1e-5)


def test_a_rank_that_the_inputs_decide_pins():
    """Fails where an axis that is 1 in the samples alone is taken for one that always goes."""
    row = Topology(
        """(float[N,3,H,W] x) => (float[N,A] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            m = ReduceMean (a, three{3})
            s = Squeeze(m)
            y = ReduceSum <keepdims=0> (s, one{1})
        }""",
        (8,),
    )
    x = np.random.default_rng(0).standard_normal((16, 3, 1, 6)).astype(np.float32)
    with pytest.raises(NothingPrunable, match="Squeeze without axes"):
        pipeline.prune(row.model(), None, {"x": x}, ratio=0.3, recover=0)


def test_no_sample_is_left_over_alone():
    """Fails where the last batch has one sample, whose outputs have another rank and join no others."""
    model = Topology(POOLED, (8,)).model()
    x = np.random.default_rng(0).standard_normal((33, 3, 4, 4)).astype(np.float32)
    samples = given({"x": x}, input_specs(model))
    assert outputs_of(model, samples)["y"].shape == (33, 5)
