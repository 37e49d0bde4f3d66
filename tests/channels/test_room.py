"""Which positions are labelled: an axis of any size takes no memory, and what stays unlabelled is cut nowhere."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, seed, settings

from onnxprune.channels import labels
from onnxprune.channels.groups import build
from onnxprune.channels.labels import LabelSpace, Pinned, TooMany
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.graph.view import Graph, Node
from tests.random_graphs import Case, graphs
from tests.test_random_graphs import check

HUGE = 500_000_000
MIB = 1 << 20


def layers_before(*behind: Node, **sizes: tuple[int, ...]) -> Graph:
    """Two layers, of which the units between can go, and what reads their output y."""
    rng = np.random.default_rng(0)
    nodes = (
        Node(0, "first", "MatMul", "", ("x", "w"), ("h",), {}),
        Node(1, "last", "MatMul", "", ("h", "v"), ("y",), {}),
    )
    constants = {"w": rng.standard_normal((4, 16)), "v": rng.standard_normal((16, 3))}
    shapes = {"x": (2, 4), "h": (2, 16), "y": (2, 3), **sizes}
    known = {"sizes": next(iter(sizes.values()))} if sizes else {}
    return Graph((*nodes, *behind), constants, ("x",), ("y",), shapes, opset=17, known_values=known)


def peak_of(graph: Graph) -> tuple[int, int]:
    """(bytes, units that can go)."""
    tracemalloc.start()
    try:
        channels = build(graph)
        return tracemalloc.get_traced_memory()[1], sum(g.size for g in channels.groups)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("op", "attrs", "given", "shape"),
    [
        ("Expand", {}, ("s", "sizes"), (HUGE,)),
        ("Expand", {}, ("s", "sizes"), (1, HUGE, 1)),
        ("ConstantOfShape", {}, ("sizes",), (HUGE,)),
        ("ConstantOfShape", {}, ("sizes",), (800, 800, 800)),
    ],
)
def test_an_axis_of_any_size_takes_no_memory(op: str, attrs: dict[str, object], given: tuple[str, ...], shape):
    """Fails where each position of an axis that no weight explains gets a label."""
    behind = (
        Node(2, "s", "ReduceSum", "", ("y",), ("s",), {"keepdims": 0}),
        Node(3, "wide", op, "", given, ("z",), attrs),
        Node(4, "flat", "Flatten", "", ("z",), ("f",), {"axis": 0}),
        Node(5, "half", "Slice", "", ("f",), ("q",), {"starts": [5], "ends": [HUGE], "axes": [1]}),
    )
    count = int(np.prod(shape))
    graph = layers_before(*behind, z=shape, s=(), f=(1, count), q=(1, count - 5))
    taken, units = peak_of(graph)
    assert units == 16
    assert taken < 100 * MIB


def test_many_long_axes_take_as_much_as_a_few(monkeypatch: pytest.MonkeyPatch):
    """Fails where each tensor of a chain keeps labels for itself, however many there are."""
    monkeypatch.setattr(labels, "MOST_POSITIONS", 1 << 20)
    size = 300_000
    chain = [Node(3 + i, f"n{i}", "Neg", "", (f"z{i}",), (f"z{i + 1}",), {}) for i in range(60)]
    behind = (Node(2, "wide", "Expand", "", ("y", "sizes"), ("z0",), {}), *chain)
    sizes = {f"z{i}": (size, 2, 3) for i in range(61)}
    taken, units = peak_of(layers_before(*behind, **sizes))
    assert units == 16
    assert taken < 100 * MIB


@pytest.mark.parametrize("most", [60, 250])
@pytest.mark.parametrize("focus", ["Conv", "ConvTranspose", "Gather", "MatMul", "LSTM", "If", "Concat", "Attention"])
def test_what_has_no_room_is_kept_whole(focus: str, most: int, monkeypatch: pytest.MonkeyPatch):
    """Fails where a weight without labels is cut, or not cut where what it meets is."""
    monkeypatch.setattr(labels, "MOST_POSITIONS", most)

    @seed(zlib.crc32(focus.encode()))
    @settings(max_examples=4, deadline=None, derandomize=True)
    @given(graphs(focus))
    def drawn(case: Case) -> None:
        check(case)

    drawn()


def test_room_is_counted_until_the_limit_is_lifted():
    """Fails where coupling costs nothing, or where what comes behind the walk is refused."""
    space = LabelSpace(stored=-labels.MOST_POSITIONS * 64 + 10 * 64)
    a = space.fresh(4)
    b = space.fresh(4)
    with pytest.raises(TooMany):
        space.unify(a, b)
    space.lift_limit()
    space.unify(a, b)
    assert np.unique(space.classes().of_label).size == 4


def test_a_pin_of_the_same_array_is_kept_once():
    """Fails where each of the readers of a tensor pins all its positions anew."""
    space = LabelSpace()
    a = space.fresh(6)
    for i in range(5):
        space.pin(a.reshape(2, 3), Pinned("t", 0, f"n{i}", "Op", Reason("so it is", Remedy.LAST)))
    space.pin(a[1:], Pinned("t", 0, "other", "Op", Reason("so it is", Remedy.LAST)))
    assert len(space._pins) == 2
    assert space.classes().reasons[0].node == "n0"
