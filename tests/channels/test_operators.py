"""Which operators of the standard domain are treated, against the schemas of the installed onnx."""

from __future__ import annotations

import onnx
import onnx.defs
import pytest

from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.rules import TABLE
from onnxprune.channels.rules.refusals import REFUSALS, refusal
from onnxprune.channels.trace import Trace, walk
from onnxprune.graph import Graph, Node


def _standard() -> set[str]:
    return {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}


def test_every_standard_operator_is_treated_or_refused():
    """Fails where the installed onnx has an operator that nobody has decided about."""
    assert len(_standard()) > 190
    assert _standard() - set(TABLE) == set()


def test_no_row_is_about_an_operator_that_does_not_exist():
    """Fails for a misspelt row."""
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
