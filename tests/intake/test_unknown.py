"""Operators that onnxruntime does not know: what is in front of them is pruned, and they are there at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune import evaluate, inspect, prune
from onnxprune.cli.program import main
from onnxprune.errors import ModelError, RunError, UsageError
from onnxprune.graph.protobuf import submodel
from onnxprune.intake import first_run, unknown
from onnxprune.runtime.custom_ops import checked, registering
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.topologies.text import Topology

ROW = Topology(
    """(float[N,6] x) => (float[N,4] y, float[N,8] z) {
        a = MatMul(x, w1[6,8])
        b = Relu(a)
        c = MatMul(b, w2[8,8])
        d = Relu(c)
        y = MatMul(d, w3[8,4])
        e = MatMul(d, w4[8,8])
        z = Add(e, shift[8])
    }""",
    (8, 8),
)
FEEDS = ROW.feeds(64)


def _with_tail(edit: Callable[[onnx.GraphProto], None] | None = None) -> onnx.ModelProto:
    """A node that only other runtimes have reads y, and a layer and a sum read what it gives."""
    proto = ROW.model()
    g = proto.graph
    proto.opset_import.append(helper.make_opsetid("elsewhere", 1))
    g.node.append(helper.make_node("Boxes", ["y", "limit"], ["boxes", ""], "last", domain="elsewhere"))
    g.node.append(helper.make_node("MatMul", ["boxes", "w5"], ["behind"]))
    g.node.append(helper.make_node("Add", ["z", "shift"], ["same"]))  # in front of it, and shares a weight with it
    g.node.append(helper.make_node("Add", ["behind", "shift"], ["scaled"]))
    for name, shape in (("w5", (4, 8)), ("limit", (1,))):
        g.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    del g.output[:]
    g.output.extend(helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 8]) for n in ("out", "same"))
    g.input.append(helper.make_tensor_value_info("alone", onnx.TensorProto.FLOAT, [1]))
    g.node.append(helper.make_node("Mul", ["scaled", "alone"], ["out"]))
    if edit is not None:
        edit(g)
    return proto


def _in_body(g: onnx.GraphProto) -> None:
    """The node stands in a branch of an If."""
    inner = [helper.make_node("Boxes", ["y", "limit"], ["inside"], domain="elsewhere")]
    port = [helper.make_tensor_value_info("inside", onnx.TensorProto.FLOAT, None)]
    branches = {k: helper.make_graph(inner, k, [], port) for k in ("then_branch", "else_branch")}
    at = next(i for i, n in enumerate(g.node) if n.op_type == "Boxes")
    g.node[at].CopyFrom(helper.make_node("If", ["yes"], ["boxes"], **branches))
    g.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))


@pytest.mark.parametrize("edit", [None, _in_body], ids=["plain", "in a body"])
def test_the_part_in_front_is_pruned_and_the_rest_is_kept(edit: Callable[[onnx.GraphProto], None] | None):
    """Fails where the rest is lost or reads something else, or the part in front is not the same as without it."""
    proto = _with_tail(edit)
    result = prune(proto, None, {**FEEDS, "alone": np.ones(1, np.float32)}, uniform=0.5, round_to=1, fast=True)
    assert result.model is not None
    onnx.checker.check_model(result.model)
    for side in ("input", "output"):
        assert [*getattr(result.model.graph, side)] == [*getattr(proto.graph, side)]
    assert {len(g.kept) for g in result.plan.groups} == {4}
    (note,) = (n for n in result.report.notes if "elsewhere:Boxes" in n)
    assert "on what these read (y)" in note
    assert not any("does not read" in n for n in result.report.notes)
    tail = [
        n for n in result.model.graph.node if n.op_type in ("Boxes", "If") or n.output[0] in ("behind", "scaled", "out")
    ]
    assert [n.output[0] for n in tail] == ["boxes", "behind", "scaled", "out"]
    before, after = (submodel(p, {"x": 1}, ["y", "same"]) for p in (proto, result.model))
    reference, got = Session(before).run(FEEDS), Session(after).run(FEEDS)
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in reference.items()}
    again = prune(before, None, FEEDS, uniform=0.5, round_to=1, fast=True).model
    assert again is not None
    assert_same(got["y"], Session(again).run(FEEDS)["y"], rtol=1e-5, atol=1e-6)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    new = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    assert_same(new["w5"], stored["w5"], rtol=0, atol=0)


def test_results_are_evaluated_in_front():
    """Fails where a result that was written cannot be held against its original."""
    proto = _with_tail()
    result = prune(proto, None, {**FEEDS, "alone": np.ones(1, np.float32)}, uniform=0.5, round_to=1, fast=True)
    assert result.model is not None
    found = evaluate(result.model, FEEDS, against=proto)
    assert found.output_error is not None
    assert found.output_error == pytest.approx(result.report.output_error, rel=0.9)
    assert any("elsewhere:Boxes" in n for n in found.notes)


def test_a_weight_that_both_parts_read_is_kept_for_the_rest():
    """Fails where the rest reads what was cut for the part in front."""

    proto = _with_tail(lambda g: g.node.append(helper.make_node("MatMul", ["boxes", "w2"], ["more"])))
    front, tail = unknown.cut_off(proto)
    cut = onnx.ModelProto.FromString(front.SerializeToString())
    next(t for t in cut.graph.initializer if t.name == "w2").CopyFrom(
        onnx.numpy_helper.from_array(np.zeros((4, 4), np.float32), "w2")
    )
    whole = unknown.put_back(cut, tail)
    shapes = {t.name: list(t.dims) for t in whole.graph.initializer}
    assert (shapes["w2"], shapes["w2__whole"]) == ([4, 4], [8, 8])
    assert "w2__whole" in {i for n in whole.graph.node if n.output[0] == "more" for i in n.input}
    assert [*unknown.put_back(front, tail).graph.output] == [*proto.graph.output]


def test_inspect_says_what_is_unknown():
    """Fails where it runs the node, or hides it."""
    found = inspect(_with_tail())
    assert any("elsewhere:Boxes" in n for n in found.notes)
    assert sorted(g.units for g in found.groups)[-2:] == [8, 8]


def test_nothing_in_front():
    """Fails where the refusal does not name the operator, or what to do."""
    proto = _with_tail(lambda g: g.node.insert(0, helper.make_node("First", ["x"], ["x2"], domain="elsewhere")))
    proto.graph.node[1].input[0] = "x2"
    with pytest.raises(RunError, match=r"elsewhere:First.*--custom-ops LIBRARY"):
        prune(proto, None, FEEDS, uniform=0.5)


def test_known_models_are_not_asked_of():
    """Fails where onnxruntime's own operators, or functions of the model, are taken for unknown."""
    proto = ROW.model()
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "Gelu", "com.microsoft"
    assert unknown.cut_off(proto)[0] is proto


