"""Recurrent nets where the table of topologies cannot say it: another layout, states, and labels that start finer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from onnxprune.channels.trace import RuleError, Trace
from onnxprune.graph import protobuf
from onnxprune.graph.view import Graph
from tests.compare import assert_same
from tests.installed import needs_reference
from tests.prepared import Prepared, masked, prepare, random_keep, sliced
from tests.topologies.text import Topology

Lookup = Callable[[str], Prepared]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("state", ["s", "h", "c"])
def test_batch_first(state: str, seed: int):
    """Fails where layout 1 moves the axes of X, Y or a state elsewhere; onnxruntime does not run it, onnx does."""
    read = {
        "s": "t = Identity(s)\n f = Flatten <axis=2> (t)\n y = MatMul(f, w2[12,5])",
        "h": "t = Identity(h)\n f = Flatten(t)\n y = Gemm(f, w2[12,5], b2[5])",
        "c": "t = Identity(c)\n f = Flatten(t)\n y = Gemm(f, w2[12,5], b2[5])",
    }[state]
    row = Topology(
        f"""(float[N,5,3] x) => (float[M,5] y) {{
            e = MatMul(x, w0[3,4])
            s, h, c = LSTM <hidden_size=6, direction="bidirectional", layout=1>
                (e, w1[2,24,4], r1[2,24,6], b1[2,48], , h0[2,2,6], c0[2,2,6], p1[2,18])
            {read}
        }}""",
        (),
    )
    feeds = row.feeds(2, seed)
    needs_reference(row.model(), feeds)
    p = prepare(row.model(), feeds)
    assert sorted(g.size for g in p.channels.groups) == [4, 12]
    keep = random_keep(p.channels, seed)
    small, oracle = sliced(p, keep), masked(p, keep)
    protobuf.check(small)
    (found,), (expected,) = (ReferenceEvaluator(model).run(None, feeds) for model in (small, oracle))
    assert_same(found, expected, rtol=1e-4, atol=0.0)


def test_zero_states_are_left_out(prepared: Lookup):
    """Fails where the zeros that two layers start from couple their hidden units, or other states go too."""
    nodes = prepared("lstm_zero_states").normalised.proto.graph.node
    assert [len(n.input) for n in nodes if n.op_type in ("LSTM", "GRU")] == [4, 4]
    assert "ConstantOfShape" not in {n.op_type for n in nodes}
    for name in ("lstm_learned_states", "lstm_constant_state", "lstm_state_from_outside"):
        (node,) = (n for n in prepared(name).normalised.proto.graph.node if n.op_type == "LSTM")
        assert node.input[5]


def test_every_direction_keeps_a_unit(prepared: Lookup):
    """Fails where all units of one direction may go as long as the other direction has some left."""
    p = prepared("lstm_bidirectional")
    (group,) = (g for g in p.channels.groups if g.rows is not None)
    assert np.bincount(group.rows).tolist() == [6, 6]
    keep = np.ones(p.channels.classes.pinned.size, bool)
    keep[group.units[group.rows == 0]] = False
    with pytest.raises(ValueError, match="different numbers"):
        sliced(p, keep)


def _trace() -> Trace:
    constants = {"w": np.ones((2, 6, 3), np.float32)}
    return Trace(Graph((), constants, ("x",), (), {"x": (2, 6, 3)}, 18))


def test_only_the_first_to_ask_refines():
    """Fails where labels that an operator has already seen are replaced."""
    t = _trace()
    units = t.labels.fresh(12).reshape(2, 6, 1)
    assert t.refine("w", (units,))
    assert [f.shape for f in t.of("w")] == [(2, 6, 1)]
    assert not t.refine("w", (units,))
    assert not t.refine("x", (units,))
    asked = _trace()
    assert [f.shape for f in asked.of("w")] == [(2, 1, 1), (1, 6, 1), (1, 1, 3)]
    assert not asked.refine("w", (asked.labels.fresh(12).reshape(2, 6, 1),))


def test_refining_must_fit():
    """Fails where a rule can start a weight with labels of another shape."""
    t = _trace()
    for shape in ((3, 6, 1), (2, 6), (2, 12, 1)):
        with pytest.raises(RuleError, match="do not fit 'w'"):
            t.refine("w", (t.labels.fresh(int(np.prod(shape))).reshape(shape),))
