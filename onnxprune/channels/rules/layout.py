"""Layout operators run on the labels themselves: what the operator does to the data, numpy does to the labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from onnxprune.channels.labels import (
    Factor,
    Factors,
    Pinned,
    along,
    as_ints,
    axis_in,
    check_size,
    compress,
    take,
    tracked_axes,
)
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.trace import Rule, Trace, UnknownShape
from onnxprune.graph.view import Graph, Node, Shape


def transpose(node: Node, t: Trace) -> None:
    """Transpose: the axes of every factor change places as those of the tensor do."""
    x = node.input(0)
    rank = len(t.shape(x))
    perm = node.attrs.get("perm") or list(range(rank))[::-1]
    t.set(node.outputs[0], tuple(f.transpose(as_ints(perm)) for f in t.of(x)))


def reshape(node: Node, t: Trace) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: the same elements under another shape."""
    x, out = node.input(0), node.outputs[0]
    before, after = t.shape(x), t.shape(out)
    if node.op == "Reshape" and node.input(1) not in t.graph.constants and not _known_target(node, t, before, after):
        t.pin(x, t.of(x), node, Reason("the target of Reshape is computed at run time", Remedy.RUN_TIME))
        t.set(out, ())
        return
    unnamed = node.op == "Squeeze" and not node.input(1) and "axes" not in node.attrs
    if unnamed and any(size == 1 and t.graph.is_free(x, a) for a, size in enumerate(before)):
        why = Reason("Squeeze without axes takes an axis here that other inputs have in full", Remedy.RUN_TIME)
        t.pin(x, t.of(x), node, why)
        t.set(out, ())
        return
    if 0 in before and any(meets_nothing(f, before, after) for f in t.of(x)):
        why = Reason("a size is 0 here, which leaves open where the channels go", Remedy.SHAPES)
        t.pin(x, t.of(x), node, why)
        t.set(out, ())
        return
    t.set(out, _apart(x, t.of(x), tuple(reshape_factor(f, before, after) for f in t.of(x)), node, t))


def meets_nothing(f: Factor, before: Shape, after: Shape) -> bool:
    """Whether an axis that a factor tracks is regrouped with one of size 0, or so as only an empty tensor can be."""

    def plain(sizes: Iterable[int], regrouped: Iterable[int]) -> bool:
        return 0 < math.prod(sizes) == math.prod(regrouped)

    return any(
        any(f.shape[a] != 1 for a in ins) and not plain((before[a] for a in ins), (after[a] for a in outs))
        for ins, outs in product_groups(before, after)
    )


def _apart(x: str, before: Factors, after: Factors, node: Node, t: Trace) -> Factors:
    """The moved factors, of those that a Reshape brought onto one axis only the first (repeated key heads, say).

    An axis that two of them track could only lose places of both at once; the others are pinned.
    """
    kept: list[tuple[Factor, Factor]] = []
    for old, new in zip(before, after, strict=True):
        axes = set(tracked_axes(compress(new)))
        if any(
            axes & set(tracked_axes(compress(n))) and not set(tracked_axes(old)) & set(tracked_axes(o)) for o, n in kept
        ):
            why = Reason(f"{node.op} folds this axis into one that other channels are on", Remedy.LAYOUT)
            t.pin(x, [old], node, why)
        else:
            kept.append((old, new))
    return tuple(new for _, new in kept)


def _known_target(node: Node, t: Trace, before: Shape, after: Shape) -> bool:
    """Whether every entry of a run-time target that a tracked axis lands on is known."""
    target = t.graph.known_values.get(node.input(1))
    if target is None:
        return not any(tracked_axes(f) for f in t.of(node.input(0)))
    moved = [compress(reshape_factor(f, before, after)) for f in t.of(node.input(0))]
    return all(target[a] is not None for f in moved for a in tracked_axes(f))


_EMPTY = 2**89 - 1  # a prime


