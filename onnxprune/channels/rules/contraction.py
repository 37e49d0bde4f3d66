"""Contractions: the labels of the two contracted axes unify, the axes that survive keep theirs.

A product is traced in the joint index space of all its indices: an element-wise merge there, then a sum over the
contracted ones. Grouped convolution is a reshape of the channels to (groups, channels per group). Its removable units
are whole groups where there are at least as many of them as channels inside, else single channels, equally many of
every group.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from onnxprune.channels.labels import Factor, Factors, Labels, along, tracked_axes
from onnxprune.channels.remedies import Reason, Remedy
from onnxprune.channels.trace import Linear, Rule, Trace, split_rows
from onnxprune.graph.quantized import stored
from onnxprune.graph.view import Node, Shape

_KERNEL = Reason("a kernel position is not a channel", Remedy.NO_CHANNELS)
_SPATIAL = Reason("a convolution needs every spatial position", Remedy.POSITIONS)
_REPEATED = Reason("another operand has size 1 there, which is repeated along it", Remedy.PARTNER)
_WHOLE_GROUPS = Reason("whole groups are the units here", Remedy.WHOLE_GROUPS)


def conv(node: Node, t: Trace) -> None:
    """Conv: x (N, C, *S), W (M, C / group, *K), bias (M)."""
    x, w, b = node.input(0), node.input(1), node.input(2)
    groups = int(node.attrs.get("group", 1))
    spatial = range(2, len(t.shape(x)))
    fx = t.untrack(x, t.of(x), spatial, node, _SPATIAL)
    xs = t.on_axis(x, fx, 1, node)
    rows = _contract_groups(x, xs, w, groups, node, t)
    _finish(node, t, x, fx, w, b, xs, rows, groups)


def _contract_groups(x: str, xs: Labels | None, w: str, groups: int, node: Node, t: Trace) -> Labels | None:
    """Couple the channels of x with W (M, C / group, *K); the labels of the M rows."""
    outputs, per_group = t.shape(w)[:2]
    balanced = groups > 1 and xs is not None and groups < per_group
    own = balanced and _refine_groups(w, groups, outputs, per_group, t)
    fw = _without_kernel_axes(w, node, t)
    rows = t.on_axis(w, tuple(f for f in fw if not own or f.shape[1] == 1), 0, node)
    if own and xs is not None:
        _unify_groups(fw, split_rows(xs, groups), outputs, t)
    columns = None if own else t.on_axis(w, fw, 1, node)
    if groups == 1:
        _contract(x, xs, w, columns, node, t)
    elif xs is None:
        _grouped_untracked(x, w, rows, columns, groups, node, t)
    elif balanced:
        inputs = split_rows(xs, groups)
        t.labels.balance(inputs)
        if columns is not None:
            t.labels.unify(inputs, columns)
        if rows is not None:
            t.labels.balance(split_rows(rows, groups))
    else:
        units = t.labels.tie(split_rows(xs, groups), 1)
        if rows is not None:
            t.labels.unify(split_rows(rows, groups), units)
        if columns is not None:
            t.pin(w, [columns], node, _WHOLE_GROUPS, axis=1)
    return rows


def conv_transpose(node: Node, t: Trace) -> None:
    """ConvTranspose: x (N, C, *S), W (C, M / group, *K), bias (M)."""
    x, w, b = node.input(0), node.input(1), node.input(2)
    groups = int(node.attrs.get("group", 1))
    fx = t.untrack(x, t.of(x), range(2, len(t.shape(x))), node, _SPATIAL)
    xs = t.on_axis(x, fx, 1, node)
    inputs, per_group = t.shape(w)[:2]
    balanced = groups > 1 and (xs is None or groups < inputs // groups)
    own = balanced and _refine_groups(w, groups, inputs, per_group, t)
    fw = _without_kernel_axes(w, node, t)
    read = t.on_axis(w, tuple(f for f in fw if not own or f.shape[1] == 1), 0, node)
    columns = None if own else t.on_axis(w, fw, 1, node)
    _contract(x, xs, w, read, node, t)
    if groups == 1:
        _finish(node, t, x, fx, w, b, xs, columns, groups)
        return
    outputs = t.labels.fresh(groups * per_group)
    rows = split_rows(outputs, groups)
    if own:
        _unify_groups(fw, rows, inputs, t)
    if balanced:
        if xs is not None:
            t.labels.balance(split_rows(xs, groups))
        if columns is not None:
            t.labels.unify(rows, columns)
        t.labels.balance(rows)
    elif xs is not None:
        t.labels.unify(rows, t.labels.tie(split_rows(xs, groups), 1))
        if columns is not None:
            t.pin(w, [columns], node, _WHOLE_GROUPS, axis=1)
    _finish(node, t, x, fx, w, b, xs, outputs, groups)


def _refine_groups(w: str, groups: int, rows: int, per_group: int, t: Trace) -> bool:
    """Where possible, each group of a weight (rows, per_group, *kernel) gets channels of its own along axis 1."""
    own = t.labels.fresh(groups * per_group).reshape(groups, per_group)
    return t.refine(w, (*_plain_axes(w, 1, t), _by_row(own, rows, len(t.shape(w)))))


def _unify_groups(factors: Factors, channels: Labels, rows: int, t: Trace) -> None:
    """The channels (groups, per group) are those along axis 1 of a refined weight."""
    for f in factors:
        if f.shape[1] > 1:
            t.labels.unify(f, _by_row(channels, rows, f.ndim))


def _by_row(channels: Labels, rows: int, rank: int) -> Factor:
    """(groups, per group) as a factor over the axes 0 and 1 of a weight with `rows` rows."""
    groups, per_group = channels.shape
    return np.repeat(channels, rows // groups, axis=0).reshape(rows, per_group, *(1,) * (rank - 2))


def _plain_axes(w: str, but: int, t: Trace) -> list[Factor]:
    """Fresh labels for every axis above 1 but one."""
    shape = t.shape(w)
    return [along(t.labels.fresh(s), a, len(shape)) for a, s in enumerate(shape) if s > 1 and a != but]


def deform_conv(node: Node, t: Trace) -> None:
    """DeformConv: x (N, C, *S), w (M, C / group, *K), offsets, bias (M), mask: as Conv, at positions that move.

    Each of `offset_group` runs of channels moves by offsets of its own, so all runs keep equally many channels.
    """
    x, w, offsets, b, mask = (node.input(i) for i in range(5))
    groups, runs = int(node.attrs.get("group", 1)), int(node.attrs.get("offset_group", 1))
    given = Reason("DeformConv takes an offset or a factor per kernel position from it", Remedy.MEANING)
    for name in (offsets, mask):
        if name:
            t.pin(name, t.of(name), node, given)
    fx = t.untrack(x, t.of(x), range(2, len(t.shape(x))), node, _SPATIAL)
    xs = t.on_axis(x, fx, 1, node)
    if xs is not None:
        t.labels.balance(split_rows(xs, runs))
    rows = _contract_groups(x, xs, w, groups, node, t)
    _finish(node, t, x, fx, w, b, xs, rows, groups)


def causal_conv(node: Node, t: Trace) -> None:
    """CausalConvWithState: x (N, C, L) and a kernel (C, 1, k), bias (C) and past (N, C, k - 1): each channel alone."""
    x, w, b, past = (node.input(i) for i in range(4))
    fx = t.untrack(x, t.of(x), (2,), node, _SPATIAL)
    labels = [
        (x, t.on_axis(x, fx, 1, node), 1),
        (w, t.on_axis(w, _without_kernel_axes(w, node, t), 0, node), 0),
        *([(b, t.on_axis(b, t.of(b), 0, node), 0)] if b else []),
        *([(past, t.on_axis(past, t.untrack(past, t.of(past), (0, 2), node, _SPATIAL), 1, node), 1)] if past else []),
    ]
    channels = t.agree(labels, node)
    for out in node.outputs:
        t.set(out, [] if channels is None else [along(channels, 1, 3)])


def _without_kernel_axes(w: str, node: Node, t: Trace) -> Factors:
    kernel = range(2, len(t.shape(w)))
    inner = tuple(f for f in t.of(w) if set(tracked_axes(f)) <= set(kernel))
    t.pin(w, inner, node, _KERNEL, structural=True)
    return t.untrack(w, tuple(f for f in t.of(w) if not set(tracked_axes(f)) <= set(kernel)), kernel, node, _KERNEL)


def _contract(x: str, xs: Labels | None, w: str, columns: Labels | None, node: Node, t: Trace) -> None:
    if xs is not None and columns is not None:
        t.labels.unify(xs, columns)
    elif columns is not None:
        t.pin(w, [columns], node, t.untracked_reason(x, 1), axis=1)
    elif xs is not None:
        t.pin(x, [xs], node, t.untracked_reason(w, 1), axis=1)


def _grouped_untracked(
    x: str, w: str, rows: Labels | None, columns: Labels | None, groups: int, node: Node, t: Trace
) -> None:
    """A grouped Conv whose input channels all stay: equally many outputs of every group may go."""
    why = t.untracked_reason(x, 1)
    if columns is not None:
        t.pin(w, [columns], node, why, axis=1)
    if rows is None:
        return
    if rows.size == groups:
        t.pin(w, [rows], node, why, axis=0)
    else:
        t.labels.balance(split_rows(rows, groups))


def _finish(
    node: Node,
    t: Trace,
    x: str,
    fx: Factors,
    w: str,
    b: str,
    xs: Labels | None,
    rows: Labels | None,
    groups: int,
) -> None:
    """Bias, output factors, and the records of a convolution."""
    out = node.outputs[0]
    ndim = len(t.shape(out))
    if b:
        bias = t.on_axis(b, t.of(b), 0, node)
        if bias is not None and rows is not None:
            t.labels.unify(bias, rows)
        elif bias is not None:
            t.pin(b, [bias], node, t.untracked_reason(w, 0))
    batch = t.on_axis(x, tuple(f for f in fx if f.shape[1] == 1), 0, node)
    result: list[Factor] = [] if batch is None else [along(batch, 0, ndim)]
    if rows is not None:
        result.append(along(rows, 1, ndim))
    t.set(out, result)
    if xs is not None:
        t.read(node, 0, "contraction", (1,))
    t.linears.append(Linear(node, x, w, b, xs, rows, groups))


def gemm(node: Node, t: Trace) -> None:
    """Gemm: alpha A' B' + beta C with A' (M, K), B' (K, N)."""
    a, b, c = node.input(0), node.input(1), node.input(2)
    ia = ("k", "m") if node.attrs.get("transA", 0) else ("m", "k")
    ib = ("n", "k") if node.attrs.get("transB", 0) else ("k", "n")
    product = einsum_factors(node, t, [(a, ia), (b, ib)], ("m", "n"))
    out = node.outputs[0]
    if c:
        product = t.merge([(out, product, t.shape(out)), (c, t.of(c), t.shape(c))], node)
    t.set(out, product)
    _record_matrix_product(node, t, ia.index("k"), ib.index("k"), ib.index("n"), c)


def matmul(node: Node, t: Trace) -> None:
    """MatMul with numpy's rules for one-dimensional operands and batch axes."""
    a, b = node.input(0), node.input(1)
    ra, rb = len(t.shape(a)), len(t.shape(b))
    batch = [f"b{i}" for i in range(max(ra, rb, 2) - 2)]
    ia = (*batch[len(batch) - max(ra - 2, 0) :], "m", "k")[-ra:] if ra > 1 else ("k",)
    ib = (*batch[len(batch) - max(rb - 2, 0) :], "k", "n")[-rb:] if rb > 1 else ("k",)
    out = (*batch, *(["m"] if ra > 1 else []), *(["n"] if rb > 1 else []))
    t.set(node.outputs[0], einsum_factors(node, t, [(a, ia), (b, ib)], out))
    if rb > 1:
        _record_matrix_product(node, t, ra - 1, rb - 2, rb - 1, "")


