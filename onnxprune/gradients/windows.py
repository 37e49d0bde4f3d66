"""Sliding windows: y[o] = Σ over t of w[t] · x[s·o + d·t - p] on each spatial axis, and its transpose

    dx[i] = Σ over (o, t) with s·o + d·t - p = i of w[t] · dy[o].

The transpose is a convolution again. At stride 1 it is written as Conv with the flipped kernel, which in onnxruntime is
up to three times as fast as ConvTranspose; at other strides ConvTranspose is the faster (than Conv over an input spread
with zeros, and than one Conv per phase of the stride with DepthToSpace), for full, grouped and depthwise kernels alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.gradients.build import Builder, NoGradient
from onnxprune.graph import Array, Node, Shape
from onnxprune.numerics.patches import Window


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
    if max(strides) == 1 and not isinstance(weight, str):
        before = [r - p for r, p in zip(geo.reach, geo.before, strict=True)]
        after = [i - o + p for i, o, p in zip(geo.inputs, geo.outputs, geo.before, strict=True)]
        dy, pads = _cropped(b, dy, before, after, like)
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


def _cropped(b: Builder, x: str, before: Sequence[int], after: Sequence[int], like: str) -> tuple[str, list[int]]:
    """x without what negative pads take away, and the pads that remain for a Conv."""
    pads = [*before, *after]
    if min(pads) < 0:
        cut = [min(p, 0) for p in pads]
        rank = len(before)
        x = b.pad(x, [0, 0, *cut[:rank], 0, 0, *cut[rank:]], like)
    return x, [max(p, 0) for p in pads]
