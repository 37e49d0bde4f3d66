"""Sliding windows: y[o] = Σ over t of w[t] · x[s·o + d·t - p] on each spatial axis, its transpose

    dx[i] = Σ over (o, t) with s·o + d·t - p = i of w[t] · dy[o],

and the gradient of the kernel, with the sum over samples too

    dw[t] = Σ over o of dy[o] · x[s·o + d·t - p].

The transpose is a convolution again. At stride 1 it is written as Conv with the flipped kernel, which in onnxruntime is
up to three times as fast as ConvTranspose; at other strides ConvTranspose is the faster (than Conv over an input spread
with zeros, and than one Conv per phase of the stride with DepthToSpace), for full, grouped and depthwise kernels alike.

dw is one strided Slice and one product per place t of the kernel. At 64 samples of 3x3 kernels that takes half the time
of a convolution of the data with dy for a kernel, from 6 channels at 32x32 to 64 at 8x8; one product over all samples,
which needs the channels last, is the faster where maps are small. A large kernel has too many places for that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from onnxprune.gradients.build import Builder, NoGradient
from onnxprune.graph.view import Node, Shape
from onnxprune.numerics.arrays import Array
from onnxprune.numerics.patches import Window

_MOST_PLACES = 64  # of a kernel, to be gone through one by one
_SMALL_MAP = 256  # positions, up to which one product over all samples is the faster


@dataclass(frozen=True)
class Geometry:
    """Per spatial axis: kernel size, stride s, dilation d, padding p before, sizes of x and of y."""

    kernel: Shape
    strides: Shape
    dilations: Shape
    before: Shape
    inputs: Shape
    outputs: Shape

    @property
    def reach(self) -> Shape:
        """d (k - 1): from the first to the last entry of a window."""
        return tuple(d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True))


def geometry(b: Builder, node: Node, kernel: Sequence[int]) -> Geometry:
    """The windows of a Conv, a pooling operator or a ConvTranspose, where y is the input and x is the output."""
    a, rank = node.attrs, len(kernel)
    transposed = node.op == "ConvTranspose"

    def each(name: str, default: int) -> Shape:
        return tuple(int(v) for v in a[name]) if a.get(name) else (default,) * rank

    strides, dilations = each("strides", 1), each("dilations", 1)
    same = str(a.get("auto_pad", "NOTSET")).startswith("SAME")
    if same and max(dilations) > 1 and not transposed:
        raise NoGradient("with dilations, ONNX and onnxruntime differ over what auto_pad pads")
    inputs, outputs = b.shape(node.inputs[0])[2:], b.shape(node.outputs[0])[2:]
    if len(inputs) != rank or len(outputs) != rank:
        raise NoGradient("its spatial sizes are not known")
    window = Window(
        tuple(kernel),
        strides,
        dilations,
        tuple(int(v) for v in a.get("pads") or (0,) * (2 * rank)),
        auto_pad=str(a.get("auto_pad", "NOTSET")),
        transposed=transposed,
        output_padding=each("output_padding", 0),
        output_shape=tuple(int(v) for v in a.get("output_shape", ()))[-rank:],
    )
    before = window.padding(inputs)[0]
    if transposed:
        before = tuple(d * (k - 1) - n for d, k, n in zip(dilations, kernel, before, strict=True))
        inputs, outputs = outputs, inputs
    return Geometry(tuple(kernel), strides, dilations, before, inputs, outputs)


def gathered(b: Builder, x: str, weight: str, geo: Geometry, groups: int, like: str) -> str:
    """y of the equation above, by Conv; weight: (M, C/groups, *kernel). like: for the type."""
    after = [
        s * (o - 1) + r + 1 - i - p
        for s, o, r, i, p in zip(geo.strides, geo.outputs, geo.reach, geo.inputs, geo.before, strict=True)
    ]
    x, pads = _cropped(b, x, geo.before, after, like)
    return b.op(
        "Conv",
        x,
        weight,
        kernel_shape=geo.kernel,
        strides=geo.strides,
        dilations=geo.dilations,
        pads=pads,
        group=groups,
    )


def spread(b: Builder, dy: str, weight: str | Array, geo: Geometry, groups: int, like: str) -> str:
    """dx of the equation above; weight: (M, C/groups, *kernel), a tensor or its values. like: for the type."""
    strides = [s if o > 1 else 1 for s, o in zip(geo.strides, geo.outputs, strict=True)]
    if max(strides) == 1 and not (isinstance(weight, str) and b.graph.opset < 10):
        before = [r - p for r, p in zip(geo.reach, geo.before, strict=True)]
        after = [i - o + p for i, o, p in zip(geo.inputs, geo.outputs, geo.before, strict=True)]
        dy, pads = _cropped(b, dy, before, after, like)
        if isinstance(weight, str):
            flipped = _flipped_later(b, weight, groups)
        else:
            flipped = b.constant(_flipped(weight, groups), weight.dtype)
        return b.op("Conv", dy, flipped, kernel_shape=geo.kernel, dilations=geo.dilations, pads=pads, group=groups)
    after = [
        s * (o - 1) + r + 1 - p - i
        for s, o, r, p, i in zip(strides, geo.outputs, geo.reach, geo.before, geo.inputs, strict=True)
    ]
    return b.op(
        "ConvTranspose",
        dy,
        weight if isinstance(weight, str) else b.constant(weight, weight.dtype),
        kernel_shape=geo.kernel,
        strides=geo.strides,
        dilations=geo.dilations,
        pads=[*geo.before, *(max(a, 0) for a in after)],
        output_padding=[max(-a, 0) for a in after],
        group=groups,
    )


def _flipped(weight: Array, groups: int) -> Array:
    """(M, C/g, *K) → (C, M/g, *K), turned around on every spatial axis."""
    m, c, *kernel = weight.shape
    split = weight.reshape(groups, m // groups, c, *kernel).swapaxes(1, 2)
    return np.flip(split.reshape(groups * c, m // groups, *kernel), tuple(range(2, weight.ndim)))


def _flipped_later(b: Builder, weight: str, groups: int) -> str:
    """As `_flipped`, of a weight that is no constant."""
    m, c, *kernel = b.shape(weight)
    if groups == 1:
        swapped = b.op("Transpose", weight, perm=[1, 0, *range(2, 2 + len(kernel))])
    elif m == groups == groups * c:
        swapped = weight
    else:
        split = b.op("Reshape", weight, b.ints(groups, m // groups, c, *kernel))
        split = b.op("Transpose", split, perm=[0, 2, 1, *range(3, 3 + len(kernel))])
        swapped = b.op("Reshape", split, b.ints(groups * c, m // groups, *kernel))
    axes = [2 + a for a, k in enumerate(kernel) if k > 1]
    if not axes:
        return swapped
    ends = b.ints(*[-sys.maxsize] * len(axes))
    return b.slice(swapped, b.ints(*[-1] * len(axes)), ends, axes, [-1] * len(axes))


def correlated(b: Builder, dy: str, x: str, channels: Shape, geo: Geometry, groups: int, like: str) -> str:
    """dw of the equation above, (M, C/groups, *kernel); channels: (M, C). like: for the type."""
    after = [
        s * (o - 1) + r + 1 - i - p
        for s, o, r, i, p in zip(geo.strides, geo.outputs, geo.reach, geo.inputs, geo.before, strict=True)
    ]
    m, c = channels
    whole = b.ints(m, c // groups, *geo.kernel)
    if int(np.prod(geo.kernel)) > _MOST_PLACES or b.graph.opset < 10:
        return b.op("Reshape", _as_convolution(b, dy, x, after, channels, geo, groups, like), whole)
    if groups == 1 and int(np.prod(geo.outputs)) <= _SMALL_MAP:
        parts = _over_all_samples(b, dy, x, after, channels, geo, like)
    else:
        parts = _by_sample(b, dy, x, after, channels, geo, groups, like)
    parts = [b.op("Reshape", p, b.ints(m, c // groups, 1)) for p in parts]
    return b.op("Reshape", b.op("Concat", *parts, axis=2) if len(parts) > 1 else parts[0], whole)


def _as_convolution(
    b: Builder, dy: str, x: str, after: Sequence[int], channels: Shape, geo: Geometry, groups: int, like: str
) -> str:
    """dw as (C/groups, M, *kernel) turned around: samples are summed over as channels are, strides are dilations."""
    c, rank = channels[1], len(geo.kernel)
    swap, spatial = [1, 0, *range(2, 2 + rank)], geo.inputs
    if groups > 1:  # (g, C/g, N) → (C/g, g, N)
        x = b.op("Transpose", x, perm=swap)
        x = b.op("Reshape", x, b.ints(groups, c // groups, -1, *spatial))
        x = b.op("Transpose", x, perm=[1, 0, *range(2, 3 + rank)])
        x = b.op("Reshape", x, b.ints(c // groups, -1, *spatial))
    else:
        x = b.op("Transpose", x, perm=swap)
    x, pads = _cropped(b, x, geo.before, after, like)
    dw = b.op(
        "Conv",
        x,
        b.op("Transpose", dy, perm=swap),
        kernel_shape=geo.outputs,
        strides=geo.dilations,
        dilations=geo.strides,
        pads=pads,
        group=groups,
    )
    return b.op("Transpose", dw, perm=swap)


def _padded(b: Builder, x: str, before: Sequence[int], after: Sequence[int], first: int, rank: int, like: str) -> str:
    """x with zeros around (or, for negative numbers, less) its spatial axes, which begin at `first`."""
    if not any((*before, *after)):
        return x
    pads = np.zeros((2, rank), np.int64)
    pads[:, first : first + len(before)] = before, after
    return b.pad(x, pads.ravel().tolist(), like)


def _places(b: Builder, x: str, geo: Geometry, first: int) -> list[str]:
    """x[s·o + d·t] of the padded x for every t, its spatial axes beginning at `first`."""
    if max(*geo.kernel, *geo.strides) == 1:
        return [x]
    places = []
    for t in product(*(range(k) for k in geo.kernel)):
        starts = [d * i for d, i in zip(geo.dilations, t, strict=True)]
        ends = [n + s * (o - 1) + 1 for n, s, o in zip(starts, geo.strides, geo.outputs, strict=True)]
        axes = range(first, first + len(t))
        places.append(b.slice(x, b.ints(*starts), b.ints(*ends), axes, None if max(geo.strides) == 1 else geo.strides))
    return places


def _over_all_samples(
    b: Builder, dy: str, x: str, after: Sequence[int], channels: Shape, geo: Geometry, like: str
) -> list[str]:
    """dw[t] as (M, C): (M, samples · positions) times its other operand."""
    (m, c), rank = channels, len(geo.kernel)
    x = b.op("Transpose", x, perm=[0, *range(2, 2 + rank), 1])
    x = _padded(b, x, geo.before, after, 1, 2 + rank, like)
    left = b.op("Reshape", b.op("Transpose", dy, perm=[1, 0, *range(2, 2 + rank)]), b.ints(m, -1))
    return [b.op("MatMul", left, b.op("Reshape", part, b.ints(-1, c))) for part in _places(b, x, geo, 1)]


def _by_sample(
    b: Builder, dy: str, x: str, after: Sequence[int], channels: Shape, geo: Geometry, groups: int, like: str
) -> list[str]:
    """dw[t] as (groups, M/groups, C/groups), summed over the samples at the end."""
    (m, c), rank = channels, len(geo.kernel)
    parts = _places(b, _padded(b, x, geo.before, after, 2, 2 + rank, like), geo, 2)
    if m == c == groups:
        axes = [0, *range(2, 2 + rank)]
        return [b.total(b.op("Mul", dy, part), axes, keepdims=False) for part in parts]
    lead = (0,) if groups == 1 else (0, groups)
    left = b.op("Reshape", dy, b.ints(*lead, m // groups, -1))
    products = []
    for part in parts:
        rows = b.op("Reshape", part, b.ints(*lead, c // groups, -1))
        perm = [*range(len(lead)), len(lead) + 1, len(lead)]
        products.append(b.total(b.op("MatMul", left, b.op("Transpose", rows, perm=perm)), [0], keepdims=False))
    return products


def _cropped(b: Builder, x: str, before: Sequence[int], after: Sequence[int], like: str) -> tuple[str, list[int]]:
    """x without what negative pads take away, and the pads that remain for a Conv."""
    pads = [*before, *after]
    if min(pads) < 0:
        cut = [min(p, 0) for p in pads]
        rank = len(before)
        x = b.pad(x, [0, 0, *cut[:rank], 0, 0, *cut[rank:]], like)
    return x, [max(p, 0) for p in pads]
