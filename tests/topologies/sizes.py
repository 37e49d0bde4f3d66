"""Sizes that stay free: what names one on an axis without channels means the same at every size of the inputs."""

from __future__ import annotations

from collections.abc import Mapping

from tests.topologies.text import Topology

# The second Resize gives the first one's sizes, right or wrong, the right shape again. No row of the table, since the
# gradient of such a Resize is measured, and holds at the measured sizes alone.
THERE_AND_BACK = Topology(
    """(float[N,3,H,W] x) => (float[N,5,H,W] y) {
        a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
        r = Relu(a)
        s = Shape(r)
        half = Div(s, two{1,1,2,2})
        d = Resize <mode="linear"> (r, , , half)
        u = Resize <mode="linear"> (d, , , s)
        y = Conv (u, w2[5,8,1,1])
    }""",
    (8,),
)

ROWS: Mapping[str, Topology] = {
    "slice_free_axes": Topology(
        # Channels and positions in one Slice: from the end, to the end, backwards.
        """(float[N,3,H,W] x) => (float[N,5,H2,W2] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            r = Relu(a)
            u = Slice(r, s1{1,2,-1}, e1{-1,2147483647,-9223372036854775807}, ax1{2,-3,3}, by1{2,1,-2})
            v = Conv (u, w2[6,6,1,1])
            z = Slice(v, s2{0,0,0,0}, e2{1000000000,1000000000,1000000000,1000000000})
            y = Conv (z, w3[5,6,1,1])
        }""",
        (6, 6, 2),
    ),
    "slice_free_attributes": Topology(
        """(float[N,3,H,W] x) => (float[N,5,H2,W2] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u = Slice <starts=[0,2,1], ends=[2147483647,7,-1], axes=[3,1,2]> (a)
            y = Conv (u, w2[5,5,1,1])
        }""",
        (5, 3),
        opset=9,
    ),
    "slice_narrow_bounds": Topology(
        # Bounds in int32, and positions that are no longer evenly spaced.
        """(float[N,3,H,W] x) => (float[N,5,H2,W2] y) {
            a = Conv (x, w1[9,3,1,1], b1[9])
            s = Cast <to=6> (s8{0,-1})
            e = Cast <to=6> (e8{9,-2147483648})
            ax = Cast <to=6> (ax8{1,2})
            by = Cast <to=6> (by8{2,-1})
            u = Slice(a, s, e, ax, by)
            t = Concat <axis=1> (u, a)
            y = Conv (t, w2[5,14,1,1])
        }""",
        (5, 4),
    ),
    "slice_run_time_bounds": Topology(
        # The first half of the rows, counted at run time, beside constant bounds of the channels.
        """(float[N,3,H,W] x) => (float[N,5,H2,W2] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            s = Shape(a)
            h = Gather(s, two{2})
            n = Div(h, two)
            e = Concat <axis=0> (n, last{7})
            u = Slice(a, st{0,2}, e, ax{2,1})
            y = Conv (u, w2[5,5,1,1])
        }""",
        (5, 3),
    ),
    "slice_given_bounds": Topology(
        # One end comes from outside, as int32; the channels are cut by constants beside it.
        """(float[N,3,H,W] x, int32[1] end) => (float[N,5,H2,W2] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Cast <to=6> (last{7})
            e = Concat <axis=0> (end, c)
            st = Cast <to=6> (st8{0,2})
            ax = Cast <to=6> (ax8{-1,1})
            u = Slice(a, st, e, ax)
            y = Conv (u, w2[5,5,1,1])
        }""",
        (5, 3),
        given={"end": (3,)},
    ),
    "slice_channels_at_run_time": Topology(
        # The end on the channels is not known: they stay, those that only the rows' bounds meet may go.
        """(float[N,3,H,W] x, int64[1] end) => (float[N,5,H2,W2] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            e = Concat <axis=0> (end, last{-1})
            u = Slice(a, st{0,0}, e, ax{1,2})
            p = ReduceMax <keepdims=1> (u, one{1})
            b = Conv (p, w2[6,1,1,1])
            v = Slice(b, st2{0}, end, ax2{3})
            y = Conv (v, w3[5,6,1,1])
        }""",
        (6,),
        pins=("the bounds of Slice are computed at run time",),
        given={"end": (5,)},
    ),
    "slice_behind_resize": Topology(
        # A wrong shape between Slice and Resize would not show behind it.
        """(float[N,3,H,W] x) => (float[N,5,H,W] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            r = Relu(a)
            u = Slice(r, st{0,0}, e{9223372036854775807,9223372036854775807}, ax{2,3}, by{2,2})
            s = Shape(r)
            hw = Slice(s, s2{2}, e2{4}, ax2{0})
            t = Shape(u)
            nc = Slice(t, s3{0}, e3{2}, ax2)
            sizes = Concat <axis=0> (nc, hw)
            up = Resize <mode="nearest", coordinate_transformation_mode="asymmetric"> (u, , , sizes)
            j = Add(r, up)
            y = Conv (j, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "shape_of_some_axes": Topology(
        # The batch, the positions from the end, and everything: none of them asks for how many channels there are.
        """(float[N,3,H,W] x) => (float[N,5,H,W] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            r = Relu(a)
            n = Shape <start=0, end=1> (r)
            hw = Shape <start=-2> (r)
            target = Concat <axis=0> (n, one{1}, hw)
            wide = Expand(half{1x1x1x1:.,0.5}, target)
            all = Shape <start=-9, end=9> (r)
            ones = ConstantOfShape <value = float[1] {0.25}> (all)
            s = Add(r, wide)
            t = Mul(s, ones)
            y = Conv (t, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "shape_of_the_channels": Topology(
        # How many channels there were is a constant of the original.
        """(float[N,3,H,W] x) => (float[N,5,H,W] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Shape <start=1, end=-2> (a)
            f = Cast <to=1> (c)
            q = Sqrt(f)
            s = Div(a, q)
            ch = Shape <start=1, end=3> (s)
            one = Gather(ch, zero{0})
            g = Cast <to=1> (one)
            t = Mul(s, g)
            y = Conv (t, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "shuffle_of_positions": Topology(
        # Rows by their parity: how many there are is not known, so no constant can order them.
        """(float[N,H,6] x) => (float[N,H,5] y) {
            a = MatMul(x, w1[6,8])
            s = Reshape(a, rows{0,-1,2,8})
            t = Transpose <perm=[0,2,1,3]> (s)
            u = Reshape(t, back{0,-1,8})
            r = Relu(u)
            y = MatMul(r, w2[8,5])
        }""",
        (8,),
    ),
    "flat_and_counted": Topology(
        # Behind Reshape a position means another channel at another size: what counts along that axis keeps all.
        """(float[N,3,H,W] x) => (float[N,5] y, float[N,5] z, float[N,5] v) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            f = Reshape(a, flat{0,-1})
            s = Slice(f, st{16}, en{200}, one{1})
            m = ReduceMax <keepdims=1> (s, one)
            y = MatMul(m, w2[1,5])
            b = Conv (x, w3[8,3,1,1], b3[8])
            g = Reshape(b, flat)
            p = Gather <axis=1> (g, i{0,5,70})
            z = MatMul(p, w4[3,5])
            c = Conv (x, w5[8,3,1,1], b5[8])
            h = Reshape(c, flat)
            h1, h2 = Split <axis=1, num_outputs=2> (h)
            d = Mul(h1, h2)
            e = ReduceMax <keepdims=1> (d, one)
            v = MatMul(e, w6[1,5])
        }""",
        (),
        pins=("counts along an axis whose size changes", "meets axis 1 of 'p' (Gather"),
    ),
    "pad_at_run_time": Topology(
        # Rows up to a multiple of four beside two more channels behind, and one before.
        """(float[N,3,H,W] x) => (float[N,5,H2,W] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            s = Shape(a)
            h = Gather(s, two{2})
            n = Neg(h)
            r = Mod(n, four{4})
            pads = Concat <axis=0> (before{0,1,0,0,0,2}, r, none{0})
            p = Pad(a, pads)
            y = Conv (p, w2[5,11,1,1])
        }""",
        (8, 3),
    ),
    "pad_some_axes": Topology(
        """(float[N,3,H,W] x) => (float[N,5,H2,W2] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            p = Pad(a, pads{1,0,2,-1,0,1}, half{:.,0.5}, axes{3,-4,1})
            y = Conv (p, w2[5,11,1,1])
        }""",
        (8, 3),
    ),
}
