"""Rows of tokens that are not listed go: the others' outputs stay what they were, each in its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxprune.errors import UsageError
from onnxprune.runtime.session import Session
from onnxprune.surgery.vocabulary import ListedTokens, without_others
from onnxprune.surgery.vocabulary_rows import vocabulary_of, why_none
from tests.compare import assert_same
from tests.kit import kit_feeds, kit_folder
from tests.vocabularies import TOKENS, model

LISTED = (7, 0, 3, 8, 20, 21, 33, 63)


def listed_of(proto: onnx.ModelProto, ids: tuple[int, ...] = LISTED) -> ListedTokens:
    vocabulary = vocabulary_of(proto)
    assert vocabulary is not None
    tokens = without_others(proto, vocabulary, ids)
    assert tokens is not None
    return tokens


def ids_of(tokens: tuple[int, ...], shape: tuple[int, ...] = (3, 5)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).choice(np.array(tokens), shape).astype(np.int64)


@pytest.mark.parametrize(
    ("given", "heads"),
    [
        ({}, 1),
        ({"head": "bias", "ids": ("Clip",)}, 1),
        ({"head": "Gemm", "ids": ("Cast",)}, 1),
        ({"head": "tied", "behind": ("capped",)}, 1),
        ({"head": "packed"}, 1),
        ({"embedding": "packed", "head": "packed", "width": 64}, 1),
        ({"embedding": "shared", "head": "packed", "width": 64, "behind": ("capped",)}, 1),
        ({"embedding": "dequantized", "head": "bias", "behind": ("capped",)}, 1),
        ({"embedding": "dequantized", "head": "tied"}, 1),
        ({"embedding": "fused", "ids": ("Cast",)}, 1),
        ({"element": TensorProto.FLOAT16, "opset": 13}, 1),
        ({"element": TensorProto.FLOAT16, "behind": ("Cast",)}, 1),
        ({"opset": 10}, 1),
        ({"head": "none"}, 0),
        ({"behind": ("Softmax",)}, 0),
        ({"behind": ("read",)}, 0),
    ],
)
def test_outputs_of_listed_tokens_stay(given: dict[str, Any], heads: int):
    """Fails where a row, a scale, a bias or a logit goes to another token's place."""
    proto = model(**given)
    tokens = listed_of(proto)
    assert len(tokens.vocabulary.heads) == heads
    result = tokens.put_back(tokens.narrow)
    onnx.checker.check_model(result)
    assert [v.SerializeToString() for v in result.graph.output] == [v.SerializeToString() for v in proto.graph.output]
    before, after = Session(proto), Session(result)
    feeds = {"input_ids": ids_of(LISTED)}
    expected, found = before.run(feeds), after.run(feeds)
    logits, kept = found["logits"], np.sort(LISTED)
    if heads:
        assert logits.shape == expected["logits"].shape
        assert_same(logits[..., kept], expected["logits"][..., kept], rtol=1e-5, atol=1e-6)
        gone = np.setdiff1d(np.arange(TOKENS), kept)
        lowest = np.finfo(np.float16 if given.get("element") == TensorProto.FLOAT16 and "behind" not in given else "f4")
        assert (logits[..., gone] == lowest.min).all()
    else:
        assert_same(logits, expected["logits"], rtol=1e-5, atol=1e-6)
    other = after.run({"input_ids": np.full((3, 5), 12)})["logits"]
    assert_same(other, after.run({"input_ids": np.full((3, 5), LISTED[0])})["logits"], rtol=0.0, atol=0.0)
    assert tokens.saved == len(proto.SerializeToString()) - len(result.SerializeToString()) > 0


def test_what_stays_whole_is_said():
    """Fails where a head that has to stay goes, or where nobody hears why."""
    for behind, why in (("Softmax", "Softmax is behind its product"), ("read", "is read elsewhere too")):
        assert why in listed_of(model(behind=(behind,))).note
    proto = model(head="tied", behind=("Softmax",))
    assert vocabulary_of(proto) is None  # the head needs all rows of the weight that it shares
    assert "as token 7, and their logits are the lowest" in listed_of(model()).note


def test_a_shape_that_others_read_stays_theirs():
    """Fails where the number of tokens in a shape changes for whoever else reads it, or the weight counts as shared."""
    proto = model(embedding="shared", head="packed", width=64)
    proto.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["flat"], ["zeros_of_it"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("zeros_of_it", TensorProto.FLOAT, [TOKENS, 32]))
    tokens = listed_of(proto)
    feeds = {"input_ids": ids_of(LISTED)}
    expected, found = (Session(p).run(feeds) for p in (proto, tokens.put_back(tokens.narrow)))
    assert found["zeros_of_it"].shape == expected["zeros_of_it"].shape == (TOKENS, 32)
    assert_same(tokens.picked(found)["logits"], tokens.picked(expected)["logits"], rtol=1e-5, atol=1e-5)


def test_constants_that_nothing_reads_go():
    proto = model(embedding="shared", head="packed", width=64)
    assert "Constant" in {n.op_type for n in proto.graph.node}
    assert "Constant" not in {n.op_type for n in listed_of(proto).narrow.graph.node}


