"""The edges of what is traced, and the many ways of writing the same graph."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from tests.installed import runtime_opset
from tests.topologies.convolution import PLAIN
from tests.topologies.text import Topology


def _weights_as_constant_nodes(model: onnx.ModelProto) -> None:
    nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)


def _weights_among_inputs(model: onnx.ModelProto) -> None:
    for t in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))


def _described(model: onnx.ModelProto) -> None:
    model.producer_name, model.producer_version, model.domain = "somebody", "1.2", "org.example"
    model.model_version, model.doc_string, model.graph.doc_string = 7, "a model", "a graph"
    model.metadata_props.add(key="author", value="somebody")
    for i, n in enumerate(model.graph.node):
        n.name, n.doc_string = f"layer/{i}", f"the {n.op_type} at {i}"
        n.metadata_props.add(key="place", value=str(i))


_OPSET_9 = """(float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
    n = BatchNormalization (a, s1[8], o1[8], m1[8], var1[8])
    r = Clip <min=0.0, max=6.0> (n)
    u = Upsample <mode="nearest"> (r, sc{1.0,1.0,2.0,2.0})
    c = Conv (u, w2[6,8,3,3])
    d = Pad <pads=[0,1,0,0,0,1,0,0]> (c)
    m = ReduceMean <axes=[2,3], keepdims=1> (d)
    s = Squeeze <axes=[2,3]> (m)
    q = Unsqueeze <axes=[0]> (s)
    f = Squeeze <axes=[0]> (q)
    y = Gemm (f, w3[8,5], b3[5])
}"""

_OPSET_11 = """(float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1[8,3,3,3], b1[8])
    r = Clip(a, lo{:0.0}, "")
    u = Resize <mode="nearest"> (r, roi{0:.}, sc{1.0,1.0,2.0,2.0})
    c = Conv (u, w2[6,8,3,3])
    d = Pad(c, pads{0,1,0,0,0,1,0,0})
    m = ReduceMean <axes=[2,3], keepdims=1> (d)
    f = Flatten(m)
    y = Gemm (f, w3[8,5], b3[5])
}"""

# Sizes, bounds and counts as attributes; a channel padded on each side; a part that is written over.
_OPSET_9_LAYOUT = """(float[N,3,8,8] x) => (float[N,5,8,8] y, float[N,4,8,8] z) {
    a = Conv (x, w1[8,3,1,1], b1[8])
    u, v = Split <axis=1, split=[3,5]> (a)
    d, drawn = Dropout <ratio=0.3> (v)
    p = Pad <pads=[0,1,0,0,0,1,0,0]> (u)
    c = Concat <axis=1> (p, d)
    s = Slice <axes=[1], starts=[1], ends=[9]> (c)
    m = Max(s)
    y = Conv (m, w2[5,8,1,1], b2[5])
    t, i = TopK <axis=2, k=2> (a)
    g = Neg(t)
    k = Scatter <axis=2> (a, i, g)
    z = Conv (k, w3[4,8,1,1], b3[4])
}"""

_OPSET_10_LAYOUT = """(float[N,3,8,8] x) => (float[N,5,4,4] y) {
    a = Conv (x, w1[8,3,1,1], b1[8])
    s = Slice(a, from{7,0}, till{-9,8}, axes{1,2}, by{-1,2})
    t, i = TopK <axis=3> (s, four{4})
    u, v = Split <axis=1> (t)
    d = Dropout(u)
    c = Concat <axis=1> (v, d)
    m = MaxPool <kernel_shape=[2,2], dilations=[2,2], ceil_mode=1, pads=[1,1,1,1]> (c)
    y = Conv (m, w2[5,8,1,1], b2[5])
}"""

_OPSET_18_LAYOUT = """(float[N,3,8,8] x) => (float[N,5,8,4] y) {
    a = Conv (x, w1[9,3,1,1], b1[9])
    u, v = Split <axis=1, num_outputs=2> (a)
    g = Gather <axis=1> (u, four{-2,0,1,3})
    q = Pad(g, pads{1,1}, zero{:0.0}, one{1})
    e = Concat <axis=1> (q, v)
    p = LpPool <kernel_shape=[1,2], strides=[1,2], p=2> (e)
    r = ReduceSum <noop_with_empty_axes=1> (p)
    n = ReduceMean <keepdims=1> (r, axes{2,3})
    k = Sub(r, n)
    s = Shape <start=2> (k)
    h = Expand(half{1x1x1x1:0.5}, s)
    l = Mul(k, h)
    y = Conv (l, w2[5,10,1,1], b2[5])
}"""

ROWS: Mapping[str, Topology] = {
    "opset_9_layout": Topology(_OPSET_9_LAYOUT, (7, 1, 1), opset=9, ir_version=4),
    "opset_10_layout": Topology(_OPSET_10_LAYOUT, (8,), opset=10, ir_version=5),
    "opset_12_layout": Topology(_OPSET_10_LAYOUT, (8,), opset=12, ir_version=7),
    "opset_18_layout": Topology(_OPSET_18_LAYOUT, (6, 2, 2, 1), pins=("meets axis 2 of 'k'", "meets axis 3 of 'k'")),
    "opset_9": Topology(_OPSET_9, (8, 6, 2), opset=9, ir_version=4),
    "opset_11": Topology(_OPSET_11, (8, 6, 2), opset=11, ir_version=6),
    "opset_13": Topology(PLAIN, (8, 6), opset=13, ir_version=7),
    "opset_11_plain": Topology(PLAIN, (8, 6), opset=11, ir_version=6),
    "opset_21": Topology(PLAIN, (8, 6), opset=21, ir_version=10),
    "opset_newest": Topology(PLAIN, (8, 6), opset=min(onnx.defs.onnx_opset_version(), runtime_opset()), ir_version=10),
    "weights_as_constant_nodes": Topology(PLAIN, (8, 6), edit=_weights_as_constant_nodes),
    "weights_among_inputs": Topology(PLAIN, (8, 6), opset=9, ir_version=3, edit=_weights_among_inputs),
    "described": Topology(PLAIN, (8, 6), ir_version=10, edit=_described),
    "identity_of_weights": Topology(
        # Exporters route equal weights through Identity: the kernel stays shared, the bias does not couple.
        """(float[N,3,8,8] x) => (float[N,5,4,4] y) {
            wi = Identity(w[6,6,3,3])
            bi = Identity(b[6])
            bj = Identity(bi)
            e = Conv (x, w1[6,3,1,1], b)
            a = Conv <pads=[1,1,1,1]> (e, w)
            r = Relu(a)
            c = Conv (r, wi, bi)
            d = Conv <pads=[1,1,1,1]> (c, w2[7,6,3,3])
            k = Conv (d, w3[6,7,3,3], bj)
            y = Conv (k, w4[5,6,1,1])
        }""",
        (7, 6, 6),
    ),
    "weights_behind_layout": Topology(
        # Transposed and cast weights are folded before anything looks at them.
        """(float[N,7] x) => (float[N,5] y) {
            t = Transpose <perm=[1,0]> (w1[8,7])
            a = MatMul(x, t)
            b = Cast <to=1> (b1[8])
            c = Add(a, b)
            u = Reshape(w2[5,8,1,1], to{5,8})
            y = Gemm <transB=1> (c, u)
        }""",
        (8,),
    ),
    "unknown_operator": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (a, w2[6,8,1,1], b2[6])
            g = com.microsoft.SampleOp (c)
            d = Conv (g, w3[7,6,1,1])
            y = Conv (d, w4[5,7,1,1])
        }""",
        (8, 7),
        pins=("com.microsoft.SampleOp has no channel rule", "meets axis 1 of 'g' (SampleOp"),
        domains=("com.microsoft",),
    ),
    "local_function": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            g = local.swish (a)
            y = Conv (g, w2[5,8,1,1])
        }
        <domain: "local", opset_import: ["" : 18]>
        swish (v) => (o) { s = Sigmoid(v)  o = Mul(v, s) }""",
        (8,),
        domains=("local",),
    ),
    "output_and_consumed": Topology(
        """(float[N,3,8,8] x) => (float[N,8,6,6] a, float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,3,3], b1[8])
            r = Relu(a)
            c = Conv (r, w2[6,8,1,1])
            y = Conv (c, w3[5,6,1,1])
        }""",
        (6,),
    ),
    "output_of_weight": Topology(
        # A weight that is itself an output.
        """(float[N,7] x) => (float[8] b1, float[N,5] y) {
            a = Gemm (x, w1[7,8], b1[8])
            c = Gemm (a, w2[8,6])
            y = Gemm (c, w3[6,5])
        }""",
        (6,),
    ),
    "several_inputs_and_outputs": Topology(
        """(float[N,3,8,8] x, float[N,2,8,8] z, float[N,1] gate) => (float[N,5,8,8] y, float[N,4,4,4] u, float[N,8] v) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (z, w2[8,2,1,1], b2[8])
            s = Add(a, c)
            g = Unsqueeze(gate, ax{2,3})
            k = Mul(s, g)
            y = Conv (k, w3[5,8,1,1])
            d = Conv <strides=[2,2]> (k, w4[6,8,1,1])
            r = Relu(d)
            u = Conv (r, w5[4,6,1,1])
            p = GlobalAveragePool(r)
            f = Flatten(p)
            v = Gemm (f, w6[6,8])
        }""",
        (8, 6),
    ),
    "input_joins": Topology(
        # What the caller gives keeps its channels, also where it is joined or added.
        """(float[N,3,8,8] x, float[N,6,8,8] z) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            j = Concat <axis=1> (a, z)
            c = Conv (j, w2[6,14,1,1])
            s = Add(c, z)
            y = Conv (s, w3[5,6,1,1])
        }""",
        (8,),
        pins=("meets axis 1 of 's'",),
    ),
    "batch_of_one": Topology(PLAIN.replace("N,", "1,"), (8, 6)),
    "batch_of_one_run_time_shape": Topology(
        # With one sample the batch axis has size 1, as a broadcast axis has.
        """(float[1,3,8,8] x) => (float[1,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            p = GlobalAveragePool(a)
            sh = Shape(p)
            n = Slice(sh, z{0}, o{1})
            to = Concat <axis=0> (n, m{-1})
            f = Reshape(p, to)
            y = Gemm (f, w2[8,8], b2[8])
        }""",
        (8,),
    ),
    "square_batch": Topology(
        # The batch equals the channel count: axes are told apart by place, never by size.
        """(float[8,3,8,8] x) => (float[8,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            t = Transpose <perm=[0,2,1,3]> (a)
            u = Transpose <perm=[0,2,1,3]> (t)
            m = Mul(u, s1[8,1,1])
            y = Conv (m, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "empty_operand": Topology(
        # A concatenation with nothing, as exporters write for an empty cache.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            e = Slice(a, z{0}, z, ax{1})
            j = Concat <axis=1> (e, a)
            y = Conv (j, w2[5,8,1,1])
        }""",
        (8,),
    ),
    "unused_output_of_split": Topology(
        # One part is read by nobody; its channels may go, and go for free.
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            u, v = Split <axis=1> (a, parts{3,5})
            y = Conv (v, w2[5,5,1,1])
        }""",
        (5, 3),
    ),
    "optional_outputs": Topology(
        # MaxPool's indices number the elements of the whole tensor.
        """(float[N,3,8,8] x) => (float[N,5,4,4] y, int64[N,6,4,4] i) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (a, w2[6,8,1,1])
            d, mask = Dropout(c)
            m, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (d)
            y = Conv (m, w3[5,6,1,1])
        }""",
        (8,),
        pins=("the indices of MaxPool count over all channels",),
    ),
    "where_and_compare": Topology(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (x, w2[8,3,1,1], b2[8])
            g = Greater(a, c)
            s = Where(g, a, alt[8,1,1])
            k = Cast <to=1> (g)
            m = Mul(s, k)
            y = Conv (m, w3[5,8,1,1])
        }""",
        (8,),
    ),
    "reshape_run_time": Topology(
        # The target is an input: nobody knows where the channels go.
        """(float[N,3,8,8] x, int64[4] to) => (float[A,B,C,D] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (a, w2[6,8,1,1])
            y = Reshape(c, to)
        }""",
        (8,),
        pins=("the target of Reshape is computed at run time",),
        given={"to": (-1, 6, 8, 8)},
    ),
}
