"""What is left in the graph where a branch was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.channels import branches
from onnxprune.surgery import drop_zero_biases, replace_initializers, settle
from tests.channels.test_branches import DROPS, without
from tests.prepared import Prepared, comparable, sliced

Lookup = Callable[[str], Prepared]


def finished(p: Prepared, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """The model without its first branch, as it would be written."""
    keep = without(p, [next(iter(branches.drops(p.channels)))])
    small = replace_initializers(sliced(p, keep), weights or {})
    drop_zero_biases(small, p.normalised.added_biases)
    left = branches.left_of(p.channels, keep)
    assert left is not None
    return settle(small, p.channels, left)


@pytest.mark.parametrize("name", DROPS)
def test_nothing_empty_and_nothing_unread_is_left(name: str, prepared: Lookup):
    """Fails where a weight of size zero, or one that no node reads, is written out."""
    small = finished(prepared(name))
    read = {i for n in small.graph.node for i in n.input}
    assert all(0 not in t.dims for t in small.graph.initializer)
    assert {t.name for t in small.graph.initializer} <= read
    assert list(small.graph.output) == list(prepared(name).original.graph.output)


def test_only_the_stream_is_left(prepared: Lookup):
    """Fails where a dead layer stays: the sum with the last bias is all that is left of the branch."""
    p = prepared("bottleneck")
    small = finished(p)
    assert [n.op_type for n in small.graph.node] == ["Conv", "Add", "GlobalAveragePool", "Flatten", "Gemm"]
    joined = set(small.graph.node[1].input)
    (bias,) = (t for t in small.graph.initializer if t.name in joined)
    assert tuple(bias.dims) == (1, 6, 1, 1)


def test_a_sum_with_zeros_goes_as_well(prepared: Lookup):
    """Fails where a branch without a bias leaves a pass over the whole stream behind."""
    p = prepared("inverted_residual")
    assert [n.op_type for n in finished(p).graph.node] == ["Conv", "Conv"]
    kept = finished(p, {"c__bias": np.ones(6)})
    assert [n.op_type for n in kept.graph.node] == ["Conv", "Add", "Conv"]


def test_what_follows_the_bias_is_folded(prepared: Lookup):
    """Fails where a normalization or a transposition of a constant is left to the runtime."""
    assert {n.op_type for n in finished(prepared("branch_through_a_norm")).graph.node} & {"Clip", "Mul"} == set()
    assert "Transpose" not in {n.op_type for n in finished(prepared("channels_last_branch")).graph.node}


@pytest.mark.parametrize("batch", [1, 5])
def test_the_batch_may_still_change(batch: int, prepared: Lookup):
    """Fails where the constant brings the batch of the trace with it."""
    p = prepared("transformer")
    x = np.ones((batch, 4, 6), np.float32)
    (y,) = comparable(finished(p)).run({"x": x}).values()
    assert y.shape == (batch, 4, 5)
