"""Layers: convolutions of every dimension and grouping, and products."""

from __future__ import annotations

from collections.abc import Mapping

from tests.random_graphs.build import CHANNELS, Build, Dim, Dims, Live
from tests.random_graphs.maker import Maker

_TERMS = {
    2: ("ab,cb->ac", "ab,bc", "ab,bc->ca"),
    3: ("abc,cd->abd", "abc,dc->adb", "abc,bd->adc", "abc,cd->bad", "abc,cde->abde"),
    4: ("abcd,eb->aecd", "abcd,de->abce", "abcd,bce->aed", "abcd,b->acd", "abcd,be->acde"),
    5: ("abcde,fb->afcde", "abcde,ef->abcdf"),
}


def _groups(b: Build, channels: int, *, few: bool = False) -> int:
    """Of a convolution: often 1, few large ones, many small ones, or one per channel."""
    inner = [g for g in range(2, channels) if channels % g == 0]
    way = b.below(10)
    if few or (way >= 4 and way < 8 and inner):
        return b.choice(inner) if inner else 1
    return 1 if way < 4 else channels


def convolve(b: Build, x: Live, groups: int | None = None, width: int = 0) -> Live:
    """Conv of `x` with a random kernel; sizes of its positions must be fixed."""
    x = b.bounded(x)
    c = x.dims[1]
    assert isinstance(c, int)
    g = _groups(b, c) if groups is None else groups
    m = width or (g * b.choice((2, 1, 3, 4)) if g > 1 else b.choice(CHANNELS))
    kernel, attrs, after = _window(b, x.dims[2:])
    w = b.weight(m, c // g, *kernel, fan=c // g * _product(kernel))
    bias = [] if b.chance(30) else [b.weight(m)]
    if g > 1:
        attrs["group"] = g
    return b.node("Conv", [x, w, *bias], (x.dims[0], m, *after), peak=2.5 * x.peak, **attrs)


def _product(kernel: list[int]) -> int:
    total = 1
    for k in kernel:
        total *= k
    return total


def _window(b: Build, spatial: Dims) -> tuple[list[int], dict[str, object], list[Dim]]:
    """(kernel, attributes, output positions)."""
    kernel, strides, before, behind, dilations = [], [], [], [], []
    after: list[Dim] = []
    for d in spatial:
        if isinstance(d, str):
            # As many positions as before, however many those are.
            kernel.append(b.choice((1, 3)))
            before.append(kernel[-1] // 2)
            behind.append(kernel[-1] // 2)
            strides.append(1)
            dilations.append(1)
            after.append(d)
            continue
        k = b.choice((1, 3, 2))
        dilation = 2 if k > 1 and b.chance(15) else 1
        reach = dilation * (k - 1) + 1
        first, last = (k // 2, k // 2) if b.chance(60) or d < reach else (0, b.below(2))
        if d + first + last < reach:
            k = reach = dilation = 1
            first = last = 0
        stride = 2 if b.chance(15) and d > 1 else 1
        kernel.append(k)
        strides.append(stride)
        before.append(first)
        behind.append(last)
        dilations.append(dilation)
        after.append((d + first + last - reach) // stride + 1)
    attrs: dict[str, object] = {}
    if any(before) or any(behind):
        attrs["pads"] = [*before, *behind]
    if any(s > 1 for s in strides):
        attrs["strides"] = strides
    if any(s > 1 for s in dilations):
        attrs["dilations"] = dilations
    return kernel, attrs, after


def _conv(b: Build, op: str) -> None:
    convolve(b, b.image(known=False))


def _conv_transpose(b: Build, op: str) -> None:
    x = b.bounded(b.image())
    c = x.dims[1]
    assert isinstance(c, int)
    g = _groups(b, c)
    m = b.choice((2, 1, 3, 4)) if g > 1 else b.choice(CHANNELS)
    kernel, stride = [], []
    after: list[Dim] = []
    for d in x.dims[2:]:
        assert isinstance(d, int)
        kernel.append(b.choice((1, 2, 3)))
        stride.append(2 if b.chance(30) else 1)
        after.append((d - 1) * stride[-1] + kernel[-1])
    dims = (x.dims[0], g * m, *after)
    if not b.small(dims):
        kernel, stride = [1] * len(kernel), [1] * len(kernel)
        dims = (x.dims[0], g * m, *x.dims[2:])
    bias = [] if b.chance(30) else [b.weight(g * m)]
    attrs = {"group": g} if g > 1 else {}
    w = b.weight(c, m, *kernel, fan=c // g)
    b.node(op, [x, w, *bias], dims, peak=2.5 * x.peak, strides=stride, **attrs)


def _gemm(b: Build, op: str) -> None:
    x = b.bounded(b.matrix())
    axis = b.channel_axis(x)
    n, k = b.width(), x.dims[axis]
    rows = x.dims[1 - axis]
    assert isinstance(k, int)
    attrs: dict[str, object] = {}
    for name, value in (("alpha", 0.5), ("beta", 2.0)):
        if b.chance(25):
            attrs[name] = value
    if (isinstance(rows, int) and b.chance(30)) or b.chance(10):
        # The weights on the left.
        turned = b.chance(50)
        w = b.weight(*((k, n) if turned else (n, k)), fan=k)
        attrs.update(transA=int(turned), transB=int(axis == 1))
        widths = [(n, 1), (1,)]
        dims: Dims = (n, rows)
        operands: list[Live | str] = [w, x]
    else:
        turned = b.chance(50)
        w = b.weight(*((n, k) if turned else (k, n)), fan=k)
        attrs.update(transA=int(axis == 0), transB=int(turned))
        widths = [(n,), (1, n), (1,)]
        dims = (rows, n)
        operands = [x, w]
    if b.opset < 11 or not b.chance(25):
        operands.append(b.weight(*b.choice(widths)))
    b.node(op, operands, dims, peak=2.5 * x.peak, **attrs)


def _matmul(b: Build, op: str) -> None:
    x = b.bounded(b.any())
    way = b.below(6)
    k = x.dims[-1]
    if isinstance(k, int) and x.rank >= 3 and way == 5 and isinstance(x.dims[-3], int):
        # One matrix for each entry of the axis before the last two.
        n = b.width()
        b.node(op, [x, b.weight(x.dims[-3], k, n, fan=k)], (*x.dims[:-1], n), peak=2.5 * x.peak)
    elif isinstance(k, int) and way == 4 and x.rank > 2:
        b.node(op, [x, b.weight(k, fan=k)], x.dims[:-1], peak=2.5 * x.peak)
    elif way == 3 and x.rank > 2:
        _gram(b, x)
    elif way == 2 and x.rank > 2 and isinstance(x.dims[-2], int):
        n = b.width()
        b.node(op, [b.weight(n, x.dims[-2], fan=x.dims[-2]), x], (*x.dims[:-2], n, k), peak=2.5 * x.peak)
    elif isinstance(k, int):
        n = b.width()
        b.node(op, [x, b.weight(k, n, fan=k)], (*x.dims[:-1], n), peak=2.5 * x.peak)
    else:
        _gram(b, x)


def _gram(b: Build, x: Live) -> None:
    """A product of two activations."""
    x = b.tame(x, "bounded")
    y = b.tame(b.like(x), "bounded")
    order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    turned = b.node("Transpose", [y], tuple(y.dims[a] for a in order), hidden=True, perm=order)
    dims = (*x.dims[:-1], x.dims[-2])
    if b.small(dims):
        b.node("MatMul", [x, turned], dims, peak=6.0)


def _einsum(b: Build, op: str) -> None:
    x = b.bounded(b.any())
    if x.rank not in _TERMS:
        x = b.bounded(b.sequence())
    if isinstance(x.dims[-1], int) and b.chance(40):
        _einsum_of_weights(b, x)
        return
    terms = b.choice(_TERMS[x.rank])
    left, right = terms.split("->")[0].split(",")
    sizes: dict[str, Dim] = dict(zip(left, x.dims, strict=True))
    if any(not isinstance(sizes.get(i, 1), int) for i in right):
        _einsum_of_two(b, x)
        return
    for i in right:
        sizes.setdefault(i, b.width())
    fixed = [d for d in (sizes[i] for i in right) if isinstance(d, int)]
    fan = _product([d for i, d in zip(right, fixed, strict=True) if i in left])
    out = terms.split("->")[1] if "->" in terms else "".join(sorted(set(left) ^ set(right)))
    dims = tuple(sizes[i] for i in out)
    if b.small(dims):
        b.node(op, [x, b.weight(*fixed, fan=fan)], dims, peak=2.5 * x.peak, equation=terms)
    else:
        _einsum_of_two(b, x)


def _einsum_of_weights(b: Build, x: Live) -> None:
    """A last axis that goes through two or three weights, which are contracted with each other."""
    letters, last = "abcde"[: x.rank], x.dims[-1]
    assert isinstance(last, int)
    sizes = [last, *(b.width() for _ in range(b.choice((2, 3))))]
    names = (letters[-1] + "xyz")[: len(sizes)]
    terms = [names[i : i + 2][:: b.choice((1, -1))] for i in range(len(sizes) - 1)]
    shape = dict(zip(names, sizes, strict=True))
    weights = [b.weight(*(shape[i] for i in t), fan=shape[names[k]]) for k, t in enumerate(terms)]
    equation = f"{','.join([letters, *terms])}->{letters[:-1]}{names[-1]}"
    dims = (*x.dims[:-1], sizes[-1])
    if b.small(dims):
        b.node("Einsum", [x, *weights], dims, peak=4.0 * x.peak, equation=equation)
    else:
        _einsum_of_two(b, x)


def _einsum_of_two(b: Build, x: Live) -> None:
    """Two activations: their product, summed over some of the axes behind the first."""
    x, y = b.tame(x, "bounded"), b.tame(b.like(x), "bounded")
    letters = "abcde"[: x.rank]
    out = letters[0] + "".join(b.subset(letters[1:]))
    dims = tuple(x.dims[letters.index(i)] for i in out)
    b.node("Einsum", [x, y], dims, peak=6.0, equation=f"{letters},{letters}->{out}")


MAKERS: Mapping[str, Maker] = {
    "Conv": Maker(_conv, weight=8),
    "ConvTranspose": Maker(_conv_transpose, weight=2),
    "Gemm": Maker(_gemm, weight=3),
    "MatMul": Maker(_matmul, weight=4),
    "Einsum": Maker(_einsum, weight=2),
}
