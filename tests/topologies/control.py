"""Bodies of If, Loop and Scan, functions that hold them, and values that are no tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from tests.topologies.text import Topology


def _into_bodies(*names: str) -> Callable[[onnx.ModelProto], None]:
    """Store weights in every body that reads them, under the same name in each, as exporters do."""

    def edit(model: onnx.ModelProto) -> None:
        stored = {t.name: t for t in model.graph.initializer if t.name in names}
        for body in _bodies(model.graph):
            read = {i for n in body.node for i in n.input}
            body.initializer.extend(t for name, t in stored.items() if name in read)
        for t in stored.values():
            model.graph.initializer.remove(t)

    return edit


def _bodies(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    return found + [inner for body in found for inner in _bodies(body)]


def _unnamed_types(model: onnx.ModelProto) -> None:
    """Bodies need not declare the types of what they return."""
    for body in _bodies(model.graph):
        for v in body.output:
            v.ClearField("type")


def _constant_nodes(*names: str) -> Callable[[onnx.ModelProto], None]:
    """Store weights as Constant nodes in every body that reads them."""

    def edit(model: onnx.ModelProto) -> None:
        _into_bodies(*names)(model)
        for body in _bodies(model.graph):
            nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in body.initializer]
            nodes += body.node
            del body.initializer[:], body.node[:]
            body.node.extend(nodes)

    return edit


def _weights_among_inputs(model: onnx.ModelProto) -> None:
    for t in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))


def _stale_declarations(model: onnx.ModelProto) -> None:
    """Bodies declare the shapes of their inner tensors, as exporters write them after shape inference."""
    inferred = onnx.shape_inference.infer_shapes(model)
    model.CopyFrom(inferred)
    assert any(body.value_info for body in _bodies(model.graph))


_TWO_BRANCHES = """(float[N,3,8,8] x, bool flag) => (float[N,5,8,8] y) {
    a = Conv (x, w1[8,3,1,1], b1[8])
    d = If (flag) <
        then_branch = yes () => (float[N,6,8,8] t) {
            h = Conv <pads=[1,1,1,1]> (a, w2[7,8,3,3], b2[7])
            r = Relu(h)
            t = Conv (r, w3[6,7,1,1], b3[6])
        },
        else_branch = no () => (float[N,6,8,8] e) {
            h = Relu(a)
            e = Conv(h, w4[6,8,1,1])
        }
    >
    y = Conv (d, w5[5,6,1,1])
}"""

_STATE = """(float[N,6] x) => (float[N,5] y) {
    a = Gemm (x, w1[6,8], b1[8])
    h = Gemm (a, w2[8,7])
    s, all = Loop (trips{:3}, "", h) <
        body = step (int64 i, bool c, float[N,7] v) => (bool k, float[N,7] u, float[N,9] z) {
            k = Identity(c)
            q = MatMul(v, w3[7,9])
            f = Add(q, o3[9])
            z = Tanh(f)
            p = MatMul(z, w4[9,7])
            u = Add(p, v)
        }
    >
    m = ReduceMean <keepdims=0> (all, ax{0})
    n = Gemm (m, w5[9,7])
    j = Add(n, s)
    y = Gemm (j, w6[7,5])
}"""

_SCAN = """(float[N,L,6] x) => (float[N,5] y, float[N,L,4] u) {
    a = MatMul(x, w1[6,8])
    z = MatMul(a, w2[8,7])
    q = ReduceMean <keepdims=0> (a, ax{1})
    h = MatMul(q, w3[8,9])
    s, all = Scan (h, z) <
        num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], scan_input_directions=[1],
        body = step (float[N,9] v, float[N,7] e) => (float[N,9] o, float[N,6] g) {
            p = MatMul(v, w4[9,9])
            r = MatMul(e, w5[7,9])
            b = Sum(p, r, b5[9])
            o = Tanh(b)
            g = MatMul(o, w6[9,6])
        }
    >
    y = Gemm (s, w7[9,5])
    u = MatMul(all, w8[6,4])
}"""

ROWS: Mapping[str, Topology] = {
    "body_reads_outer_tensor": Topology(
        """(float[N,3,8,8] x, bool flag) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            c = Conv (a, w2[6,8,1,1], b2[6])
            d = If (flag) <
                then_branch = yes () => (float[N,6,8,8] t) { t = Relu(c) },
                else_branch = no () => (float[N,6,8,8] e) { e = Mul(c, k[6,1,1]) }
            >
            y = Conv (d, w3[5,6,1,1])
        }""",
        (8, 6),
    ),
    "body_reads_outer_weights": Topology(
        # One outer kernel that both branches use.
        """(float[N,3,8,8] x, bool flag) => (float[N,5,8,8] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            d = If (flag) <
                then_branch = yes () => (float[N,5,8,8] t) { t = Conv(a, w2[5,8,1,1]) },
                else_branch = no () => (float[N,5,8,8] e) { q = Relu(a)  e = Conv(q, w2) }
            >
            c = Conv (d, w3[6,5,1,1])
            y = Conv (c, w4[5,6,1,1])
        }""",
        (8, 6, 5),
    ),
    "if_weights_outside": Topology(_TWO_BRANCHES, (8, 7, 6)),
    "if_weights_inside": Topology(_TWO_BRANCHES, (8, 7, 6), edit=_into_bodies("w2", "b2", "w3", "b3", "w4")),
    "if_false": Topology(
        _TWO_BRANCHES, (8, 7, 6), given={"flag": (0,)}, edit=_into_bodies("w2", "b2", "w3", "b3", "w4")
    ),
    "if_undeclared": Topology(_TWO_BRANCHES, (8, 7, 6), edit=_unnamed_types),
    "if_declared": Topology(_TWO_BRANCHES, (8, 7, 6), edit=_stale_declarations),
    "if_constant_nodes": Topology(_TWO_BRANCHES, (8, 7, 6), edit=_constant_nodes("w2", "b2", "w3", "b3", "w4")),
    "if_weights_among_inputs": Topology(_TWO_BRANCHES, (8, 7, 6), edit=_weights_among_inputs),
    "if_opset_11": Topology(_TWO_BRANCHES, (8, 7, 6), opset=11, ir_version=6, edit=_into_bodies("w2", "w4")),
    "if_names_repeat": Topology(
        # Both branches call their weights and tensors the same, and store them.
        """(float[N,6] x, bool flag) => (float[N,5] y) {
            a = Gemm (x, w1[6,8], b1[8])
            d = If (flag) <
                then_branch = yes () => (float[N,6] o) { h = MatMul(a, w2[8,7])  r = Relu(h)  o = MatMul(r, w3[7,6]) },
                else_branch = no () => (float[N,6] o) { h = MatMul(a, w2)  r = Tanh(h)  o = MatMul(r, w3) }
            >
            y = Gemm (d, w4[6,5])
        }""",
        (8, 7, 7, 6),
        edit=_into_bodies("w2", "w3"),
    ),
    "if_weights_contracted": Topology(
        # Weights that are contracted with each other alone, in one of the branches.
        """(float[N,6] x, bool flag) => (float[N,5] y) {
            d = If (flag) <
                then_branch = yes () => (float[N,8] t) { t = Einsum <equation="bi,ij,jk->bk"> (x, w1[6,9], w2[9,8]) },
                else_branch = no () => (float[N,8] o) { h = MatMul(x, w3[6,8])  o = Relu(h) }
            >
            y = Gemm (d, w4[8,5])
        }""",
        (9, 8),
        edit=_into_bodies("w1", "w2", "w3"),
    ),
    "if_branch_of_constants": Topology(
        # One branch returns a weight of its own: it loses channels with the other branch.
        """(float[6] x, bool flag) => (float[5] y) {
            d = If (flag) <
                then_branch = yes () => (float[7] t) { t = MatMul(x, w2[6,7]) },
                else_branch = no () => (float[7] e) { e = Identity(o2[7]) }
            >
            y = MatMul (d, w3[7,5])
        }""",
        (7,),
        edit=_into_bodies("w2", "o2"),
    ),
    "if_untracked_branch": Topology(
        # What one branch takes from outside keeps its channels, so the other's stay too.
        """(float[N,3] x, float[N,6] z, bool flag) => (float[N,5] y) {
            a = Gemm (x, w1[3,8], b1[8])
            d = If (flag) <
                then_branch = yes () => (float[N,6] t) { t = MatMul(a, w2[8,6]) },
                else_branch = no () => (float[N,6] e) { e = Neg(z) }
            >
            y = Gemm (d, w3[6,5])
        }""",
        (8,),
        pins=("meets axis 1 of 'e' (Neg", "meets axis 1 of 'd' (If"),
    ),
    "if_shapes_differ": Topology(
        """(float[N,3] x, bool flag) => (float[N,A] y, float[N,5] z) {
            a = Gemm (x, w1[3,8], b1[8])
            c = Gemm (a, w2[8,6])
            z = Gemm (a, w3[8,5])
            y = If (flag) <
                then_branch = yes () => (float[N,B] t) { t = Relu(c) },
                else_branch = no () => (float[N,C] e) { e = Concat <axis=1> (c, c) }
            >
        }""",
        (8,),
        pins=("the branches of If give it different shapes",),
    ),
    "if_reshape_inside": Topology(
        # Shape arithmetic of a body: on what it captures, and on a size that the main graph computes.
        """(float[N,3,8,8] x, bool flag) => (float[N,5] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            sh = Shape(x)
            n = Gather(sh, z{0})
            d = If (flag) <
                then_branch = yes () => (float[N,6] t) {
                    c = Conv <strides=[4,4]> (a, w2[4,8,1,1])
                    to = Concat <axis=0> (n, last{16})
                    f = Reshape(c, to)
                    t = MatMul(f, w3[16,6])
                },
                else_branch = no () => (float[N,6] e) {
                    p = GlobalAveragePool(a)
                    s = Shape(p)
                    q = Slice(s, z, two{2})
                    g = Reshape(p, q)
                    e = MatMul(g, w4[8,6])
                }
            >
            y = Gemm (d, w5[6,5])
        }""",
        (8, 6, 4),
        edit=_into_bodies("w2", "w3", "w4", "last"),
    ),
    "if_repairs_inside": Topology(
        # Sizes and positions that a body writes down: Split, Slice, Gather, Pad, groups.
        """(float[N,3,6,6] x, bool flag) => (float[N,5,6,6] y) {
            a = Conv (x, w1[8,3,1,1], b1[8])
            d = If (flag) <
                then_branch = yes () => (float[N,8,6,6] t) {
                    u, v = Split <axis=1> (a, parts{3,5})
                    j = Concat <axis=1> (v, u)
                    t = Conv <group=8, pads=[1,1,1,1]> (j, w2[8,1,3,3], b2[8])
                },
                else_branch = no () => (float[N,8,6,6] e) {
                    s = Slice(a, st{2}, en{7}, one{1})
                    p = Pad(s, pads{0,1,0,0,0,2,0,0})
                    e = Gather <axis=1> (p, order{7,6,5,4,3,2,1,0})
                }
            >
            y = Conv (d, w3[5,8,1,1])
        }""",
        (4,),
        edit=_into_bodies("w2", "b2", "parts", "order"),
    ),
    "if_mixing_inside": Topology(
        """(float[N,4,6] x, bool flag) => (float[N,4,5] y) {
            a = MatMul(x, w1[6,8])
            d = If (flag) <
                then_branch = yes () => (float[N,4,8] t) { t = LayerNormalization (a, s2[8], b2[8]) },
                else_branch = no () => (float[N,4,8] e) { e = Identity(a) }
            >
            y = MatMul (d, w3[8,5])
        }""",
        (8,),
        mixing=(8,),
        edit=_into_bodies("s2", "b2"),
    ),
    "if_unknown_operator": Topology(
        """(float[N,6] x, bool flag) => (float[N,5] y) {
            a = Gemm (x, w1[6,8], b1[8])
            c = Gemm (a, w2[8,7])
            d = If (flag) <
                then_branch = yes () => (float[N,7] t) { t = com.microsoft.SampleOp (c) },
                else_branch = no () => (float[N,7] e) { e = Relu(c) }
            >
            y = Gemm (d, w3[7,5])
        }""",
        (8,),
        pins=("com.microsoft.SampleOp has no channel rule", "meets axis 1 of 'd' (If"),
        domains=("com.microsoft",),
    ),
    "if_constant_condition": Topology(
        # The branch takes the place of the If.
        """(float[N,6] x) => (float[N,5] y) {
            a = Gemm (x, w1[6,8], b1[8])
            sh = Shape(x)
            n = Gather(sh, at{:1})
            six = Equal(n, much{:6})
            d = If (six) <
                then_branch = yes () => (float[N,6] o) { h = MatMul(a, w2[8,7])  o = MatMul(h, w3[7,6]) },
                else_branch = no () => (float[N,6] o) { h = MatMul(a, w4[8,6])  o = Relu(h) }
            >
            y = Gemm (d, w5[6,5])
        }""",
        (8, 7, 6),
        edit=_into_bodies("w2", "w3", "w4"),
    ),
    "weight_of_body_and_graph": Topology(
        # One kernel in the main graph and in a body, one vector in both bodies and outside.
        """(float[N,8] x, bool flag) => (float[N,5] y) {
            a = Gemm (x, w1[8,8], b[8])
            c = Gemm (a, w[8,8], b)
            d = If (flag) <
                then_branch = yes () => (float[N,8] t) { t = Gemm(c, w, b) },
                else_branch = no () => (float[N,8] e) { e = Gemm(c, w2[8,8], b) }
            >
            y = Gemm (d, w3[8,5])
        }""",
        (8,),
    ),
    "if_output_and_consumed": Topology(
        # A body returns a tensor that it goes on reading, and one output of the If is an output of the graph.
        """(float[N,6] x, bool flag) => (float[N,5] y, float[N,9] u) {
            a = Gemm (x, w1[6,8], b1[8])
            d, u = If (flag) <
                then_branch = yes () => (float[N,7] t, float[N,9] v) {
                    t = MatMul(a, w2[8,7])
                    r = Relu(t)
                    v = MatMul(r, w3[7,9])
                },
                else_branch = no () => (float[N,7] e, float[N,9] f) {
                    e = MatMul(a, w4[8,7])
                    f = MatMul(a, w5[8,9])
                }
            >
            s = Identity(u)
            y1 = Gemm (d, w6[7,5])
            y2 = MatMul(s, w7[9,5])
            y = Add(y1, y2)
        }""",
        (8, 7),
        edit=_into_bodies("w2", "w3", "w4", "w5"),
    ),
    "if_unused_output": Topology(
        # One output of the If is read by nobody: what gives it goes for free.
        """(float[N,6] x, bool flag) => (float[N,5] y) {
            a = Gemm (x, w1[6,8], b1[8])
            u, d = If (flag) <
                then_branch = yes () => (float[N,9] v, float[N,7] t) { v = MatMul(a, w3[8,9])  t = MatMul(a, w2[8,7]) },
                else_branch = no () => (float[N,9] f, float[N,7] e) { f = MatMul(a, w5[8,9])  e = MatMul(a, w4[8,7]) }
            >
            y = Gemm (d, w6[7,5])
        }""",
        (9, 8, 7),
    ),
    "loop": Topology(_STATE, (9, 8, 7)),
    "loop_weights_inside": Topology(_STATE, (9, 8, 7), edit=_into_bodies("w3", "o3", "w4")),
    "loop_declared": Topology(_STATE, (9, 8, 7), edit=_stale_declarations),
    "loop_reshape_inside": Topology(
        # Shape arithmetic on the state: the same in every step.
        """(float[N,6] x) => (float[N,5] y) {
            a = Gemm (x, w1[6,8], b1[8])
            s = Loop (trips{:3}, "", a) <
                body = step (int64 i, bool c, float[N,8] v) => (bool k, float[N,8] u) {
                    k = Identity(c)
                    q = MatMul(v, w3[8,9])
                    z = Unsqueeze(q, one{1})
                    sh = Shape(v)
                    n = Slice(sh, zero{0}, one)
                    to = Concat <axis=0> (n, last{-1})
                    f = Reshape(z, to)
                    u = MatMul(f, w4[9,8])
                }
            >
            y = Gemm (s, w5[8,5])
        }""",
        (9, 8),
        edit=_into_bodies("w3", "w4", "last"),
    ),
    "scan_reshape_inside": Topology(
        """(float[N,L,6] x) => (float[L,N,5] y) {
            a = MatMul(x, w1[6,8])
            y = Scan (a) <
                num_scan_inputs=1, scan_input_axes=[1],
                body = step (float[N,8] e) => (float[N,5] g) {
                    z = Unsqueeze(e, one{1})
                    sh = Shape(e)
                    f = Reshape(z, sh)
                    g = MatMul(f, w2[8,5])
                }
            >
        }""",
        (8,),
    ),
    "loop_of_input": Topology(
        # The state starts from what the caller gives: it keeps its channels; what is inside a step does not.
        """(float[N,6] x) => (float[N,5] y) {
            s = Loop (trips{:3}, "", x) <
                body = step (int64 i, bool c, float[N,6] v) => (bool k, float[N,6] u) {
                    k = Identity(c)
                    q = MatMul(v, w3[6,9])
                    f = Tanh(q)
                    u = MatMul(f, w4[9,6])
                }
            >
            y = Gemm (s, w5[6,5])
        }""",
        (9,),
        pins=("meets axis 1 of 'v' (Loop", "meets axis 1 of 's' (Loop"),
    ),
    "loop_grows": Topology(
        # The state grows with every step.
        """(float[N,6] x) => (float[N,A] y) {
            h = Gemm (x, w1[6,8], b1[8])
            a = Gemm (h, w2[8,7])
            y = Loop (trips{:2}, "", a) <
                body = step (int64 i, bool c, float[N,B] v) => (bool k, float[N,C] u) {
                    k = Identity(c)
                    u = Concat <axis=1> (v, a)
                }
            >
        }""",
        (8,),
        pins=("changes its shape from one step of Loop to the next",),
    ),
    "loop_counts": Topology(
        # What depends on the number of the step is no constant.
        """(float[N,6] x, int64 trips) => (float[N,5] y) {
            a = Gemm (x, w1[6,8], b1[8])
            go = Cast <to=9> (trips)
            s = Loop (trips, go, a) <
                body = step (int64 i, bool c, float[N,8] v) => (bool k, float[N,8] u) {
                    k = Less(i, seven{:7})
                    f = Cast <to=1> (i)
                    g = Add(f, v)
                    q = MatMul(g, w3[8,8])
                    u = Tanh(q)
                }
            >
            y = Gemm (s, w5[8,5])
        }""",
        (8,),
        given={"trips": (3,)},
    ),
    "if_in_loop": Topology(
        """(float[N,6] x) => (float[N,5] y) {
            a = Gemm (x, w1[6,8], b1[8])
            s = Loop (trips{:3}, "", a) <
                body = step (int64 i, bool c, float[N,8] v) => (bool k, float[N,8] u) {
                    k = Identity(c)
                    even = Equal(i, one{:1})
                    q = MatMul(v, w3[8,9])
                    f = If (even) <
                        then_branch = yes () => (float[N,9] t) { h = MatMul(q, w4[9,7])  t = MatMul(h, w5[7,9]) },
                        else_branch = no () => (float[N,9] t) { t = Relu(q) }
                    >
                    p = MatMul(f, w6[9,8])
                    u = Add(p, a)
                }
            >
            y = Gemm (s, w7[8,5])
        }""",
        (9, 8, 7),
        edit=_into_bodies("w3", "w4", "w5", "w6"),
    ),
    "scan": Topology(_SCAN, (9, 8, 7, 6)),
    "scan_weights_inside": Topology(_SCAN, (9, 8, 7, 6), edit=_into_bodies("w4", "w5", "b5", "w6")),
    "scan_over_channels": Topology(
        # It runs along the channels, so all of them stay.
        """(float[N,6] x) => (float[N] y) {
            h = Gemm (x, w1[6,8], b1[8])
            a = Gemm (h, w2[8,7])
            e = ReduceMean <keepdims=0> (x, ax{1})
            y = Scan (e, a) <
                num_scan_inputs=1, scan_input_axes=[-1],
                body = step (float[N] v, float[N] q) => (float[N] o) { o = Add(v, q) }
            >
        }""",
        (8,),
        pins=("Scan runs along this axis",),
    ),
    "scan_opset_8": Topology(
        """(float[N,L,6] x) => (float[N,L,7] y) {
            c = MatMul(x, w1[6,7])
            h = ReduceMean <axes=[1], keepdims=0> (c)
            s, y = Scan ("", h, c) <
                num_scan_inputs=1,
                body = step (float[7] v, float[7] q) => (float[7] o, float[7] g) { o = Add(v, q)  g = Identity(o) }
            >
        }""",
        (),
        pins=("Scan before opset 9",),
        opset=8,
        ir_version=4,
    ),
    "function_with_if": Topology(
        """(float[N,6] x, bool flag) => (float[N,5] y) {
            a = Gemm (x, w1[6,8], b1[8])
            g = local.either (a, flag)
            h = local.either (g, flag)
            y = Gemm (h, w2[8,5])
        }
        <domain: "local", opset_import: ["" : 18]>
        either (v, f) => (o) {
            o = If (f) <
                then_branch = yes () => (float[N,8] t) { t = Relu(v) },
                else_branch = no () => (float[N,8] t) { t = Tanh(v) }
            >
        }""",
        (8,),
        domains=("local",),
    ),
    "sequences": Topology(
        """(float[N,6] x) => (float[N,5] y, seq(float[N,7]) parts) {
            a = Gemm (x, w1[6,8], b1[8])
            c = Gemm (a, w2[8,7])
            e = Gemm (a, w3[8,7])
            parts = SequenceConstruct(c, e)
            one = SequenceAt(parts, at{:1})
            halves = SplitToSequence <axis=1, keepdims=1> (one, three{:3})
            whole = ConcatFromSequence <axis=1> (halves)
            d = Gemm (whole, w4[7,6])
            y = Gemm (d, w5[6,5])
        }""",
        (8, 6),
        pins=("SequenceConstruct keeps tensors in a sequence", "meets axis 1 of 'whole'"),
    ),
    "optionals": Topology(
        """(float[N,6] x) => (float[N,5] y, bool known) {
            a = Gemm (x, w1[6,8], b1[8])
            c = Gemm (a, w2[8,7])
            o = Optional(c)
            known = OptionalHasElement(o)
            e = OptionalGetElement(o)
            d = Gemm (e, w4[7,6])
            y = Gemm (d, w5[6,5])
        }""",
        (8, 6),
        pins=("Optional wraps it in an optional value", "meets axis 1 of 'e'"),
    ),
    "sequence_in_loop": Topology(
        # The state is a sequence: nothing can be measured inside, all of it stays.
        """(float[N,6] x) => (float[N,5] y) {
            a = Gemm (x, w1[6,8], b1[8])
            c = Gemm (a, w2[8,7])
            none = SequenceEmpty()
            all = Loop (trips{:3}, "", none) <
                body = step (int64 i, bool k, seq(float[N,7]) v) => (bool l, seq(float[N,7]) u) {
                    l = Identity(k)
                    q = Tanh(c)
                    u = SequenceInsert(v, q)
                }
            >
            whole = ConcatFromSequence <axis=1> (all)
            y = Gemm (whole, w4[21,5])
        }""",
        (8,),
        pins=("SequenceInsert keeps tensors in a sequence", "meets axis 1 of 'whole'"),
    ),
}
