"""Cutting: refusals, names, and the details of single operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.runtime.session import Session
from onnxprune.surgery import cut, replace_initializers
from tests.compare import assert_same
from tests.graphs import TABLE
from tests.prepared import Prepared, least_removals, masked, random_keep, sliced

Lookup = Callable[[str], Prepared]


@pytest.mark.parametrize("name", ["plain", "split_join", "slice_backwards_stride", "matmul_batch"])
def test_an_axis_without_channels_is_refused(name: str, prepared: Lookup):
    """Fails where a plan that empties a tensor is written out as a model of size zero."""
    p = prepared(name)
    for units in p.channels.needed:
        keep = np.ones(p.channels.classes.pinned.size, bool)
        keep[units] = False
        with pytest.raises(ValueError, match="would keep no channel"):
            cut(p.normalised.proto, p.channels, keep)


def test_unread_channels_may_all_go(prepared: Lookup):
    """Fails where removing a whole group that nothing reads breaks the indices of what is read."""
    p = prepared("gather_negative")
    unread = next(g for g in p.channels.groups if g.size == 4)
    keep = p.channels.keep_classes({unread.index: np.zeros(4, bool)})
    feeds = TABLE["gather_negative"].feeds(2)
    expected = Session(masked(p, keep)).run(feeds)["y"]
    assert_same(Session(sliced(p, keep)).run(feeds)["y"], expected, rtol=1e-5, atol=0.0)


def test_irregular_strides_become_a_gather(prepared: Lookup):
    """Fails where a strided Slice whose positions are no longer even is still written as a Slice alone."""
    p = prepared("slice_stride")
    (group,) = p.channels.groups
    gone = np.isin(np.arange(9), [2])
    small = sliced(p, p.channels.keep_classes({group.index: ~gone}))
    assert "Gather" in {n.op_type for n in small.graph.node}
    whole = np.isin(np.arange(9), [1, 3, 5, 7])
    tidy = sliced(p, p.channels.keep_classes({group.index: ~np.isin(np.arange(9), [8]) | whole}))
    assert "Gather" not in {n.op_type for n in tidy.graph.node}


def test_group_attribute_follows(prepared: Lookup):
    """Fails where a grouped convolution keeps its number of groups though whole groups went."""
    p = prepared("grouped_many_small")
    (group,) = p.channels.groups
    small = sliced(p, p.channels.keep_classes({group.index: np.array([True, False, True, True])}))
    (grouped,) = (n for n in small.graph.node if any(a.name == "group" and a.i > 1 for a in n.attribute))
    assert next(a.i for a in grouped.attribute if a.name == "group") == 3


@pytest.mark.parametrize("name", ["lstm_bidirectional", "gru", "rnn"])
def test_hidden_size_follows(name: str, prepared: Lookup):
    """Fails where a recurrent net announces hidden units that it no longer has, or loses some for its input's sake."""
    p = prepared(name)
    hidden = next(g for g in p.channels.groups if g.size != 4)
    inputs = next(g for g in p.channels.groups if g.size == 4)
    for group, size in ((hidden, 5), (inputs, 6)):
        keep = np.ones(p.channels.classes.pinned.size, bool)
        keep[least_removals(group)[0]] = False
        small = sliced(p, keep)
        (node,) = (n for n in small.graph.node if n.op_type in ("LSTM", "GRU", "RNN"))
        assert [a.i for a in node.attribute if a.name == "hidden_size"] == [size]


def test_descriptions_survive(prepared: Lookup):
    """Fails where the rewriter drops what onnx-graphsurgeon does not carry."""
    p = prepared("described")
    small = sliced(p, random_keep(p.channels, 0))
    like = p.original
    assert (small.producer_name, small.producer_version, small.domain) == ("somebody", "1.2", "org.example")
    assert (small.model_version, small.doc_string, small.graph.doc_string) == (7, "a model", "a graph")
    assert small.ir_version == like.ir_version
    assert [(e.key, e.value) for e in small.metadata_props] == [("author", "somebody")]
    assert [n.name for n in small.graph.node] == [n.name for n in like.graph.node]
    assert [n.doc_string for n in small.graph.node] == [n.doc_string for n in like.graph.node]
    assert [n.metadata_props[0].value for n in small.graph.node] == [str(i) for i in range(len(like.graph.node))]


def test_outer_weights_of_bodies_stay_outside_once(prepared: Lookup):
    """Fails where each branch gets a copy of its own of a weight that both read."""
    for name, weight in (("body_reads_outer_weights", "w2"), ("loop", "w3")):
        p = prepared(name)
        small = sliced(p, random_keep(p.channels, 0))
        assert [t.name for t in small.graph.initializer].count(weight) == 1
        bodies = [a.g for n in small.graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
        assert bodies
        assert all(t.name != weight for b in bodies for t in b.initializer)


def test_replace_initializers_keeps_type_and_shape(prepared: Lookup):
    """Fails where a refitted weight in float64 changes the model's type, or a scalar becomes a vector."""
    proto = prepared("depthwise").normalised.proto
    new = replace_initializers(proto, {"w1": np.ones((8, 3)), "hi": np.array(5.0)})
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in new.graph.initializer}
    assert_same(stored["w1"], np.ones((8, 3, 1, 1), np.float32), rtol=0.0, atol=0.0)
    assert_same(stored["hi"], np.array(5.0, np.float32), rtol=0.0, atol=0.0)
    before = next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "hi")
    assert before == 6.0
