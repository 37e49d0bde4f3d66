"""A model without the rounding of its activations: the same scales and saturation, no steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.errors import CheckFailed
from onnxprune.graph.unrounded import is_quantized, without_rounding
from onnxprune.runtime.session import Session
from onnxprune.surgery import replace_initializers
from onnxprune.verification import checks
from tests import digits
from tests.compare import assert_same
from tests.graphs import TABLE
from tests.prepared import Prepared, masked, prepare, random_keep, sliced
from tests.topologies.text import Topology

Lookup = Callable[[str], Prepared]

PAIR = """(float[N,3,4] x) => (float[N,3,4] y) {
    q = QuantizeLinear <axis=1> (x, var_s[3], z)
    t = Transpose <perm=[0,2,1]> (q)
    y0 = DequantizeLinear <axis=2> (t, var_s, z)
    y = Transpose <perm=[0,2,1]> (y0)
}"""


def _pair(zero: tuple[int, ...]) -> Topology:
    from onnx import ModelProto, numpy_helper

    def add(model: ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(zero, np.uint8), "z"))

    return Topology(PAIR, (), edit=add)


def test_it_is_the_formula():
    """Fails where a scale or zero point meets another axis, or the saturation of a side is lost."""
    row = _pair((0, 128, 250))
    model = row.model()
    scale = digits.values(model, "var_s").reshape(3, 1)
    zero = np.array([0, 128, 250]).reshape(3, 1)
    x = (40 * np.random.default_rng(0).standard_normal((2, 3, 4))).astype(np.float32)
    expected = (np.clip(x / scale + zero, 0, 255) - zero) * scale
    assert (expected != x).any()
    found = Session(without_rounding(model), optimize=False).run({"x": x})["y"]
    assert_same(found, expected.astype(np.float32), rtol=1e-6, atol=0.0)
    rounded = Session(model, optimize=False).run({"x": x})["y"]
    assert (np.abs(found - rounded) <= 0.5001 * scale).all()
    assert np.abs(found - rounded).max() > 0.1 * float(scale.min())


@pytest.mark.parametrize("name", ["plain", "quantized_weights_only", "quantized_float_weights"])
def test_weights_keep_their_rounding(name: str, prepared: Lookup):
    """Fails where the check would look at other weights than those that are stored."""
    proto = prepared(name).normalised.proto
    left = [n for n in without_rounding(proto).graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    weights = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.output[0].startswith(("w", "b"))]
    assert len([n for n in left if n.op_type == "DequantizeLinear"]) == len(weights)
    assert is_quantized(proto) == (name != "plain")


def test_codes_that_something_else_reads_stay(prepared: Lookup):
    """Fails where an integer kernel would be handed real numbers."""
    proto = prepared("codes_as_numbers").normalised.proto
    assert [n.op_type for n in without_rounding(proto).graph.node] == [n.op_type for n in proto.graph.node]


def test_a_quantized_slice_is_exact_and_a_wrong_code_is_found(prepared: Lookup):
    """The mutation check: one code of one weight is beyond the tolerance."""
    p = prepared("quantized")
    keep = random_keep(p.channels, 0)
    cut, oracle = sliced(p, keep), masked(p, keep)
    found = checks.exactness(p.original, p.normalised.proto, cut, oracle, p.example)
    assert found.normalised <= 1e-6
    assert found.slice <= 1e-6
    for name in ("w3_codes", "w3_scale", "b3_codes", "b3_scale"):
        w = digits.values(cut, name).copy()
        at = np.abs(w.astype(np.float64)).argmax()
        w.flat[at] = 0.98 * w.flat[at] if w.dtype.kind == "f" or w.itemsize > 1 else w.flat[at] - np.sign(w.flat[at])
        with pytest.raises(CheckFailed, match="the sliced model differs from the masked original"):
            checks.exactness(p.original, p.normalised.proto, replace_initializers(cut, {name: w}), oracle, p.example)


def test_one_scale_for_a_single_channel_is_the_same_on_both_sides():
    """Fails where a scale that is cut to one entry is read as that of the tensor on one side only."""
    row = TABLE["quantized_by_channel"]
    p = prepare(row.model(), row.feeds(2))
    keep = np.ones(p.channels.classes.pinned.size, bool)
    keep[p.channels.groups[0].units[1:]] = False
    cut, oracle = sliced(p, keep), masked(p, keep)
    assert checks.exactness(p.original, p.normalised.proto, cut, oracle, p.example).slice <= 1e-6
