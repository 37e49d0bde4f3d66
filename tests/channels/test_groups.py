"""Groups: their roles, their names, and which sets of units must not run empty."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.channels.names import called
from onnxprune.graph.view import Node
from tests.graphs import PRUNABLE
from tests.prepared import Prepared

Lookup = Callable[[str], Prepared]


def test_roles_of_the_weights(prepared: Lookup):
    """Fails where a producer is taken for a consumer, or a normalization's vectors for either."""
    group = prepared("batch_norm").channels.groups[0]
    assert [(r.tensor, r.axis) for r in group.producers] == [("w1", 0)]
    assert [(r.tensor, r.axis) for r in group.consumers] == [("w2", 1)]
    assert {r.tensor for r in group.parameters} >= {"s1", "o1", "m1", "var1"}
    assert group.channels_per_unit == 1


def test_roles_of_recurrent_weights(prepared: Lookup):
    """Fails where the rows of the gates count as channels of their own, or the state is not read by its own net."""
    group = next(g for g in prepared("lstm_bidirectional").channels.groups if g.size == 12)
    assert [(r.tensor, r.axis, r.positions, r.rows) for r in group.producers] == [("w1", 1, 4, 2), ("r1", 1, 4, 2)]
    assert [(r.tensor, r.axis, r.positions, r.rows) for r in group.consumers] == [("r1", 2, 1, 2), ("w2", 0, 1, 1)]
    assert [(r.tensor, r.axis) for r in group.parameters] == [("b1", 1)]
    assert group.channels_per_unit == 1


def test_positions_of_a_unit(prepared: Lookup):
    """Fails where a flattened map counts as one column."""
    group = prepared("flatten_gemm").channels.groups[0]
    assert [(r.tensor, r.axis, r.positions) for r in group.consumers] == [("w2", 1, 16)]


def test_depthwise_weights_belong_to_the_units(prepared: Lookup):
    """Fails where a depthwise kernel is reported as if it combined channels."""
    (group,) = prepared("depthwise").channels.groups
    assert [r.tensor for r in group.producers] == ["w1"]
    assert [r.tensor for r in group.consumers] == ["w3"]
    assert {"w2", "b2"} <= {r.tensor for r in group.parameters}


@pytest.mark.parametrize("name", PRUNABLE)
def test_groups_partition_the_free_units(name: str, prepared: Lookup):
    """Fails where a unit is in two groups, a pinned class in any, or two groups share a name."""
    channels = prepared(name).channels
    units = np.concatenate([g.units for g in channels.groups])
    assert np.unique(units).size == units.size
    assert not channels.classes.pinned[units].any()
    assert len({g.name for g in channels.groups}) == len(channels.groups)
    assert [g.index for g in channels.groups] == list(range(len(channels.groups)))


@pytest.mark.parametrize("name", PRUNABLE)
def test_emptied_is_what_needed_forbids(name: str, prepared: Lookup):
    """Fails where a plan that respects `needed` could empty a tensor, or one that does not would pass."""
    channels = prepared(name).channels
    everything = np.ones(channels.classes.pinned.size, bool)
    assert channels.emptied(everything) == ()
    for units in channels.needed:
        keep = everything.copy()
        keep[units] = False
        assert channels.emptied(keep)
        keep[units[-1]] = True
        assert not channels.emptied(keep)


def test_a_part_that_a_split_takes_is_needed(prepared: Lookup):
    """Fails where all channels of one output of a Split may go, though those of the other stay."""
    channels = prepared("split_join").channels
    (group,) = channels.groups
    assert sorted(n.size for n in channels.needed) == [3, 5]
    keep = channels.keep_classes({group.index: np.arange(group.size) >= 3})
    assert ("u", 1) in channels.emptied(keep)


def test_what_nothing_needs_may_go_altogether(prepared: Lookup):
    """Fails where channels that no operator reads are held back."""
    channels = prepared("gather_negative").channels
    unread = next(g for g in channels.groups if g.size == 4)
    assert not channels.emptied(channels.keep_classes({unread.index: np.zeros(4, bool)}))


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("attention", [4]),
        ("attention_grouped", [4]),
        ("attention_one_key_head", [4]),
        ("attention_by_parts_positions", [0, 0]),
        ("attention_positions", [0, 0]),
        ("attention_one_head", [0, 0]),
        ("normalized_heads", [4]),
        ("repeated_key_heads", [4]),
        ("attention_without_softmax", [4]),
        ("batch_norm", [0, 0]),
        ("normalized_heads_positions", [0, 0]),
    ],
)
def test_units_that_are_heads(name: str, heads: list[int], prepared: Lookup):
    """Fails where a head of attention is not told from other units, or has another size than its positions."""
    assert [g.head for g in prepared(name).channels.groups] == heads


@pytest.mark.parametrize(
    ("name", "named", "weight", "expected"),
    [
        ("/conv1/Conv", True, "w1", "/conv1/Conv"),
        ("42", True, "conv1.weight", "conv1.weight"),
        ("Conv_3", False, "conv1.weight", "conv1.weight"),
        ("42", True, "onnx::Conv_17", "onnx::Conv_17"),
        ("42", True, "17", "42"),
        ("Conv_12", True, "stem.weight", "stem.weight"),
        ("node_conv2d_1", True, "stem.weight", "stem.weight"),
        ("node_Conv_12", True, "val_13", "node_Conv_12"),
        ("Conv_3", False, "val_13", "val_13"),
        ("conv1", True, "w1", "conv1"),
        ("Conv_3", False, "", "y"),
    ],
)
def test_what_a_layer_is_called(name: str, named: bool, weight: str, expected: str):
    """Fails where a number stands for a layer whose weight has a name."""
    node = Node(3, name, "Conv", "", ("x", weight), ("y",), {}, named=named)
    assert called(node, weight) == expected


def test_groups_are_called_by_weights_where_nodes_have_no_names(prepared: Lookup):
    """Fails where a group has no name that says something, or two have the same."""
    groups = prepared("attention").channels.groups
    assert [g.name for g in groups] == [groups[0].producers[0].tensor]
    assert groups[0].older == "MatMul_0"
