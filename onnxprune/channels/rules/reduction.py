"""Pooling, reductions, and operators that compare or rank the entries of an axis."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.channels.labels import Factor, axis_in
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.rules.normalization import mix
from onnxprune.channels.trace import Rule, Trace
from onnxprune.graph.view import Node

POOLS = "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool".split()
REDUCES = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
).split()
RANKS = "ArgMax ArgMin CumProd CumSum Hardmax LogSoftmax Softmax".split()


def pool(node: Node, t: Trace) -> None:
    """Pooling over the spatial axes."""
    x = node.input(0)
    why = Reason("pooling needs every spatial position", Remedy.POSITIONS)
    factors = t.untrack(x, t.of(x), range(2, len(t.shape(x))), node, why)
    for i, out in enumerate(node.outputs):
        if not out:
            continue
        if i == 0:
            t.set(out, factors)
            continue
        # MaxPool's indices number the elements of the whole tensor.
        t.pin(x, factors, node, Reason("the indices of MaxPool count over all channels", Remedy.UNPOOL))
        t.set(out, ())


def reduced_axes(node: Node, rank: int, ints: Callable[[str], tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """The axes of a reduction, from the attribute or the input; None where they are not constant."""
    axes = node.attrs.get("axes")
    if axes is None and node.input(1):
        axes = ints(node.input(1))
        if axes is None:
            return None
    if not axes:
        return () if node.attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(axis_in(a, rank) for a in axes)


def reduce(node: Node, t: Trace) -> None:
    """Reduction: over a tracked axis it mixes (it runs over the kept channels); other axes keep their labels."""
    x = node.input(0)
    axes = reduced_axes(node, len(t.shape(x)), t.graph.ints)
    if axes is None:
        t.pin(x, t.of(x), node, Reason("the reduced axes are computed at run time", Remedy.RUN_TIME))
        t.set(node.outputs[0], ())
        return
    result: list[Factor] = []
    for f in mix(node, t, x, t.of(x), axes):
        if any(f.shape[a] > 1 for a in axes):
            continue
        shape = tuple(s for a, s in enumerate(f.shape) if node.keepdims or a not in axes)
        result.append(f.reshape(shape))
    t.set(node.outputs[0], result)


def rank_axis(node: Node, t: Trace) -> None:
    """Softmax, ArgMax and the like compare the entries of an axis: that axis is pinned."""
    x = node.input(0)
    rank = len(t.shape(x))
    old = t.graph.opset < 13 and node.op in ("Softmax", "LogSoftmax", "Hardmax")
    axis = node.attrs.get("axis", 1 if old else (0 if node.op.startswith("Arg") else -1))
    if node.op.startswith("Cum"):
        written = t.graph.ints(node.input(1))
        axes = range(rank) if written is None else [axis_in(written[0], rank)]
    else:
        axes = range(axis_in(axis, rank), rank) if old else [axis_in(axis, rank)]
    why = Reason(f"{node.op} compares all entries of this axis", Remedy.COMPARED)
    factors = t.untrack(x, t.of(x), list(axes), node, why)
    out = node.outputs[0]
    if node.op.startswith("Arg") and not node.keepdims:
        gone = axis_in(axis, rank)
        factors = tuple(f.reshape(tuple(s for a, s in enumerate(f.shape) if a != gone)) for f in factors)
    t.set(out, factors)


def top_k(node: Node, t: Trace) -> None:
    """TopK ranks the entries of an axis; both outputs keep the labels of the others."""
    x = node.input(0)
    axis = axis_in(node.attrs.get("axis", -1), len(t.shape(x)))
    factors = t.untrack(x, t.of(x), [axis], node, Reason("TopK compares all entries of this axis", Remedy.COMPARED))
    for out in node.outputs:
        t.set(out, factors)


TABLE: dict[str, Rule] = {
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(REDUCES, reduce),
    **dict.fromkeys(RANKS, rank_axis),
    "TopK": top_k,
}
