"""The one form that the other stages read: what is folded, cloned, shared and kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.errors import RunError
from onnxprune.graph import bodies
from onnxprune.graph.protobuf import copied
from onnxprune.normalise import constants, form, normalise, resized
from onnxprune.runtime.session import Session
from tests.graphs import TABLE
from tests.prepared import Prepared
from tests.topologies.text import Topology

Lookup = Callable[[str], Prepared]


def _operators(p: Prepared) -> Counter[str]:
    return Counter(n.op_type for n in p.normalised.proto.graph.node)


@pytest.mark.parametrize("name", ["shuffle_static", "shuffle_dynamic"])
def test_a_channel_shuffle_becomes_a_gather(name: str, prepared: Lookup):
    """Fails where a shuffle stays a reshape, which could only lose equal numbers in every row."""
    operators = _operators(prepared(name))
    assert operators["Gather"] == 1
    assert not {"Reshape", "Transpose", "Shape"} & set(operators)


def test_the_order_of_a_shuffle(prepared: Lookup):
    """Fails where the Gather does not permute as Reshape, Transpose, Reshape did."""
    proto = prepared("shuffle_static").normalised.proto
    (gather,) = (n for n in proto.graph.node if n.op_type == "Gather")
    order = next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == gather.input[1])
    np.testing.assert_array_equal(order, [0, 4, 1, 5, 2, 6, 3, 7])


def test_shared_vectors_are_cloned_and_shared_kernels_are_not(prepared: Lookup):
    """Fails where a shared bias couples two layers, or a shared kernel comes apart."""
    uses = [n.input[2] for n in prepared("shared_bias").normalised.proto.graph.node if n.op_type == "Conv"]
    assert len(set(uses)) == len(uses)
    kernels = Counter(n.input[1] for n in prepared("shared_kernel").normalised.proto.graph.node if n.op_type == "Conv")
    assert kernels["wh"] == 2
    assert kernels["wo"] == 2
    identity = prepared("identity_of_weights").normalised.proto.graph.node
    assert [i for n in identity for i in n.input].count("w") == 2


def test_weights_among_the_inputs_are_said_to_be_weights(prepared: Lookup):
    """Fails where the caller could still replace a weight, or is not told that he no longer can."""
    n = prepared("weights_among_inputs").normalised
    assert [i.name for i in n.proto.graph.input] == ["x"]
    assert n.proto.ir_version >= 4
    assert len(n.notes) == 1
    assert "treated as weights" in n.notes[0]


def test_run_time_sizes_know_what_is_fixed(prepared: Lookup):
    """Fails where a size that changes counts as fixed, or the other way round."""
    known = prepared("resize_run_time").normalised.known_values
    assert known["sz"] == (None, 8, None, None)


def test_constant_parts_are_folded(prepared: Lookup):
    """Fails where weights behind layout operators stay out of reach."""
    assert set(_operators(prepared("weights_behind_layout"))) == {"MatMul", "Add", "Gemm"}


def test_functions_are_inlined(prepared: Lookup):
    """Fails where a local function hides what it does to the channels."""
    p = prepared("local_function")
    assert not p.normalised.proto.functions
    assert {"Sigmoid", "Mul"} <= set(_operators(p))


def test_random_numbers_are_not_folded():
    """Fails where a random draw is frozen into a constant."""
    row = Topology(
        """(float[N,4] x) => (float[N,4] y) {
            r = RandomNormal <shape=[4], seed=1.0> ()
            y = Add(x, r)
        }""",
        (),
    )
    operators = {n.op_type for n in normalise(row.model(), row.feeds(2)).proto.graph.node}
    assert "RandomNormal" in operators


def test_a_constant_part_that_cannot_be_computed():
    """Fails where a broken constant ends in another library's traceback."""
    row = Topology("(float[N,4] x) => (float[N,4] y) { r = Reshape(w[4,2], to{3,3})  y = MatMul(x, r) }", ())
    with pytest.raises(RunError, match="onnxruntime cannot run the model"):
        normalise(row.model(), row.feeds(2))


def test_a_constant_part_that_never_runs_stays():
    """Fails where a branch that no input takes, and that could not be computed, refuses a model that runs."""
    row = Topology(
        """(float[N,4] x) => (float[N,4] y) {
            h = MatMul(x, w[4,4])
            top = ReduceMax <keepdims=0> (x)
            big = Greater(top, huge{:1000000000.0})
            twice = Add(w, w)
            square = Mul(twice, twice)
            y = If (big) <
                then_branch = never () => (float[N,4] a) { r = Gather(square, at{7,7,7,7})  a = MatMul(h, r) },
                else_branch = always () => (float[N,4] b) { b = MatMul(h, square) }
            >
        }""",
        (),
    )
    found = normalise(row.model(), row.feeds(2)).proto
    assert Counter(n.op_type for n in bodies.every_node(found.graph)) == Counter(
        "MatMul ReduceMax Greater If Gather MatMul MatMul".split()
    )


