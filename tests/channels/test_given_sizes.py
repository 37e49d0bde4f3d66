"""Sizes that are given from outside: an axis of one position, or a target, that has another size with other inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.prepared import Prepared, masked, prepare, random_keep, sliced
from tests.topologies.text import Topology

ENDS = """
    a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3])
    b = Relu(a)
    %s
    d = Conv <pads=[1,1,1,1]> (c, w2[6,8,3,3])
    e = Relu(d)
    y = Conv(e, w3[4,6,1,1])"""
# By kind: the other input, the nodes that read it, its calibrated and its other value.
KINDS: Mapping[str, tuple[str, str, Array, Array]] = {
    "gate": ("float[N,K,1,1] g", "c = Mul(b, g)", np.ones((1, 1, 1, 1), np.float32), np.ones((1, 8, 1, 1), np.float32)),
    "gate_behind_a_sigmoid": (
        "float[K,1,1] g",
        "s = Sigmoid(g) c = Mul(s, b)",
        np.ones((1, 1, 1), np.float32),
        np.ones((8, 1, 1), np.float32),
    ),
    "choice": ("bool[N,K,1,1] g", "c = Where(g, b, a)", np.ones((1, 1, 1, 1), bool), np.ones((1, 8, 1, 1), bool)),
    "expand": ("int64[4] g", "c = Expand(b, g)", np.array([1, 1, 1, 1]), np.array([1, 8, 1, 1])),
    "repeats": (
        "int64[4] g",
        "p = Tile(b, g) c = Slice(p, from{0}, end{8}, along{1})",
        np.ones(4, np.int64),
        np.array([1, 2, 1, 1]),
    ),
}


def _prepared(kind: str) -> tuple[Prepared, list[dict[str, Array]]]:
    declared, nodes, calibrated, other = KINDS[kind]
    row = Topology(f"(float[N,3,H,W] x, {declared}) => (float[N,4,H,W] y) {{ {ENDS % nodes} }}", ())
    x = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)
    return prepare(row.model(), {"x": x, "g": calibrated}), [{"x": x, "g": g} for g in (calibrated, other)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_that_others_give_pins_what_it_meets(kind: str):
    """Fails where channels are cut that another value of the second input meets in full."""
    p, runs = _prepared(kind)
    assert [g.size for g in p.channels.groups] == [6], "only what lies behind the meeting may go"
    keep = random_keep(p.channels, 0)
    cut, oracle, original = Session(sliced(p, keep)), Session(masked(p, keep)), Session(p.original)
    for feeds in runs:
        assert original.run(feeds)["y"].shape == (1, 4, 6, 6)
        assert_same(cut.run(feeds)["y"], oracle.run(feeds)["y"], rtol=1e-5, atol=1e-5)


def test_a_single_position_by_declaration_meets_any_channels():
    """Fails where every axis of one position pins what it meets."""
    row = Topology(f"(float[N,3,H,W] x, float[N,1,1,1] g) => (float[N,4,H,W] y) {{ {ENDS % 'c = Mul(b, g)'} }}", ())
    p = prepare(row.model(), {"x": np.ones((1, 3, 6, 6), np.float32), "g": np.ones((1, 1, 1, 1), np.float32)})
    assert sorted(g.size for g in p.channels.groups) == [6, 8]


def test_a_target_that_sizes_make_meets_any_channels():
    """Fails where a target that only follows the size of the batch pins channels."""
    nodes = (
        "n = Shape <start=0, end=1> (x) t = Concat <axis=0> (n, rest{8,1,1}) s = GlobalAveragePool(b) c = Expand(s, t)"
    )
    row = Topology(f"(float[N,3,H,W] x) => (float[N,4,A,B] y) {{ {ENDS % nodes} }}", ())
    p = prepare(row.model(), {"x": np.ones((1, 3, 6, 6), np.float32)})
    assert sorted(g.size for g in p.channels.groups) == [6, 8]
