"""Layout: everything that moves, cuts, joins, repeats or renumbers channels."""

from __future__ import annotations

from collections.abc import Mapping

from tests.topologies.text import Topology

ROWS: Mapping[str, Topology] = {
    "flatten_gemm": Topology(
        # Each channel is a block of 16 columns.
        """(float[N,3,4,4] x) => (float[N,5] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            r = Relu(a)
            f = Flatten(r)
            h = Gemm <transB=1> (f, w2[7,128], b2[7])
            s = Tanh(h)
            y = Gemm <transB=1> (s, w3[5,7], b3[5])
        }""",
        (8, 7),
    ),
    "flatten_channels_last": Topology(
        # After the transpose a channel is every eighth column.
        """(float[N,3,4,4] x) => (float[N,5] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            t = Transpose <perm=[0,2,3,1]> (a)
            f = Reshape(t, to{0,-1})
            y = MatMul(f, w2[128,5])
        }""",
        (8,),
    ),
    "channels_last": Topology(
        # As TensorFlow exports: constants along the last axis, transposes around every convolution.
        """(float[N,8,8,3] x) => (float[N,6,6,5] y) {
            t = Transpose <perm=[0,3,1,2]> (x)
            a = Conv (t, w1[8,3,3,3])
            u = Transpose <perm=[0,2,3,1]> (a)
            b = Add(u, b1[8])
            r = LeakyRelu <alpha=0.2> (b)
            v = Transpose <perm=[0,3,1,2]> (r)
            c = Conv (v, w2[5,8,1,1], b2[5])
            y = Transpose <perm=[0,2,3,1]> (c)
        }""",
        (8,),
        pins=("meets axis 1 of 't'",),
    ),
    "gemm_variants": Topology(
        """(float[N,7] x) => (float[N,5] y) {
            a = Gemm <alpha=0.5, beta=2.0> (x, w1[7,8], b1[8])
            r = Relu(a)
            t = Transpose <perm=[1,0]> (r)
            c = Gemm <transA=1, transB=1, alpha=1.5> (t, w2[6,8], b2[1,6])
            d = Gemm <beta=0.5> (c, w3[6,4], b3[1])
            y = Gemm <transB=1> (d, w4[5,4])
        }""",
        (8, 6, 4),
    ),
    "gemm_constant_left": Topology(
        # The weight on the left, transposed: the activation is the right operand.
        """(float[7,N] x) => (float[5,N] y) {
            a = Gemm <transA=1> (w1[7,8], x, b1[8,1])
            r = Relu(a)
            y = Gemm (w2[5,8], r)
        }""",
        (8,),
    ),
    "matmul_batch": Topology(
        # Heads are units; the contracted size inside a head is tied by the product of two activations.
        """(float[N,L,6] x) => (float[N,L,5] y) {
            q = MatMul(x, wq[6,12])
            k = MatMul(x, wk[6,12])
            v = MatMul(x, wv[6,12])
            qh = Reshape(q, to{0,-1,3,4})
            kh = Reshape(k, to)
            vh = Reshape(v, to)
            qt = Transpose <perm=[0,2,1,3]> (qh)
            kt = Transpose <perm=[0,2,3,1]> (kh)
            vt = Transpose <perm=[0,2,1,3]> (vh)
            s = MatMul(qt, kt)
            p = Softmax <axis=-1> (s)
            o = MatMul(p, vt)
            ot = Transpose <perm=[0,2,1,3]> (o)
            of = Reshape(ot, back{0,-1,12})
            y = MatMul(of, wo[12,5])
        }""",
        (3,),
    ),
    "einsum": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Einsum <equation="nchw,oc->nohw"> (x, w1[8,3])
            b = Add(a, b1[8,1,1])
            r = Relu(b)
            g = Einsum <equation="nchw,nchw->nc"> (r, r)
            h = Einsum <equation="nc,cp"> (g, w2[8,6])
            e = Einsum <equation="nm,nchw->nmhw"> (h, r)
            y = Conv (e, w3[5,6,1,1])
        }""",
        (8, 6),
    ),
    "einsum_of_weights": Topology(
        # Weights that are contracted with each other alone, and an index of one weight alone.
        """(float[N,6] x) => (float[N,5] y) {
            a = Einsum <equation="bi,ij,jk->bk"> (x, w1[6,9], w2[9,8])
            r = Relu(a)
            c = Einsum <equation="bk,kl,lm,mn->bn"> (r, w3[8,4], w4[4,3], w5[3,7])
            s = Sigmoid(c)
            d = Einsum <equation="bn,onp->bo"> (s, w6[12,7,2])
            y = MatMul(d, w7[12,5])
        }""",
        (12, 9, 8, 7, 4, 3, 2),
    ),
    "einsum_of_factors": Topology(
        # A tensor of weights that is stored as a sum of products of vectors.
        """(float[N,6,4] x) => (float[N,5] y) {
            a = Einsum <equation="bij,ir,jr,rk->bk"> (x, w1[6,10], w2[4,10], w3[10,11])
            r = Relu(a)
            y = MatMul(r, w4[11,5])
        }""",
        (11, 10),
    ),
    "split_join": Topology(
        # Cut in two uneven parts that are treated apart and joined in the other order.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u, v = Split <axis=1> (a, parts{3,5})
            r = Relu(u)
            s = Sigmoid(v)
            j = Concat <axis=1> (s, r)
            y = Conv (j, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "split_apart": Topology(
        # Each part has its own reader, so the parts are groups of their own.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y, float[N,4,8,8] z) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u, v = Split <axis=1> (a, parts{3,5})
            y = Conv (u, w2[5,3,1,1])
            z = Conv (v, w3[4,5,1,1])
        }""",
        (5, 3),
    ),
    "split_one": Topology(
        # A part of one channel would be empty without it: that channel stays.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u, v = Split <axis=1> (a, parts{1,7})
            g = Sigmoid(u)
            m = Mul(v, g)
            y = Conv (m, w2[5,7,1,1])
        }""",
        (7,),
        pins=("it is all that Split leaves of an axis of 'u'",),
    ),
    "slice_one": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u = Slice(a, s1{-1}, e1{99}, ax{1})
            g = Sigmoid(u)
            m = Mul(a, g)
            y = Conv (m, w2[5,8,1,1])
        }""",
        (7,),
        pins=("it is all that Slice leaves of an axis of 'u'",),
    ),
    "depth_to_space_one": Topology(
        # Every channel becomes a position of the one output channel.
        """(float[N,3,4,4] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[6,3,1,1], b1[6])
            c = Conv (a, w2[4,6,1,1], b2[4])
            d = DepthToSpace <blocksize=2> (c)
            y = Conv (d, w3[5,1,1,1])
        }""",
        (6,),
        pins=("it is all that DepthToSpace leaves of an axis of 'd'",),
    ),
    "gated_linear_unit": Topology(
        # Both halves are multiplied: channel j goes with channel j + 4.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u, v = Split <axis=1> (a)
            s = Sigmoid(v)
            m = Mul(u, s)
            y = Conv (m, w2[5,4,1,1])
        }""",
        (4,),
        opset=13,
    ),
    "chunk_uneven": Topology(
        # torch.chunk of 8 by 3: parts of 3, 3 and 2.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u, v, w = Split <axis=1, num_outputs=3> (a)
            r = Relu(v)
            j = Concat <axis=1> (w, u, r)
            y = Conv (j, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "split_attribute": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u, v = Split <axis=1, split=[2,6]> (a)
            r = Relu(v)
            j = Concat <axis=1> (r, u)
            y = Conv (j, w2[5,8,1,1])
        }""",
        (8,),
        opset=11,
    ),
    "slice_range": Topology(
        # One half goes round the convolution, with open and negative bounds.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u = Slice(a, s1{0}, e1{3}, ax{1})
            v = Slice(a, s2{-5}, e2{9223372036854775807}, ax)
            c = Conv (v, w2[5,5,1,1])
            j = Concat <axis=1> (u, c)
            y = Conv (j, w3[5,8,1,1])
        }""",
        (5, 5, 3),
    ),
    "slice_stride": Topology(
        # Even and odd channels, interleaved again by the order of the concatenation.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[9,3,1,1], b1[9])
            u = Slice(a, s1{0}, e1{9}, ax{1}, by{2})
            v = Slice(a, s2{1}, e2{9}, ax, by)
            r = Relu(u)
            j = Concat <axis=1> (v, r)
            y = Conv (j, w2[5,9,1,1])
        }""",
        (9,),
    ),
    "slice_backwards": Topology(
        # A negative step reverses the channels; they then meet themselves in the right order.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            v = Slice(a, s1{-1}, e1{-9223372036854775808}, ax{1}, by{-1})
            j = Add(a, v)
            y = Conv (j, w2[5,8,1,1])
        }""",
        (4,),
    ),
    "slice_backwards_stride": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[9,3,1,1], b1[9])
            u = Slice(a, s1{7}, e1{-99}, ax{1}, by{-3})
            v = Slice(a, s2{8}, e2{0}, ax, by)
            r = Relu(u)
            j = Concat <axis=1> (v, r, a)
            y = Conv (j, w2[5,15,1,1])
        }""",
        # Channels 8, 5, 2 appear twice by v, 7, 4, 1 by u, and 6, 3, 0 in the whole only.
        (6, 3),
    ),
    "slice_attributes": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u = Slice <starts=[0], ends=[3], axes=[1]> (a)
            v = Slice <starts=[3], ends=[100], axes=[1]> (a)
            r = Relu(v)
            j = Concat <axis=1> (r, u)
            y = Conv (j, w2[5,8,1,1])
        }""",
        (8,),
        opset=9,
    ),
    "gather_negative": Topology(
        # Indices from the end, one channel left out, one picked twice.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            g = Gather <axis=1> (a, i{-1,0,-3,2,2,-8})
            y = Conv (g, w2[5,6,1,1])
        }""",
        # 0 and 2 appear twice, 7 and 5 once; 1, 3, 4 and 6 are read by nobody.
        (4, 2, 2),
    ),
    "gather_one": Topology(
        # A single channel leaves the axis: it stays, the others may go.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y, float[N,8,8] z) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            y = Conv (a, w2[5,8,1,1])
            z = Gather <axis=1> (a, i{:-2})
        }""",
        (7,),
        pins=("Gather picks this single channel",),
    ),
    "gather_matrix": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (a, w2[6,8,1,1])
            g = Gather <axis=1> (c, i{2x3:0,1,2,3,4,-1})
            f = Reshape(g, to{0,6,8,8})
            y = Conv (f, w3[5,6,1,1])
        }""",
        (8,),
        pins=("Gather arranges this axis over several axes",),
    ),
    "gather_matrix_one": Topology(
        # A matrix of indices that picks one channel over and over: the others may go.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y, float[N,4,8,8] z) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            g = Gather <axis=1> (a, i{2x2:3,3,-5,3})
            m = ReduceMean <keepdims=0> (g, ax{1})
            y = Conv (m, w2[5,2,1,1])
            z = Conv (a, w3[4,8,1,1])
        }""",
        (7,),
        pins=("Gather arranges this axis over several axes", "meets axis 1 of 'm'"),
    ),
    "gather_run_time": Topology(
        """(float[N,3,8,8] x, int64[4] i) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (a, w2[6,8,1,1])
            g = Gather <axis=1> (c, i)
            y = Conv (g, w3[5,4,1,1])
        }""",
        (8,),
        pins=("indices computed at run time", "meets axis 1 of 'g'"),
    ),
    "shuffle_static": Topology(
        """(float[2,3,8,8] x) => (float[2,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            v = Reshape(a, to{2,2,4,8,8})
            t = Transpose <perm=[0,2,1,3,4]> (v)
            s = Reshape(t, back{2,8,8,8})
            d = Conv <group=8, pads=[1,1,1,1]> (s, w2[8,1,3,3], b2[8])
            y = Conv (d, w3[5,8,1,1])
        }""",
        (8,),
    ),
    "shuffle_dynamic": Topology(
        # The exporter takes every size, the batch among them, from the tensor at run time.
        """(float[N,3,H,W] x) => (float[N,5,H,W] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            sh = Shape(a)
            n = Gather <axis=0> (sh, i0{:0})
            c = Gather <axis=0> (sh, i1{:1})
            h = Gather <axis=0> (sh, i2{:2})
            w = Gather <axis=0> (sh, i3{:3})
            cg = Div(c, two{:2})
            nu = Unsqueeze(n, ax{0})
            cu = Unsqueeze(c, ax)
            hu = Unsqueeze(h, ax)
            wu = Unsqueeze(w, ax)
            cgu = Unsqueeze(cg, ax)
            to = Concat <axis=0> (nu, g{2}, cgu, hu, wu)
            v = Reshape(a, to)
            t = Transpose <perm=[0,2,1,3,4]> (v)
            back = Concat <axis=0> (nu, cu, hu, wu)
            s = Reshape(t, back)
            u, k = Split <axis=1> (s, half{4,4})
            r = Conv (u, w2[4,4,1,1], b2[4])
            j = Concat <axis=1> (k, r)
            y = Conv (j, w3[5,8,1,1])
        }""",
        (4, 4, 4),
    ),
    "rows_and_columns": Topology(
        # Channels as a 2 x 4 matrix whose columns are then read apart: whole columns are the units.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            v = Reshape(a, to{0,2,4,8,8})
            m = ReduceMean <keepdims=0> (v, ax{1})
            y = Conv (m, w2[5,4,1,1])
        }""",
        (4,),
    ),
    "concat_two_axes": Topology(
        # Two factors over heads and sizes are joined along the heads, then along the sizes: heads are the units of both
        # joins, as the parts of the first have no sizes in common and those of the second no number of heads.
        """(float[N,7] x) => (float[N,5] y, float[N,4] z) {
            a = Gemm (x, w1[7,24], b1[24])
            b = Gemm (x, w2[7,12], b2[12])
            ah = Reshape(a, ta{0,4,6})
            bh = Reshape(b, tb{0,2,6})
            j = Concat <axis=1> (ah, bh)
            f = Reshape(j, tf{0,36})
            y = Gemm (f, w3[36,5])
            c = Gemm (x, w4[7,8], b4[8])
            ch = Reshape(c, tc{0,4,2})
            k = Concat <axis=2> (ah, ch)
            g = Reshape(k, tg{0,32})
            z = Gemm (g, w5[32,4])
        }""",
        (4, 2),
    ),
    "concat_rows_with_columns": Topology(
        # One part has channels in every row and column, the other in its rows alone: rows are the units of both.
        """(float[N,7] x) => (float[N,5] y) {
            a = Gemm (x, w1[7,24], b1[24])
            ah = Reshape(a, ta{0,4,6})
            b = MatMul(x, w2[7,4])
            bh = Unsqueeze(b, ax{2})
            j = Concat <axis=2> (ah, bh)
            f = Reshape(j, tf{0,28})
            y = Gemm (f, w3[28,5])
        }""",
        (4,),
    ),
    "concat_columns_apart": Topology(
        # The columns of the second part are channels of their own, those of the first are not: all of them stay.
        """(float[N,7] x) => (float[N,5] y) {
            a = Gemm (x, w1[7,12], b1[12])
            ah = Reshape(a, ta{0,2,6})
            b = MatMul(ah, w2[6,6])
            j = Concat <axis=1> (ah, b)
            p = Slice(j, from{0}, to{1}, axes{2})
            f = Reshape(p, tf{0,4})
            y = Gemm (f, w3[4,5])
        }""",
        (),
        pins=("meets axis 1 of 'ah'", "it is all that Slice leaves of an axis of 'p'"),
    ),
    "rows_cut": Topology(
        # Of each of two rows, one part goes on alone: equally many of each row and part stay.
        """(float[N,7] x) => (float[N,5] y, float[N,4] z) {
            a = Gemm (x, w1[7,24], b1[24])
            ah = Reshape(a, ta{0,2,12})
            r = Relu(ah)
            f = Flatten(r)
            y = Gemm (f, w2[24,5])
            p = Slice(r, from{3}, to{9}, axes{2})
            s = Sigmoid(p)
            g = Flatten(s)
            z = Gemm (g, w3[12,4])
        }""",
        (12, 6, 6),
    ),
    "rows_cut_by_steps": Topology(
        # Every other column cannot be found again when each row keeps columns of its own.
        """(float[N,7] x) => (float[N,5] y, float[N,4] z) {
            a = Gemm (x, w1[7,24], b1[24])
            ah = Reshape(a, ta{0,2,12})
            r = Relu(ah)
            f = Flatten(r)
            y = Gemm (f, w2[24,5])
            p = Slice(r, from{1}, to{12}, axes{2}, steps{2})
            s = Sigmoid(p)
            g = Flatten(s)
            z = Gemm (g, w3[12,4])
        }""",
        (6, 6),
    ),
    "rows_cut_behind_one": Topology(
        # A single column of each row stands before the cut, which leaves no choice: whole columns go.
        """(float[N,7] x) => (float[N,4] z) {
            a = Gemm (x, w1[7,24], b1[24])
            ah = Reshape(a, ta{0,2,12})
            p = Slice(ah, from{1}, to{9}, axes{2})
            s = Sigmoid(p)
            g = Flatten(s)
            z = Gemm (g, w3[16,4])
        }""",
        (8, 4),
    ),
    "rows_picked": Topology(
        """(float[N,7] x) => (float[N,4] z) {
            a = Gemm (x, w1[7,24], b1[24])
            ah = Reshape(a, ta{0,2,12})
            r = Relu(ah)
            p = Gather <axis=2> (r, at{5,0,7,1})
            s = Sigmoid(p)
            g = Flatten(s)
            z = Gemm (g, w3[8,4])
        }""",
        (8, 4),
    ),
    "row_picked": Topology(
        # Queries, keys and values of one product, as exporters of fused attention write them: each row stays.
        """(float[N,L,7] x) => (float[N,L,5] y) {
            a = MatMul(x, w1[7,36])
            f = Reshape(a, split{0,0,3,12})
            t = Transpose <perm=[2,0,1,3]> (f)
            q = Gather <axis=0> (t, first{:0})
            v = Gather <axis=0> (t, last{:-1})
            s = Sigmoid(q)
            j = Concat <axis=-1> (s, v)
            y = MatMul(j, w2[24,5])
        }""",
        (36,),
    ),
    "picked_in_four_axes": Topology(
        # Strides of an exporter: the indices lie along one of four axes.
        """(float[N,3,8,8] x) => (float[5] y) {
            a = Conv (x, w1[8,3,3,3], b1[8])
            m = ReduceMean <keepdims=0> (a, over{0,2,3})
            i = Constant <value=int64[1,8,1,1] {7,6,5,4,3,2,1,0}> ()
            g = Gather <axis=0> (m, i)
            r = Relu(g)
            f = Reshape(r, flat{1,8})
            d = Gemm (f, w2[8,5], b2[5])
            y = Squeeze(d, ax{0})
        }""",
        (8,),
    ),
    "strided_view": Topology(
        # As exporters write a view by strides: the entries of a flattened map, numbered in their own order.
        """(float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv (x, w1[8,3,3,3], b1[8])
            p = GlobalAveragePool(a)
            f = Reshape(p, flat{-1})
            s = Shape(x)
            n = Gather(s, zero{:0})
            c = Mul(n, eight{:8})
            r = Range(zero, c, one{:1})
            n1 = Unsqueeze(n, ax{0})
            to = Concat <axis=0> (n1, rest{8,1,1})
            i = Reshape(r, to)
            g = Gather <axis=0> (f, i)
            v = Relu(g)
            h = Flatten(v)
            y = Gemm (h, w2[8,5], b2[5])
        }""",
        (8,),
    ),
    "strided_view_turned": Topology(
        # Numbered backwards it is another tensor, and its indices count over samples and channels at once.
        """(float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv (x, w1[8,3,3,3], b1[8])
            p = GlobalAveragePool(a)
            f = Reshape(p, flat{-1})
            s = Shape(x)
            n = Gather(s, zero{:0})
            c = Mul(n, eight{:8})
            up = Range(zero, c, one{:1})
            last = Sub(c, one)
            r = Sub(last, up)
            n1 = Unsqueeze(n, ax{0})
            to = Concat <axis=0> (n1, rest{8,1,1})
            i = Reshape(r, to)
            g = Gather <axis=0> (f, i)
            v = Relu(g)
            h = Flatten(v)
            y = Gemm (h, w2[8,5], b2[5])
        }""",
        (),
        pins=("Gather picks from this axis by indices computed at run time", "which carries no channels"),
    ),
    "columns_first": Topology(
        # Read column by column, what is kept of each row would come in another order.
        """(float[N,7] x) => (float[N,5] y) {
            a = Gemm (x, w1[7,24], b1[24])
            ah = Reshape(a, ta{0,2,12})
            r = Relu(ah)
            t = Transpose <perm=[0,2,1]> (r)
            f = Flatten(t)
            y = Gemm (f, w2[24,5])
        }""",
        (12,),
    ),
    "rows_split": Topology(
        """(float[N,7] x) => (float[N,5] y, float[N,4] z) {
            a = Gemm (x, w1[7,24], b1[24])
            ah = Reshape(a, ta{0,2,12})
            p, q = Split <axis=2> (ah, sizes{4,8})
            r = Relu(p)
            f = Flatten(r)
            y = Gemm (f, w2[8,5])
            s = Sigmoid(q)
            g = Flatten(s)
            z = Gemm (g, w3[16,4])
        }""",
        (16, 8),
    ),
    "reshape_copies_another_axis": Topology(
        # The 0 copies the height, which happens to be the number of columns.
        """(float[N,3,4,4] x) => (float[N,5,4,4,4] y) {
            a = Conv (x, w1[16,3,1,1], b1[16])
            v = Reshape(a, to{0,4,0,4,4})
            t = Transpose <perm=[0,2,1,3,4]> (v)
            y = Conv (t, w2[5,4,1,1,1])
        }""",
        (4,),
    ),
    "expand_token": Topology(
        # A learned token for each sample, as vision transformers write it.
        """(float[N,3,8,8] x) => (float[N,17,5] y) {
            a = Conv <strides=[2,2], pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
            v = Reshape(a, to{0,8,-1})
            t = Transpose <perm=[0,2,1]> (v)
            sh = Shape(x)
            n = Slice(sh, z{0}, o{1}, z)
            sz = Concat <axis=0> (n, rest{1,1})
            k = Expand(tok[1,1,8], sz)
            j = Concat <axis=1> (k, t)
            p = Add(j, pos[1,17,8])
            r = Relu(p)
            y = MatMul(r, w2[8,5])
        }""",
        (8,),
        pins=("meets axis 1 of 'j'",),
    ),
    "expand_widens": Topology(
        # An axis of size 1 is widened to the channel count by a run-time shape.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            g = ReduceMax <keepdims=1> (x, ax{1,2,3})
            sh = Shape(a)
            e = Expand(g, sh)
            m = Mul(a, e)
            y = Conv (m, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "tile_token": Topology(
        """(float[N,L,6] x) => (float[N,M,5] y) {
            a = MatMul(x, w1[6,8])
            sh = Shape(x)
            n = Gather <axis=0> (sh, i{0})
            sz = Concat <axis=0> (n, ones{1,1})
            k = Tile(tok[1,1,8], sz)
            j = Concat <axis=1> (k, a)
            y = MatMul(j, w2[8,5])
        }""",
        (8,),
    ),
    "constant_of_shape": Topology(
        # An initial state of zeros for the batch at hand is joined to the features.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            sh = Shape(x)
            n = Slice(sh, z{0}, o{1})
            sz = Concat <axis=0> (n, rest{4,8,8})
            k = ConstantOfShape <value = float[1] {0.5}> (sz)
            j = Concat <axis=1> (k, a)
            y = Conv (j, w2[5,12,1,1])
        }""",
        (8, 4),
    ),
    "resize_run_time": Topology(
        # The sizes come from a skip connection, the channel count from the tensor itself.
        """(float[N,3,H,W] x) => (float[N,5,H,W] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a)
            sm = Shape(m)
            nc = Slice(sm, z{0}, t{2})
            sx = Shape(x)
            hw = Slice(sx, t, f{4})
            sz = Concat <axis=0> (nc, hw)
            u = Resize <mode="nearest"> (m, "", "", sz)
            j = Concat <axis=1> (u, a)
            y = Conv (j, w2[5,16,1,1])
        }""",
        (8,),
    ),
    "resize_sizes": Topology(
        """(float[2,3,8,8] x) => (float[2,5,12,12] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u = Resize <mode="linear"> (a, "", "", sz{2,8,12,12})
            y = Conv (u, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "resize_scales": Topology(
        """(float[N,3,8,8] x) => (float[N,5,16,16] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u = Resize <mode="nearest"> (a, "", sc{1.0,1.0,2.0,2.0})
            y = Conv (u, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "depth_to_space_dcr": Topology(
        """(float[N,3,4,4] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[12,3,1,1], b1[12])
            d = DepthToSpace <blocksize=2> (a)
            y = Conv (d, w2[5,3,1,1])
        }""",
        (3,),
    ),
    "depth_to_space_crd": Topology(
        """(float[N,3,4,4] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[12,3,1,1], b1[12])
            d = DepthToSpace <blocksize=2, mode="CRD"> (a)
            y = Conv (d, w2[5,3,1,1])
        }""",
        (3,),
    ),
    "space_to_depth": Topology(
        """(float[N,3,8,8] x) => (float[N,5,4,4] y) {
            a = Conv (x, w1[4,3,1,1], b1[4])
            d = SpaceToDepth <blocksize=2> (a)
            y = Conv (d, w2[5,16,1,1])
        }""",
        (4,),
    ),
    "pad_borders": Topology(
        # Borders of positions are no business of the channels; reflected channels are.
        """(float[N,3,8,8] x) => (float[N,5,10,10] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            p = Pad <mode="reflect"> (a, pads{0,0,1,1,0,0,1,1})
            c = Conv (p, w2[6,8,1,1])
            q = Pad <mode="edge"> (c, more{0,1,0,0,0,1,0,0})
            y = Conv (q, w3[5,8,1,1])
        }""",
        (8,),
        pins=("Pad changes this axis in a way that labels cannot follow", "meets axis 1 of 'q'"),
    ),
    "pad_axes": Topology(
        # Pad by the axes that it names, channels among them, before only.
        """(float[N,3,8,8] x) => (float[N,5,8,9] y) {
            a = Conv (x, w1[6,3,1,1], b1[6])
            p = Pad(a, pads{1,2,0,0}, "", ax{-1,1})
            y = Conv (p, w2[5,8,1,1])
        }""",
        (6, 2),
    ),
    "squeeze_unsqueeze": Topology(
        """(float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            p = GlobalAveragePool(a)
            s = Squeeze(p, hw{2,3})
            u = Unsqueeze(s, ax{1})
            c = Conv <pads=[1,1]> (u, k1[1,1,3])
            v = Squeeze(c, ax)
            y = Gemm <transB=1> (v, w2[5,8], b2[5])
        }""",
        # A convolution along the channels, as ECA does, reads neighbours.
        (),
        pins=("a convolution needs every spatial position", "meets axis 1 of 'v'"),
    ),
}
