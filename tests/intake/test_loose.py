"""Models that onnxruntime opens and onnx's checker refuses: each is put right, and computes what it did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune import pipeline
from onnxprune.errors import ModelError
from onnxprune.intake import model_file
from onnxprune.runtime.session import Session
from tests.compare import assert_same
from tests.topologies.text import Topology

ROW = Topology(
    """(float[N,6] x) => (float[N,4] y) {
        a = MatMul(x, w1[6,8])
        b = Relu(a)
        y = MatMul(b, w2[8,4])
    }""",
    (8,),
)
BRANCHES = Topology(
    """(float[N,6] x, bool[1] c) => (float[N,4] y) {
        a = MatMul(x, w1[6,8])
        y = If(c) <
            then_branch = t () => (float[N,4] p) { r = Relu(a) p = MatMul(r, w2[8,4]) },
            else_branch = e () => (float[N,4] q) { s = Sigmoid(a) q = MatMul(s, w3[8,4]) }
        >
    }""",
    (8,),
)


def _out_of_order(m: onnx.ModelProto) -> None:
    copies = []
    for n in reversed(m.graph.node):
        copy = onnx.NodeProto()
        copy.CopyFrom(n)
        copies.append(copy)
    del m.graph.node[:]
    m.graph.node.extend(copies)


def _nameless(m: onnx.ModelProto) -> None:
    m.graph.name = ""


def _shapeless(m: onnx.ModelProto) -> None:
    m.graph.output[0].type.tensor_type.ClearField("shape")


def _untyped(m: onnx.ModelProto) -> None:
    m.graph.output[0].ClearField("type")


def _doubled(m: onnx.ModelProto) -> None:
    m.graph.initializer.add().CopyFrom(m.graph.initializer[0])


def _other_domain(m: onnx.ModelProto) -> None:
    m.graph.node[0].domain = "ai.onnx"


def _all_in_other_domain(m: onnx.ModelProto) -> None:
    """The long name of the standard domain everywhere, beside a fused operator."""
    m.opset_import[0].domain = "ai.onnx"
    m.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for n in m.graph.node:
        n.domain = "ai.onnx"
    m.graph.node[1].op_type, m.graph.node[1].domain = "Gelu", "com.microsoft"


def _of_version_3(m: onnx.ModelProto) -> None:
    m.ir_version = 3


def _normalized_early(m: onnx.ModelProto) -> None:
    """LayerNormalization in opset 12, and its kin, which only onnxruntime has there."""
    m.graph.node[-1].output[0] = "z"
    ones = onnx.numpy_helper.from_array(np.ones(4, np.float32), "ones")
    m.graph.initializer.append(ones)
    m.graph.node.append(helper.make_node("SimplifiedLayerNormalization", ["z", "ones"], ["u"], axis=-1))
    m.graph.node.append(helper.make_node("LayerNormalization", ["u", "ones"], ["y"], axis=-1))
    m.opset_import[0].version = 12


def _of_microsoft(m: onnx.ModelProto) -> None:
    """A domain that no list of versions names."""
    m.graph.node[1].op_type, m.graph.node[1].domain = "Gelu", "com.microsoft"


LOOSE: dict[str, tuple[Topology, Callable[[onnx.ModelProto], None], str]] = {
    "out of order": (ROW, _out_of_order, "put in order"),
    "out of order with bodies": (BRANCHES, _out_of_order, "put in order"),
    "nameless": (ROW, _nameless, ""),
    "output without a shape": (ROW, _shapeless, "(y) are declared"),
    "output without a type": (ROW, _untyped, "(y) are declared"),
    "stored twice": (ROW, _doubled, "'w1' is stored more than once"),
    "domain": (ROW, _other_domain, ""),
    "domain everywhere": (ROW, _all_in_other_domain, ""),
    "version": (ROW, _of_version_3, ""),
    "operators in the standard domain": (ROW, _normalized_early, "checker refuses the model"),
    "operators of no version": (ROW, _of_microsoft, ""),
}


@pytest.mark.parametrize("name", LOOSE)
def test_loose_models_are_opened(tmp_path: Path, name: str):
    """Fails where one is refused, computes something else, is not said to be mended, or is changed for the caller."""
    row, loosen, said = LOOSE[name]
    proto = row.model()
    loosen(proto)
    before = proto.SerializeToString(deterministic=True)
    (tmp_path / "loose.onnx").write_bytes(before)
    with pytest.raises(Exception, match=r"\S"):  # of several kinds
        onnx.checker.check_model(str(tmp_path / "loose.onnx"))
    opened, source = model_file.load(tmp_path / "loose.onnx")
    adopted, other = model_file.adopt(proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert opened == adopted
    assert any(said in n for n in source.notes) or not said
    assert [n for n in source.notes if "checker" not in n] == [*other.notes]
    feeds = row.feeds(5)
    assert_same(Session(opened).run(feeds)["y"], Session(proto).run(feeds)["y"], rtol=0, atol=0)
    shape = opened.graph.output[0].type.tensor_type.shape
    assert len(shape.dim) == 2
    if not said.startswith("checker"):
        onnx.checker.check_model(opened)


@pytest.mark.parametrize(
    "name", ["out of order with bodies", "output without a shape", "operators in the standard domain"]
)
def test_loose_models_are_pruned(name: str):
    """Fails where a later stage wants what the first has let pass."""
    row, loosen, _ = LOOSE[name]
    proto = row.model()
    loosen(proto)
    feeds = row.feeds(64)
    result = pipeline.prune(proto, None, feeds, uniform=0.5, round_to=1, refit="none", untried_branches="cut")
    assert result.model is not None
    assert result.plan.groups[0].units == 8
    assert {*result.report.checks} >= {"input_sizes_compared"}


def test_doubles_that_differ_are_refused():
    """Fails where one of two weights is taken without a word: onnxruntime itself takes one or the other."""
    proto = ROW.model()
    _doubled(proto)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros((6, 8), np.float32), "w1"))
    with pytest.raises(ModelError, match="'w1' is stored twice"):
        model_file.adopt(proto)


def test_a_circle_stays_refused(tmp_path: Path):
    """Fails where ordering drops a node that no order has room for."""
    proto = ROW.model()
    proto.graph.node[0].input[0] = "b"
    (tmp_path / "circle.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        model_file.load(tmp_path / "circle.onnx")


def test_order_is_kept_where_it_is_right():
    """Fails where a model that is in order is touched, and its plan no longer fits."""
    proto = BRANCHES.model()
    assert model_file.adopt(proto)[0] is proto