def _pruned(proto: onnx.ModelProto) -> onnx.ModelProto:
    result = prune(proto, None, {**FEEDS, "alone": np.ones(1, np.float32)}, uniform=0.5, round_to=1, fast=True)
    assert result.model is not None
    onnx.checker.check_model(result.model)
    return result.model


@pytest.mark.parametrize("holds", [True, False], ids=["holds the operator", "behind it"])
def test_functions_of_the_rest_are_kept(holds: bool):
    """Fails where a node behind the operator, or around it, calls a function that is gone."""
    proto = _with_tail()
    at = next(i for i, n in enumerate(proto.graph.node) if n.op_type == ("Boxes" if holds else "Mul"))
    node = proto.graph.node[at]
    inner = helper.make_node(node.op_type, ["a", "b"], ["c"], domain=node.domain)
    outer = helper.make_node("Inner", ["a", "b"], ["c"], domain="own")
    opsets = [*proto.opset_import, helper.make_opsetid("own", 1)]
    for name, body in (("Inner", inner), ("Outer", outer)):
        proto.functions.append(helper.make_function("own", name, ["a", "b"], ["c"], [body], opsets))
    del node.output[1:]
    node.op_type, node.domain = "Outer", "own"
    proto.opset_import.append(helper.make_opsetid("own", 1))
    pruned = _pruned(proto)
    assert {f.name for f in pruned.functions} == {"Inner", "Outer"}
    assert "own" in {o.domain for o in pruned.opset_import}


def test_what_onnxruntime_has_for_tensorrt_alone_is_unknown(tmp_path: Path):
    """Fails where a node in the standard domain that no other runtime has kernels for ends the run."""
    proto = ROW.model()
    g = proto.graph
    for name, width in (("y", 4), ("z", 8)):
        g.initializer.append(onnx.numpy_helper.from_array(np.array([0, -1, width]), f"by_{name}"))
        g.node.append(helper.make_node("Reshape", [name, f"by_{name}"], [f"{name}_boxes"]))
    options = {"background_class": -1, "box_coding": 0, "iou_threshold": 0.5, "max_output_boxes": 10}
    options |= {"plugin_version": "1", "score_activation": 0, "score_threshold": 0.2}
    kinds = {"count": onnx.TensorProto.INT32, "boxes": onnx.TensorProto.FLOAT, "scores": onnx.TensorProto.FLOAT}
    ports = {**kinds, "classes": onnx.TensorProto.INT32}
    g.node.append(helper.make_node("EfficientNMS_TRT", ["y_boxes", "z_boxes"], [*ports], "nms", **options))
    del g.output[:]
    g.output.extend(helper.make_tensor_value_info(n, kind, None) for n, kind in ports.items())
    onnx.save(proto, tmp_path / "in.onnx")
    result = prune(tmp_path / "in.onnx", tmp_path / "out.onnx", FEEDS, uniform=0.5, round_to=1, fast=True)
    assert any("does not know the operator EfficientNMS_TRT" in n for n in result.report.notes)
    written = onnx.load(tmp_path / "out.onnx").graph
    assert written.node[-1] == g.node[-1]
    assert [v.name for v in written.output] == [*ports]
    assert next(t.dims[1] for t in written.initializer if t.name == "w1") == 4


