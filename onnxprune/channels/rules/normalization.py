"""Normalizations. Per-channel ones pass labels; those that read across channels are *mixing*.

A mixing operator keeps its labels but takes its statistics over the channels that are kept, so removal changes what
it computes: the oracle models that with explicit masked sums, and the refit absorbs it.
"""

from __future__ import annotations

import numpy as np

from onnxprune.channels.labels import Factor, Factors, along, axis_in, tracked_axes
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.rules.contraction import same_inside
from onnxprune.channels.trace import Rule, Trace, split_rows
from onnxprune.graph.view import Node

_PER_GROUP = Reason("one value for each group of a normalization, whose groups all stay", Remedy.INSIDE_GROUPS)


def batch_norm(node: Node, t: Trace) -> None:
    """BatchNormalization: four vectors along axis 1."""
    x = node.input(0)
    shape = t.shape(x)
    operands = [(x, t.of(x), shape)]
    for name in node.inputs[1:5]:
        vector = t.shape(name)
        lifted = (vector[0], *(1,) * (len(shape) - 2))
        operands.append((name, tuple(f.reshape(lifted) for f in t.of(name)), lifted))
    merged = t.merge(operands, node)
    t.set(node.outputs[0], merged)
    # In training mode: the statistics of each channel.
    for extra in node.outputs[1:]:
        if extra:
            channels = t.on_axis(x, merged, 1, node)
            t.set(extra, [] if channels is None else [channels])


def last_axes_norm(node: Node, t: Trace) -> None:
    """LayerNormalization and RMSNormalization: statistics over the axes from `axis` on."""
    x = node.input(0)
    rank = len(t.shape(x))
    axis = axis_in(node.attrs.get("axis", -1), rank)
    axes = tuple(range(axis, rank))
    factors_of_x = t.of(x)
    if t.attention == "head-dim":  # a normalization inside each head
        factors_of_x = same_inside(factors_of_x, range(axis), t)
    factors = mix(node, t, x, factors_of_x, axes)
    operands = [(x, factors, t.shape(x))]
    operands += [(i, t.of(i), t.shape(i)) for i in node.inputs[1:] if i]
    t.set(node.outputs[0], t.merge(operands, node))
    # LayerNormalization's mean and deviation, of size 1 on the axes that they are taken over.
    for extra in node.outputs[1:]:
        t.set(extra, [f for f in factors if not set(tracked_axes(f)) & set(axes)])


def mix(node: Node, t: Trace, name: str, factors: Factors, axes: tuple[int, ...]) -> Factors:
    """Record a mixing read over `axes`; a factor that also tracks other axes is tied along the mixed ones."""
    if any(f.shape[a] > 1 for f in factors for a in axes):
        t.read(node, node.inputs.index(name), "mixing", axes)
    result: list[Factor] = []
    for f in factors:
        mixed = [a for a in tracked_axes(f) if a in axes]
        if mixed and len(mixed) < len(tracked_axes(f)):
            for a in mixed:
                f = t.labels.tie(f, a)
        result.append(f)
    return tuple(result)


def instance_norm(node: Node, t: Trace) -> None:
    """InstanceNormalization: statistics over the axes from 2 on, scale and bias along axis 1.

    As exporters write GroupNorm, axis 1 is the norm's groups and axis 2 the channels inside, so factors track both.
    """
    x = node.input(0)
    rank = len(t.shape(x))
    factors = _whole_groups_or_balanced(node, t, x)
    whole = any(tracked_axes(f) == (1,) for f in factors)
    operands = [(x, factors, t.shape(x))]
    for name in node.inputs[1:3]:
        lifted = (t.shape(name)[0], *(1,) * (rank - 2))
        fs = tuple(f.reshape(lifted) for f in t.of(name))
        if not whole:
            t.pin(name, fs, node, _PER_GROUP)
            fs, lifted = (), (1,) * (rank - 1)
        operands.append((name, fs, lifted))
    t.set(node.outputs[0], t.merge(operands, node))


def _whole_groups_or_balanced(node: Node, t: Trace, x: str) -> Factors:
    """A factor over (groups, channels inside) has whole groups as units where those are more, else it is balanced."""
    result: list[Factor] = []
    mixed = False
    for f in t.of(x):
        inside = [a for a in tracked_axes(f) if a > 1]
        mixed |= bool(inside)
        if f.shape[1] > 1 and inside:
            # Labels repeat over spatial positions: count distinct ones, not places.
            if f.shape[1] >= len(set(f.take(0, axis=1).ravel().tolist())):
                for a in inside:
                    f = t.labels.tie(f, a)
            else:
                t.labels.balance(np.moveaxis(f, 1, 0).reshape(f.shape[1], -1))
        result.append(f)
    if mixed:
        t.read(node, 0, "mixing", tuple(range(2, len(t.shape(x)))))
    return tuple(result)


def group_norm(node: Node, t: Trace) -> None:
    """GroupNormalization: scale and bias are per group before opset 21, per channel from then on."""
    x = node.input(0)
    shape = t.shape(x)
    groups = int(node.attrs["num_groups"])
    why = Reason("group normalization needs every spatial position", Remedy.POSITIONS)
    factors = t.untrack(x, t.of(x), range(2, len(shape)), node, why)
    xs = t.on_axis(x, factors, 1, node)
    out: list[Factor] = [f for f in factors if f.shape[1] == 1]
    if xs is not None:
        rows = split_rows(xs, groups)
        whole = groups >= rows.shape[1]
        units = t.labels.tie(rows, 1) if whole else rows
        if not whole:
            t.labels.balance(rows)
            t.read(node, 0, "mixing", tuple(range(1, len(shape))))
        out.append(along(xs, 1, len(shape)))
        for name in node.inputs[1:3]:
            vector = t.on_axis(name, t.of(name), 0, node)
            if vector is None:
                continue
            if vector.size == xs.size:
                t.labels.unify(vector, xs)
            elif whole:
                t.labels.unify(vector, units.ravel())
            else:
                t.pin(name, [vector], node, _PER_GROUP)
    else:
        for name in node.inputs[1:3]:
            t.pin(name, t.of(name), node, t.untracked_reason(x, 1))
    t.set(node.outputs[0], out)


def lp_norm(node: Node, t: Trace) -> None:
    """LpNormalization: the norm over one axis."""
    x = node.input(0)
    axis = axis_in(node.attrs.get("axis", -1), len(t.shape(x)))
    t.set(node.outputs[0], mix(node, t, x, t.of(x), (axis,)))


def lrn(node: Node, t: Trace) -> None:
    """LRN sums over neighbouring channels: which are neighbours would change."""
    x = node.input(0)
    why = Reason("LRN sums over neighbouring channels", Remedy.NEIGHBOURS)
    t.set(node.outputs[0], t.untrack(x, t.of(x), [1], node, why))


def mean_variance_norm(node: Node, t: Trace) -> None:
    """MeanVarianceNormalization over `axes`, (0, 2, 3) by default."""
    x = node.input(0)
    rank = len(t.shape(x))
    axes = tuple(axis_in(a, rank) for a in node.attrs.get("axes", (0, 2, 3)))
    t.set(node.outputs[0], mix(node, t, x, t.of(x), axes))


TABLE: dict[str, Rule] = {
    "BatchNormalization": batch_norm,
    "LayerNormalization": last_axes_norm,
    "RMSNormalization": last_axes_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LpNormalization": lp_norm,
    "LRN": lrn,
    "MeanVarianceNormalization": mean_variance_norm,
}
