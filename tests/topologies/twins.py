"""Three layers in a row, of which two have equally many units."""

from __future__ import annotations

from tests.topologies.text import Topology

TWINS = Topology(
    """(float[N,6] x) => (float[N,4] y) {
        a = MatMul(x, w1[6,16])
        b = Relu(a)
        c = MatMul(b, w2[16,16])
        d = Relu(c)
        e = MatMul(d, w3[16,8])
        f = Relu(e)
        y = MatMul(f, w4[8,4])
    }""",
    (16, 16, 8),
)
