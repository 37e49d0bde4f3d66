"""Picking and writing by indices, sampling at places, and the rest of the operators that keep some axes whole."""

from __future__ import annotations

from collections.abc import Mapping

from tests.topologies.text import Topology


def _between(body: str, extra: str = "", channels: int = 8) -> str:
    """Two convolutions around something that takes a (N, 8, 6, 6) and makes m."""
    return f"""(float[N,3,6,6] x{extra}) => (float[N,5,H,W] y) {{
        a = Conv (x, w1[8,3,1,1], b1[8])
        {body}
        y = Conv (m, w2[5,{channels},1,1], b2[5])
    }}"""


def _rows(body: str, extra: str = "", last: int = 8) -> str:
    """Two products around something that takes a (N, L, 8) and makes m."""
    return f"""(float[N,L,6] x{extra}) => (float[N,K,5] y) {{
        a = MatMul(x, w1[6,8])
        {body}
        y = MatMul(m, w2[{last},5])
    }}"""


ROWS: Mapping[str, Topology] = {
    "gather_elements": Topology(
        # Which rows is computed at run time, and expanded over the channels: the expansion shrinks with them.
        _rows(
            """s = ReduceSum <keepdims=1> (x, ax{-1})
            v, i = TopK <axis=1> (s, three{3})
            e = Expand(i, wide{1,1,8})
            m = GatherElements <axis=1> (a, e)"""
        ),
        (8,),
    ),
    "gather_elements_own_indices": Topology(
        # Every channel has its own three largest: values and indices carry its label.
        _rows(
            """v, i = TopK <axis=1> (a, three{3})
            b = MatMul(x, w3[6,8])
            g = GatherElements <axis=1> (b, i)
            m = Add(g, v)"""
        ),
        (8,),
    ),
    "gather_elements_constant": Topology(
        # An index for every channel is cut with it; there are fewer rows than the data has.
        _rows("m = GatherElements <axis=2> (t, i{1x2x3:0,1,2,3,0,1})\n", last=3).replace(
            "a = MatMul(x, w1[6,8])",
            "c = MatMul(x, w1[6,8])\n u = ReduceSum <keepdims=1> (c, over{0,1})\n h = MatMul(u, wh[8,7])\n "
            "k = Mul(h, col[2,1])\n t = Slice(k, from{0}, till{2}, first{1})",
        ),
        (8,),
        pins=("GatherElements picks from this axis by indices", "meets axis 2 of 'm'"),
    ),
    "gather_elements_constant_per_channel": Topology(
        """(float[N,3,6,6] x) => (float[1,5,2,2] y) {
            a = Conv (x, w1[4,3,1,1], b1[4])
            s = ReduceSum <keepdims=1> (a, first{0})
            p = GatherElements <axis=3> (s, i{1x4x2x2:0,1,2,3,4,5,0,1,2,3,4,5,5,4,3,2})
            y = Conv (p, w2[5,4,1,1], b2[5])
        }""",
        (4,),
    ),
    "gather_elements_from_outside": Topology(
        # Indices from outside have an entry for every channel.
        _rows("c = MatMul(a, w3[8,7])\n m = GatherElements <axis=1> (c, i)", extra=", int64[N,L,7] i", last=7),
        (8,),
        pins=("meets axis 2 of 'm'",),
    ),
    "gather_elements_channels": Topology(
        _rows("c = MatMul(a, w3[8,7])\n m = GatherElements <axis=2> (c, i)", extra=", int64[N,L,3] i", last=3),
        (8,),
        pins=("GatherElements picks from this axis by indices", "meets axis 2 of 'm'"),
    ),
    "gather_nd": Topology(
        # As graph networks pick neighbours: positions only, the channels follow.
        _rows("m = GatherND <batch_dims=1> (a, i)", extra=", int64[N,4,1] i"),
        (8,),
    ),
    "gather_nd_constant": Topology(
        """(float[N,L,6] x) => (float[4,5] y) {
            a = MatMul(x, w1[6,8])
            m = GatherND(a, i{4x2:0,0,0,1,0,2,0,0})
            y = MatMul(m, w2[8,5])
        }""",
        (8,),
    ),
    "gather_nd_channels": Topology(
        """(float[N,L,6] x, int64[4,3] i) => (float[4] y) {
            a = MatMul(x, w1[6,8])
            c = MatMul(a, w2[8,7])
            y = GatherND(c, i)
        }""",
        (8,),
        pins=("GatherND picks from this axis by indices",),
    ),
    "neighbours": Topology(
        # k nearest neighbours: distances between points, TopK, and a Gather on flattened points.
        """(float[2,3,6] x) => (float[2,5,6,2] y) {
            a = Conv (x, w1[8,3,1], b1[8])
            at = Transpose <perm=[0,2,1]> (a)
            d = MatMul(at, a)
            v, i = TopK <axis=-1> (d, two{2})
            f = Reshape(at, flat{12,8})
            j = Add(i, base{2x1x1:0,6})
            jf = Reshape(j, line{-1})
            n = Gather <axis=0> (f, jf)
            u = Reshape(n, back{2,6,2,8})
            c = Unsqueeze(at, ax{2})
            e = Sub(u, c)
            t = Transpose <perm=[0,3,1,2]> (e)
            y = Conv (t, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "scatter_elements": Topology(
        _rows(
            """b = MatMul(x, w3[6,8])
            s = ReduceSum <keepdims=1> (x, ax{-1})
            v, i = TopK <axis=1> (s, two{2})
            e = Expand(i, wide{1,1,8})
            u = Slice(b, from{0}, till{2}, first{1})
            m = ScatterElements <axis=1, reduction="add"> (a, e, u)"""
        ),
        (8,),
    ),
    "scatter_nd": Topology(
        # Into the rows of a table: the table loses the channels too.
        """(float[N,L,6] x, int64[N,1] i) => (float[4,5] y) {
            a = MatMul(x, w1[6,8])
            u = ReduceSum <keepdims=0> (a, ax{1})
            m = ScatterND <reduction="add"> (start[4,8], i, u)
            y = MatMul(m, w2[8,5])
        }""",
        (8,),
    ),
    "scatter_channels": Topology(
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (a, w2[7,8,1,1], b2[7])
            t = Transpose <perm=[1,0,2,3]> (c)
            u = Slice(t, from{0}, till{2}, first{0})
            s = ScatterND(t, i{2x1:3,5}, u)
            m = Transpose <perm=[1,0,2,3]> (s)
            y = Conv (m, w3[5,7,1,1], b3[5])
        }""",
        (8,),
        pins=("ScatterND picks from this axis by position", "meets axis 1 of 'm'"),
    ),
    "one_hot": Topology(
        # Classes of the largest position of each channel: the channels pass, the classes stay.
        """(float[N,3,6] x) => (float[N,5,6] y) {
            a = Conv (x, w1[8,3,1], b1[8])
            k = ArgMax <axis=2, keepdims=0> (a)
            m = OneHot <axis=-1> (k, six{:6}, values{0.0,1.0})
            y = Conv (m, w2[5,8,1])
        }""",
        (8,),
    ),
    "compress": Topology(
        _between("c = Conv (a, w3[6,8,1,1])\n m = Compress <axis=3> (c, keep)", ", bool[6] keep", 6),
        (8, 6),
        given={"keep": (1, 0, 1, 1, 0, 1)},
    ),
    "compress_channels": Topology(
        _between("c = Conv (a, w3[6,8,1,1])\n m = Compress <axis=1> (c, keep)", ", bool[6] keep", 3),
        (8,),
        pins=("Compress picks from this axis by a condition", "meets axis 1 of 'm'"),
        given={"keep": (1, 0, 1, 0, 0, 1)},
    ),
    "reverse_sequence": Topology(
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = MatMul(x, w1[6,8])
            s = Shape <start=0, end=1> (x)
            n = ConstantOfShape <value = int64[1] {2}> (s)
            m = ReverseSequence <batch_axis=0, time_axis=1> (a, n)
            y = MatMul(m, w2[8,5])
        }""",
        (8,),
    ),
    "trilu": Topology(_between("m = Trilu <upper=0> (a)"), (8,)),
    "trilu_channels": Topology(
        _rows("c = MatMul(a, w3[8,7])\n m = Trilu(c)", last=7),
        (8,),
        pins=("Trilu compares positions along this axis", "meets axis 2 of 'm'"),
    ),
    "determinant": Topology(
        """(float[N,3,4,4] x) => (float[N,5] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            m = Det(a)
            y = MatMul(m, w2[8,5])
        }""",
        (8,),
    ),
    "fourier": Topology(
        # Over positions; real and imaginary part come in last place.
        """(float[N,3,6] x) => (float[N,5,6,2] y) {
            a = Conv (x, w1[8,3,1], b1[8])
            u = Unsqueeze(a, ax{3})
            m = DFT <axis=2> (u)
            y = Conv (m, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "fourier_opset_20": Topology(
        """(float[N,3,6] x) => (float[N,5,6,2] y) {
            a = Conv (x, w1[8,3,1], b1[8])
            c = Conv (a, w3[7,8,1])
            u = Unsqueeze(c, ax{3})
            d = DFT(u, "", along{:1})
            m = DFT(d)
            y = Conv (m, w2[5,7,1,1])
        }""",
        (8,),
        pins=("DFT reads all of this axis", "meets axis 1 of 'm'"),
        opset=20,
        ir_version=9,
    ),
    "running_sum": Topology(
        _rows("b = CumSum(a, one{:1})\n c = MatMul(b, w3[8,7])\n m = CumSum <exclusive=1> (c, last{:-1})", last=7),
        (8,),
        pins=("CumSum compares all entries of this axis", "meets axis 2 of 'm'"),
    ),
    "running_product": Topology(_rows("m = CumProd(a, one{:1})"), (8,), opset=26, ir_version=12),
    "cache": Topology(
        # The cache of the model itself starts empty; each step writes a row.
        """(float[N,1,6] x, int64[N] at) => (float[N,4,5] y) {
            a = MatMul(x, w1[6,8])
            s = Shape <start=0, end=1> (x)
            to = Concat <axis=0> (s, rest{4,8})
            z = ConstantOfShape(to)
            c = TensorScatter <axis=1> (z, a, at)
            y = MatMul(c, w2[8,5])
        }""",
        (8,),
        opset=24,
        ir_version=10,
    ),
    "swish": Topology(_rows("m = Swish <alpha=1.5> (a)"), (8,), opset=24, ir_version=10),
    "bits": Topology(
        # Reread as integers and back, element by element.
        _rows("i = BitCast <to=6> (a)\n f = BitCast <to=1> (i)\n m = Mul(f, a)"),
        (8,),
        opset=26,
        ir_version=12,
    ),
    "old_softmax_of_positions": Topology(
        # Before opset 13 everything from axis 2 on is one row: each channel's own.
        _between(
            "s = Softmax <axis=2> (a)\n h = Hardmax <axis=3> (a)\n l = LogSoftmax <axis=2> (a)\n m = Sum(s, h, l)"
        ),
        (8,),
        opset=11,
        ir_version=6,
    ),
    "noise": Topology(
        # Fewer elements would get other random numbers.
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (a, w3[7,8,1,1], b3[7])
            r = RandomNormalLike <seed=7.0> (c)
            m = Mul(c, r)
            y = Conv (m, w2[5,7,1,1], b2[5])
        }""",
        (8,),
        pins=("draws a random number per element", "meets axis 1 of 'm'"),
    ),
    "grid_sample": Topology(_between("m = GridSample(a, g)", ", float[N,4,5,2] g"), (8,), opset=20, ir_version=9),
    "grid_sample_predicted": Topology(
        # The grid comes from a convolution whose two channels are its coordinates.
        _between("c = Conv (a, w3[2,8,1,1])\n t = Tanh(c)\n g = Transpose <perm=[0,2,3,1]> (t)\n m = GridSample(a, g)"),
        (8,),
        pins=("GridSample takes positions from it",),
    ),
    "regions": Topology(
        """(float[N,3,6,6] x) => (float[2,5,2,2] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            m = RoiAlign <output_height=2, output_width=2, sampling_ratio=2> (a, r{2x4:0.,0.,3.,3.,1.,1.,5.,4.}, n{0,0})
            p = MaxRoiPool <pooled_shape=[2,2]> (a, q{2x5:0.,0.,0.,3.,3.,0.,1.,1.,5.,4.})
            s = Add(m, p)
            y = Conv (s, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "deformable": Topology(
        """(float[N,3,6,6] x) => (float[N,5,4,4] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            o = Conv (a, w3[18,8,3,3], b3[18])
            k = Conv (a, w4[9,8,3,3])
            s = Sigmoid(k)
            d = DeformConv <kernel_shape=[3,3]> (a, w2[6,8,3,3], o, b2[6], s)
            y = Conv (d, w5[5,6,1,1])
        }""",
        (8, 6),
        pins=("DeformConv takes an offset or a factor per kernel position",),
        opset=19,
        ir_version=9,
    ),
    "deformable_in_runs": Topology(
        # Two runs of channels with offsets of their own, and two groups: as many channels of one as of the other.
        """(float[N,3,6,6] x, float[N,36,4,4] o) => (float[N,5,4,4] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            d = DeformConv <group=2, offset_group=2> (a, w2[6,4,3,3], o)
            y = Conv (d, w5[5,6,1,1])
        }""",
        (8, 6),
        opset=22,
        ir_version=10,
    ),
    "column_to_image": Topology(
        """(float[N,3,4,4] x) => (float[N,5,5,5] y) {
            a = Conv (x, w1[24,3,1,1], b1[24])
            f = Reshape(a, to{0,24,16})
            m = Col2Im(f, image{5,5}, block{2,2})
            y = Conv (m, w2[5,6,1,1])
        }""",
        (6,),
    ),
    "centre_crop": Topology(_between("m = CenterCropPad <axes=[2,-1]> (a, to{4,8})"), (8,)),
    "centre_crop_all_axes": Topology(
        # The channels are named among the sizes: the entry shrinks with them.
        """(float[2,3,6,6] x) => (float[2,5,4,4] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            m = CenterCropPad(a, to{2,8,4,4})
            y = Conv (m, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "centre_crop_channels": Topology(
        _between("c = Conv (a, w3[7,8,1,1])\n m = CenterCropPad <axes=[1]> (c, to{4})", channels=4),
        (8,),
        pins=("CenterCropPad cuts or pads this axis around its middle", "meets axis 1 of 'm'"),
    ),
    "max_unpool": Topology(
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (a, w3[7,8,1,1])
            p, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (c)
            m = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (p, i)
            y = Conv (m, w2[5,7,1,1])
        }""",
        (8,),
        pins=("the indices of MaxPool count over all channels", "meets axis 1 of 'm'"),
    ),
    "cast_like": Topology(
        # Only the type of the second operand counts: its channels are as free as before.
        _between("k = CastLike(half{:0.5}, a)\n m = Mul(a, k)"),
        (8,),
    ),
    "einsum_ellipsis": Topology(
        """(float[N,L,6] x) => (float[N,L,5] y) {
            a = Einsum <equation="...c,cd->...d"> (x, w1[6,8])
            g = Einsum <equation="...d,...d"> (a, a)
            u = Unsqueeze(g, ax{2})
            m = Mul(a, u)
            y = Einsum <equation="...d, od -> ...o"> (m, w2[5,8])
        }""",
        (8,),
    ),
    "einsum_repeated": Topology(
        # onnxruntime repeats an axis of size 1 along the one that it is contracted with.
        """(float[N,L,1] x) => (float[N,L,5] y) {
            a = Einsum <equation="abc,cd->abd"> (x, w1[3,8])
            r = Relu(a)
            y = MatMul(r, w2[8,5])
        }""",
        (8,),
        pins=("another operand has size 1 there",),
    ),
    "einsum_diagonal": Topology(
        # Both axes of the product lose the same places.
        """(float[N,L,6] x) => (float[N,5] y) {
            a = MatMul(x, w1[6,8])
            b = MatMul(x, w2[6,8])
            g = Einsum <equation="nld,nle->nde"> (a, b)
            h = Einsum <equation="ndd->nd"> (g)
            y = MatMul(h, w3[8,5])
        }""",
        (8,),
    ),
    "einsum_diagonal_of_one": Topology(
        # The other axis has the samples of a batch: nothing of the diagonal can go.
        """(float[8,6] x) => (float[8,5] y) {
            a = MatMul(x, w1[6,7])
            c = MatMul(a, w2[7,8])
            h = Einsum <equation="dd->d"> (c)
            t = Einsum <equation="dd->"> (c)
            s = Mul(h, t)
            u = Unsqueeze(s, ax{1})
            y = MatMul(u, w3[1,5])
        }""",
        (7,),
        pins=("Einsum reads a diagonal",),
    ),
    "squeeze_all": Topology(
        # Without axes every one of size 1 goes: the channels stay even where one is left.
        """(float[2,3,6,6] x) => (float[2,5] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            p = GlobalAveragePool(a)
            s = Squeeze(p)
            y = Gemm (s, w2[8,5], b2[5])
        }""",
        (8,),
    ),
    "squeeze_all_opset_11": Topology(
        """(float[2,3,6,6] x) => (float[2,5] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            p = GlobalAveragePool(a)
            s = Squeeze(p)
            y = Gemm (s, w2[8,5], b2[5])
        }""",
        (8,),
        opset=11,
        ir_version=6,
    ),
    "resize_named_axes": Topology(
        _between(
            """u = Resize <axes=[2,3], mode="linear"> (a, "", twice{2.0,2.0})
            m = Resize <axes=[3,2], keep_aspect_ratio_policy="not_larger"> (u, "", "", to{9,7})"""
        ),
        (8,),
    ),
    "resize_sizes": Topology(
        # The sizes name the channels: the entry shrinks with them.
        _between("""m = Resize (a, "", "", to{2,8,9,6})""").replace("[N", "[2"),
        (8,),
    ),
    "resize_sizes_named": Topology(
        _between("""m = Resize <axes=[1,3]> (a, "", "", to{8,9})"""),
        (8,),
    ),
    "resize_region": Topology(
        # The region cuts the channels, though their number stays.
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            m = Resize <coordinate_transformation_mode="tf_crop_and_resize"> (a, all, one)
            c = Conv (m, w2[7,8,1,1])
            n = Resize <coordinate_transformation_mode="tf_crop_and_resize"> (c, part, one)
            y = Conv (n, w3[5,7,1,1])
        }""".replace("all,", "all{0.,0.,0.,0.1,1.,1.,1.,0.9},")
        .replace("part,", "part{0.,0.2,0.,0.,1.,0.9,1.,1.},")
        .replace("one)", "one{1.0,1.0,1.0,1.0})", 1),
        (8,),
        pins=("Resize interpolates along this axis", "meets axis 1 of 'n'"),
    ),
    "resize_opset_10": Topology(_between("m = Resize (a, twice{1.0,1.0,2.0,2.0})"), (8,), opset=10, ir_version=5),
}