def test_a_table_in_a_constant_node_loses_rows():
    """Fails where a weight that an exporter left in a node is none."""
    proto = model()
    table = next(t for t in proto.graph.initializer if t.name == "table")
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["table"], value=table))
    proto.graph.initializer.remove(table)
    tokens = listed_of(proto)
    feeds = {"input_ids": ids_of(LISTED)}
    expected, found = (Session(p).run(feeds) for p in (proto, tokens.put_back(tokens.narrow)))
    assert_same(tokens.picked(found)["logits"], tokens.picked(expected)["logits"], rtol=1e-5, atol=1e-6)
    assert tokens.saved > 0


@pytest.mark.parametrize("axis", [0, -2])
def test_blocks_across_rows_are_refused_with_that_reason(axis: int):
    """Fails where rows go whose scale others share, or where it is said that there are none."""
    proto = model(embedding="packed", head="none", width=64)
    node = next(n for n in proto.graph.node if n.op_type == "GatherBlockQuantized")
    node.attribute.append(onnx.helper.make_attribute("quantize_axis", axis))
    assert vocabulary_of(proto) is None
    assert "'/embedded' picks tokens of a weight whose blocks lie across rows" in why_none(proto)


def test_blocks_of_a_dequantized_table_across_rows_are_refused_with_that_reason():
    proto = model(embedding="dequantized", head="none", opset=21)
    node = next(n for n in proto.graph.node if n.op_type == "DequantizeLinear")
    node.attribute.append(onnx.helper.make_attribute("block_size", 4))
    assert "picks tokens of a weight whose blocks lie across rows" in why_none(proto)


def test_a_tied_head_that_needs_all_rows_is_the_reason():
    why = why_none(model(head="tied", behind=("Softmax",)))
    assert "Softmax is behind its product" in why
    assert "the weight 'table' is read elsewhere too" in why
    assert why_none(model(head="none", ids=("Clip",))) == ""


def test_positions_are_no_tokens():
    """Fails where a table of positions or types counts as a vocabulary."""
    proto = model(head="none")
    for name in ("position_ids", "token_type_ids"):
        other = onnx.ModelProto.FromString(proto.SerializeToString())
        other.graph.input[0].name = name
        for n in other.graph.node:
            n.input[:] = [name if i == "input_ids" else i for i in n.input]
        assert vocabulary_of(other) is None


def test_ids_that_are_clipped_to_stay():
    """Fails where a bound of Clip loses the row that ids beyond it read."""
    tokens = listed_of(model(ids=("Clip",)), (7, 9))
    assert tokens.ids.tolist() == [0, 7, 9, TOKENS - 1]


def test_nothing_is_done_where_tables_take_more():
    """Fails where a model grows by what should make it smaller: each row has 128 bytes, and the tables take 512."""
    proto = model()
    vocabulary = vocabulary_of(proto)
    assert vocabulary is not None
    assert without_others(proto, vocabulary, tuple(range(TOKENS - 4))) is None
    assert without_others(proto, vocabulary, tuple(range(TOKENS - 16))) is not None


def test_ids_beyond_the_model_are_refused():
    proto = model()
    vocabulary = vocabulary_of(proto)
    assert vocabulary is not None
    with pytest.raises(UsageError, match=r"has no row for \(64, 70; it has 64\)"):
        without_others(proto, vocabulary, (1, 70, 64))


@pytest.mark.parametrize("version", [3, 9])
def test_weights_that_are_listed_as_inputs_by_habit(version: int):
    """Fails where a model of old exporters has no vocabulary, or declares its weights as they were."""
    proto = model(opset=8)
    proto.ir_version = version
    values = [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer]
    proto.graph.input.extend(values)
    tokens = listed_of(proto)
    result = tokens.put_back(tokens.narrow)
    onnx.checker.check_model(result)
    feeds = {"input_ids": ids_of(LISTED)}
    expected, found = (tokens.picked(Session(p).run(feeds))["logits"] for p in (proto, result))
    assert_same(found, expected, rtol=1e-5, atol=1e-6)


def test_a_default_is_no_weight():
    """Fails where rows go of what whoever runs the model may replace."""
    proto = model()
    table = next(t for t in proto.graph.initializer if t.name == "table")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("table", TensorProto.FLOAT, table.dims))
    assert vocabulary_of(proto) is None


@pytest.mark.parametrize("name", ["bert_tiny", "bert_tiny_dynamo", "llama_tiny", "llama_tiny_dynamo"])
def test_real_exports(name: str):
    """Half of the vocabulary goes out of what torch exports, and nothing else changes."""
    path = kit_folder() / "arch" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip("the kit of real models is not here")
    proto = onnx.load(path)
    tokens = listed_of(proto, tuple(range(0, 128, 2)))
    assert len(tokens.vocabulary.heads) == ("llama" in name)
    feeds = kit_feeds(path, proto, 2)
    feeds["input_ids"] = ids_of(tuple(range(0, 128, 2)), feeds["input_ids"].shape)
    before, after = (Session(p).run(feeds) for p in (proto, tokens.put_back(tokens.narrow)))
    assert_same(tokens.picked(after)["out"], tokens.picked(before)["out"], rtol=1e-4, atol=1e-5)


def test_ids_are_counted_from_the_end_too():
    """Fails where -1 is not the last token."""
    tokens = listed_of(model())
    assert tokens.unlisted_in(np.array([[-1, 7], [-2, 99]])).tolist() == [62]
    values = numpy_helper.to_array(next(t for t in tokens.narrow.graph.initializer if t.name == "rows_of_tokens"))
    assert values[LISTED[0]] == values[1] == 2