def einsum(node: Node, t: Trace) -> None:
    """Einsum with explicit or implicit output, an ellipsis, and indices that a term repeats."""
    ranks = [len(t.shape(i)) for i in node.inputs]
    terms, output = einsum_indices(str(node.attrs["equation"]), ranks)
    t.set(node.outputs[0], einsum_factors(node, t, list(zip(node.inputs, terms, strict=True)), output))


def einsum_indices(equation: str, ranks: Sequence[int]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """(indices of each operand, indices of the output); those of an ellipsis are "...1" for the last, and so on."""
    left, arrow, right = equation.replace(" ", "").partition("->")

    def indices(term: str, dots: int) -> tuple[str, ...]:
        before, ellipsis, after = term.partition("...")
        return (*before, *(f"...{i}" for i in range(dots if ellipsis else 0, 0, -1)), *after)

    plain = [s.replace("...", "") for s in left.split(",")]
    dots = [rank - len(s) for s, rank in zip(plain, ranks, strict=True)]
    widest = max((d for s, d in zip(left.split(","), dots, strict=True) if "..." in s), default=0)
    terms = [indices(s, d) for s, d in zip(left.split(","), dots, strict=True)]
    if not arrow:
        every = "".join(plain)
        once = "".join(sorted(c for c in set(every) if every.count(c) == 1))
        right = ("..." if "..." in left else "") + once
    return terms, indices(right, widest)


def einsum_factors(
    node: Node, t: Trace, operands: Sequence[tuple[str, tuple[str, ...]]], output: tuple[str, ...]
) -> Factors:
    """The output's factors of a sum of products over named indices.

    A factor that spans a contracted index and others (heads and head size, say) is tied along the contracted one:
    heads are the units. With `Trace.attention` "head-dim", a product of two activations ties it along the others
    instead: the same positions of every head are the units, and a removed one contributes zero to the sum.
    """
    of_activations = not any(stored(t.graph, name) in t.graph.constants for name, _ in operands)
    inside_heads = t.attention == "head-dim" and not any(name in t.graph.constants for name, _ in operands)
    heads = [i for i in output if inside_heads and all(i in s for _, s in operands)]
    space = [*output, *dict.fromkeys(i for _, s in operands for i in s if i not in output)]
    lifted: list[tuple[str, Factors, Shape]] = []
    for slot, (name, indices) in enumerate(operands):
        shape, factors = t.shape(name), _diagonal(name, indices, node, t)
        factors = same_inside(factors, [a for a, i in enumerate(indices) if i in heads], t)
        lifted.append((name, tuple(_spread(f, indices, space) for f in factors), _spread_shape(shape, indices, space)))
        axes = [a for a, i in enumerate(indices) if i not in output]
        if any(f.shape[a] > 1 for f in t.of(name) for a in axes):
            t.read(node, slot, "contraction", axes)
    contracted = range(len(output), len(space))
    shared = {k for k, i in enumerate(output) if all(i in s for _, s in operands)}
    for k in contracted:
        sizes = {shape[k] for (_, _, shape), (_, indices) in zip(lifted, operands, strict=True) if space[k] in indices}
        for name, factors, _ in lifted if len(sizes) > 1 else ():
            t.pin(name, [f for f in factors if f.shape[k] > 1], node, _REPEATED)
    result: list[Factor] = []
    for f in t.merge(lifted, node, broadcast=False):
        inside = [a for a in tracked_axes(f) if a in contracted]
        if len(inside) == len(tracked_axes(f)):
            if len(inside) > 1:
                for a in inside[1:]:
                    t.labels.tie(f, a)
            continue
        size = prod(f.shape[a] for a in inside)
        for a in inside:
            f = t.labels.tie(f, a)
        if of_activations and size > 1:
            t.heads.append((f.ravel(), size))
        elif of_activations and set(tracked_axes(f)) <= shared:
            t.likely_heads.append((f.ravel(), prod(max(shape[k] for _, _, shape in lifted) for k in contracted)))
        result.append(f.reshape(f.shape[: len(output)]))
    return tuple(result)


def same_inside(factors: Factors, heads: Sequence[int], t: Trace) -> Factors:
    """Factors over `heads` and other axes, tied along the former: the same places of the others, in every head."""
    result: list[Factor] = []
    for f in factors:
        if set(tracked_axes(f)) - set(heads):
            for a in heads:
                f = t.labels.tie(f, a)
        result.append(f)
    return tuple(result)


def _diagonal(name: str, indices: tuple[str, ...], node: Node, t: Trace) -> Factors:
    """Factors of a term; axes that share an index are read where both are equal, so they lose the same places."""
    factors = t.of(name)
    for index in dict.fromkeys(indices):
        axes = [a for a, i in enumerate(indices) if i == index]
        if len(axes) == 1:
            continue
        tracking = [[a for a in axes if f.shape[a] > 1] for f in factors]
        if any(len(hit) > 1 for hit in tracking) or {a for hit in tracking for a in hit} != set(axes):
            why = Reason("Einsum reads a diagonal of which this is one axis", Remedy.LAYOUT)
            factors = t.untrack(name, factors, axes, node, why)
    return factors


def _spread(f: Factor, indices: tuple[str, ...], space: Sequence[str]) -> Factor:
    order = sorted(range(len(indices)), key=lambda a: space.index(indices[a]))
    shape = [1] * len(space)
    for a in order:
        shape[space.index(indices[a])] *= f.shape[a]  # of axes that share an index at most one is tracked
    moved: Factor = f.transpose(order).reshape(shape)
    return moved


def _spread_shape(shape: Shape, indices: tuple[str, ...], space: Sequence[str]) -> Shape:
    sizes = dict(zip(indices, shape, strict=True))
    return tuple(sizes.get(i, 1) for i in space)


def _record_matrix_product(node: Node, t: Trace, ka: int, kb: int, nb: int, bias: str) -> None:
    """A product of an activation with a constant matrix on the right is a linear layer."""
    a, b = node.input(0), node.input(1)
    if stored(t.graph, b) not in t.graph.constants or len(t.shape(b)) != 2 or stored(t.graph, a) in t.graph.constants:
        return
    inputs = t.on_axis(b, tuple(f for f in t.of(b) if tracked_axes(f) == (kb,)), kb, node)
    outputs = t.on_axis(b, tuple(f for f in t.of(b) if tracked_axes(f) == (nb,)), nb, node)
    if not any(f.shape[ka] > 1 for f in t.of(a)):
        inputs = None
    t.linears.append(Linear(node, a, b, bias, inputs, outputs))


TABLE: dict[str, Rule] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": einsum,
    "DeformConv": deform_conv,
    "CausalConvWithState": causal_conv,
}
