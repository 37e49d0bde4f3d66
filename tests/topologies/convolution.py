"""Convolutions: chains, branches, groups, gates."""

from __future__ import annotations

from collections.abc import Mapping

from tests.topologies.text import Topology

PLAIN = """(float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
    r = Relu(a)
    c = Conv (r, w2[6,8,3,3])
    s = Relu(c)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    y = Gemm <transB=1> (f, w3[5,6], b3[5])
}"""

ROWS: Mapping[str, Topology] = {
    "plain": Topology(PLAIN, (8, 6)),
    "residual": Topology(
        """(float[N,3,8,8] x) => (float[N,5,1,1] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            r = Relu(a)
            c = Conv <pads=[1,1,1,1]> (r, w2[6,8,3,3], b2[6])
            d = Relu(c)
            e = Conv <pads=[1,1,1,1]> (d, w3[8,6,3,3], b3[8])
            s = Add(e, r)
            t = Relu(s)
            p = GlobalAveragePool(t)
            y = Conv (p, w4[5,8,1,1], b4[5])
        }""",
        (8, 6),
    ),
    "shared_bias": Topology(
        # Exporters de-duplicate equal biases: the two convolutions are not coupled by it.
        """(float[N,3,8,8] x) => (float[N,5,4,4] y) {
            a = Conv (x, w1[8,3,3,3], b[8])
            r = Relu(a)
            c = Conv (r, w2[8,8,3,3], b)
            s = Sigmoid(c)
            y = Conv (s, w3[5,8,1,1])
        }""",
        (8, 8),
    ),
    "shared_kernel": Topology(
        # One detection head over two levels couples their channels.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y, float[N,5,4,4] z) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            r = Relu(a)
            m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
            c = Conv <pads=[1,1,1,1]> (m, w2[8,8,3,3], b2[8])
            h = Conv (r, wh[6,8,1,1], bh[6])
            i = Conv (c, wh, bh)
            hr = Relu(h)
            ir = Relu(i)
            y = Conv (hr, wo[5,6,1,1])
            z = Conv (ir, wo)
        }""",
        (8, 6),
    ),
    "kernel_square": Topology(
        # The same kernel twice in a row: its input and its output channels are one set.
        """(float[N,3,8,8] x) => (float[N,5,4,4] y) {
            a = Conv (x, w1[6,3,3,3], b1[6])
            c = Conv <pads=[1,1,1,1]> (a, w[6,6,3,3])
            d = Relu(c)
            e = Conv (d, w)
            y = Conv (e, w3[5,6,1,1])
        }""",
        (6,),
    ),
    "batch_norm": Topology(
        # Any keepdims but 1 means 0.
        """(float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv (x, w1[8,3,3,3])
            n = BatchNormalization (a, s1[8], o1[8], m1[8], var1[8])
            r = Relu(n)
            c = Conv (r, w2[6,8,3,3], b2[6])
            m = BatchNormalization <epsilon=0.01> (c, s2[6], o2[6], m2[6], var2[6])
            p = ReduceMean <keepdims=2> (m, axes{2,3})
            y = Gemm (p, w3[6,5], b3[5])
        }""",
        (8, 6),
    ),
    "dense_concat": Topology(
        # Normalization before the convolution, and every layer reads the concatenation of all before it.
        """(float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[6,3,3,3])
            n1 = BatchNormalization (a, s1[6], o1[6], m1[6], var1[6])
            r1 = Relu(n1)
            c = Conv <pads=[1,1,1,1]> (r1, w2[4,6,3,3])
            ac = Concat <axis=1> (a, c)
            n2 = BatchNormalization (ac, s2[10], o2[10], m2[10], var2[10])
            r2 = Relu(n2)
            d = Conv <pads=[1,1,1,1]> (r2, w3[3,10,3,3])
            acd = Concat <axis=-3> (a, c, d)
            n3 = BatchNormalization (acd, s3[13], o3[13], m3[13], var3[13])
            p = GlobalAveragePool(n3)
            f = Flatten(p)
            y = Gemm <transB=1> (f, w4[5,13], b4[5])
        }""",
        (6, 4, 3),
    ),
    "grouped_few_large": Topology(
        # Two groups of four: as many channels of one group as of the other, whichever, on each side.
        """(float[N,3,8,8] x) => (float[N,5,4,4] y) {
            a = Conv (x, w1[8,3,3,3], b1[8])
            c = Conv <group=2> (a, w2[12,4,3,3], b2[12])
            r = Relu(c)
            y = Conv (r, w3[5,12,1,1])
        }""",
        (12, 8),
    ),
    "grouped_many_small": Topology(
        # Four groups of two: whole groups are the units, through the convolution.
        """(float[N,3,8,8] x) => (float[N,5,4,4] y) {
            a = Conv (x, w1[8,3,3,3], b1[8])
            c = Conv <group=4> (a, w2[12,2,3,3], b2[12])
            r = Relu(c)
            y = Conv (r, w3[5,12,1,1])
        }""",
        (4,),
        pins=("whole groups are the units here",),
    ),
    "grouped_first": Topology(
        # The input is fixed, so all groups stay and each loses as many outputs as the other.
        """(float[N,4,8,8] x) => (float[N,5,6,6] y) {
            c = Conv <group=2> (x, w1[8,2,3,3], b1[8])
            r = Relu(c)
            y = Conv (r, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "grouped_shuffled": Topology(
        # Each group of the second convolution reads four channels of each group of the first: nine sets of four.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[36,3,1,1], b1[36])
            c = Conv <group=3> (a, w2[36,12,1,1], b2[36])
            s = Reshape(c, split{0,3,12,8,8})
            t = Transpose <perm=[0,2,1,3,4]> (s)
            u = Reshape(t, join{0,36,8,8})
            r = Relu(u)
            d = Conv <group=3> (r, w3[18,12,1,1], b3[18])
            y = Conv (d, w4[5,18,1,1])
        }""",
        (36, 36, 18),
    ),
    "depthwise": Topology(
        """(float[N,3,8,8] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            r = Clip(a, lo{:0.0}, hi{:6.0})
            d = Conv <group=8, pads=[1,1,1,1], dilations=[2,2]> (r, w2[8,1,3,3], b2[8])
            s = HardSwish(d)
            y = Conv (s, w3[5,8,1,1])
        }""",
        (8,),
    ),
    "depthwise_multiplier": Topology(
        """(float[N,3,8,8] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[6,3,1,1], b1[6])
            d = Conv <group=6> (a, w2[12,1,3,3], b2[12])
            s = Relu(d)
            y = Conv (s, w3[5,12,1,1])
        }""",
        (6,),
    ),
    "depthwise_input": Topology(
        # A depthwise convolution of the graph's input: nothing of it may go, what follows may.
        """(float[N,4,8,8] x) => (float[N,5,6,6] y) {
            a = Conv <group=4> (x, w1[4,1,3,3])
            c = Conv (a, w2[6,4,1,1])
            r = Relu(c)
            y = Conv (r, w3[5,6,1,1])
        }""",
        (6,),
    ),
    "one_channel": Topology(
        # A single output channel leaves nothing to remove there; the gate broadcasts over all channels.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            g = Conv (a, w2[1,8,1,1], b2[1])
            s = Sigmoid(g)
            m = Mul(a, s)
            y = Conv (m, w3[5,8,1,1])
        }""",
        (8,),
    ),
    "transposed": Topology(
        """(float[N,3,8,8] x) => (float[N,5,18,18] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            u = ConvTranspose <strides=[2,2], output_padding=[1,1], kernel_shape=[3,3]> (a, w2[8,6,3,3], b2[6])
            r = Relu(u)
            y = Conv (r, w3[5,6,1,1], b3[5])
        }""",
        (8, 6),
    ),
    "transposed_few_large": Topology(
        """(float[N,3,8,8] x) => (float[N,5,10,10] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            u = ConvTranspose <group=2> (a, w2[8,6,3,3], b2[12])
            r = Relu(u)
            y = Conv (r, w3[5,12,1,1])
        }""",
        (12, 8),
    ),
    "transposed_many_small": Topology(
        """(float[N,3,8,8] x) => (float[N,5,10,10] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            u = ConvTranspose <group=4> (a, w2[8,3,3,3], b2[12])
            r = Relu(u)
            y = Conv (r, w3[5,12,1,1])
        }""",
        (4,),
        pins=("whole groups are the units here",),
    ),
    "transposed_depthwise": Topology(
        """(float[N,3,8,8] x) => (float[N,5,10,10] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            u = ConvTranspose <group=8> (a, w2[8,1,3,3], b2[8])
            r = Relu(u)
            y = Conv (r, w3[5,8,1,1])
        }""",
        (8,),
    ),
    "squeeze_excite": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            p = GlobalAveragePool(a)
            q = Conv (p, w2[4,8,1,1], b2[4])
            r = Relu(q)
            s = Conv (r, w3[8,4,1,1], b3[8])
            g = HardSigmoid(s)
            m = Mul(a, g)
            y = Conv (m, w4[5,8,1,1])
        }""",
        (8, 4),
    ),
    "squeeze_excite_linear": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            p = ReduceMean <keepdims=0> (a, hw{2,3})
            q = Gemm (p, w2[8,4], b2[4])
            r = Relu(q)
            s = Gemm <transB=1> (r, w3[8,4], b3[8])
            g = Sigmoid(s)
            gu = Unsqueeze(g, ax{2,-1})
            m = Mul(gu, a)
            y = Conv (m, w4[5,8,1,1])
        }""",
        (8, 4),
    ),
    "per_channel_constants": Topology(
        # Constants of every rank that broadcasts, scalars, and full feature maps.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            p = PRelu(a, s3[8,1,1])
            q = Mul(p, m4[1,8,1,1])
            r = Add(o3[8,1,1], q)
            t = Sub(r, f3[8,8,8])
            u = Div(t, var_e[1,1])
            v = Max(u, z{:-0.5})
            w = PRelu(v, s1[1])
            o = Pow(w, two{:2.0})
            y = Conv (o, w2[5,8,1,1])
        }""",
        (8,),
        pins=("meets axis 2 of 'r'", "meets axis 3 of 'r'"),
    ),
    "option_a_shortcut": Topology(
        # Every second position, and fresh channels of zeros on both sides.
        """(float[N,3,8,8] x) => (float[N,5,4,4] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[4,3,3,3], b1[4])
            r = Relu(a)
            s = Slice(r, st{0,0}, en{9999,9999}, ax{2,3}, by{2,2})
            p = Pad(s, pads{0,2,0,0,0,2,0,0}, zero{:0.0})
            c = Conv <strides=[2,2], pads=[1,1,1,1]> (r, w2[8,4,3,3], b2[8])
            d = Add(c, p)
            e = Relu(d)
            y = Conv (e, w3[5,8,1,1], b3[5])
        }""",
        (4, 4),
    ),
    "two_layouts": Topology(
        # One tensor read as channels by a convolution and as flattened positions by a product.
        """(float[N,3,6,6] x) => (float[N,5,6,6] y, float[N,4] z) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            r = Relu(a)
            y = Conv (r, w2[5,8,1,1])
            f = Flatten(r)
            z = Gemm <transB=1> (f, w3[4,288], b3[4])
        }""",
        (8,),
    ),
    "pooling": Topology(
        """(float[N,3,8,8] x) => (float[N,5,1,1] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a)
            v = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (m)
            l = LpPool <kernel_shape=[2,2]> (v)
            g = GlobalMaxPool(l)
            y = Conv (g, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "conv_1d": Topology(
        """(float[N,3,L] x) => (float[N,5,L] y) {
            a = Conv <pads=[1,1]> (x, w1[8,3,3], b1[8])
            r = Relu(a)
            d = Conv <group=8, pads=[2,2]> (r, w2[8,1,5])
            y = Conv (d, w3[5,8,1], b3[5])
        }""",
        (8,),
    ),
    "conv_3d": Topology(
        """(float[N,2,4,4,4] x) => (float[N,5,4,4,4] y) {
            a = Conv <pads=[1,1,1,1,1,1]> (x, w1[6,2,3,3,3], b1[6])
            n = BatchNormalization (a, s1[6], o1[6], m1[6], var1[6])
            r = Relu(n)
            u = ConvTranspose (r, w2[6,4,1,1,1], b2[4])
            y = Conv (u, w3[5,4,1,1,1])
        }""",
        (6, 4),
    ),
    "double_precision": Topology(
        """(double[N,7] x) => (double[N,5] y) {
            a = Gemm (x, w1[7,8], b1[8])
            m = ReduceMean <keepdims=1> (a, ax{1})
            c = Sub(a, m)
            r = Relu(c)
            y = Gemm <transB=1> (r, w2[5,8], b2[5])
        }""",
        (8,),
        mixing=(8,),
        dtype="double",
    ),
}
