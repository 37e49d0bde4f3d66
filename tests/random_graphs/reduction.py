"""Pooling, reductions and rankings."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import TensorProto

from tests.random_graphs.build import Build, Dim, Dims, Live
from tests.random_graphs.maker import Maker

_POOLS = ("AveragePool", "LpPool", "MaxPool")
_REDUCES = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
).split()
_FEW = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceLogSumExp", "ReduceLogSum")


def _pool(b: Build, op: str) -> None:
    x = b.image()
    kernel, strides, pads = [], [], []
    after: list[Dim] = []
    for d in x.dims[2:]:
        k = min(b.choice((2, 1, 3)), int(d))
        s = b.choice((1, 2))
        p = 1 if k == 3 and b.chance(50) else 0
        kernel.append(k)
        strides.append(s)
        pads.append(p)
        after.append((int(d) + 2 * p - k) // s + 1)
    attrs: dict[str, object] = {"kernel_shape": kernel, "strides": strides}
    if any(pads):
        attrs["pads"] = [*pads, *pads]
    if op == "AveragePool" and b.chance(30):
        attrs["count_include_pad"] = 1
    dims = (*x.dims[:2], *after)
    if op == "MaxPool" and b.chance(10):
        out, indices = b.out(op, dims, peak=x.peak), b.out("indices", dims, "long")
        b.nodes_of(op, [x], [out, indices], **attrs)
        b.live.append(out)
        b.outputs.append(indices)
        return
    b.node(op, [x], dims, peak=2.0 * x.peak if op == "LpPool" else None, **attrs)


def _global_pool(b: Build, op: str) -> None:
    x = b.image(known=False)
    b.node(op, [x], (*x.dims[:2], *[1] * (x.rank - 2)), peak=3.0 * x.peak if "Lp" in op else None)


def _reduce(b: Build, op: str) -> None:
    x = b.any()
    if op in ("ReduceProd", "ReduceLogSum"):
        x = b.tame(x, "positive")
    x = b.tame(x, "bounded") if op == "ReduceLogSumExp" else b.bounded(x)
    axes = [b.channel_axis(x)] if b.chance(60) else b.subset(range(1, x.rank))
    reduce(b, op, x, axes, keep=b.chance(60))


def reduce(b: Build, op: str, x: Live, axes: list[int], *, keep: bool) -> Live:
    """A reduction whose values stay small."""
    dims: Dims = tuple(1 if a in axes else d for a, d in enumerate(x.dims) if keep or a not in axes)
    named = [a - x.rank for a in axes] if b.opset >= 11 and b.chance(30) else axes
    found = b.reduced(op, x, named, dims, keepdims=int(keep), peak=x.peak if op in _FEW else 4.0 * x.peak, hidden=True)
    if op in _FEW or op == "ReduceL2":
        b.live.append(found)
    elif op == "ReduceProd":
        found = b.node("Softsign", [found], dims, peak=1.0)
    else:
        found = b.node("Mul", [found, b.floats(0.1)], dims, peak=x.peak)
    if keep and b.chance(60):
        # Set against what it was taken from, as normalizations written by parts do.
        b.node(b.choice(("Sub", "Add", "Mul")), [x, b.bounded(found)], x.dims, peak=2.0 * x.peak)
    return found


def _rank_axis(b: Build, op: str) -> None:
    x = b.any()
    axis = b.channel_axis(x) if b.chance(50) else b.below(x.rank)
    if op == "Hardmax" or op.endswith("oftmax"):
        out = b.node(op, [x], x.dims, peak=4.0 if op == "LogSoftmax" else 1.0, axis=axis)
        if b.chance(50):
            b.node("Mul", [x, out], x.dims)
        return
    if op == "CumSum":
        b.node(op, [b.bounded(x), b.ints(axis)], x.dims, peak=3.0 * x.peak, exclusive=b.below(2), reverse=b.below(2))
        return
    keep = b.chance(50) or x.rank < 3
    dims = tuple(1 if a == axis else d for a, d in enumerate(x.dims) if keep or a != axis)
    found = b.node(op, [x], dims, "long", axis=axis, keepdims=int(keep))
    if b.chance(30):
        b.outputs.append(found)
    else:
        b.node("Cast", [found], dims, peak=6.0, to=TensorProto.FLOAT)


def _top_k(b: Build, op: str) -> None:
    x = b.any()
    axis = b.channel_axis(x) if b.chance(50) else b.choice(x.fixed or (b.channel_axis(x),))
    width = x.dims[axis]
    if not isinstance(width, int):
        return
    k = 1 + b.below(width)
    dims = (*x.dims[:axis], k, *x.dims[axis + 1 :])
    values, indices = b.out(op, dims, peak=x.peak), b.out("indices", dims, "long")
    if b.opset < 10:
        b.nodes_of(op, [x], [values, indices], axis=axis, k=k)
    else:
        b.nodes_of(op, [x, b.ints([k])], [values, indices], axis=axis)
    b.live.append(values)
    if b.chance(20):
        b.outputs.append(indices)


MAKERS: Mapping[str, Maker] = {
    **{op: Maker(_pool, weight=2) for op in _POOLS},
    **{op: Maker(_global_pool) for op in ("GlobalAveragePool", "GlobalMaxPool")},
    "GlobalLpPool": Maker(_global_pool, last=21),
    **{op: Maker(_reduce) for op in _REDUCES},
    **{op: Maker(_rank_axis) for op in ("ArgMax", "ArgMin", "CumSum", "Hardmax", "LogSoftmax")},
    "Softmax": Maker(_rank_axis, weight=3),
    "TopK": Maker(_top_k),
}
