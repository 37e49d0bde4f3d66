"""The whole job on graphs with bodies and with values that are no tensors, and where the weights of bodies end."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune import prune
from onnxprune.graph import bodies, protobuf
from onnxprune.normalise import normalise
from onnxprune.runtime.session import Session
from onnxprune.verification.checks import flat
from tests.compare import assert_same
from tests.prepared import Array, masked, prepare, random_keep, sliced
from tests.topologies import control
from tests.topologies.text import Topology

PRUNABLE = tuple(name for name, row in control.ROWS.items() if row.units)


def _stored(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in graph.initializer}


def _answers(proto: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    return {k: v for k, v in flat(Session(proto).run(feeds)).items() if isinstance(v, np.ndarray)}


@pytest.mark.parametrize("name", PRUNABLE)
def test_the_whole_job(name: str):
    """Fails where a stage cannot deal with a body, a sequence or an optional value."""
    row = control.ROWS[name]
    original = row.model()
    batch = 1 if "[N" not in row.text else 64
    result = prune(original, None, row.feeds(batch), ratio=0.2, round_to=1, untried_branches="cut")
    assert result.model is not None
    assert result.report.achieved >= 0.2
    assert result.report.checks["slice_against_oracle"] <= 1e-4
    protobuf.check(result.model)
    added = sum(int(t.dims[0]) for t in result.model.graph.initializer if t.name.endswith("__bias"))
    assert protobuf.parameters(result.model) - added < protobuf.parameters(original)
    found, expected = _answers(result.model, row.feeds(2)), _answers(original, row.feeds(2))
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}


@pytest.mark.parametrize(
    "name", ["if_weights_inside", "if_constant_nodes", "loop_weights_inside", "scan_weights_inside"]
)
def test_weights_end_in_the_bodies_that_stored_them(name: str):
    """Fails where a weight leaves its body, or one of the main graph moves into a body that alone reads it."""
    row = control.ROWS[name]
    result = prune(row.model(), None, row.feeds(64), ratio=0.2, round_to=1, refit="none", untried_branches="cut")
    assert result.model is not None
    outer = set(_stored(row.model().graph))
    before = [set(_stored(b)) | _constants(b) for b in bodies.every_body(row.model().graph)]
    after = [set(_stored(b)) for b in bodies.every_body(result.model.graph)]
    assert after == before
    assert set(_stored(result.model.graph)) <= outer


def _constants(body: onnx.GraphProto) -> set[str]:
    return {n.output[0] for n in body.node if n.op_type == "Constant"}


def test_weights_outside_stay_outside():
    row = control.ROWS["if_weights_outside"]
    result = prune(row.model(), None, row.feeds(64), ratio=0.2, round_to=1, refit="none", untried_branches="cut")
    assert result.model is not None
    assert set(_stored(result.model.graph)) == set(_stored(row.model().graph))


@pytest.mark.parametrize("name", control.ROWS)
def test_normal_form_names_every_tensor_once(name: str):
    """Fails where two tensors share a name, or a weight stays inside a body."""
    row = control.ROWS[name]
    proto = normalise(row.model(), row.feeds(2)).proto
    inside = list(bodies.every_body(proto.graph))
    names = [o for n in bodies.every_node(proto.graph) for o in n.output if o]
    names += [v.name for g in (proto.graph, *inside) for v in g.input] + [t.name for t in proto.graph.initializer]
    assert len(set(names)) == len(names)
    assert not any(body.initializer for body in inside)


def test_main_graph_names_do_not_change():
    """Fails where a clash is solved by renaming what the main graph calls its own."""
    row = control.ROWS["if_names_repeat"]
    model = row.model()
    before = [(list(n.input), list(n.output)) for n in model.graph.node]
    bodies.name_uniquely(model)
    assert [(list(n.input), list(n.output)) for n in model.graph.node] == before
    assert_same(Session(model).run(row.feeds(2))["y"], Session(row.model()).run(row.feeds(2))["y"], rtol=0.0, atol=0.0)


def test_weights_return_to_the_innermost_body_that_holds_all_uses():
    row = control.ROWS["if_in_loop"]
    proto = normalise(row.model(), row.feeds(2)).proto
    bodies.return_to_bodies(proto, {"w1", "b1", "w7"})
    step, yes, no = bodies.every_body(proto.graph)
    assert {"w1", "b1", "w7"} <= set(_stored(proto.graph))
    assert {"w3", "w6"} <= set(_stored(step))
    assert set(_stored(yes)) == {"w4", "w5"}
    assert not _stored(no)
    protobuf.check(proto)
    assert_same(Session(proto).run(row.feeds(2))["y"], Session(row.model()).run(row.feeds(2))["y"], rtol=1e-6, atol=0.0)


def test_declared_shapes_in_bodies_follow():
    """Fails where a body of the cut model still declares the size that its state had."""
    row = control.ROWS["loop_declared"]
    result = prune(row.model(), None, row.feeds(64), ratio=0.4, round_to=1, untried_branches="cut")
    assert result.model is not None
    (step,) = bodies.every_body(result.model.graph)
    width = next(int(t.dims[0]) for t in result.model.graph.initializer if t.name == "w3")
    assert width < 7
    for v in (step.input[2], step.output[1]):
        assert v.type.tensor_type.shape.dim[1].dim_value == width


def test_shapes_that_grow_with_the_steps_are_no_constants():
    """Fails where the size of a growing state is measured in the first step and written down."""
    row = Topology(
        """(float[N,6] x) => (float[N,A] y) {
            a = Gemm (x, w1[6,8], b1[8])
            h = Gemm (a, w2[8,4])
            y = Loop (trips{:3}, "", h) <
                body = step (int64 i, bool c, float[N,B] v) => (bool k, float[N,C] u) {
                    k = Identity(c)
                    s = Shape(v)
                    w = Gather(s, at{:1})
                    f = Cast <to=1> (w)
                    g = Mul(v, f)
                    u = Concat <axis=1> (g, h)
                }
            >
        }""",
        (8,),
    )
    proto = normalise(row.model(), row.feeds(2)).proto
    assert "Shape" in {n.op_type for n in bodies.every_node(proto.graph)}
    feeds = row.feeds(3)
    assert_same(Session(proto).run(feeds)["y"], Session(row.model()).run(feeds)["y"], rtol=1e-6, atol=0.0)


def test_a_decision_on_the_batch_stays_open():
    """Fails where a branch is dropped because no measured size takes it."""
    row = Topology(
        """(float[N,6] x) => (float[N,5] y) {
            a = Gemm (x, w1[6,8], b1[8])
            sh = Shape(x)
            n = Gather(sh, at{:0})
            one = Equal(n, single{:1})
            more = Not(one)
            d = If (more) <
                then_branch = yes () => (float[N,8] t) { t = Relu(a) },
                else_branch = no () => (float[N,8] e) { e = Neg(a) }
            >
            y = Gemm (d, w2[8,5])
        }""",
        (8,),
    )
    p = prepare(row.model(), row.feeds(2))
    keep = random_keep(p.channels, 0)
    for batch in (1, 2, 3):
        feeds = row.feeds(batch)
        expected = Session(row.model()).run(feeds)["y"]
        assert_same(Session(p.normalised.proto).run(feeds)["y"], expected, rtol=1e-6, atol=0.0)
        assert_same(
            Session(sliced(p, keep)).run(feeds)["y"], Session(masked(p, keep)).run(feeds)["y"], rtol=1e-5, atol=0.0
        )


def test_an_optional_output_without_a_value():
    """Fails where None is taken for an array."""
    row = control.ROWS["if_weights_outside"]
    model = row.model()
    nothing = onnx.helper.make_node("Optional", [], ["nothing"])
    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    nothing.attribute.append(onnx.helper.make_attribute("type", kind))
    model.graph.node.append(nothing)
    model.graph.output.append(onnx.helper.make_value_info("nothing", onnx.helper.make_optional_type_proto(kind)))
    result = prune(model, None, row.feeds(64), ratio=0.2, round_to=1, untried_branches="cut")
    assert result.model is not None
    assert list(result.model.graph.output) == list(model.graph.output)
    assert Session(result.model).run(row.feeds(2))["nothing"] is None
