"""Operators that read a feature map at other places: channels pass, the places stay."""

from __future__ import annotations

from onnxprune.channels.labels import Factor, along, as_ints, axis_in, tracked_axes
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.trace import Rule, Trace, split_rows
from onnxprune.graph.view import Node


def sample(node: Node, t: Trace) -> None:
    """GridSample, RoiAlign and MaxRoiPool: x (N, C, *S) is read at places that the other inputs name."""
    x, out = node.inputs[0], node.outputs[0]
    given = Reason(f"{node.op} takes positions from it", Remedy.MEANING)
    for places in node.inputs[1:]:
        if places:
            constant = places in t.graph.constants
            t.pin(places, t.of(places), node, given, structural=constant)
    rank = len(t.shape(x))
    others = [0, *range(2, rank)]
    why = Reason(f"{node.op} needs every position and sample", Remedy.POSITIONS)
    xs = t.on_axis(x, t.untrack(x, t.of(x), others, node, why), 1, node)
    factors: list[Factor] = [] if xs is None else [along(xs, 1, len(t.shape(out)))]
    t.set(out, factors)


def column_to_image(node: Node, t: Trace) -> None:
    """Col2Im: x (N, C · block, L) to (N, C, *S): the rows of a channel are one unit."""
    x, out = node.inputs[0], node.outputs[0]
    shape = t.shape(out)
    why = Reason("Col2Im needs every position and sample", Remedy.POSITIONS)
    xs = t.on_axis(x, t.untrack(x, t.of(x), (0, 2), node, why), 1, node)
    factors: list[Factor] = []
    if xs is not None:
        factors = [along(t.labels.tie(split_rows(xs, shape[1]), 1).ravel(), 1, len(shape))]
    t.set(out, factors)


def determinant(node: Node, t: Trace) -> None:
    """Det of the last two axes."""
    x = node.inputs[0]
    rank = len(t.shape(x))
    factors = t.untrack(x, t.of(x), (rank - 2, rank - 1), node, Reason("Det reads all of this axis", Remedy.POSITIONS))
    t.set(node.outputs[0], [f.reshape(f.shape[:-2]) for f in factors])


def resize(node: Node, t: Trace) -> None:
    """Resize and Upsample of axes that carry no channels."""
    x, out = node.input(0), node.outputs[0]
    before, after = t.shape(x), t.shape(out)
    named = resized_axes(node, len(before))
    axes = {a for a, (b, s) in enumerate(zip(before, after, strict=True)) if b != s}
    axes |= {a for a in named if not _stays(node, named.index(a), len(named), t)}
    why = Reason(f"{node.op} interpolates along this axis", Remedy.POSITIONS)
    factors = t.untrack(x, t.of(x), sorted(axes), node, why)
    sizes = node.input(3)
    if sizes and sizes not in t.graph.constants:
        known_sizes = t.graph.known_values.get(sizes)
        tracked = {a for f in factors for a in tracked_axes(f)} & set(named)
        if known_sizes is None or any(known_sizes[named.index(a)] is None for a in tracked):
            why = Reason("the sizes of Resize are computed at run time", Remedy.RUN_TIME)
            factors = t.untrack(x, factors, sorted(tracked), node, why)
    t.set(out, factors)


def resized_axes(node: Node, rank: int) -> tuple[int, ...]:
    """The axes that a Resize lists scales or sizes for, in their order."""
    return tuple(axis_in(a, rank) for a in as_ints(node.attrs["axes"])) if "axes" in node.attrs else tuple(range(rank))


def _stays(node: Node, place: int, count: int, t: Trace) -> bool:
    """Whether a constant scale and region leave the values along an axis of equal size as they are."""
    if node.op == "Upsample" and "scales" in node.attrs:
        return float(node.attrs["scales"][place]) == 1.0
    scales = t.graph.constants.get(node.input(1 if node.op == "Upsample" or len(node.inputs) == 2 else 2))
    if scales is not None and scales.size == count and float(scales.ravel()[place]) != 1.0:
        return False
    if node.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        return True
    region = t.graph.constants.get(node.input(1))
    return region is not None and region.size == 2 * count and region[place] == 0.0 and region[count + place] == 1.0


def center_crop_pad(node: Node, t: Trace) -> None:
    """CenterCropPad: an axis that keeps its size keeps its labels, where the size is written in the graph."""
    x, out = node.input(0), node.outputs[0]
    before, after = t.shape(x), t.shape(out)
    named = resized_axes(node, len(before))
    axes = {a for a, (b, s) in enumerate(zip(before, after, strict=True)) if b != s}
    if t.graph.ints(node.input(1)) is None:
        axes |= set(named)
    why = Reason("CenterCropPad cuts or pads this axis around its middle", Remedy.POSITIONS)
    t.set(out, t.untrack(x, t.of(x), sorted(axes), node, why))


TABLE: dict[str, Rule] = {
    **dict.fromkeys("GridSample MaxRoiPool RoiAlign".split(), sample),
    "Col2Im": column_to_image,
    "Det": determinant,
    "CenterCropPad": center_crop_pad,
    "Resize": resize,
    "Upsample": resize,
}
