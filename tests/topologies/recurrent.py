"""LSTM, GRU and RNN: hidden units, in one direction and in both, and what states and inputs couple."""

from __future__ import annotations

from collections.abc import Mapping

from tests.topologies.text import Topology


def _bidirectional(kind: str, gates: int, attributes: str = "") -> str:
    """Both directions side by side, as exporters write it, between two products."""
    return f"""(float[L,N,3] x) => (float[L,N,5] y) {{
        e = MatMul(x, w0[3,4])
        s = {kind} <hidden_size=6, direction="bidirectional"{attributes}>
            (e, w1[2,{gates * 6},4], r1[2,{gates * 6},6], b1[2,{gates * 12}])
        t = Transpose <perm=[0,2,1,3]> (s)
        f = Reshape(t, to{{0,0,-1}})
        y = MatMul(f, w2[12,5])
    }}"""


def _one_way(kind: str, gates: int, attributes: str = "") -> str:
    """Only the last state is read."""
    return f"""(float[L,N,3] x) => (float[N,5] y) {{
        e = MatMul(x, w0[3,4])
        s, h = {kind} <hidden_size=6{attributes}> (e, w1[1,{gates * 6},4], r1[1,{gates * 6},6], b1[1,{gates * 12}])
        v = Squeeze(h, ax{{0}})
        y = Gemm <transB=1> (v, w2[5,6], b2[5])
    }}"""


