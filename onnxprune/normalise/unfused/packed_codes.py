"""Operators on weights in packed codes with a scale for each block, as DequantizeLinear and the operator on numbers.

    MatMulNBits    A · W + bias, W (K, N), where w = (q - z) · s with one s and one z for each block of W's rows

The codes are stored by output, (N, blocks, bytes), and are turned here, so that the blocks lie along the first axis of
the matrix. They are read in full precision: an `accuracy_level` of the node, by which its kernel rounds A, is no
property of the weights, and comes back with the node (`surgery/packed_codes.py`).
"""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.graph import packed_codes
from onnxprune.graph.quantized import DEQUANTIZE
from onnxprune.normalise.unfused.site import Refusal, Rows, Site
from onnxprune.numerics.arrays import Array

# From this set of operators on DequantizeLinear knows blocks, and codes of four bits.
FROM_OPSET = 21

_DEFAULT_BITS = 4


def _matmul(site: Site) -> Refusal | None:
    a, codes, scales, zeros, order, bias = (site.input(k) for k in range(6))
    bits = int(site.attribute("bits", _DEFAULT_BITS))
    n, k, block = (int(site.attribute(name, 0)) for name in ("N", "K", "block_size"))
    why = _unread(site, bits, order)
    if why:
        return Refusal(why)
    blocks = -(-k // max(block, 1))
    stored, scale = site.constant(codes), site.constant(scales)
    if min(n, k, block) < 1 or stored.dtype != np.uint8 or stored.size * 8 != n * blocks * block * bits:
        return Refusal("its weight is not of the size that K, N, bits and block_size give")
    if scale.size != n * blocks:
        return Refusal("it does not have one scale for each block")
    zero = _zero_points(site, zeros, bits, (n, blocks))
    if isinstance(zero, Refusal):
        return zero
    key = codes, scales, zeros, n, k, block, bits

    def turned() -> Array:
        return packed_codes.as_stored(packed_codes.unpacked(stored.reshape(n, -1), bits, k).T, bits)

    names = [
        site.once(("codes", *key), f"{codes}__codes", turned),
        site.once(("scales", *key), f"{scales}__blocks", lambda: np.ascontiguousarray(scale.reshape(n, blocks).T)),
        site.once(("zeros", *key), f"{zeros or codes}__zeros", lambda: packed_codes.as_stored(zero.T, bits)),
    ]
    w = site.node(DEQUANTIZE, names, [site.unused(f"{names[0]}__real")], axis=0, block_size=block)
    product = site.op("MatMul", a, w, to="" if bias else site.output(), main=True)
    if bias:
        site.op("Add", product, bias, to=site.output())
    return None


def _unread(site: Site, bits: int, order: str) -> str:
    """Why the codes of a node are not read; "" where they are."""
    if site.opset < FROM_OPSET:
        return f"blocks of codes have no standard form in opset {site.opset}"
    if bits not in packed_codes.WIDTHS:
        return f"its codes have {bits} bits, for which onnxruntime has no kernel on the CPU"
    if order:
        return "its blocks are not in the order of its inputs (g_idx)"
    if site.attribute("weight_prepacked", 0):
        return "its weight lies in the layout of one GPU"
    return ""


def _zero_points(site: Site, name: str, bits: int, shape: tuple[int, int]) -> Array | Refusal:
    """Zero points (outputs, blocks): the middle where they are left out."""
    if not name:
        return np.full(shape, 1 << (bits - 1), np.uint8)
    if site.type_of(name) != onnx.TensorProto.UINT8:
        return Refusal("its zero points are no codes")
    stored = site.constant(name)
    if stored.size * 8 < shape[0] * shape[1] * bits or stored.size % shape[0]:
        return Refusal("it does not have one zero point for each block")
    return packed_codes.unpacked(stored.reshape(shape[0], -1), bits, shape[1])


TABLE: Rows = {f"com.microsoft.{packed_codes.PRODUCT}": _matmul}
