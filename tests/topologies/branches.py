"""Residual branches that may go as a whole, and some that look like it and may not."""

from __future__ import annotations

from collections.abc import Mapping

from tests.topologies.text import Topology

_BOTTLENECK = """(float[N,3,8,8] x) => (float[N,5] y) {
    s = Conv (x, w0[6,3,1,1], b0[6])
    a = Conv (s, w1[4,6,1,1], b1[4])
    ar = Relu(a)
    b = Conv <pads=[1,1,1,1]> (ar, w2[7,4,3,3], b2[7])
    br = Relu(b)
    c = Conv (br, w3[6,7,1,1], b3[6])
    JOIN
    p = GlobalAveragePool(t)
    f = Flatten(p)
    y = Gemm <transB=1> (f, w4[5,6], b4[5])
}"""

ROWS: Mapping[str, Topology] = {
    "bottleneck": Topology(_BOTTLENECK.replace("JOIN", "t = Add(c, s)"), (7, 6, 4)),
    "branch_subtracted": Topology(_BOTTLENECK.replace("JOIN", "r = Relu(c)\n t = Sub(s, r)"), (7, 6, 4)),
    "branch_through_a_norm": Topology(
        _BOTTLENECK.replace(
            "JOIN",
            "n = BatchNormalization(c, g[6], h[6], m[6], var_v[6])\n k = Clip(n, lo{:-0.4}, hi{:0.5})\n"
            " q = Mul(k, scale[6,1,1])\n t = Add(s, q)",
        ),
        (7, 6, 4),
    ),
    "branch_read_twice": Topology(
        # The branch is also read by a convolution of its own: neither of the two can be left without it.
        _BOTTLENECK.replace("JOIN", "u = Add(s, c)\n d = Conv (c, w5[6,6,1,1], b5[6])\n t = Add(u, d)"),
        (7, 6, 4),
    ),
    "branch_behind_a_sum": Topology(
        # Both readers of the hidden channels are left with their bias, and both join the stream.
        _BOTTLENECK.replace("JOIN", "d = Conv (br, w5[6,7,1,1], b5[6])\n u = Add(s, c)\n t = Add(u, d)"),
        (7, 6, 4),
    ),
    "branch_of_the_answer": Topology(
        # What the graph returns would be the same for every input.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            r = Relu(a)
            c = Conv (r, w2[5,8,1,1], b2[5])
            y = Sigmoid(c)
        }""",
        (8,),
    ),
    "two_branches_and_no_stream": Topology(
        # Either may go. Without both nothing is left of the sum but a constant.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            ar = Relu(a)
            b = Conv (ar, w2[6,8,1,1], b2[6])
            c = Conv (x, w3[7,3,1,1], b3[7])
            cr = Relu(c)
            d = Conv (cr, w4[6,7,1,1], b4[6])
            s = Add(b, d)
            y = Conv (s, w5[5,6,1,1], b5[5])
        }""",
        (8, 7, 6),
    ),
    "inverted_residual": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            s = Conv (x, w0[6,3,1,1], b0[6])
            a = Conv (s, w1[9,6,1,1], b1[9])
            ar = Relu(a)
            b = Conv <group=9, pads=[1,1,1,1]> (ar, w2[9,1,3,3], b2[9])
            br = Relu(b)
            c = Conv (br, w3[6,9,1,1])
            t = Add(s, c)
            y = Conv (t, w4[5,6,1,1], b4[5])
        }""",
        (9, 6),
    ),
    "grouped_branch": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            s = Conv (x, w0[6,3,1,1], b0[6])
            a = Conv (s, w1[8,6,1,1], b1[8])
            ar = Relu(a)
            b = Conv <group=2> (ar, w2[6,4,1,1], b2[6])
            t = Add(s, b)
            y = Conv (t, w4[5,6,1,1], b4[5])
        }""",
        (8, 6),
    ),
    "transformer": Topology(
        # Attention and a perceptron; the value heads carry those of queries and keys, and no product has a bias.
        """(float[N,L,6] x) => (float[N,L,5] y) {
            s = MatMul(x, w0[6,8])
            q = MatMul(s, wq[8,8])
            k = MatMul(s, wk[8,8])
            v = MatMul(s, wv[8,8])
            qr = Reshape(q, heads{0,0,4,2})
            kr = Reshape(k, heads)
            vr = Reshape(v, heads)
            qt = Transpose <perm=[0,2,1,3]> (qr)
            kt = Transpose <perm=[0,2,3,1]> (kr)
            vt = Transpose <perm=[0,2,1,3]> (vr)
            z = MatMul(qt, kt)
            p = Softmax <axis=-1> (z)
            o = MatMul(p, vt)
            ot = Transpose <perm=[0,2,1,3]> (o)
            oj = Reshape(ot, joined{0,0,-1})
            a = MatMul(oj, wo[8,8])
            t = Add(s, a)
            h = MatMul(t, w1[8,9])
            hb = Add(h, b1[9])
            g = Gelu(hb)
            d = MatMul(g, w2[9,8])
            db = Add(d, b2[8])
            u = Add(t, db)
            y = MatMul(u, w3[8,5])
        }""",
        (9, 8, 4),
        opset=20,
    ),
    "channels_last_branch": Topology(
        # As in a ConvNeXt: the branch is scaled and transposed before it joins.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            s = Conv (x, w0[6,3,1,1], b0[6])
            a = Transpose <perm=[0,2,3,1]> (s)
            h = MatMul(a, w1[6,9])
            hb = Add(h, b1[9])
            r = Relu(hb)
            d = MatMul(r, w2[9,6])
            db = Add(d, b2[6])
            e = Mul(db, gamma[6])
            f = Transpose <perm=[0,3,1,2]> (e)
            t = Add(f, s)
            y = Conv (t, w4[5,6,1,1], b4[5])
        }""",
        (9, 6),
    ),
    "branch_behind_a_root_mean_square": Topology(
        # A norm of what the block gives, written out, as some language models have before they add it to the stream.
        """(float[N,L,6] x) => (float[N,L,4] y) {
            s = MatMul (x, w0[6,8])
            u = MatMul (s, w1[8,10])
            h = Relu(u)
            d = MatMul (h, w2[10,8])
            b = Add(d, b2[8])
            q = Pow(b, two{:2.0})
            m = ReduceMean <keepdims=1> (q, last{-1})
            e = Add(m, small{:0.001})
            r = Sqrt(e)
            n = Div(b, r)
            g = Mul(n, gain[8])
            t = Add(s, g)
            y = MatMul (t, w3[8,4])
        }""",
        (10, 8),
        mixing=(8,),
        opset=21,
    ),
    "branch_reshaped": Topology(
        # A constant that is reshaped to the size of the stream would not be one number per channel.
        """(float[N,3,4,4] x) => (float[N,5,4,4] y) {
            s = Conv (x, w0[6,3,1,1], b0[6])
            a = Conv (s, w1[8,6,1,1], b1[8])
            r = Relu(a)
            b = Conv (r, w2[6,8,1,1], b2[6])
            c = Reshape(b, rows{0,0,16})
            d = Reshape(c, back{0,0,4,4})
            t = Add(s, d)
            y = Conv (t, w4[5,6,1,1], b4[5])
        }""",
        (8, 6),
    ),
    "branch_with_a_group_norm": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            s = Conv (x, w0[6,3,1,1], b0[6])
            a = Conv (s, w1[8,6,1,1], b1[8])
            n = GroupNormalization <num_groups=2> (a, g[8], h[8])
            r = Relu(n)
            b = Conv (r, w2[6,8,1,1], b2[6])
            t = Add(s, b)
            y = Conv (t, w4[5,6,1,1], b4[5])
        }""",
        (8, 6),
        mixing=(8,),
        opset=21,
    ),
    "branch_of_a_large_gemm_bias": Topology(
        # A bias with a row for each sample is no constant per channel.
        """(float[3,6] x) => (float[3,5] y) {
            s = Gemm (x, w0[6,8], b0[8])
            a = Gemm (s, w1[8,7], b1[7])
            r = Relu(a)
            b = Gemm (r, w2[7,8], b2[3,8])
            t = Add(s, b)
            y = Gemm (t, w3[8,5], b3[5])
        }""",
        (8, 7),
        ("meets axis 0 of 'b'",),
    ),
}
