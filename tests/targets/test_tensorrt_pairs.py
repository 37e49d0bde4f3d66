"""Pairs of quantizers, where TensorRT wants them and where not."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from onnxprune.targets.tensorrt_pairs import warnings

HEAD = """<ir_version: 9, opset_import: ["": 18]>
g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
<float[2, 2, 1, 1] w = {1, 2, 3, 4}, float s = {0.1}, float[2] t = {0.1, 0.2}, float[2] one = {1, 1}>
{ %s }"""
DATA = "xq = QuantizeLinear(x, s) xd = DequantizeLinear(xq, s) "
WEIGHT = "wq = QuantizeLinear<axis = 0>(w, t) wd = DequantizeLinear<axis = 0>(wq, t) "


def found(text: str) -> list[str]:
    return warnings(onnx.parser.parse_model(HEAD % text))


GOOD = {
    "float": "y = Conv(x, w)",
    "a layer": DATA + WEIGHT + "y = Conv(xd, wd)",
    "a sum with a pair on its branch": DATA + WEIGHT + "c = Conv(xd, wd) y = Add(c, xd)",
    "an activation right behind": DATA + WEIGHT + "c = Conv(xd, wd) y = Relu(c)",
    "a pair behind the activation": DATA
    + WEIGHT
    + "c = Conv(xd, wd) r = Relu(c) rq = QuantizeLinear(r, s) rd = DequantizeLinear(rq, s) y = Conv(rd, wd)",
}
BAD = {
    "as its weights come from no DequantizeLinear": DATA + "[c] y = Conv(xd, w)",
    "as its data come from no DequantizeLinear": WEIGHT + "[c] y = Conv(x, wd)",
    "a scale for each channel": "xq = QuantizeLinear<axis = 1>(x, t) xd = DequantizeLinear<axis = 1>(xq, t) "
    + WEIGHT
    + "[c] y = Conv(xd, wd)",
    "not those of its output channels": DATA + WEIGHT.replace("axis = 0", "axis = 1") + "[c] y = Conv(xd, wd)",
    "keeps them from being fused": DATA
    + WEIGHT
    + "[c] a = Conv(xd, wd) aq = QuantizeLinear(a, s) ad = DequantizeLinear(aq, s) y = Relu(ad)",
    "a pair on the branch": DATA + WEIGHT + "k = Conv(xd, wd) b = Relu(x) [c] y = Add(k, b)",
}


@pytest.mark.parametrize("case", GOOD)
def test_nothing_is_said_of_what_stands_right(case: str):
    assert found(GOOD[case]) == []


@pytest.mark.parametrize("why", BAD)
def test_what_stands_wrong_is_told_with_its_node(why: str):
    (said,) = found(BAD[why])
    assert why in said
    assert said.startswith("TensorRT (by its documentation): c: ")
