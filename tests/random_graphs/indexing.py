"""Picking and writing by indices that are constant or computed, and operators that keep some axes whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import numpy_helper

from tests.random_graphs.build import Build, Dim, Dims, Live
from tests.random_graphs.layout import transpose
from tests.random_graphs.maker import Maker

_LEAST = 2  # what every axis of a symbolic size has


def _size(d: Dim) -> int:
    """Places along an axis at any of the sizes that the graph runs at."""
    return d if isinstance(d, int) else _LEAST


def _with(dims: Dims, axis: int, size: Dim) -> Dims:
    return (*dims[:axis], size, *dims[axis + 1 :])


def _table(b: Build, values: Sequence[int], *shape: int) -> str:
    """A constant of indices."""
    name = b.ints(list(values))
    b.weights[name] = b.weights[name].reshape(shape)
    return name


def _largest(b: Build, t: Live, axis: int, k: int) -> tuple[Live, Live]:
    """The k largest along an axis: values, and where they are."""
    dims = _with(t.dims, axis, k)
    values, places = b.out("TopK", dims, peak=t.peak), b.out("indices", dims, "long")
    if b.opset < 10:
        b.nodes_of("TopK", [t], [values, places], axis=axis, k=k)
    else:
        b.nodes_of("TopK", [t, b.ints([k])], [values, places], axis=axis)
    return values, places


def _rows(b: Build, x: Live, axis: int, k: int) -> Live:
    """Indices along `axis`, the same for all entries of another axis: (*x.dims with k at axis)."""
    other = b.choice([a for a in range(x.rank) if a != axis])
    narrow = b.reduced("ReduceMean", x, [other], _with(x.dims, other, 1), keepdims=1, hidden=True)
    places = _largest(b, narrow, axis, k)[1]
    dims = _with(x.dims, axis, k)
    if isinstance(dims[other], int) and b.chance(50):
        sizes: Live | str = b.ints([_size(d) if a == other else 1 for a, d in enumerate(dims)])
    else:
        sizes = b.run_time(x, dims)
    return b.node("Expand", [places, sizes], dims, "long", hidden=True)


def _source(b: Build) -> Live:
    """Mostly of rank 3 or more, so that an axis can be indexed and another carry channels."""
    return b.choice((b.sequence, b.image, b.sequence, b.any))()


def _axis(b: Build, x: Live) -> int:
    """An axis to index: sooner one of positions."""
    channels = b.channel_axis(x)
    others = [a for a in range(x.rank) if a != channels]
    return b.choice(others[::-1]) if others and not b.chance(25) else channels


def _element_indices(b: Build, x: Live, axis: int) -> tuple[Live | str, Dims]:
    """Distinct indices along `axis` in the manner of GatherElements, and their size."""
    size = _size(x.dims[axis])
    k = 1 + b.below(size)
    way = b.below(3)
    if way == 0:
        # An entry for every place; where their number is symbolic, for the first alone.
        dims = tuple(k if a == axis else d if isinstance(d, int) else 1 for a, d in enumerate(x.dims))
        order = b.permutation(size)[:k]
        rolled = np.add.outer(order, np.arange(int(np.prod(dims)) // k)) % size
        moved = [dims[axis], *(d for a, d in enumerate(dims) if a != axis)]
        table = np.moveaxis(rolled.reshape(moved), 0, axis)
        if b.opset >= 11 and b.chance(30):
            table = table - size if isinstance(x.dims[axis], int) else table
        return _table(b, table.ravel().tolist(), *dims), dims
    if way == 1:
        return _rows(b, x, axis, k), _with(x.dims, axis, k)
    return _largest(b, b.like(x), axis, k)[1], _with(x.dims, axis, k)


def _gather_elements(b: Build, op: str) -> None:
    x = _source(b)
    axis = _axis(b, x)
    indices, dims = _element_indices(b, x, axis)
    b.node(op, [x, indices], dims, axis=axis - (x.rank if b.chance(30) else 0))


def _scatter_elements(b: Build, op: str) -> None:
    x = _source(b)
    axis = _axis(b, x)
    indices, dims = _element_indices(b, x, axis)
    if dims == _with(x.dims, axis, dims[axis]):
        updates: Live | str = _largest(b, b.like(x), axis, _size(dims[axis]))[0]
    elif all(isinstance(d, int) for d in dims):
        updates = b.weight(*(_size(d) for d in dims))
    else:
        return
    reduction = {}
    if b.opset >= 16 and op == "ScatterElements" and b.chance(40):
        reduction = {"reduction": b.choice(("add", "mul") if b.opset < 18 else ("add", "mul", "max", "min"))}
    peak = x.peak + 3.0 if "reduction" not in reduction else 3.0 * x.peak
    b.node(op, [x, indices, updates], x.dims, peak=peak, axis=axis, **reduction)


def _leading(b: Build, x: Live) -> Live:
    """`x`, perhaps with its axes in another order."""
    return transpose(b, x, b.permutation(x.rank)) if b.chance(40) else x


def _gather_nd(b: Build, op: str) -> None:
    x = _leading(b, _source(b))
    if b.opset >= 12 and x.rank > 2 and b.chance(60):
        # Rows of each sample: those that are the largest on average.
        rest = list(range(2, x.rank))
        mean = b.reduced("ReduceMean", x, rest, x.dims[:2], keepdims=0, hidden=True)
        k = 1 + b.below(_size(x.dims[1]))
        places = _largest(b, mean, 1, k)[1]
        indices: Live | str = b.axes_node("Unsqueeze", places, [2], (*places.dims, 1), hidden=True)
        b.node(op, [x, indices], (x.dims[0], k, *x.dims[2:]), batch_dims=1)
        return
    depth = 1 + (b.below(x.rank) if b.chance(40) else 0)
    rows = b.choice((3, 1, 4, 2))
    values = [b.below(_size(x.dims[a])) for _ in range(rows) for a in range(depth)]
    shape, lead = ((rows, depth), (rows,)) if b.chance(70) else ((1, rows, depth), (1, rows))
    b.node(op, [x, _table(b, values, *shape)], (*lead, *x.dims[depth:]))


def _scatter_nd(b: Build, op: str) -> None:
    x = _leading(b, _source(b))
    size = _size(x.dims[0])
    rows = 1 + b.below(min(size, 4))
    order = b.permutation(size)[:rows]
    dims = (rows, *x.dims[1:])
    if all(isinstance(d, int) for d in dims) and b.chance(40):
        updates: Live | str = b.weight(*(_size(d) for d in dims))
    else:
        y = b.like(x)
        updates = b.node("Gather", [y, b.ints(list(range(rows)))], dims, hidden=True, axis=0)
    data: Live | str = x
    if all(isinstance(d, int) for d in x.dims) and b.chance(30):
        data = b.weight(*(_size(d) for d in x.dims))
    indices = _table(b, order, rows, 1)
    if x.rank > 2 and b.chance(25):
        # All entries of the second axis, one by one.
        inner = _size(x.dims[1])
        if isinstance(x.dims[1], int) and rows * inner <= 40:
            pairs = [v for i in order for j in range(inner) for v in (i, j)]
            indices = _table(b, pairs, rows, inner, 2)
    reduction = {}
    if b.opset >= 16 and b.chance(40):
        reduction = {"reduction": b.choice(("add", "mul") if b.opset < 18 else ("add", "mul", "max", "min"))}
    b.node(op, [data, indices, updates], x.dims, peak=3.0 * x.peak, **reduction)


def _one_hot(b: Build, op: str) -> None:
    x = b.choice((b.image, b.sequence, b.any))()
    axis = _axis(b, x)
    depth = _size(x.dims[axis])
    left = tuple(d for a, d in enumerate(x.dims) if a != axis)
    places = b.node("ArgMax", [x], left, "long", hidden=True, axis=axis, keepdims=0)
    at = b.below(len(left) + 1)
    classes = depth + b.below(2)
    dims = (*left[:at], classes, *left[at:])
    number = b.ints([classes]) if b.chance(50) else b.ints(classes)
    if b.small(dims):
        attrs = {"axis": at - len(dims) if b.chance(30) else at}
        y = b.node(op, [places, number, b.floats([0.25, 1.0])], dims, peak=1.0, **attrs)
        if dims == x.dims:
            b.node("Mul", [x, y], dims)


def _compress(b: Build, op: str) -> None:
    x = b.any()
    if b.chance(8):
        keep = [True, False, True]
        axis: dict[str, int] = {}
        dims: Dims = (2,)
    else:
        a = _axis(b, x)
        length = _size(x.dims[a])
        chosen = b.subset(range(length))
        keep = [i in chosen for i in range(length)]
        dims, axis = _with(x.dims, a, len(chosen)), {"axis": a - x.rank if b.opset >= 11 and b.chance(30) else a}
    name = b.bools([len(keep)])
    b.weights[name] = np.array(keep)
    b.node(op, [x, name], dims, **axis)


def _counts(b: Build, x: Live, axis: int, value: int) -> Live:
    """One number for each place along an axis: (n,)."""
    shape = (x.dims[axis],)
    number = numpy_helper.from_array(np.array([value], np.int64))
    return b.node("ConstantOfShape", [b.run_time(x, shape)], shape, "long", hidden=True, value=number)


def _reverse_sequence(b: Build, op: str) -> None:
    x = _source(b)
    if x.rank > 2 and b.channel_axis(x) == 1:
        x = transpose(b, x, [0, *range(2, x.rank), 1])
    batch = b.below(2)
    time = 1 - batch
    lengths = _counts(b, x, batch, 1 + b.below(_size(x.dims[time])))
    b.node(op, [x, lengths], x.dims, batch_axis=batch, time_axis=time)


def _trilu(b: Build, op: str) -> None:
    x = b.choice((b.image, b.any))()
    k = [b.ints(b.choice((0, 1, -1)))] if b.chance(50) else []
    b.node(op, [x, *k], x.dims, upper=b.below(2))


def _dft(b: Build, op: str) -> None:
    x = b.bounded(b.image((3, 4)))
    axis = b.choice(range(x.rank - 1, 0, -1))
    size = int(x.dims[axis])
    half = b.chance(30)
    length = size + b.choice((1, 2)) if b.chance(20) else size
    after = length // 2 + 1 if half else length
    signal = b.axes_node("Unsqueeze", x, [x.rank], (*x.dims, 1), hidden=True)
    dims = (*_with(x.dims, axis, after), 2)
    if not b.small(dims):
        return
    operands: list[Live | str] = [signal]
    if length != size:
        operands.append(b.ints(length))
    attrs: dict[str, int] = {"onesided": 1} if half else {}
    if b.opset >= 20:
        operands += [""] * (2 - len(operands))
        operands.append(b.ints(axis - x.rank - 1 if b.chance(30) else axis))
    else:
        attrs["axis"] = axis
    found = b.node(op, operands, dims, hidden=True, peak=3.0 * x.peak, **attrs)
    if not half and b.chance(40):
        # Back again: real and imaginary part.
        found = b.node(op, [found, *operands[1:]], dims, hidden=True, peak=3.0 * x.peak, inverse=1, **attrs)
    b.node("Mul", [found, b.floats(0.3)], dims, peak=x.peak)


def _tensor_scatter(b: Build, op: str) -> None:
    x = b.choice((b.sequence, b.image))()
    axis = 1 + b.below(x.rank - 1) if b.chance(40) else x.rank - 2
    size = _size(x.dims[axis])
    rows = 1 + b.below(size)
    y = b.like(x)
    bounds = [b.ints([0]), b.ints([rows]), b.ints([axis])]
    update = b.node("Slice", [y, *bounds], _with(y.dims, axis, rows), hidden=True)
    mode = b.choice(("linear", "circular"))
    at: list[Live | str] = []
    if b.chance(60):
        at = [_counts(b, x, 0, b.below(size if mode == "circular" else size - rows + 1))]
    named = {} if axis == x.rank - 2 and b.chance(50) else {"axis": axis - x.rank if b.chance(30) else axis}
    b.node(op, [x, update, *at], x.dims, peak=max(x.peak, y.peak), mode=mode, **named)


def _cum_prod(b: Build, op: str) -> None:
    x = b.tame(b.any(), "positive")
    axis = _axis(b, x)
    found = b.node(op, [x, b.ints(axis)], x.dims, hidden=True, exclusive=b.below(2), reverse=b.below(2), peak=9.0)
    b.node("Softsign", [found], x.dims, peak=1.0)


MAKERS: Mapping[str, Maker] = {
    "GatherElements": Maker(_gather_elements, weight=2),
    "GatherND": Maker(_gather_nd, weight=2),
    "Scatter": Maker(_scatter_elements, last=10),
    "ScatterElements": Maker(_scatter_elements, weight=2),
    "ScatterND": Maker(_scatter_nd, weight=2),
    "OneHot": Maker(_one_hot),
    "Compress": Maker(_compress),
    "ReverseSequence": Maker(_reverse_sequence),
    "Trilu": Maker(_trilu),
    "DFT": Maker(_dft),
    "TensorScatter": Maker(_tensor_scatter),
    "CumProd": Maker(_cum_prod),
}
