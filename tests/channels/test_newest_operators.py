"""Operators that are too new, or too old, for the table of topologies: onnxruntime does not run them, or the checker
refuses them. Cut and oracle are compared by the reference evaluator of onnx instead, where it has the operator."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx.reference
import pytest

from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.prepared import Array, masked, prepare, random_keep, sliced
from tests.topologies.text import Topology

_SWIGLU = Topology(
    """(float[2,4,6] x) => (float[2,4,5] y) {
        a = MatMul(x, w1[6,8])
        b = MatMul(x, w2[6,8])
        m = SwiGLU <alpha=1.2> (a, b)
        y = MatMul(m, w3[8,5])
    }""",
    (8,),
    opset=28,
    ir_version=13,
)
_CAUSAL = Topology(
    """(float[2,3,6] x) => (float[2,5,6] y, float[2,4,2] z) {
        a = Conv (x, w1[8,3,1], b1[8])
        m, s = CausalConvWithState <activation="silu"> (a, w2[8,1,3], b2[8])
        y = Conv (m, w3[5,8,1])
        z = Conv (s, w4[4,8,1])
    }""",
    (8,),
    opset=27,
    ir_version=13,
)
_CAUSAL_STATE = Topology(
    # The caller keeps the state: its channels stay.
    """(float[2,3,6] x, float[2,8,2] past) => (float[2,5,6] y, float[2,8,2] s) {
        a = Conv (x, w1[8,3,1], b1[8])
        m, s = CausalConvWithState(a, w2[8,1,3], b2[8], past)
        y = Conv (m, w3[5,8,1])
    }""",
    (),
    opset=27,
    ir_version=13,
)
_LINEAR = Topology(
    # Four query heads share two states; the decay is one number per head.
    """(float[2,4,6] x) => (float[2,4,5] y) {
        q = MatMul(x, wq[6,16])
        k = MatMul(x, wk[6,8])
        v = MatMul(x, wv[6,12])
        g = MatMul(x, wg[6,2])
        d = Sigmoid(g)
        o, s = LinearAttention <q_num_heads=4, kv_num_heads=2, update_rule="gated"> (q, k, v, "", d)
        y = MatMul(o, wo[24,5])
    }""",
    (2,),
    opset=27,
    ir_version=13,
)
_GROUP_NORM = """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
    a = Conv (x, w1[8,3,1,1], b1[8])
    n = GroupNormalization <num_groups=GROUPS, epsilon=0.001> (a, s1[GROUPS], o1[GROUPS])
    y = Conv (n, w2[5,8,1,1], b2[5])
}"""
_OLD = {
    "two": Topology(_GROUP_NORM.replace("GROUPS", "2"), (), mixing=(8,)),
    "four": Topology(_GROUP_NORM.replace("GROUPS", "4"), (4,)),
}
_NEW = {"SwiGLU": _SWIGLU, "CausalConvWithState": _CAUSAL, "state": _CAUSAL_STATE, "LinearAttention": _LINEAR}


def _units(row: Topology) -> tuple[int, ...]:
    return tuple(g.size for g in prepare(row.model(), row.feeds(2)).channels.groups)


@pytest.mark.parametrize("name", _NEW)
def test_groups_are_those_expected(name: str):
    """Fails where channels are coupled that need not be, or freed that must stay."""
    assert _units(_NEW[name]) == _NEW[name].units


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [n for n in _NEW if _NEW[n].units])
def test_cut_equals_the_oracle_in_the_reference_evaluator(name: str, seed: int):
    """Fails where a size, a head count or a per-channel weight was not cut with the rest."""
    row = _NEW[name]
    feeds = row.feeds(2, seed)
    p = prepare(row.model(), feeds)
    keep = random_keep(p.channels, seed, shares=(0.5,))
    small = sliced(p, keep)

    def run(model: onnx.ModelProto) -> Mapping[str, Array]:
        names = [o.name for o in model.graph.output]
        return dict(zip(names, onnx.reference.ReferenceEvaluator(model).run(None, dict(feeds)), strict=True))

    before, expected, found = run(p.original), run(masked(p, keep)), run(small)
    for output, value in found.items():
        assert_same(value, expected[output], rtol=1e-4, atol=0.0)
        assert not np.allclose(value, before[output], rtol=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", _OLD)
def test_group_normalization_with_a_scale_per_group(name: str, seed: int):
    """Opset 18 has one scale per group; the checker calls that deprecated, onnxruntime runs it."""
    row = _OLD[name]
    p = prepare(row.model(), row.feeds(2))
    assert tuple(g.size for g in p.channels.groups) == (*row.units, *row.mixing)
    keep = random_keep(p.channels, seed)
    session, reference = Session(sliced(p, keep)), Session(masked(p, keep))
    feeds = row.feeds(3, seed)
    expected = reference.run(feeds)
    for output, value in session.run(feeds).items():
        assert_same(value, expected[output], rtol=1e-4, atol=0.0)
