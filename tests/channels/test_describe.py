"""What `inspect` says of a channel graph."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune import inspect
from onnxprune.channels.describe import describe
from onnxprune.channels.remedies import Remedy
from onnxprune.graph import protobuf
from tests import digits
from tests.graphs import PRUNABLE, TABLE
from tests.prepared import Prepared, prepare_row

Lookup = Callable[[str], Prepared]


@pytest.mark.parametrize(("name", "groups"), [("resnet", 6), ("mobilenet", 10)])
def test_bundled_models(name: str, groups: int):
    found = inspect(digits.path(name))
    assert len(found.groups) == groups
    assert found.share > 0.999
    assert found.prunable < found.parameters
    # All floating-point weights, once each, whatever the normalised form holds.
    assert found.parameters == protobuf.parameters(onnx.load(digits.path(name)))
    assert [(p.tensor, p.axis, p.channels, p.operator) for p in found.pinned] == [
        (p.tensor, 0, 10, "output") for p in found.pinned
    ]


def test_residual_stream():
    stream = inspect(digits.path("resnet")).groups[0]
    assert (stream.name, stream.units, stream.channels_per_unit, stream.mixing) == ("/0/Conv", 16, 1, False)
    assert [p.node for p in stream.producers] == ["/0/Conv", "/3/conv2/Conv", "/4/conv2/Conv"]
    assert [p.node for p in stream.consumers] == [
        *("/3/conv1/Conv", "/4/conv1/Conv", "/5/conv1/Conv", "/5/shortcut/shortcut.0/Conv"),
    ]
    assert {(p.axis, p.channels, p.operator) for p in stream.producers} == {(0, 16, "Conv")}
    assert {p.axis for p in stream.consumers} == {1}
    # The stem, four convolutions of 16 x 16 x 9, the 3x3 and 1x1 readers of 32 channels, and three biases.
    assert stream.elements == 9 * 16 + 4 * 2304 + 16 * 32 * (9 + 1) + 3 * 16


def test_elements_by_hand(prepared: Lookup):
    """Fails where an entry that two groups share is counted twice in the total."""
    p = prepared("plain")
    found = describe(p.channels, "model", "sha", macs=(2.0, 1.0), added=p.normalised.added_biases)
    constants = {k: v for k, v in p.channels.graph.constants.items() if k not in p.normalised.added_biases}
    assert found.parameters == sum(v.size for v in constants.values())
    assert found.prunable <= found.parameters
    assert sum(g.elements for g in found.groups) > found.prunable


@pytest.mark.parametrize("row", PRUNABLE)
def test_prunable_entries_one_by_one(prepared: Lookup, row: str):
    """Against a mask over every entry of every weight."""
    p = prepared(row)
    graph, removable = p.channels.graph, {g.index for g in p.channels.groups if g.size > 1}
    free = 0
    for name, values in graph.constants.items():
        if values.dtype in (np.int64, np.bool_):
            continue
        mask = np.zeros(values.shape, bool)
        for f in p.channels.factors.get(name, ()):
            mask |= np.isin(p.channels.group_of[f], list(removable))
        free += int(mask.sum())
    found = describe(p.channels, "model", "sha", macs=(2.0, 1.0))
    assert found.prunable == free
    assert [g.units for g in found.groups] == [g.size for g in p.channels.groups if g.size > 1]


def test_macs_that_can_go():
    """Counted by hand: every convolution reads or writes a channel that can go, and so does the last product."""
    found = inspect(digits.path("mobilenet"))
    assert found.share_of_macs == 1.0
    row = prepare_row("unknown_operator")
    stuck = describe(row.channels, "model", "sha", macs=(20.0, 15.0))
    assert (stuck.macs, stuck.prunable_macs, stuck.share_of_macs) == (20.0, 5.0, 0.25)


def test_mixing(prepared: Lookup):
    name = next(k for k, v in TABLE.items() if v.mixing)
    p = prepared(name)
    found = describe(p.channels, "model", "sha", macs=(2.0, 1.0))
    assert sorted(g.units for g in found.groups if g.mixing) == sorted(TABLE[name].mixing)


def test_reasons(prepared: Lookup):
    p = prepared("unknown_operator")
    found = describe(p.channels, "model", "sha", macs=(2.0, 1.0))
    assert len(found.pinned) == len(p.channels.pinned) > 0
    assert all(x.reason and x.operator and x.remedy for x in found.pinned)


def test_json():
    found = inspect(digits.path("resnet"))
    data = json.loads(found.to_json())
    assert data["share"] == found.share
    assert data["groups"][0]["producers"][0] == {
        **{"weight": "onnx::Conv_100", "axis": 0, "channels": 16, "node": "/0/Conv", "operator": "Conv"}
    }
    assert data["pinned"][0]["reason"] == "the graph output 'logits' keeps its shape"
    assert data["pinned"][0]["remedy"] == Remedy.OUTPUT.value


def test_describing_twice_gives_the_same_text():
    assert inspect(digits.path("mobilenet")).to_json() == inspect(digits.path("mobilenet")).to_json()
