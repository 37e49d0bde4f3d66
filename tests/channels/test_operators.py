"""Which operators of the standard domain are treated, against the schemas of the installed onnx."""

from __future__ import annotations

from typing import Any

import onnx
import onnx.defs
import pytest

from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.rules import TABLE
from onnxprune.channels.rules.refusals import REFUSALS, refusal
from onnxprune.channels.trace import Trace, walk
from onnxprune.graph.view import Graph, Node

# The newest operator set that the table has rows of.
NEWEST = 28


def _standard() -> set[str]:
    return {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}


def test_every_standard_operator_is_treated_or_refused():
    """Fails where the installed onnx has an operator that nobody has decided about."""
    assert len(_standard()) > 190
    assert _standard() - set(TABLE) == set()


def test_no_row_is_about_an_operator_that_does_not_exist():
    """Fails for a misspelt row; an onnx that is older than the table does not tell."""
    known = onnx.defs.onnx_opset_version()
    if known < NEWEST:
        pytest.skip(f"onnx {onnx.__version__} knows opset {known} alone, and some rows are of opset {NEWEST}")
    assert {op for op in TABLE if "." not in op} - _standard() == set()  # rows of another domain name it


@pytest.mark.parametrize("op", REFUSALS)
def test_a_refused_operator_pins_what_it_reads_with_its_own_reason(op: str):
    """Fails where another family's row shadows a refusal, or a refusal lets labels through."""
    graph = Graph((Node(0, "n", op, "", ("x",), ("y",), {}),), {}, ("x",), ("y",), {"x": (2, 8), "y": (2, 8)}, opset=18)
    trace = Trace(graph)
    labels = trace.labels.fresh(8)
    trace.factors["x"] = (labels.reshape(1, 8),)
    TABLE[op](graph.nodes[0], trace)
    classes = trace.labels.classes()
    assert classes.pinned[classes.of_label[labels]].all()
    assert classes.reasons[int(classes.of_label[labels[0]])].why == Reason(
        f"{op} {REFUSALS[op].text}", REFUSALS[op].remedy
    )
    assert trace.factors["y"] == ()


@pytest.mark.parametrize(
    ("op", "attrs", "shapes", "why"),
    [
        ("MeanVarianceNormalization", {"axes": [0, 2, 2**31]}, [(2, 8, 4)], "it names axis 2147483648"),
        ("Concat", {"axis": -4}, [(2, 8, 4), (2, 8, 4)], "it names axis -4 of a tensor with 3"),
        ("Softmax", {"axis": 3}, [(2, 8, 4)], "it names axis 3"),
        ("Add", {}, [(2, 8, 4), (2, 7, 4)], "do not fit together"),
    ],
)
def test_a_node_that_nothing_can_compute_pins(op: str, attrs: dict[str, Any], shapes: list[tuple[int, ...]], why: str):
    """Fails where an axis that is not there is counted round, or sizes that do not fit end the run."""
    names = tuple(f"x{i}" for i in range(len(shapes)))
    sizes = {**dict(zip(names, shapes, strict=True)), "y": shapes[0]}
    graph = Graph((Node(0, "n", op, "", names, ("y",), attrs),), {}, names, ("y",), sizes, opset=13)
    trace = Trace(graph, table=TABLE)
    labels = [trace.labels.fresh(s[1]) for s in shapes]
    for name, own in zip(names, labels, strict=True):
        trace.factors[name] = (own.reshape(1, -1, 1),)
    trace.visit(graph.nodes)
    classes = trace.labels.classes()
    assert all(classes.pinned[classes.of_label[own]].all() for own in labels)
    assert any(why in p.reason for _, p in trace.labels._pins.values())


def test_what_a_rule_makes_nothing_of_pins_inside_a_body_alone():
    """Fails where a branch that never ran ends the run, or where a fault of a rule goes unseen in the main graph."""

    def broken(node: Node, t: Trace) -> None:
        raise IndexError

    graph = Graph(
        (Node(0, "n", "Odd", "", ("x",), ("y",), {}),), {}, ("x",), ("y",), {"x": (2, 8), "y": (2, 8)}, opset=18
    )
    trace = Trace(graph, table={"Odd": broken})
    with pytest.raises(IndexError):
        trace.visit(graph.nodes)
    trace.visit(graph.nodes, inside=True)
    assert trace.factors["y"] == ()


def test_reasons_are_sentences():
    """Fails for a reason that would read badly behind the operator's name, or says nothing."""
    for reason in REFUSALS.values():
        assert len(reason.text.split()) >= 5
        assert reason.text[0].islower()
        assert not reason.text.endswith(".")


def test_another_domain_is_not_the_standard_one():
    """Fails where an operator is taken for its namesake of the standard domain."""
    graph = Graph(
        (Node(0, "n", "Relu", "com.example", ("w",), ("y",), {}),),
        {"w": onnx.numpy_helper.to_array(onnx.helper.make_tensor("w", 1, [4], [1.0, 2.0, 3.0, 4.0]))},
        (),
        (),
        {"y": (4,)},
        opset=18,
    )
    trace = walk(graph, TABLE)
    classes = trace.labels.classes()
    assert {r.reason for r in classes.reasons.values()} == {
        "com.example.Relu has no channel rule; it may mix or reorder channels"
    }
    assert refusal(Reason("x", Remedy.LAST)) is not TABLE["Relu"]
