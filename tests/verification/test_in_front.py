"""Outputs whose rows rounding decides are compared in front of what makes the rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune.errors import CheckFailed
from onnxprune.graph.protobuf import copied
from onnxprune.verification import in_front
from onnxprune.verification.checks import TurnsOnRounding, exactness
from onnxprune.verification.in_front import cut_in_front
from tests.topologies.text import Topology

ROW = Topology(
    """(float[N,6] x) => (int64[2,M] rows, float[K] values, float[N,64] p) {
        a = MatMul(x, w1[6,32])
        b = Relu(a)
        p = MatMul(b, w2[32,64])
        q = MatMul(b, w3[32,64])
        r = Mul(q, three{3.0})
        m = Greater(p, r)
        rows = NonZero(m)
        t = Transpose <perm=[1,0]> (rows)
        g = GatherND(p, t)
        values = Mul(g, w4[1])
    }""",
    (32,),
)


def _nearly_equal() -> onnx.ModelProto:
    """p and r are equal but for rounding, which decides what is greater."""
    proto = copied(ROW.model())
    stored = {t.name: t for t in proto.graph.initializer}
    third = onnx.numpy_helper.to_array(stored["w2"]) / np.float32(3)
    stored["w3"].CopyFrom(onnx.numpy_helper.from_array(third, "w3"))
    return proto


def _summed_otherwise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with its channels in another order, so that other digits are rounded."""
    result = copied(proto)
    order = np.random.default_rng(0).permutation(32)
    for t in result.graph.initializer:
        axis = {"w1": 1, "w2": 0, "w3": 0}.get(t.name)
        if axis is not None:
            values = np.take(onnx.numpy_helper.to_array(t), order, axis)
            t.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), t.name))
    return result


def test_what_rounding_decides_is_compared_in_front(monkeypatch: pytest.MonkeyPatch):
    """Fails where such a model is refused, as if nothing of it could be checked."""
    proto = _nearly_equal()
    # The normalised model is the original itself, and the oracle sums in another order than the slice.
    found = exactness(proto, proto, _summed_otherwise(proto), proto, ROW.feeds(8), [ROW.feeds(3)])
    assert 0 < found.slice < 1e-5
    assert found.sizes == 2
    monkeypatch.setattr(in_front, "cut_in_front", lambda models, reference: None)
    with pytest.raises(TurnsOnRounding):
        exactness(proto, proto, _summed_otherwise(proto), proto, ROW.feeds(8))


@pytest.mark.parametrize("fault", ["in front", "weight behind", "node behind"])
def test_what_is_wrong_is_found_all_the_same(fault: str):
    """Fails where a fault passes because it lies in front, or behind where nothing is compared."""
    proto = _nearly_equal()
    wrong = copied(proto)
    stored = {t.name: t for t in wrong.graph.initializer}
    if fault == "node behind":
        wrong.graph.node[-1].op_type = "Sub"
    else:
        name = "w1" if fault == "in front" else "w4"
        off = onnx.numpy_helper.to_array(stored[name]) * np.float32(1.01)
        stored[name].CopyFrom(onnx.numpy_helper.from_array(off, name))
    assert (cut_in_front({"it": wrong}, proto) is None) == fault.endswith("behind")
    with pytest.raises(CheckFailed) as found:
        exactness(proto, proto, _summed_otherwise(wrong), proto, ROW.feeds(8))
    assert isinstance(found.value, TurnsOnRounding) or "differs" in str(found.value)
