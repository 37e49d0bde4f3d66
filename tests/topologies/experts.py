"""Mixtures of experts, whose inner units go expert by expert, equally many of each."""

from __future__ import annotations

from collections.abc import Mapping

from tests.topologies.text import Topology

_CHOSEN = "Softmax compares"

ROWS: Mapping[str, Topology] = {
    "experts": Topology(
        """(float[N,6] x) => (float[N,5] y) {
            a = MatMul (x, w1[6,12])
            r = MatMul (a, w2[12,4])
            m = com.microsoft.MoE <k=2, normalize_routing_weights=1> (a, r, u[4,8,12], b[4,8], v[4,12,8], c[4,12])
            s = Add (a, m)
            y = MatMul (s, w3[12,5])
        }""",
        (32, 12),
        (_CHOSEN, "which carries no channels"),
        domains=("com.microsoft",),
    ),
    "experts_in_sequences": Topology(
        # The halves of a gate lie in turns: a unit is one of each.
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul (x, w1[6,12])
            t = MatMul (a, w2[12,3])
            r = Reshape (t, i{-1,3})
            m = com.microsoft.MoE <activation_type="swiglu", swiglu_fusion=1> (a, r, u[3,10,12], , v[3,12,5])
            s = Add (a, m)
            y = MatMul (s, w3[12,5])
        }""",
        (15, 12),
        (_CHOSEN,),
        domains=("com.microsoft",),
        opset=21,
    ),
}
