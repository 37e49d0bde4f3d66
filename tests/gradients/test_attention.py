"""Gradients of softmax and attention against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.numerics.arrays import Array
from tests.gradients.differences import compare, reverse_of
from tests.gradients.single import compare_any_batch, normal, single


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
@pytest.mark.parametrize("attrs", [{}, {"axis": 0}, {"axis": 1}, {"axis": 2}, {"axis": -1}])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax(op: str, attrs: dict[str, Any], opset: int):
    if opset < 11 and attrs.get("axis", 0) < 0:
        pytest.skip("no negative axes before opset 11")
    compare(*single(op, [(2, 3, 4)], opset=opset, **attrs))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_takes_any_batch(op: str):
    compare_any_batch(*single(op, [(2, 3, 4)]))


APART = [(2, 4, 3, 5), (2, 4, 6, 5), (2, 4, 6, 7)]  # (batch, heads, positions, size) of queries, keys, values
GROUPED = [(2, 4, 3, 5), (2, 2, 6, 5), (2, 2, 6, 7)]
PACKED = [(2, 3, 20), (2, 6, 10), (2, 6, 14)]
HEADS = {"q_num_heads": 4, "kv_num_heads": 2}


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("attrs", [{}, {"scale": 0.3}, {"softcap": 0.7}, {"is_causal": 1, "softcap": 1.5}], ids=str)
@pytest.mark.parametrize(("shapes", "layout"), [(APART, {}), (GROUPED, {}), (PACKED, HEADS)], ids=str)
def test_attention(shapes: Any, layout: dict[str, int], attrs: dict[str, Any], opset: int):
    compare(*single("Attention", shapes, opset=opset, **layout, **attrs))


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(
    "mask", [normal(3, 6), np.array([[1, 0, 1, 1, 0, 1], [1] * 6, [0, 0, 0, 1, 0, 0]], bool)], ids=["float", "bool"]
)
@pytest.mark.parametrize("attrs", [{}, {"softcap": 0.7}])
def test_attention_with_a_mask(attrs: dict[str, Any], mask: Array, opset: int):
    compare(*single("Attention", GROUPED, {"mask": mask}, opset=opset, **attrs))


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("outputs", [("y",), ("y", "keys", "values")])
@pytest.mark.parametrize(("shapes", "layout"), [(GROUPED, {}), (PACKED, HEADS)], ids=str)
def test_attention_with_a_past(shapes: Any, layout: dict[str, int], outputs: tuple[str, ...], opset: int):
    past = [(2, 2, 4, 5), (2, 2, 4, 7)]
    order = ["x0", "x1", "x2", "", "x3", "x4"]
    names = ("y", "keys", "values")
    model, feeds = single("Attention", [*shapes, *past], order=order, opset=opset, outputs=names, is_causal=1, **layout)
    del model.graph.output[len(outputs) :]
    compare(model, feeds)


def test_attention_whose_present_keys_alone_are_read():
    model, feeds = single("Attention", GROUPED, opset=23, outputs=("y", "keys", "values"))
    del model.graph.output[2], model.graph.output[0]
    compare(model, feeds, tensors=["x1"])


def test_attention_takes_any_batch():
    compare_any_batch(*single("Attention", PACKED, opset=23, **HEADS), batched=("x0", "x1", "x2"))
    compare_any_batch(*single("Attention", GROUPED, opset=23), batched=("x0", "x1", "x2"))


def test_attention_with_lengths():
    data = [*GROUPED, np.array([4, 6], np.int64)]
    compare(*single("Attention", data, order=["x0", "x1", "x2", "", "", "", "x3"], opset=24))


def test_attention_refusals():
    model, feeds = single("Attention", [*GROUPED, (3, 6)], opset=23)
    assert "mask" in reverse_of(model, feeds, ["x3"]).missing["x3"]
    model, feeds = single("Attention", GROUPED, opset=23, outputs=("y", "", "", "scores"))
    assert "scores" in reverse_of(model, feeds, ["x0"]).missing["x0"]


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(
    ("shape", "attrs"),
    [((2, 3, 5, 8), {}), ((2, 5, 24), {"num_heads": 3}), ((2, 3, 5, 8), {"rotary_embedding_dim": 4, "num_heads": 3})],
    ids=str,
)
@pytest.mark.parametrize("positions", [True, False])
def test_rotary_embedding(positions: bool, shape: tuple[int, ...], attrs: dict[str, int], interleaved: int):
    half = attrs.get("rotary_embedding_dim", 8) // 2
    angles = normal(5, half) if positions else normal(2, 5, half)
    weights = {"cos": np.cos(angles), "sin": np.sin(angles)}
    if positions:
        weights["ids"] = np.array([[0, 2, 1, 4, 3], [4, 4, 0, 1, 2]], np.int64)
    compare(*single("RotaryEmbedding", [shape], weights, opset=23, interleaved=interleaved, **attrs))
