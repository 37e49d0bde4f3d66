"""Operators of onnxruntime's own that carry a state: causal convolutions and linear attention."""

from __future__ import annotations

from collections.abc import Mapping

from tests.topologies.text import Topology

_DOMAINS = ("com.microsoft",)


def _conv(state: str, *, extra: str = "", after: str = "") -> Topology:
    text = f"""(float[N,3,L] x{extra}) => (float[N,5,L] y{after}) {{
        a = Conv (x, w1[8,3,1], b1[8])
        {state}
        y = Conv (m, w3[5,8,1])
    }}"""
    return Topology(text, (8,), opset=17, domains=_DOMAINS)


def _linear(attention: str, units: tuple[int, ...], *, decay: int = 2) -> Topology:
    """Four query heads on two states; q, k, v, the decay d and the rate r are products."""
    text = f"""(float[N,L,6] x) => (float[N,L,5] y) {{
        q = MatMul(x, wq[6,16])
        k = MatMul(x, wk[6,8])
        v = MatMul(x, wv[6,12])
        g = MatMul(x, wg[6,{decay}])
        open = Sigmoid(g)
        d = Neg(open)
        b = MatMul(x, wb[6,2])
        r = Sigmoid(b)
        {attention}
        y = MatMul(o, wo[24,5])
    }}"""
    return Topology(text, units, opset=17, domains=_DOMAINS)


_HEADS = "q_num_heads=4, kv_num_heads=2"
ROWS: Mapping[str, Topology] = {
    "causal_conv": _conv('m, s = com.microsoft.CausalConvWithState <activation="silu"> (a, w2[8,1,3], b2[8])'),
    "causal_conv_dilated": _conv("m, s = com.microsoft.CausalConvWithState <dilation=2> (a, w2[8,1,3])"),
    "causal_conv_inner_state": _conv(
        # What one of them leaves, another starts with.
        """first, s = com.microsoft.CausalConvWithState (a, w2[8,1,3], b2[8])
        m, s2 = com.microsoft.CausalConvWithState (a, w4[8,1,3], "", s)"""
    ),
    "linear_attention_gated": _linear(
        f'o, s = com.microsoft.LinearAttention <{_HEADS}, update_rule="gated"> (q, k, v, "", d)', (2,)
    ),
    "linear_attention_delta": _linear(
        # The decay is one for each position of a key.
        f'o, s = com.microsoft.LinearAttention <{_HEADS}, scale=0.2> (q, k, v, "", d, r)',
        (2,),
        decay=8,
    ),
}