def nested(levels: int, condition: str) -> Topology:
    """Ifs inside both branches of Ifs, 2^levels innermost bodies of one node."""

    def giving(out: str, left: int) -> str:
        if not left:
            return f"{out} = Relu(h)"
        then, other = (f"g{out}{k} () => (float[N,4] {out}{k}) {{ {giving(f'{out}{k}', left - 1)} }}" for k in "ab")
        return f"{out} = If ({condition}) < then_branch = {then}, else_branch = {other} >"

    return Topology(
        f"""(float[N,4] x) => (float[N,4] y) {{
            h = MatMul(x, w[4,4])
            yes = Constant <value = bool {{1}}> ()
            top = ReduceMax <keepdims=0> (x)
            big = Greater(top, huge{{:1000000000.0}})
            {giving("o", levels)}
            y = Add(o, h)
        }}""",
        (),
    )


@pytest.mark.parametrize("condition", ["yes", "big"])
def test_bodies_without_constants_are_not_evaluated(condition: str, monkeypatch: pytest.MonkeyPatch):
    """Fails where thousands of bodies are each folded as a model of its own, be it that they never run."""
    row = nested(4, condition)
    seen: list[onnx.ModelProto] = []
    to_gs = constants.surgeon.to_gs

    def counted(proto: onnx.ModelProto) -> object:
        seen.append(proto)
        return to_gs(proto)

    monkeypatch.setattr(constants.surgeon, "to_gs", counted)
    model, feeds = row.model(), row.feeds(2)
    proto = bodies_named(model)
    if condition == "yes":
        bodies.replace_ifs(proto.graph, constants.constant_condition(bodies.weights_of(proto)))
        assert not any(bodies.bodies_of(n) for n in proto.graph.node)
    seen.clear()
    found = constants.fold_constants(proto)
    assert len(seen) <= 1  # the main graph
    want = Session(model).run(feeds)["y"]
    np.testing.assert_array_equal(Session(found).run(feeds)["y"], want)
    np.testing.assert_array_equal(Session(normalise(model, feeds).proto).run(feeds)["y"], want)


def bodies_named(model: onnx.ModelProto) -> onnx.ModelProto:
    proto = copied(model)
    bodies.name_uniquely(proto)
    bodies.hoist(proto)
    return proto


def test_ifs_of_a_constant_are_decided_before_their_bodies_are_looked_at(monkeypatch: pytest.MonkeyPatch):
    row = nested(4, "yes")
    met: list[int] = []
    fold = form.fold_constants

    def watched(proto: onnx.ModelProto) -> onnx.ModelProto:
        met.append(sum(n.op_type == "If" for n in bodies.every_node(proto.graph)))
        return fold(proto)

    monkeypatch.setattr(form, "fold_constants", watched)
    normalise(row.model(), row.feeds(2))
    assert met == [0]


def test_an_identity_that_returns_a_weight_stays_and_others_are_folded():
    row = Topology(
        """(float[N,4] x) => (float[N,4] y) {
            top = ReduceMax <keepdims=0> (x)
            big = Greater(top, huge{:1000000000.0})
            b = If (big) <
                then_branch = one () => (float[4] p) { p = Identity(v[4]) },
                else_branch = two () => (float[4] q) { t = Add(v, v)  q = Relu(t) }
            >
            y = Add(x, b)
        }""",
        (),
    )
    model, feeds = row.model(), row.feeds(2)
    found = normalise(model, feeds).proto
    assert Counter(n.op_type for n in bodies.every_node(found.graph))["Add"] == 1
    np.testing.assert_array_equal(Session(found).run(feeds)["y"], Session(model).run(feeds)["y"])


