"""Feature maps read at other places: places from constants, and from what the graph computes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.random_graphs.build import Build, Dims, Live
from tests.random_graphs.maker import Maker


def _samples(x: Live) -> int:
    """How many samples there are at any of the sizes that the graph runs at."""
    return x.dims[0] if isinstance(x.dims[0], int) else 2


def _grid_sample(b: Build, op: str) -> None:
    x = b.image((4, 4, 5) if b.opset >= 20 else (4,))
    spatial = x.rank - 2
    source = b.like(x) if b.chance(30) else x
    offsets = b.node("Tanh", [b.linear(source, 1, spatial, hidden=True)], (x.dims[0], spatial, *x.dims[2:]), peak=1.0)
    order = [0, *range(2, x.rank), 1]
    grid = b.node("Transpose", [offsets], tuple(offsets.dims[a] for a in order), hidden=True, perm=order)
    if b.chance(30):
        grid = b.node("Mul", [grid, b.floats(1.3)], grid.dims, hidden=True)
    linear = "linear" if b.opset >= 20 else "bilinear"
    attrs: dict[str, object] = {"padding_mode": b.choice(("zeros", "border", "reflection"))}
    attrs["mode"] = "nearest" if b.chance(15) else linear
    b.node(op, [x, grid], x.dims, align_corners=b.below(2), **attrs)


def _regions(b: Build, op: str) -> None:
    x = b.image((4,), least=2)
    count = b.choice((2, 3, 1))
    height, width = (int(d) for d in x.dims[2:])
    out = (1 + b.below(2), 1 + b.below(3))
    samples = [b.below(_samples(x)) for _ in range(count)]
    boxes = []
    for _ in range(count):
        left, top = b.below(width - 1), b.below(height - 1)
        boxes.append([left, top, left + 1 + b.below(width - left - 1), top + 1 + b.below(height - top - 1)])
    dims: Dims = (count, x.dims[1], *out)
    scale = 0.5 if b.chance(25) else 1.0
    places = np.array(boxes, np.float32) / np.float32(scale)
    if op == "MaxRoiPool":
        name = b.floats([])
        b.weights[name] = np.column_stack([samples, places]).astype(np.float32)
        b.node(op, [x, name], dims, pooled_shape=list(out), spatial_scale=scale)
        return
    name = b.floats([])
    b.weights[name] = places + np.float32(0.3)
    attrs: dict[str, object] = {"sampling_ratio": b.choice((2, 1, 3)), "mode": "max" if b.chance(25) else "avg"}
    if b.opset >= 16 and b.chance(50):
        attrs["coordinate_transformation_mode"] = b.choice(("half_pixel", "output_half_pixel"))
    b.node(
        op, [x, name, b.ints(samples)], dims, output_height=out[0], output_width=out[1], spatial_scale=scale, **attrs
    )


def _col2im(b: Build, op: str) -> None:
    x = b.image((4,))
    height, width = (int(d) for d in x.dims[2:])
    kernel = b.choice(((2, 2), (1, 2), (2, 1), (1, 1)))
    block = kernel[0] * kernel[1]
    if int(x.dims[1]) % block or int(x.dims[1]) == block or b.chance(30):
        x = b.linear(x, 1, block * b.choice((2, 3, 1, 4)), hidden=True)
    channels = int(x.dims[1]) // block
    flat = b.reshape(x, (x.dims[0], block * channels, height * width), hidden=True)
    size = [height + kernel[0] - 1, width + kernel[1] - 1]
    pads: dict[str, list[int]] = {}
    if kernel == (2, 2) and height > 1 and width > 1 and b.chance(30):
        pads = {"pads": [1, 1, 0, 0]}
        size = [s - 1 for s in size]
    dims = (x.dims[0], channels, *size)
    b.node(op, [flat, b.ints(size), b.ints(list(kernel))], dims, peak=2.0 * x.peak, **pads)


def _center_crop_pad(b: Build, op: str) -> None:
    x = b.any()
    channels = b.channel_axis(x)
    fixed = [a for a, d in enumerate(x.dims) if isinstance(d, int)]
    axes = b.subset([a for a in fixed if a != channels] or fixed)
    if b.chance(25):
        axes = sorted({*axes, channels} & set(fixed))
    dims = list(x.dims)
    for a in axes:
        # The same size often: then the axis may keep its channels.
        dims[a] = max(1, int(x.dims[a]) + b.choice((0, 1, -1, 2)))
    if not b.small(tuple(dims)):
        return
    sizes = b.ints([int(dims[a]) for a in axes])
    b.node(op, [x, sizes], tuple(dims), axes=[a - x.rank if b.chance(30) else a for a in axes])


def _det(b: Build, op: str) -> None:
    x = b.bounded(b.image((4, 4, 3), least=2))
    # No more rows than either axis has, else the matrix is singular.
    side = min(2 + b.below(2), *(int(d) for d in x.dims[-2:]))
    square = b.bounded(b.linear(b.linear(x, x.rank - 2, side, hidden=True), x.rank - 1, side, hidden=True))
    found = b.node(op, [square], square.dims[:-2], hidden=True, peak=20.0)
    b.node("Softsign", [found], found.dims, peak=1.0)


def _deform_conv(b: Build, op: str) -> None:
    x = b.bounded(b.image((4,)))
    c = int(x.dims[1])
    divisors = [d for d in range(1, c + 1) if c % d == 0]
    groups = b.choice(divisors) if b.chance(50) else 1
    shared = b.choice(divisors) if b.chance(40) else 1
    out = groups * b.choice((2, 1, 3)) if groups > 1 else b.width()
    k = b.choice((1, 2))
    taps = k * k
    places: Dims = x.dims[2:]
    given = b.linear(x, 1, 2 * taps * shared, hidden=True)
    given = b.node("Tanh", [given], given.dims, hidden=True, peak=1.0)
    w = b.weight(out, c // groups, k, k, fan=c // groups * taps)
    operands: list[Live | str] = [x, w, given]
    if b.chance(50):
        operands.append(b.weight(out))
    if b.chance(30):
        mask = b.linear(x, 1, taps * shared, hidden=True)
        mask = b.node("Sigmoid", [mask], mask.dims, hidden=True, peak=1.0)
        operands += [""] * (4 - len(operands)) + [mask]
    pads = {"pads": [0, 0, 1, 1]} if k == 2 else {}
    dims = (x.dims[0], out, *places)
    b.node(op, operands, dims, peak=2.5 * x.peak, group=groups, offset_group=shared, kernel_shape=[k, k], **pads)


MAKERS: Mapping[str, Maker] = {
    "GridSample": Maker(_grid_sample, weight=2),
    "RoiAlign": Maker(_regions, last=21),
    "MaxRoiPool": Maker(_regions, last=21),
    "Col2Im": Maker(_col2im),
    "CenterCropPad": Maker(_center_crop_pad),
    "Det": Maker(_det),
    "DeformConv": Maker(_deform_conv, weight=2),
}
