"""Operators that read across channels: statistics that change with what is kept, and comparisons that pin."""

from __future__ import annotations

from collections.abc import Mapping

from tests.topologies.text import Topology


def _group_norm_as_instance_norm(groups: int) -> str:
    return f"""(float[N,3,6,6] x) => (float[N,5,6,6] y) {{
        a = Conv (x, w1[8,3,1,1], b1[8])
        v = Reshape(a, rows{{0,{groups},-1}})
        n = InstanceNormalization <epsilon=0.001> (v, s1[{groups}], o1[{groups}])
        sh = Shape(a)
        u = Reshape(n, sh)
        m = Mul(u, s2[8,1,1])
        o = Add(m, o2[8,1,1])
        r = Relu(o)
        y = Conv (r, w2[5,8,1,1], b2[5])
    }}"""


def _group_normalization(groups: int) -> str:
    return f"""(float[N,3,6,6] x) => (float[N,5,6,6] y) {{
        a = Conv (x, w1[8,3,1,1], b1[8])
        n = GroupNormalization <num_groups={groups}, epsilon=0.001> (a, s1[8], o1[8])
        r = Relu(n)
        y = Conv (r, w2[5,8,1,1], b2[5])
    }}"""


_PER_GROUP = "one value for each group of a normalization, whose groups all stay"