@pytest.mark.parametrize("kept", [False, True], ids=["taken", "kept"])
def test_a_range_of_vectors_gets_scalars_once_they_are_constants(kept: bool):
    """Fails where constants are folded in front of a Range that onnxruntime ran, and then does not load."""
    condition = "Greater(top, low{:-100.0})" if kept else "Cast <to=9> (one{:1})"
    row = Topology(
        f"""(float[N,4] x) => (float[N,4] y) {{
            top = ReduceMax <keepdims=0> (x)
            big = {condition}
            width = Shape <start=1> (x)
            none = Sub(width, width)
            step = Unsqueeze(one2{{:1}}, first{{0}})
            numbers = If (big) <
                then_branch = vectors () => (int64[M] a) {{ a = Range(none, width, step) }},
                else_branch = never () => (int64[M] b) {{ b = Range(zero{{:0}}, two{{:2}}, only{{:1}}) }}
            >
            h = MatMul(x, w[4,4])
            floats = Cast <to=1> (numbers)
            y = Add(h, floats)
        }}""",
        (),
    )
    model, feeds = row.model(), row.feeds(2)
    found = normalise(model, feeds).proto
    assert kept == ("If" in {n.op_type for n in found.graph.node})
    (expected,) = Session(model, optimize=False).run(feeds).values()
    (got,) = Session(found, optimize=False).run(feeds).values()
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_every_symbol_is_resized_once():
    """Fails where two axes of one symbol change apart, or a fixed axis changes."""
    row = TABLE["several_inputs_and_outputs"]
    (variant,) = resized(row.feeds(2), row.model(), lambda _: True)
    assert {k: v.shape for k, v in variant.items()} == {"x": (3, 3, 8, 8), "z": (3, 2, 8, 8), "gate": (3, 1)}
    row = TABLE["shuffle_dynamic"]
    assert [v["x"].shape for v in resized(row.feeds(2), row.model(), lambda _: True)] == [
        (3, 3, 8, 8),
        (2, 3, 16, 8),
        (2, 3, 8, 16),
    ]


def test_a_size_that_does_not_run_gives_way_to_a_smaller_one():
    """Fails where a model with a largest size (of positions, say) is taken for one that knows no other."""
    row = TABLE["shuffle_dynamic"]
    found = resized(row.feeds(2), row.model(), lambda feeds: feeds["x"].shape[2] <= 8)
    assert [v["x"].shape for v in found] == [(3, 3, 8, 8), (2, 3, 4, 8), (2, 3, 8, 16)]
    nothing_else = resized(row.feeds(2), row.model(), lambda feeds: feeds["x"].shape[2:] == (8, 8))
    assert [v["x"].shape for v in nothing_else] == [(3, 3, 8, 8), (2, 3, 16, 8), (2, 3, 8, 16)]


def test_layers_without_a_bias_get_one_of_zeros(prepared: Lookup):
    """Fails where an added bias is not zero, has another size than the outputs, or replaces a real one."""
    n = prepared("plain").normalised
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in n.proto.graph.initializer}
    assert {stored[b].shape for b in n.added_biases} == {(6,)}
    assert not any(stored[b].any() for b in n.added_biases)
    transposed = prepared("transposed_few_large").normalised
    assert {"b1", "b2"} <= {t.name for t in transposed.proto.graph.initializer}


def test_what_stands_still_between_steps_is_not_constant():
    """Fails where hundreds of words, or a limit that the calibration data does not reach, are taken for constant."""
    row = Topology(
        """(float[N,L,4] x) => (float[N,L,4] y) {
            s = Shape(x)  l = Gather(s, one{:1})
            hundreds = Div(l, hundred{:100})  least = Max(l, fifty{:50})
            double = Add(l, l)  ratio = Div(double, l)
            a = Add(hundreds, least)  b = Add(a, ratio)  f = Cast <to=1> (b)
            y = Mul(x, f)
        }""",
        (),
    )
    n = normalise(row.model(), row.feeds(2))
    assert [op.op_type for op in n.proto.graph.node].count("Div") == 1
    assert "Max" in {op.op_type for op in n.proto.graph.node}
    assert "ratio" in {t.name for t in n.proto.graph.initializer}


def test_free_axes(prepared: Lookup):
    """Fails where an axis that changes with the input counts as fixed, or the other way round."""
    free = prepared("flat_and_counted").normalised.free
    assert (free["a"], free["f"], free["h1"]) == ({0, 2, 3}, {0, 1}, {0, 1})
    assert free["m"] == {0}
    assert "w1" not in free


def test_an_axis_that_may_be_empty_is_copied_by_what_was_computed():
    """Fails where a target copies an axis and leaves another open, which says nothing once the first one is empty."""
    row = Topology(
        """(float[N,K,H,W] x) => (float[N,K,P] y) {
            front = Shape <start=0, end=2> (x)
            h = Shape <start=2, end=3> (x)
            w = Shape <start=3, end=4> (x)
            p = Mul(h, w)
            t = Concat <axis=0> (front, p)
            y = Reshape(x, t)
        }""",
        (),
    )
    proto = normalise(row.model(), {"x": np.ones((2, 3, 4, 5), np.float32)}).proto
    for shape in ((2, 3, 4, 5), (1, 0, 6, 7), (0, 2, 3, 3)):
        (y,) = Session(proto).run({"x": np.zeros(shape, np.float32)}).values()
        assert y.shape == (*shape[:2], shape[2] * shape[3])