ROWS: Mapping[str, Topology] = {
    "lstm": Topology(
        # The input's axis comes from outside; every step is read.
        """(float[L,N,3] x) => (float[N,5] y) {
            s = LSTM <hidden_size=7> (x, w1[1,28,3], r1[1,28,7], b1[1,56])
            m = ReduceMean <keepdims=0> (s, ax{0,1})
            y = Gemm <transB=1> (m, w2[5,7], b2[5])
        }""",
        (7,),
    ),
    "lstm_bidirectional": Topology(_bidirectional("LSTM", 4), (12, 4)),
    "gru_bidirectional": Topology(_bidirectional("GRU", 3, ", linear_before_reset=1"), (12, 4)),
    "rnn_bidirectional": Topology(_bidirectional("RNN", 1), (12, 4)),
    "lstm_reverse": Topology(_one_way("LSTM", 4, ', direction="reverse"'), (6, 4)),
    "lstm_clipped": Topology(
        _one_way("LSTM", 4, ', clip=0.5, input_forget=1, activations=["HardSigmoid","Relu","Softsign"]'), (6, 4)
    ),
    "gru": Topology(_one_way("GRU", 3), (6, 4)),
    "gru_linear_before_reset": Topology(_one_way("GRU", 3, ", linear_before_reset=1"), (6, 4)),
    "rnn": Topology(_one_way("RNN", 1, ', activations=["Relu"]'), (6, 4)),
    "gru_between_products": Topology(
        # Neither a bias nor states; the last state is not read.
        """(float[L,N,6] x) => (float[L,N,5] y) {
            a = MatMul(x, w1[6,8])
            b = MatMul(a, w2[8,7])
            h, hn = GRU <hidden_size=4> (b, wi[1,12,7], wr[1,12,4])
            s = Squeeze(h, ax{1})
            c = MatMul(s, w3[4,6])
            y = MatMul(c, w4[6,5])
        }""",
        (8, 7, 6, 4),
    ),
    "lstm_stacked": Topology(
        # A second layer on the first one's sequence, without a bias.
        """(float[L,N,3] x) => (float[L,N,5] y) {
            s = LSTM <hidden_size=8> (x, w1[1,32,3], r1[1,32,8], b1[1,64])
            q = Squeeze(s, ax{1})
            u = LSTM <hidden_size=6> (q, w2[1,24,8], r2[1,24,6])
            v = Squeeze(u, ax)
            y = MatMul(v, w3[6,5])
        }""",
        (8, 6),
    ),
    "lstm_zero_states": Topology(
        # One tensor of zeros starts both layers; as exported, its size follows the batch.
        """(float[L,N,3] x) => (float[L,N,5] y) {
            sh = Shape(x)
            n = Gather(sh, one{1})
            d = Concat <axis=0> (two{2}, n, six{6})
            z = ConstantOfShape(d)
            z0 = Slice(z, i0{0}, i1{1}, ax{0})
            z1 = Slice(z, i1, i2{2}, ax)
            s = LSTM <hidden_size=6> (x, w1[1,24,3], r1[1,24,6], b1[1,48], , z0, z0)
            q = Squeeze(s, sq{1})
            u = GRU <hidden_size=6> (q, w2[1,18,6], r2[1,18,6], b2[1,36], , z1)
            v = Squeeze(u, sq)
            y = MatMul(v, w3[6,5])
        }""",
        (6, 6),
    ),
    "lstm_learned_states": Topology(
        # Learned initial states, repeated over the batch, of both directions.
        """(float[L,N,3] x) => (float[N,5] y) {
            sh = Shape(x)
            n = Gather(sh, one{1})
            d = Concat <axis=0> (two{2}, n, six{6})
            h0 = Expand(h[2,1,6], d)
            c0 = Expand(c[2,1,6], d)
            s, t, k = LSTM <hidden_size=6, direction="bidirectional"> (x, w1[2,24,3], r1[2,24,6], b1[2,48], , h0, c0)
            p = Transpose <perm=[1,0,2]> (k)
            f = Flatten(p)
            y = Gemm (f, w2[12,5], b2[5])
        }""",
        (6,),
    ),
    "lstm_constant_state": Topology(
        # A batch of one: the state is a weight of its own.
        """(float[L,1,3] x) => (float[L,1,5] y) {
            s = LSTM <hidden_size=6, direction="bidirectional"> (x, w1[2,24,3], r1[2,24,6], , , h[2,1,6], c[2,1,6])
            t = Transpose <perm=[0,2,1,3]> (s)
            f = Reshape(t, to{0,0,-1})
            y = MatMul(f, w2[12,5])
        }""",
        (12,),
    ),
    "lstm_state_from_outside": Topology(
        """(float[N,L,3] x, float[N,6] h) => (float[L,N,5] y) {
            t = Transpose <perm=[1,0,2]> (x)
            e = MatMul(t, w0[3,4])
            h0 = Unsqueeze(h, at{0})
            s = LSTM <hidden_size=6> (e, w1[1,24,4], r1[1,24,6], b1[1,48], , h0)
            q = Squeeze(s, ax{1})
            y = MatMul(q, w2[6,5])
        }""",
        (4,),
        pins=("meets axis 2 of 't' (Transpose", "meets axis 2 of 'h0' (Unsqueeze"),
    ),
    "lstm_state_returned": Topology(
        """(float[L,N,3] x) => (float[L,N,5] y, float[1,N,6] h) {
            e = MatMul(x, w0[3,4])
            s, h = LSTM <hidden_size=6> (e, w1[1,24,4], r1[1,24,6], b1[1,48])
            q = Squeeze(s, ax{1})
            y = MatMul(q, w2[6,5])
        }""",
        (4,),
    ),
    "lstm_encoder_decoder": Topology(
        # The states of one net start another: the units of both are the same.
        """(float[L,N,3] x) => (float[L,N,5] y) {
            z = Neg(x)
            , h, c = LSTM <hidden_size=6> (x, w1[1,24,3], r1[1,24,6], b1[1,48])
            s = LSTM <hidden_size=6> (z, w2[1,24,3], r2[1,24,6], b2[1,48], , h, c)
            q = Squeeze(s, ax{1})
            y = MatMul(q, w3[6,5])
        }""",
        (6,),
        pins=("meets axis 2 of 'z' (Neg",),
    ),
    "lstm_peepholes": Topology(
        """(float[N,L,3] x, int32[N] more) => (float[L,N,5] y) {
            e = MatMul(x, w0[3,4])
            i = Transpose <perm=[1,0,2]> (e)
            two = Cast <to=6> (at_least{2})
            n = Add(two, more)
            s = LSTM <hidden_size=6, direction="bidirectional">
                (i, w1[2,24,4], r1[2,24,6], b1[2,48], n, , , p1[2,18])
            t = Transpose <perm=[0,2,1,3]> (s)
            f = Reshape(t, to{0,0,-1})
            y = MatMul(f, w2[12,5])
        }""",
        (12, 4),
    ),
    "lstm_shared_weights": Topology(
        # The same net over two inputs; its weights start with labels only once.
        """(float[L,N,3] x) => (float[L,N,5] y) {
            z = Neg(x)
            s = LSTM <hidden_size=6, direction="bidirectional"> (x, w1[2,24,3], r1[2,24,6], b1[2,48])
            u = LSTM <hidden_size=6, direction="bidirectional"> (z, w1, r1, b1)
            a = Concat <axis=3> (s, u)
            t = Transpose <perm=[0,2,1,3]> (a)
            f = Reshape(t, to{0,0,-1})
            y = MatMul(f, w2[24,5])
        }""",
        (12,),
    ),
    "lstm_computed_weights": Topology(
        # Weights that something else computes carry one label for both directions.
        """(float[L,N,3] x) => (float[L,N,5] y) {
            m = ReduceMean <keepdims=1> (x)
            w = Add(w1[2,24,3], m)
            r = Mul(r1[2,24,6], m)
            s = LSTM <hidden_size=6, direction="bidirectional"> (x, w, r, b1[2,48])
            t = Transpose <perm=[0,2,1,3]> (s)
            f = Reshape(t, to{0,0,-1})
            y = MatMul(f, w2[12,5])
        }""",
        (6,),
    ),
    "lstm_behind_convolution": Topology(
        # Columns of a feature map are the steps, as in text recognition.
        """(float[N,3,8,W] x) => (float[W,N,5] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1[4,3,3,3], b1[4])
            p = MaxPool <kernel_shape=[4,1], strides=[4,1]> (a)
            c = Transpose <perm=[3,0,1,2]> (p)
            f = Reshape(c, to{0,0,-1})
            s = LSTM <hidden_size=6, direction="bidirectional"> (f, w2[2,24,8], r2[2,24,6], b2[2,48])
            t = Transpose <perm=[0,2,1,3]> (s)
            v = Reshape(t, to)
            y = MatMul(v, w3[12,5])
        }""",
        (12, 4),
    ),
    "lstm_two_units": Topology(
        # No more units than directions: still a unit of each goes, never a direction.
        """(float[L,N,3] x) => (float[L,N,5] y) {
            s = LSTM <hidden_size=2, direction="bidirectional"> (x, w1[2,8,3], r1[2,8,2], b1[2,16])
            t = Transpose <perm=[0,2,1,3]> (s)
            f = Reshape(t, to{0,0,-1})
            y = MatMul(f, w2[4,5])
        }""",
        (4,),
    ),
    "lstm_one_unit": Topology(
        """(float[L,N,3] x) => (float[L,N,5] y) {
            e = MatMul(x, w0[3,4])
            s = LSTM <hidden_size=1, direction="bidirectional"> (e, w1[2,4,4], r1[2,4,1], b1[2,8])
            t = Transpose <perm=[0,2,1,3]> (s)
            f = Reshape(t, to{0,0,-1})
            y = MatMul(f, w2[2,5])
        }""",
        (4,),
        pins=("LSTM has no other hidden unit",),
    ),
    "lstm_units_summed": Topology(
        # What adds the units of a direction up leaves each direction one unit: none of them can go.
        """(float[L,N,3] x) => (float[L,N,5] y) {
            e = MatMul(x, w0[3,4])
            s = LSTM <hidden_size=6, direction="bidirectional"> (e, w1[2,24,4], r1[2,24,6], b1[2,48])
            m = ReduceSum <keepdims=0> (s, ax{3})
            t = Transpose <perm=[0,2,1]> (m)
            y = MatMul(t, w2[2,5])
        }""",
        (4,),
        pins=("all channels of 'w1' are coupled",),
    ),
}