def test_domains_of_the_rest_stay_imported():
    """Fails where the only node of a domain in front is written in standard operators, and one behind is of it, too."""
    proto = _with_tail()
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for op in ("Relu", "Mul"):
        node = next(n for n in proto.graph.node if n.op_type == op)
        node.op_type, node.domain = "Gelu", "com.microsoft"
        del node.input[1:]
    pruned = _pruned(proto)
    assert [n.output[0] for n in pruned.graph.node if n.op_type == "Gelu" and n.domain] == ["out"]
    assert "com.microsoft" in {o.domain for o in pruned.opset_import}


def test_a_default_that_the_rest_alone_reads_stays_an_input():
    proto = _with_tail()
    proto.graph.input.append(helper.make_tensor_value_info("limit", onnx.TensorProto.FLOAT, [1]))
    pruned = _pruned(proto)
    assert [v.name for v in pruned.graph.input] == ["x", "alone", "limit"]
    assert "limit" in {t.name for t in pruned.graph.initializer}


def test_weights_in_nodes_are_layers_in_front():
    """Fails where a model whose weights are constants in nodes is said to have no layer."""
    proto = _with_tail()
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    nodes += [onnx.NodeProto.FromString(n.SerializeToString()) for n in proto.graph.node]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    assert next(t.dims[1] for t in _pruned(proto).graph.initializer if t.name == "w1") == 4


def test_a_rest_of_an_older_opset_is_refused():
    """Fails where nodes that mean something else in the newer opset of the part in front stand behind it."""
    proto = _with_tail()
    proto.opset_import[0].version = 8
    with pytest.raises(ModelError, match="export the model with opset 9"):
        _pruned(proto)


def test_libraries_are_named_where_they_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Fails where a library is loaded by this process alone, or what is none ends in a traceback."""
    fake = tmp_path / "operators.so"
    with pytest.raises(UsageError, match="is no file"):
        checked([fake])
    fake.write_bytes(b"no library")
    with registering(checked(fake)), pytest.raises(RunError, match="cannot register the library"):
        first_run.output_types(ROW.model())  # in the child
    onnx.save(ROW.model(), tmp_path / "model.onnx")
    for command in ("inspect", "bench"):
        assert main([command, str(tmp_path / "model.onnx"), "--custom-ops", str(fake)]) == 1
        assert "cannot register the library" in capsys.readouterr().err


def test_a_library_is_registered_everywhere():
    """Fails where a stage runs the model in a session without it."""
    extensions = pytest.importorskip("onnxruntime_extensions", reason="no library of operators is installed")
    proto = ROW.model()
    proto.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    proto.graph.node.append(helper.make_node("NegPos", ["y"], ["below", "above"], domain="ai.onnx.contrib"))
    del proto.graph.output[:]
    proto.graph.output.extend(
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 4]) for n in ("below", "above")
    )
    library = extensions.get_library_path()
    for jobs in (1, 2):
        result = prune(proto, None, FEEDS, ratio=0.3, round_to=1, fast=True, custom_ops=library, jobs=jobs)
        assert not any("does not know" in n for n in result.report.notes)
        assert {o.name for o in result.model.graph.output} == {"below", "above"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"exclude": ("last",)}, "the pattern 'last' matches nothing that can be pruned: 'last' is a node behind"),
        ({"include": ("beh*",)}, "'behind' is a tensor behind operators that onnxruntime does not know"),
        ({"exclude_after": ("scaled",)}, "'scaled' is a tensor behind .*elsewhere:Boxes"),
        ({"state": ("out=x",)}, "the state 'out=x' cannot be fed back: 'out' is a tensor behind"),
        ({"state": ("same=alone",)}, "cannot be fed back: 'alone' is an input read behind"),
    ],
)
def test_names_behind_such_operators_are_told_from_those_that_nothing_has(option: dict[str, Any], said: str):
    """Fails where a name that is in the file is said not to be there."""
    with pytest.raises(UsageError, match=said):
        prune(_with_tail(), None, {**FEEDS, "alone": np.ones(1, np.float32)}, ratio=0.3, **option)


def test_what_they_read_is_no_output_of_the_model():
    """Fails where the reason names an output that the file does not have."""
    reasons = {p.reason: p.operator for p in inspect(_with_tail()).pinned}
    assert reasons.pop("Boxes reads 'y', and is not followed, so that keeps its shape") == "Boxes"
    assert any(r == "the graph output 'same' keeps its shape" for r in reasons)
    assert not any("graph output 'y'" in r for r in reasons)


def test_the_whole_is_put_together_once(monkeypatch: pytest.MonkeyPatch):
    """Fails where the rest of a large model is copied for every stage that needs it. The other one is the original."""
    calls: list[onnx.ModelProto] = []
    put_back = unknown.put_back

    def counted(final: onnx.ModelProto, tail: unknown.Tail) -> onnx.ModelProto:
        calls.append(final)
        return put_back(final, tail)

    monkeypatch.setattr(unknown, "put_back", counted)
    prune(_with_tail(), None, {**FEEDS, "alone": np.ones(1, np.float32)}, uniform=0.5, round_to=1, fast=True)
    assert len(calls) == 2
