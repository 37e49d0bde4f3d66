"""Operators that pick or write by indices: the axes that are indexed stay, the others keep their labels.

An index tensor with an entry for every channel is cut with the channels; one computed at run time must carry their
labels itself, else it pins them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.channels.labels import Factors, Labels, axis_in
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.trace import Rule, Trace
from onnxprune.graph.view import Node, Shape


def _without(name: str, axes: Sequence[int], node: Node, t: Trace) -> Factors:
    """Factors of an operand that no longer track the axes on which it is indexed or lists indices."""
    factors = t.of(name)
    if name in t.graph.constants:
        fixed = tuple(f for f in factors if any(f.shape[a] > 1 for a in axes))
        t.pin(name, fixed, node, Reason(f"{node.op} counts along this axis", Remedy.NO_CHANNELS), structural=True)
        return tuple(f for f in factors if not any(f.shape[a] > 1 for a in axes))
    return t.untrack(name, factors, axes, node, Reason(f"{node.op} picks from this axis by position", Remedy.PICKED))


def gather_elements(node: Node, t: Trace) -> None:
    """GatherElements: along every axis but `axis`, place i of the output reads place i of the data and the indices."""
    x, i = node.inputs[:2]
    shape, picked = t.shape(x), t.shape(i)
    axis = axis_in(node.attrs.get("axis", 0), len(shape))
    data = t.untrack(x, t.of(x), [axis], node, Reason("GatherElements picks from this axis by indices", Remedy.PICKED))
    # The indices may be fewer: then the first places of the data are read.
    for a, size in enumerate(picked):
        if a != axis and size < shape[a]:
            data = tuple(f.take(np.arange(size), axis=a) if f.shape[a] > 1 else f for f in data)
    indices = _without(i, [axis], node, t)
    t.set(node.outputs[0], t.merge([(x, data, picked), (i, indices, picked)], node))


def gather_nd(node: Node, t: Trace) -> None:
    """GatherND: data (*B, *I, *D), indices (*B, *Q, |I|), output (*B, *Q, *D)."""
    x, i = node.inputs[:2]
    shape, picked = t.shape(x), t.shape(i)
    batch, depth, rows = int(node.attrs.get("batch_dims", 0)), picked[-1], len(picked) - 1
    indexed = range(batch, batch + depth)
    data = t.untrack(x, t.of(x), list(indexed), node, Reason("GatherND picks from this axis by indices", Remedy.PICKED))
    indices: Factors = ()
    if i in t.graph.constants:
        t.pin(i, t.of(i), node, Reason("GatherND counts along this axis", Remedy.NO_CHANNELS), structural=True)
    else:
        why = Reason("GatherND reads positions along this axis", Remedy.MEANING)
        indices = t.untrack(i, t.of(i), [rows], node, why)
    inside = (1,) * (rows - batch)
    behind = (1,) * (len(shape) - batch - depth)

    def spread(s: Shape) -> Shape:
        return (*s[:batch], *inside, *s[batch + depth :])

    operands = [
        (x, tuple(f.reshape(spread(f.shape)) for f in data), spread(shape)),
        (i, tuple(f.reshape((*f.shape[:-1], *behind)) for f in indices), (*picked[:-1], *behind)),
    ]
    t.set(node.outputs[0], t.merge(operands, node))


def scatter_elements(node: Node, t: Trace) -> None:
    """ScatterElements and Scatter: along every axis but `axis`, place i of the updates goes to place i of the data."""
    x, i, u = node.inputs[:3]
    shape, written = t.shape(x), t.shape(i)
    axis = axis_in(node.attrs.get("axis", 0), len(shape))
    loose = [a for a in range(len(shape)) if a == axis or written[a] != shape[a]]
    operands = [(n, _without(n, loose, node, t), tuple(t.shape(n))) for n in (x, i, u)]
    free = [(n, fs, tuple(1 if a in loose else s for a, s in enumerate(shape_))) for n, fs, shape_ in operands]
    t.set(node.outputs[0], t.merge(free, node))


def scatter_nd(node: Node, t: Trace) -> None:
    """ScatterND: data (*I, *D), indices (*Q, |I|), updates (*Q, *D)."""
    x, i, u = node.inputs[:3]
    shape, picked = t.shape(x), t.shape(i)
    depth, rows = picked[-1], len(picked) - 1
    constant = i in t.graph.constants
    why = Reason("ScatterND writes to the positions that this lists", Remedy.MEANING)
    t.pin(i, t.of(i), node, why, structural=constant)
    operands = [
        (n, tuple(f.reshape(f.shape[lead:]) for f in _without(n, range(lead), node, t)), t.shape(n)[lead:])
        for n, lead in ((x, depth), (u, rows))
    ]
    if len(shape) == depth:
        t.set(node.outputs[0], ())
        return
    t.set(node.outputs[0], [f.reshape((*(1,) * depth, *f.shape)) for f in t.merge(operands, node)])


def tensor_scatter(node: Node, t: Trace) -> None:
    """TensorScatter: a run of positions of the cache is overwritten; sample and position stay."""
    cache, update = node.inputs[:2]
    rank = len(t.shape(cache))
    fixed = (0, axis_in(node.attrs.get("axis", -2), rank))
    operands = [
        (n, _without(n, fixed, node, t), tuple(1 if a in fixed else s for a, s in enumerate(t.shape(n))))
        for n in (cache, update)
    ]
    t.set(node.outputs[0], t.merge(operands, node))


def one_hot(node: Node, t: Trace) -> None:
    """OneHot: an axis of `depth` classes is put in; the others are those of the indices."""
    i, out = node.inputs[0], node.outputs[0]
    axis = axis_in(node.attrs.get("axis", -1), len(t.shape(out)))
    t.set(out, [f.reshape((*f.shape[:axis], 1, *f.shape[axis:])) for f in t.of(i)])


def compress(node: Node, t: Trace) -> None:
    """Compress: the axis that it thins out stays; without `axis` it flattens its input first."""
    x, out = node.inputs[0], node.outputs[0]
    axes = range(len(t.shape(x))) if "axis" not in node.attrs else [axis_in(node.attrs["axis"], len(t.shape(x)))]
    why = Reason("Compress picks from this axis by a condition", Remedy.PICKED)
    factors = t.untrack(x, t.of(x), list(axes), node, why)
    t.set(out, factors if "axis" in node.attrs else ())


def fixed_axes(reason: str, axes: Callable[[Node, int, Trace], Sequence[int] | None]) -> Rule:
    """A rule that keeps the labels of the first input but for some axes; None where these are not known."""

    def rule(node: Node, t: Trace) -> None:
        x = node.inputs[0]
        rank = len(t.shape(x))
        fixed = axes(node, rank, t)
        why = Reason(f"{node.op} {reason}", Remedy.POSITIONS)
        stay = range(rank) if fixed is None else sorted({axis_in(a, rank) for a in fixed})
        t.set(node.outputs[0], t.untrack(x, t.of(x), list(stay), node, why))

    return rule


def _sequence_axes(node: Node, rank: int, t: Trace) -> Sequence[int]:
    return int(node.attrs.get("batch_axis", 1)), int(node.attrs.get("time_axis", 0))


def _transformed_axes(node: Node, rank: int, t: Trace) -> Sequence[int] | None:
    """DFT: the axis that is transformed, an attribute before opset 20, and that of real and imaginary part."""
    if t.graph.opset < 20:
        return int(node.attrs.get("axis", 1)), rank - 1
    written: Labels | tuple[int, ...] | None = t.graph.ints(node.input(2)) if node.input(2) else (-2,)
    return None if written is None else (int(written[0]), rank - 1)


TABLE: dict[str, Rule] = {
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
    "OneHot": one_hot,
    "Compress": compress,
    "ReverseSequence": fixed_axes("reverses parts of this axis", _sequence_axes),
    "Trilu": fixed_axes("compares positions along this axis", lambda node, rank, t: (rank - 2, rank - 1)),
    "DFT": fixed_axes("reads all of this axis", _transformed_axes),
}
