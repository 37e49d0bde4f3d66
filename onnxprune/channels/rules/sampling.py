"""Operators that read a feature map at given places: channels pass, the places stay."""

from __future__ import annotations

from onnxprune.channels.labels import Factor, along
from onnxprune.channels.trace import Rule, Trace, split_rows
from onnxprune.graph import Node


def sample(node: Node, t: Trace) -> None:
    """GridSample, RoiAlign and MaxRoiPool: x (N, C, *S) is read at places that the other inputs name."""
    x, out = node.inputs[0], node.outputs[0]
    for places in node.inputs[1:]:
        if places:
            known = places in t.graph.constants
            t.pin(places, t.of(places), node, f"{node.op} takes positions from it", structural=known)
    rank = len(t.shape(x))
    others = [0, *range(2, rank)]
    xs = t.on_axis(x, t.untrack(x, t.of(x), others, node, f"{node.op} needs every position and sample"), 1, node)
    factors: list[Factor] = [] if xs is None else [along(xs, 1, len(t.shape(out)))]
    t.set(out, factors)


def column_to_image(node: Node, t: Trace) -> None:
    """Col2Im: x (N, C · block, L) to (N, C, *S): the rows of a channel are one unit."""
    x, out = node.inputs[0], node.outputs[0]
    shape = t.shape(out)
    xs = t.on_axis(x, t.untrack(x, t.of(x), (0, 2), node, "Col2Im needs every position and sample"), 1, node)
    factors: list[Factor] = []
    if xs is not None:
        factors = [along(t.labels.tie(split_rows(xs, shape[1]), 1).ravel(), 1, len(shape))]
    t.set(out, factors)


def determinant(node: Node, t: Trace) -> None:
    """Det of the last two axes."""
    x = node.inputs[0]
    rank = len(t.shape(x))
    factors = t.untrack(x, t.of(x), (rank - 2, rank - 1), node, "Det reads all of this axis")
    t.set(node.outputs[0], [f.reshape(f.shape[:-2]) for f in factors])


TABLE: dict[str, Rule] = {
    **dict.fromkeys("GridSample MaxRoiPool RoiAlign".split(), sample),
    "Col2Im": column_to_image,
    "Det": determinant,
}