def product_groups(before: Shape, after: Shape) -> list[tuple[range, range]]:
    """Split two shapes of equal size into the finest runs of axes with equal products.

    A 0 is taken for a size like no other; what then has no equal products is one run.
    """
    before, after = (tuple(d or _EMPTY for d in shape) for shape in (before, after))
    groups: list[tuple[range, range]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        start_i, start_j = i, j
        a = b = 1
        if i < len(before):
            a, i = before[i], i + 1
        if j < len(after):
            b, j = after[j], j + 1
        while a != b and (i < len(before) or j < len(after)):
            if i < len(before) and (a < b or j >= len(after)):
                a, i = a * before[i], i + 1
            else:
                b, j = b * after[j], j + 1
        groups.append((range(start_i, i), range(start_j, j)))
    return groups


def reshape_factor(f: Factor, before: Shape, after: Shape) -> Factor:
    """The labels of a factor under the new shape; only runs of axes that it tracks are materialised. Raises TooMany."""
    wide = list(f.shape)
    target: list[int] = [1] * len(after)
    order: list[int] = []
    for ins, outs in product_groups(before, after):
        if any(f.shape[a] != 1 for a in ins):
            for a in ins:
                wide[a] = before[a]
            for a in outs:
                target[a] = after[a]
        order.extend(outs)
    check_size(math.prod(wide))
    return np.broadcast_to(f, wide).reshape(target)


def concat(node: Node, t: Trace) -> None:
    """Concat along `axis`: labels are concatenated; the other axes unify."""
    out = node.outputs[0]
    rank = len(t.shape(out))
    axis = axis_in(node.attrs["axis"], rank)
    names = [i for i in node.inputs if i]
    shapes = [t.shape(n) for n in names]
    factors = [t.of(n) for n in names]
    # Across the other axes the operands are aligned: tracked in all of them, or in none.
    for a in range(rank):
        if a == axis or shapes[0][a] == 1:
            continue
        loose = [n for n, fs in zip(names, factors, strict=True) if not any(f.shape[a] > 1 for f in fs)]
        if loose and len(loose) < len(names):
            why = t.untracked_reason(loose[0], a)
            factors = [t.untrack(n, fs, [a], node, why) for n, fs in zip(names, factors, strict=True)]
    spans = [{tracked_axes(f) for f in fs if f.shape[axis] > 1 and len(tracked_axes(f)) > 1} for fs in factors]
    if any(s != spans[0] for s in spans):
        factors = [_whole_rows(fs, axis, t) for fs in factors]
    across = [[f for f in fs if f.shape[axis] > 1] for fs in factors]
    aside = [[f for f in fs if f.shape[axis] == 1] for fs in factors]
    result: list[Factor] = []
    for others in aside:
        for f in others:
            for g in result:
                if set(tracked_axes(f)) & set(tracked_axes(g)):
                    t.labels.unify(f, g)
            if not any(tracked_axes(f) == tracked_axes(g) for g in result):
                result.append(f)
    if any(across):
        joined = _joined(node, t, names, shapes, across, axis)
        for f in result:
            if set(tracked_axes(f)) & set(tracked_axes(joined)):
                t.labels.unify(f, joined)
        result.append(joined)
    t.set(out, result)


def _whole_rows(factors: Factors, axis: int, t: Trace) -> Factors:
    """A factor over `axis` and others loses whole rows only: an operand beside it has other columns, or none."""
    return tuple(t.labels.tie(f, axis) if f.shape[axis] > 1 and len(tracked_axes(f)) > 1 else f for f in factors)


def _joined(
    node: Node, t: Trace, names: Sequence[str], shapes: Sequence[Shape], across: list[list[Factor]], axis: int
) -> Factor:
    rank = len(shapes[0])
    parts: list[Factor] = []
    for name, shape, fs in zip(names, shapes, across, strict=True):
        if not fs:
            own = along(t.labels.fresh(shape[axis]), axis, rank)
            t.labels.pin(own, Pinned(name, axis, node.name, node.op, t.untracked_reason(name, axis)))
            parts.append(own)
            continue
        first = fs[0]
        for extra in fs[1:]:
            t.labels.unify(first, extra)
        parts.append(first)
    wide = [max(p.shape[a] for p in parts) for a in range(rank)]
    check_size(math.prod(wide) // max(wide[axis], 1) * sum(p.shape[axis] for p in parts))
    stretched = [np.broadcast_to(p, [p.shape[a] if a == axis else wide[a] for a in range(rank)]) for p in parts]
    return np.concatenate(stretched, axis=axis)


def split(node: Node, t: Trace) -> None:
    """Split along `axis`: each output takes its share of the labels."""
    x = node.input(0)
    shape = t.shape(x)
    axis = axis_in(node.attrs.get("axis", 0), len(shape))
    factors = t.untrack_free(x, t.of(x), [axis], node)
    start = 0
    for out in node.outputs:
        if not out:
            raise UnknownShape(f"an unnamed output of {node.name}")
        size = t.shape(out)[axis]
        t.set(out, take(factors, axis, range(start, start + size)))
        start += size


def gather(node: Node, t: Trace) -> None:
    """Gather: constant indices pick labels; indices computed at run time pin the axis."""
    x, out = node.input(0), node.outputs[0]
    shape = t.shape(x)
    axis = axis_in(node.attrs.get("axis", 0), len(shape))
    indices = t.graph.constants.get(node.input(1))
    if indices is None:
        remedy = Remedy.TOKENS if x in t.graph.constants and axis == 0 else Remedy.PICKED
        why = Reason("Gather picks from this axis by indices computed at run time", remedy)
        factors = t.untrack(x, t.of(x), [axis], node, why)
        width = len(t.shape(node.input(1)))
        t.set(out, tuple(f.reshape((*f.shape[:axis], *(1,) * width, *f.shape[axis + 1 :])) for f in factors))
        return
    result: list[Factor] = []
    for f in t.untrack_free(x, t.of(x), [axis], node):
        if f.shape[axis] == 1:
            result.append(f.reshape((*f.shape[:axis], *(1,) * indices.ndim, *f.shape[axis + 1 :])))
            continue
        check_size(f.size // f.shape[axis] * indices.size)
        picked = f.take(indices, axis=axis)
        if indices.ndim == 0 and len(tracked_axes(f)) > 1:
            # One of several rows (queries, keys and values, say), each with channels of its own: the rows stay.
            t.labels.balance(np.moveaxis(f, axis, 0).reshape(f.shape[axis], -1))
        elif indices.ndim == 0:
            why = Reason("Gather picks this single channel", Remedy.LAST)
            t.pin(x, [f.take([int(indices)], axis=axis)], node, why, axis)
        elif sum(s > 1 for s in indices.shape) > 1:
            t.pin(x, [picked], node, Reason("Gather arranges this axis over several axes", Remedy.LAYOUT), axis)
        result.append(picked)
    t.set(out, result)


def expand(node: Node, t: Trace) -> None:
    """Expand: axes of size 1 that it widens to a constant size are free to shrink with what they meet."""
    out = node.outputs[0]
    before, after = t.shape(node.input(0)), t.shape(out)
    lead = len(after) - len(before)
    factors = [f.reshape((1,) * lead + f.shape) for f in _of_known_size(node, t)]
    t.set(out, [*factors, *_widened(node.input(1), (1,) * lead + before, after, t)])


def _of_known_size(node: Node, t: Trace) -> Factors:
    """Factors of input 0, but for axes whose entry in input 1 is not known: data may ask for any size there."""
    x, entries = node.input(0), _sizes(node.input(1), t)
    rank = len(t.shape(x))
    written = [None] * rank if entries is None else [*(1,) * (rank - len(entries)), *entries[-rank:]]
    unknown = [a for a, entry in enumerate(written) if entry is None]
    why = Reason(f"what {node.op} makes of this axis is computed at run time", Remedy.RUN_TIME)
    return t.untrack(x, t.of(x), unknown, node, why)


def _sizes(name: str, t: Trace) -> Sequence[int | None] | None:
    """The entries of a constant or known tensor; None where nothing is known of it."""
    written = t.graph.ints(name)
    return written if written is not None else t.graph.known_values.get(name)


def _widened(sizes: str, before: Shape, after: Shape, t: Trace) -> list[Factor]:
    """Fresh labels for axes that grow from 1 to a size written in the constant (or known) tensor `sizes`."""
    entries = _sizes(sizes, t)
    if entries is None:
        return []
    offset = len(after) - len(entries)
    grown = [a for a, (b, s) in enumerate(zip(before, after, strict=True)) if b == 1 and s > 1 and a >= offset]
    return t.free_axes(after, [a for a in grown if entries[a - offset] is not None])


def tile(node: Node, t: Trace) -> None:
    """Tile: tracked axes may not be repeated; axes of size 1 become free labels."""
    x, out = node.input(0), node.outputs[0]
    before, after = t.shape(x), t.shape(out)
    grown = [a for a, (b, s) in enumerate(zip(before, after, strict=True)) if b > 1 and s != b]
    factors = t.untrack(x, _of_known_size(node, t), grown, node, Reason("Tile repeats this axis", Remedy.LAYOUT))
    t.set(out, [*factors, *_widened(node.input(1), before, after, t)])


def constant_of_shape(node: Node, t: Trace) -> None:
    """ConstantOfShape: every axis of known size is free."""
    out = node.outputs[0]
    shape = t.shape(out)
    t.set(out, _widened(node.input(0), (1,) * len(shape), shape, t))


def padded_axes(node: Node, graph: Graph) -> tuple[int, ...] | None:
    """The axes that a Pad lists amounts for, first before and then behind each; None where they are not known."""
    shape = graph.shape(node.inputs[0])
    if shape is None or not node.input(3):
        return None if shape is None else tuple(range(len(shape)))
    axes = graph.ints(node.input(3))
    return None if axes is None else tuple(axis_in(a, len(shape)) for a in axes)


def pad_amounts(node: Node, graph: Graph) -> dict[int, tuple[int | None, int | None]] | None:
    """axis → (before, behind) of a Pad, None for what is computed at run time; None where the axes are."""
    axes = padded_axes(node, graph)
    if axes is None:
        return None
    pads = as_ints(node.attrs["pads"]) if "pads" in node.attrs else graph.entries(node.input(1))
    if pads is None or len(pads) != 2 * len(axes):
        return dict.fromkeys(axes, (None, None))
    return {a: (pads[k], pads[len(axes) + k]) for k, a in enumerate(axes)}


def pad(node: Node, t: Trace) -> None:
    """Pad: padded channels are fresh labels that no weight produces (option-A shortcuts)."""
    x, out = node.input(0), node.outputs[0]
    rank = len(t.shape(x))
    amounts = pad_amounts(node, t.graph)
    open_ = range(rank) if amounts is None else [a for a, both in amounts.items() if None in both]
    why = Reason("the amounts of Pad are computed at run time", Remedy.RUN_TIME)
    factors = t.untrack(x, t.of(x), list(open_), node, why)
    padded = {a: (b, e) for a, (b, e) in (amounts or {}).items() if b is not None and e is not None and (b or e)}
    factors = t.untrack_free(x, factors, list(padded), node)
    fresh = node.attrs.get("mode", "constant") == "constant"
    result: list[Factor] = []
    for f in factors:
        axes = [a for a in tracked_axes(f) if a in padded]
        if axes and (not fresh or len(tracked_axes(f)) > 1 or min(padded[axes[0]]) < 0):
            why = Reason("Pad changes this axis in a way that labels cannot follow", Remedy.PADDING)
            result.extend(t.untrack(x, (f,), axes, node, why))
        elif axes:
            before, behind = padded[axes[0]]
            parts = (t.labels.fresh(before), f.ravel(), t.labels.fresh(behind))
            result.append(along(np.concatenate(parts), axes[0], rank))
        else:
            result.append(f)
    t.set(out, result)


def depth_to_space(node: Node, t: Trace) -> None:
    """DepthToSpace: blocks of channels become positions; the channels of a block are tied by what reads them."""
    x, out = node.input(0), node.outputs[0]
    n, c, h, w = t.shape(x)
    b = int(node.attrs["blocksize"])
    k = c // (b * b)
    dcr = node.attrs.get("mode", "DCR") == "DCR"
    split_shape = (n, b, b, k, h, w) if dcr else (n, k, b, b, h, w)
    perm = (0, 3, 4, 1, 5, 2) if dcr else (0, 1, 4, 2, 5, 3)
    result = []
    for f in t.untrack(x, t.of(x), (2, 3), node, Reason("DepthToSpace interleaves positions", Remedy.POSITIONS)):
        g = reshape_factor(f, (n, c, h, w), split_shape)
        if f.shape[1] > 1:
            # The output interleaves them with positions, which nothing may drop: one unit per output channel.
            for a in (1, 2) if dcr else (2, 3):
                g = t.labels.tie(g, a)
        moved = g.transpose(perm)
        result.append(moved.reshape(moved.shape[0], moved.shape[1], 1, 1))
    t.set(out, result)


def space_to_depth(node: Node, t: Trace) -> None:
    """SpaceToDepth: each input channel appears blocksize² times, one block after the other."""
    x, out = node.input(0), node.outputs[0]
    b = int(node.attrs["blocksize"])
    factors = t.untrack(x, t.of(x), (2, 3), node, Reason("SpaceToDepth interleaves positions", Remedy.POSITIONS))
    check_size(b * b * max((f.size for f in factors if f.shape[1] > 1), default=0))
    t.set(out, [np.concatenate([f] * (b * b), axis=1) if f.shape[1] > 1 else f for f in factors])


def shape_of(node: Node, t: Trace) -> None:
    """Shape and Size: the sizes that depend on tracked axes were folded before; what is left pins the axes it reads."""
    x = node.input(0)
    axes = range(len(t.shape(x)))
    entries: Sequence[int | None] | None = None
    if node.op == "Shape":
        # From opset 15 on it may read a run of the axes only; bounds are clamped as those of Python's slices.
        axes = axes[node.attrs.get("start", 0) : node.attrs.get("end")]
        entries = t.graph.known_values.get(node.outputs[0])
    open_ = {a for i, a in enumerate(axes) if entries is None or entries[i] is None}
    loose = tuple(f for f in t.of(x) if open_ & set(tracked_axes(f)))
    t.pin(x, loose, node, Reason(f"{node.op} reads this size at run time", Remedy.RUN_TIME))
    t.factors[node.outputs[0]] = ()


TABLE: dict[str, Rule] = {
    "Transpose": transpose,
    "Reshape": reshape,
    "Flatten": reshape,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
    "Concat": concat,
    "Split": split,
    "Gather": gather,
    "Expand": expand,
    "Tile": tile,
    "ConstantOfShape": constant_of_shape,
    "Pad": pad,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Shape": shape_of,
    "Size": shape_of,
}