ROWS: Mapping[str, Topology] = {
    "group_norm_as_instance_norm_wide": Topology(
        # Two groups of four: each loses as many channels as the other.
        _group_norm_as_instance_norm(2),
        (8,),
        pins=(_PER_GROUP,),
        mixing=(8,),
    ),
    "group_norm_over_branches": Topology(
        # Each group's channels come from a convolution of their own: both keep as many.
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[6,3,1,1], b1[6])
            b = Conv (x, w2[6,3,1,1], b2[6])
            c = Concat <axis=1> (a, b)
            r = Reshape(c, to{0,2,-1})
            n = InstanceNormalization (r, s1[2], o1[2])
            m = Reshape(n, back{0,12,6,6})
            y = Conv (m, w3[5,12,1,1])
        }""",
        (12,),
        pins=(_PER_GROUP,),
        mixing=(12,),
    ),
    "group_norm_across_branches": Topology(
        # The first group's channels come from both convolutions: how many of each stay is not fixed, so the same go.
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[4,3,1,1], b1[4])
            b = Conv (x, w2[8,3,1,1], b2[8])
            c = Concat <axis=1> (a, b)
            r = Reshape(c, to{0,2,-1})
            n = InstanceNormalization (r, s1[2], o1[2])
            m = Reshape(n, back{0,12,6,6})
            y = Conv (m, w3[5,12,1,1])
        }""",
        (4, 2),
        pins=(_PER_GROUP,),
        mixing=(4, 2),
    ),
    "group_norm_as_instance_norm_narrow": Topology(
        # Four groups of two: whole groups go, which changes no statistics.
        _group_norm_as_instance_norm(4),
        (4,),
    ),
    "group_norm_as_instance_norm_any_size": Topology(
        # A group's row holds its channels' positions, however many there are at the run.
        """(float[N,3,H,W] x) => (float[N,5,H,W] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            v = Reshape(a, rows{0,2,-1})
            n = InstanceNormalization <epsilon=0.001> (v, s1[2], o1[2])
            sh = Shape(a)
            u = Reshape(n, sh)
            m = Mul(u, s2[8,1,1])
            o = Add(m, o2[8,1,1])
            y = Conv (o, w2[5,8,1,1], b2[5])
        }""",
        (8,),
        pins=(_PER_GROUP,),
        mixing=(8,),
    ),
    "group_normalization_wide": Topology(_group_normalization(2), (8,), mixing=(8,), opset=21, ir_version=10),
    "group_normalization_narrow": Topology(_group_normalization(4), (4,), opset=21, ir_version=10),
    "group_normalization_any_size": Topology(
        # The number of positions is that of the run, not that of the trace.
        """(float[N,3,H,W] x) => (float[N,5,H,W] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            n = GroupNormalization <num_groups=2, epsilon=0.001> (a, s1[8], o1[8])
            y = Conv (n, w2[5,8,1,1], b2[5])
        }""",
        (8,),
        mixing=(8,),
        opset=21,
        ir_version=10,
    ),
    "instance_norm": Topology(
        # Statistics of each channel alone: nothing mixes.
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            n = InstanceNormalization (a, s1[8], o1[8])
            y = Conv (n, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "layer_norm": Topology(
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul(x, w1[6,8])
            n = LayerNormalization <axis=-1, epsilon=0.001> (a, s1[8], o1[8])
            h = MatMul(n, w2[8,12])
            g = Gelu <approximate="tanh"> (h)
            d = MatMul(g, w3[12,8])
            e = Add(d, a)
            m = LayerNormalization (e, s2[8])
            y = MatMul(m, w4[8,5])
        }""",
        (12, 8),
        mixing=(8,),
        opset=20,
        ir_version=9,
    ),
    "layer_norm_statistics": Topology(
        # Mean and deviation are read on: they are those of the channels that are left.
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul(x, w1[6,8])
            n, mean, dev = LayerNormalization (a, s1[8], o1[8])
            c = Sub(n, mean)
            m = Mul(c, dev)
            y = MatMul(m, w4[8,5])
        }""",
        (8,),
        mixing=(8,),
    ),
    "layer_norm_statistics_of_positions": Topology(
        # Statistics of each channel: they carry its label.
        """(float[N,3,6,6] x) => (float[N,5,6,6] y, float[N,4,1,1] z) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            n, "", dev = LayerNormalization <axis=2> (a, s1[6,6])
            y = Conv (n, w2[5,8,1,1], b2[5])
            z = Conv (dev, w3[4,8,1,1], b3[4])
        }""",
        (8,),
        pins=("meets axis 2", "meets axis 3"),
    ),
    "rms_normalization": Topology(
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul(x, w1[6,8])
            n = RMSNormalization <epsilon=0.001, stash_type=1> (a, s1[8])
            h = MatMul(n, w2[8,12])
            m = RMSNormalization <axis=2> (h, s2[1])
            y = MatMul(m, w4[12,5])
        }""",
        (12, 8),
        mixing=(12, 8),
        opset=23,
        ir_version=10,
    ),
    "batch_norm_in_training": Topology(
        # The statistics of each channel are outputs: their readers lose it too.
        """(float[N,3,6,6] x) => (float[N,5,6,6] y, float[1,4] z) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            n, mean, dev = BatchNormalization <training_mode=1> (a, s1[8], o1[8], m1[8], var1[8])
            y = Conv (n, w2[5,8,1,1], b2[5])
            u = Unsqueeze(mean, ax{0})
            z = MatMul(u, w3[8,4])
        }""",
        (8,),
        opset=15,
    ),
    "layer_norm_convolution": Topology(
        # ConvNeXt: depthwise, then a normalization over the channels in last place, then a layer scale.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            d = Conv <group=8, pads=[3,3,3,3]> (a, w2[8,1,7,7], b2[8])
            t = Transpose <perm=[0,2,3,1]> (d)
            n = LayerNormalization (t, s1[8], o1[8])
            h = MatMul(n, w3[8,12])
            hb = Add(b3[12], h)
            g = Relu(hb)
            e = MatMul(g, w4[12,8])
            k = Mul(scale[8], e)
            u = Transpose <perm=[0,3,1,2]> (k)
            r = Add(a, u)
            y = Conv (r, w5[5,8,1,1])
        }""",
        (12, 8),
        mixing=(8,),
    ),
    "rms_norm_by_parts": Topology(
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul(x, w1[6,8])
            q = Pow(a, two{:2.0})
            v = ReduceMean <keepdims=1> (q, ax{-1})
            e = Add(v, eps{:0.001})
            s = Sqrt(e)
            n = Div(a, s)
            m = Mul(n, s1[8])
            y = MatMul(m, w2[8,5])
        }""",
        (8,),
        mixing=(8,),
    ),
    "reductions": Topology(
        # Every reduction over the channels runs over those that are kept.
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul(x, w1[6,8])
            r0 = ReduceSum <keepdims=1> (a, ax{-1})
            r1 = ReduceMax <keepdims=1> (a, ax)
            r2 = ReduceMin <keepdims=1> (a, ax)
            r3 = ReduceL1 <keepdims=1> (a, ax)
            r4 = ReduceL2 <keepdims=1> (a, ax)
            r5 = ReduceLogSumExp <keepdims=1> (a, ax)
            r6 = ReduceSumSquare <keepdims=1> (a, ax)
            r7 = ReduceProd <keepdims=1> (a, ax)
            s = Sum(r0, r1, r2, r3, r4, r5, r6, r7)
            n = Div(a, s)
            y = MatMul(n, w2[8,5])
        }""",
        (8,),
        mixing=(8,),
    ),
    "reductions_of_integers": Topology(
        # The largest of those that are left, where there is no infinity to stand for none.
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul(x, w1[6,8])
            k = Mul(a, hundred{:100.0})
            i = Cast <to=7> (k)
            r = ReduceMax <keepdims=1> (i, ax{-1})
            q = ReduceMin <keepdims=1> (i, ax)
            s = Add(r, q)
            f = Cast <to=1> (s)
            t = Mul(f, a)
            y = MatMul(t, w2[8,5])
        }""",
        (8,),
        mixing=(8,),
    ),
    "reductions_by_attribute": Topology(
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul(x, w1[6,8])
            m = ReduceMean <axes=[2], keepdims=0> (a)
            k = ReduceSum <axes=[-1], keepdims=0> (a)
            s = Add(m, k)
            u = Unsqueeze <axes=[2]> (s)
            n = Sub(a, u)
            y = MatMul(n, w2[8,5])
        }""",
        (8,),
        mixing=(8,),
        opset=11,
        ir_version=6,
    ),
    "spatial_attention": Topology(
        # CBAM: mean and maximum over the channels, joined to a map of two.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            m = ReduceMean <keepdims=1> (a, ax{1})
            k = ReduceMax <keepdims=1> (a, ax)
            j = Concat <axis=1> (m, k)
            g = Conv <pads=[3,3,3,3]> (j, w2[1,2,7,7])
            s = Sigmoid(g)
            o = Mul(a, s)
            y = Conv (o, w3[5,8,1,1])
        }""",
        (8,),
        pins=("which carries no channels",),
        mixing=(8,),
    ),
    "lp_normalization": Topology(
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            n = LpNormalization <axis=1, p=2> (a)
            c = Conv (n, w2[6,8,1,1], b2[6])
            m = LpNormalization <axis=1, p=1> (c)
            y = Conv (m, w3[5,6,1,1])
        }""",
        (8, 6),
        mixing=(8, 6),
    ),
    "mean_variance_normalization": Topology(
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            n = MeanVarianceNormalization <axes=[1,2,3]> (a)
            y = Conv (n, w2[5,8,1,1])
        }""",
        (8,),
        mixing=(8,),
    ),
    "mean_variance_normalization_batch": Topology(
        # Statistics over the samples too, however many there are.
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            n = MeanVarianceNormalization <axes=[0,1,2,3]> (a)
            y = Conv (n, w2[5,8,1,1])
        }""",
        (8,),
        mixing=(8,),
    ),
    "mean_over_positions_and_channels": Topology(
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul(x, w1[6,8])
            m = ReduceMean <keepdims=1> (a, ax{1,2})
            n = Sub(a, m)
            y = MatMul(n, w2[8,5])
        }""",
        (8,),
        mixing=(8,),
    ),
    "softmax_channels": Topology(
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (a, w2[6,8,1,1], b2[6])
            s = Softmax <axis=1> (c)
            y = Conv (s, w3[5,6,1,1])
        }""",
        (8,),
        pins=("Softmax compares all entries of this axis", "meets axis 1 of 's'"),
    ),
    "softmax_flattens": Topology(
        # Before opset 13 everything from the axis on is one row.
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (a, w2[6,8,1,1], b2[6])
            s = Softmax <axis=1> (c)
            y = Conv (s, w3[5,6,1,1])
        }""",
        (8,),
        pins=("Softmax compares all entries of this axis", "meets axis 1 of 's'"),
        opset=11,
        ir_version=6,
    ),
    "softmax_positions": Topology(
        # Over positions it is every channel's own affair.
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            s = Softmax <axis=3> (a)
            y = Conv (s, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "rankings": Topology(
        """(float[N,3,6,6] x) => (float[N,5,6,6] y, int64[N,6,6] k) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (a, w2[6,8,1,1], b2[6])
            k = ArgMax <axis=1, keepdims=0> (c)
            d = Conv (a, w3[7,8,1,1])
            v, i = TopK <axis=1> (d, three{3})
            e = Conv (a, w4[4,8,1,1])
            n = LRN <size=3> (e)
            j = Concat <axis=1> (v, n, c)
            y = Conv (j, w5[5,13,1,1])
        }""",
        (8,),
        pins=("ArgMax compares", "TopK compares", "LRN sums over neighbouring channels", "meets axis 1 of 'v'"),
    ),
}
