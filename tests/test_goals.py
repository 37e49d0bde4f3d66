"""Outputs that no discrepancy can be measured on are refused before any work."""

from __future__ import annotations

import onnx
import pytest

from onnxprune import prune
from onnxprune.errors import UsageError
from tests import digits


def _of_all_samples() -> onnx.ModelProto:
    """The digits network with the mean of its logits over the samples as its only output."""
    model = onnx.load(digits.path("resnet"))
    logits = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("ReduceMean", [logits], ["answer"], axes=[0]))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("answer", onnx.TensorProto.FLOAT, [1, 10]))
    return model


@pytest.mark.parametrize("options", [{"method": "local"}, {"method": "taylor"}, {"tolerance": 0.1}], ids=str)
def test_no_output_to_measure(options: dict[str, object]):
    with pytest.raises(UsageError, match="no output in floating point has rows for every sample"):
        prune(_of_all_samples(), None, digits.CALIB, samples=16, **options)


def test_other_methods_do_without():
    assert prune(_of_all_samples(), None, digits.CALIB, samples=16, ratio=0.3).report.achieved >= 0.3
