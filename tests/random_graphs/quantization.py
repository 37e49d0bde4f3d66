"""Quantize and Dequantize pairs around activations, and layers whose weights are stored as integers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from tests.random_graphs.build import CHANNELS, Build, Dims, Live
from tests.random_graphs.maker import Maker

_CODES = 255
_FROM_PER_AXIS = 13
_FROM_BLOCKS = 21


def _scale(b: Build, name: str, values: object) -> str:
    b.weights[name] = np.asarray(values, np.float32)
    return name


def quantize(b: Build, x: Live, order: Sequence[int] = ()) -> Live:
    """`x` through codes of 8 bits with one scale, its codes transposed to `order`."""
    stem = b.out("q", ()).name
    # Sometimes too small a scale: then the largest values saturate.
    operands = [_scale(b, f"{stem}_scale", b.choice((2.0, 0.5)) * x.peak / _CODES)]
    kind, zero = b.choice(((np.uint8, 128), (np.int8, 0), (np.int8, -5), (np.uint8, 0)))
    if kind is np.int8 or zero or b.chance(50):  # uint8 and 0 by default
        operands.append(f"{stem}_zero")
        b.weights[operands[-1]] = np.array(zero, kind)
    codes = b.node("QuantizeLinear", [x, *operands], x.dims, "code", peak=x.peak, hidden=True)
    if order:
        dims = tuple(x.dims[a] for a in order)
        codes = b.node("Transpose", [codes], dims, "code", peak=x.peak, hidden=True, perm=list(order))
    return b.node("DequantizeLinear", [codes, *operands], codes.dims, peak=x.peak)


def _activation(b: Build, op: str) -> None:
    x = b.any()
    y = quantize(b, x, b.permutation(x.rank) if b.chance(30) else ())
    if b.chance(50):
        axis = b.channel_axis(y)
        if isinstance(y.dims[axis], int):
            quantize(b, b.linear(y, axis, b.width()))


def _stored(b: Build, shape: tuple[int, ...], axis: int, fan: int) -> Live:
    """Seeded integers of 8 bits, with one scale for all or one for each position of `axis` or of its blocks."""
    stem = b.out("stored", ()).name
    rng = np.random.default_rng(zlib.crc32(f"{stem}{shape}".encode()))
    kind, zeros = b.choice(((np.int8, (0, 1)), (np.uint8, (120, 136)), (np.int8, (-6, 7))))
    limits = np.iinfo(kind)
    b.weights[stem] = rng.integers(limits.min, limits.max + 1, shape).astype(kind)
    if b.opset >= _FROM_BLOCKS and shape[axis] % 2 == 0 and b.chance(20):
        places = tuple(s // 2 if a == axis else s for a, s in enumerate(shape))
        attrs = {"axis": axis, "block_size": 2}
    elif b.opset >= _FROM_PER_AXIS and not b.chance(20):
        places = (shape[axis],)
        attrs = {"axis": axis - len(shape) if b.chance(30) else axis}
    else:
        places, attrs = (), {}
    operands = [stem, _scale(b, f"{stem}_scale", rng.uniform(0.5, 1.5, places) / (70 * fan**0.5))]
    if kind is np.uint8 or b.chance(50):
        operands.append(f"{stem}_zero")
        b.weights[operands[-1]] = rng.integers(*zeros, places).astype(kind)
    return b.node("DequantizeLinear", operands, shape, hidden=True, **attrs)


def _bias(b: Build, width: int, *, needed: bool) -> list[Live | str]:
    """32-bit integers, floats, or none."""
    way = b.below(2 if needed else 3)
    if way:
        return [b.weight(width)] if way == 1 else []
    stem = b.out("bias", ()).name
    rng = np.random.default_rng(zlib.crc32(f"{stem}{width}".encode()))
    b.weights[stem] = rng.integers(-1000, 1000, width).astype(np.int32)
    places = (width,) if b.opset >= _FROM_PER_AXIS and b.chance(70) else ()
    attrs = {"axis": 0} if places else {}
    scale = _scale(b, f"{stem}_scale", rng.uniform(0.5, 1.5, places) / 1000)
    return [b.node("DequantizeLinear", [stem, scale], (width,), hidden=True, **attrs)]


def _layer(b: Build, op: str) -> None:
    way = b.choice(("Conv", "MatMul", "Gemm", "Conv"))
    if way == "Conv":
        x = b.bounded(b.image(known=False))
        c = int(x.dims[1])
        groups = c if b.chance(20) else b.factor(c) if b.chance(20) else 1
        width = groups * b.choice((1, 2)) if groups > 1 else b.choice(CHANNELS)
        w = _stored(b, (width, c // groups, *[1] * (x.rank - 2)), 1 if b.chance(15) else 0, c // groups)
        dims: Dims = (x.dims[0], width, *x.dims[2:])
        attrs: dict[str, int] = {"group": groups} if groups > 1 else {}
    elif way == "MatMul":
        x = b.bounded(b.sequence() if b.chance(60) else b.matrix())
        c, width = int(x.dims[-1]), b.width()
        w = _stored(b, (c, width), 0 if b.chance(25) else 1, c)
        dims, attrs = (*x.dims[:-1], width), {}
    else:
        x = b.bounded(b.matrix())
        c, width, turned = int(x.dims[1]), b.width(), int(b.chance(50))
        output = 1 - turned
        w = _stored(b, (width, c) if turned else (c, width), 1 - output if b.chance(25) else output, c)
        dims, attrs = (x.dims[0], width), {"transB": turned}
    if b.chance(50):
        x = quantize(b, x)
    bias = [] if way == "MatMul" else _bias(b, width, needed=way == "Gemm" and b.opset < 11)
    b.node(way, [x, w, *bias], dims, peak=2.5 * x.peak, **attrs)


MAKERS: Mapping[str, Maker] = {"QuantizeLinear": Maker(_activation), "DequantizeLinear": Maker(_layer)}
