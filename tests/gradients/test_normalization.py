"""Gradients of normalizations against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.gradients.rules import normalization
from onnxprune.numerics.arrays import Array
from tests.gradients.differences import compare, reverse_of
from tests.gradients.single import compare_any_batch, normal, single


def _positive(*shape: int) -> Array:
    return (np.abs(normal(*shape, seed=5)) + 0.5).astype(np.float32)


def _spaced(*shape: int) -> Array:
    """Normal numbers, moved by 0.5 away from 0."""
    x = normal(*shape, seed=6)
    return (x + 0.5 * np.sign(x)).astype(np.float32)


@pytest.mark.parametrize("opset", [9, 14, 15])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 2)])
def test_batch_normalization(shape: tuple[int, ...], opset: int):
    c = shape[1]
    weights = {"scale": normal(c), "bias": normal(c, seed=2), "mean": normal(c, seed=3), "variance": _positive(c)}
    compare(*single("BatchNormalization", [shape], weights, opset=opset, epsilon=0.1))
    weights = {k: weights[k] for k in ("mean", "variance")}
    order = ["x0", "x1", "x2", "mean", "variance"]
    compare(*single("BatchNormalization", [shape, (c,), (c,)], weights, order=order, opset=opset, epsilon=0.1))


def test_batch_normalization_refuses_statistics():
    model, feeds = single("BatchNormalization", [(2, 3, 4), (3,), (3,), (3,), _positive(3)])
    assert "statistics" in reverse_of(model, feeds, ["x3"]).missing["x3"]
    model, feeds = single(
        "BatchNormalization", [(2, 3, 4), (3,), (3,), (3,), _positive(3)], outputs=("y", "m", "v"), training_mode=1
    )
    assert "batch" in reverse_of(model, feeds, ["x0"]).missing["x0"]


@pytest.mark.parametrize(
    ("axis", "scale"), [(-1, (5,)), (2, (5,)), (1, (4, 5)), (-2, (1, 5)), (-2, (4, 1)), (0, (3, 4, 5)), (-1, (1,))]
)
@pytest.mark.parametrize("outputs", [("y",), ("y", "mean", "deviation")])
def test_layer_normalization(axis: int, scale: tuple[int, ...], outputs: tuple[str, ...]):
    model, feeds = single("LayerNormalization", [(3, 4, 5), scale, scale], outputs=outputs, axis=axis, epsilon=0.1)
    del model.graph.output[1:]
    compare(model, feeds)


def test_layer_normalization_without_a_bias():
    compare(*single("LayerNormalization", [(3, 4, 5), (5,)], epsilon=0.1))


def test_layer_normalization_refuses_its_statistics():
    model, feeds = single("LayerNormalization", [(3, 4, 5), (5,)], outputs=("y", "mean"))
    assert "mean" in reverse_of(model, feeds, ["x0"]).missing["x0"]


@pytest.mark.parametrize(("axis", "scale"), [(-1, (5,)), (1, (4, 5)), (-2, (1, 5)), (0, (5,))])
def test_rms_normalization(axis: int, scale: tuple[int, ...]):
    compare(*single("RMSNormalization", [(3, 4, 5), scale], opset=23, axis=axis, epsilon=0.1))


@pytest.mark.parametrize("opset", [9, 18, 22])
@pytest.mark.parametrize("shape", [(2, 3, 6), (2, 3, 4, 5), (2, 3, 2, 3, 2)])
def test_instance_normalization(shape: tuple[int, ...], opset: int):
    compare(*single("InstanceNormalization", [shape, (3,), (3,)], opset=opset, epsilon=0.1))


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 3, 2)])
def test_group_normalization(shape: tuple[int, ...], groups: int, opset: int):
    n = groups if opset < 21 else 6
    compare(*single("GroupNormalization", [shape, (n,), (n,)], opset=opset, num_groups=groups, epsilon=0.1))


@pytest.mark.parametrize("attrs", [{}, {"axes": [0, 1, 2, 3]}, {"axes": [2, 3]}, {"axes": [1]}])
def test_mean_variance_normalization(attrs: dict[str, Any]):
    compare(*single("MeanVarianceNormalization", [(3, 4, 5, 2)], opset=13, strict=False, **attrs))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_lp_normalization(axis: int, p: int):
    compare(*single("LpNormalization", [_spaced(4, 5, 3)], axis=axis, p=p))


@pytest.mark.parametrize("size", [1, 3, 5])  # onnxruntime takes odd ones only
@pytest.mark.parametrize("opset", [9, 17])
def test_lrn(size: int, opset: int):
    compare(*single("LRN", [(2, 5, 3, 2)], opset=opset, size=size, alpha=0.5, beta=0.6, bias=1.5))


@pytest.mark.parametrize("op", sorted(normalization.TABLE))
def test_any_batch(op: str):
    c = 4
    vector = {"scale": normal(c), "bias": normal(c, seed=2)}
    weights, attrs, opset = {
        "BatchNormalization": (vector | {"mean": normal(c), "variance": _positive(c)}, {}, 17),
        "GroupNormalization": (vector, {"num_groups": 2}, 21),
        "InstanceNormalization": (vector, {}, 17),
        "LRN": ({}, {"size": 3}, 17),
        "LayerNormalization": ({"scale": normal(5)}, {}, 17),
        "LpNormalization": ({}, {"axis": 1}, 17),
        "MeanVarianceNormalization": ({}, {"axes": [1, 2, 3]}, 17),
        "RMSNormalization": ({"scale": normal(5)}, {}, 23),
    }[op]
    compare_any_batch(*single(op, [(2, c, 3, 5)], weights, opset=opset, **attrs))
