"""Gradients of pooling against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.gradients.rules import pooling
from onnxprune.graph import protobuf
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Session
from tests.gradients.differences import compare, reverse_of
from tests.gradients.single import compare_any_batch, normal, single

Case = tuple[tuple[int, ...], dict[str, Any]]

# (spatial size, attributes)
CASES: list[Case] = [
    ((6, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((7, 9), {"kernel_shape": [2, 2], "strides": [2, 2]}),  # a rest that no window reads
    ((7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((6, 7), {"kernel_shape": [3, 2]}),
    ((6, 7), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ((6, 7), {"kernel_shape": [2, 3], "pads": [0, 1, 1, 2], "strides": [1, 2]}),
    ((7, 8), {"kernel_shape": [1, 1], "strides": [2, 3]}),
    ((4, 5), {"kernel_shape": [4, 5]}),
    ((7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((7, 8), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID"}),
    ((7, 8), {"kernel_shape": [2, 3], "strides": [3, 1], "auto_pad": "SAME_UPPER"}),
    ((9,), {"kernel_shape": [3], "strides": [2]}),
    ((4, 5, 6), {"kernel_shape": [2, 3, 2], "strides": [2, 1, 1]}),
]
# From opset 10 on; the sizes divide so that the last window reaches over the end.
CEIL: list[Case] = [
    ((8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ((8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 1], "ceil_mode": 1}),
    ((7, 8), {"kernel_shape": [2, 2], "strides": [2, 3], "ceil_mode": 1}),
    ((7, 8), {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1, "auto_pad": "SAME_LOWER"}),
]
DILATED: list[Case] = [
    ((8, 9), {"kernel_shape": [3, 3], "dilations": [2, 2]}),
    ((8, 9), {"kernel_shape": [3, 2], "dilations": [2, 3], "strides": [2, 1], "pads": [1, 1, 1, 1]}),
]


def _distinct(*shape: int) -> Array:
    """Values that are at least 0.1 apart, so that small steps do not change which is the largest."""
    n = int(np.prod(shape))
    return (np.random.default_rng(2).permutation(n).reshape(shape) * 0.1 - n * 0.05).astype(np.float32)


@pytest.mark.parametrize("opset", [9, 11, 17, 22])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_max_pool(case: Case, opset: int):
    compare(*single("MaxPool", [_distinct(2, 3, *case[0])], opset=opset, **case[1]))


@pytest.mark.parametrize("opset", [10, 12, 17])
@pytest.mark.parametrize("case", CEIL + DILATED, ids=str)
def test_max_pool_with_partial_and_dilated_windows(case: Case, opset: int):
    compare(*single("MaxPool", [_distinct(2, 3, *case[0])], opset=opset, **case[1]))


@pytest.mark.parametrize("op", ["AveragePool", "LpPool", "MaxPool"])
def test_dilated_windows_refuse_automatic_pads(op: str):
    attrs = {"kernel_shape": [2, 3], "dilations": [2, 2], "auto_pad": "SAME_UPPER"}
    model, feeds = single(op, [(1, 2, 8, 9)], opset=19, **attrs)
    assert "auto_pad" in reverse_of(model, feeds, ["x0"]).missing["x0"]


def test_max_pool_with_column_major_indices():
    model, feeds = single(
        "MaxPool",
        [_distinct(2, 3, 6, 6)],
        outputs=("y", "places"),
        kernel_shape=[3, 3],
        strides=[2, 2],
        storage_order=1,
    )
    del model.graph.output[1:]
    compare(model, feeds)


@pytest.mark.parametrize("op", ["MaxPool", "GlobalMaxPool"])
def test_of_equal_entries_one_gets_the_gradient(op: str):
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2]} if op == "MaxPool" else {}
    model, feeds = single(op, [np.zeros((2, 3, 7, 7), np.float32)], **attrs)
    back = reverse_of(model, feeds, ["x0"])
    seed = normal(*Session(protobuf.submodel(back.proto, {}, ["y"])).run(feeds)["y"].shape)
    g = Session(protobuf.submodel(back.proto, {}, [back.of_tensor["x0"]])).run({**feeds, back.seeds["y"]: seed})
    (dx,) = g.values()
    np.testing.assert_allclose(dx.sum((2, 3)), seed.sum((2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [9, 11, 17, 22])
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_average_pool(case: Case, count: int, opset: int):
    compare(*single("AveragePool", [(2, 3, *case[0])], opset=opset, count_include_pad=count, **case[1]))


@pytest.mark.parametrize("opset", [10, 17, 19])
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("case", CEIL, ids=str)
def test_average_pool_with_partial_windows(case: Case, count: int, opset: int):
    compare(*single("AveragePool", [(2, 3, *case[0])], opset=opset, count_include_pad=count, **case[1]))


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("case", DILATED, ids=str)
def test_average_pool_with_dilated_windows(case: Case, count: int):
    compare(*single("AveragePool", [(2, 3, *case[0])], opset=19, count_include_pad=count, **case[1]))


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lp_pool(case: Case, p: int, opset: int):
    x = _distinct(2, 3, *case[0]) + np.float32(0.05)  # no entry is 0
    compare(*single("LpPool", [x], opset=opset, p=p, **case[1]))


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("size", [(6,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pooling(op: str, size: tuple[int, ...], opset: int):
    compare(*single(op, [_distinct(2, 3, *size)], opset=opset))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_global_lp_pool(p: int):
    compare(*single("GlobalLpPool", [_distinct(2, 3, 4, 5) + np.float32(0.05)], p=p))


@pytest.mark.parametrize("op", ["LpPool", "GlobalLpPool"])
def test_the_norm_of_nothing_has_no_slope(op: str):
    model, feeds = single(
        op, [np.zeros((1, 2, 4, 4), np.float32)], **({"kernel_shape": [2, 2]} if op == "LpPool" else {})
    )
    back = reverse_of(model, feeds, ["x0"])
    shape = (1, 2, 3, 3) if op == "LpPool" else (1, 2, 1, 1)
    g = Session(protobuf.submodel(back.proto, {}, [back.of_tensor["x0"]])).run(
        {**feeds, "seed:y": np.ones(shape, np.float32)}
    )
    assert not np.any(next(iter(g.values())))


@pytest.mark.parametrize("op", sorted(pooling.TABLE))
def test_any_batch(op: str):
    attrs = {} if op.startswith("Global") else {"kernel_shape": [3, 3], "strides": [2, 2]}
    compare_any_batch(*single(op, [_distinct(2, 3, 7, 7)], **attrs))
