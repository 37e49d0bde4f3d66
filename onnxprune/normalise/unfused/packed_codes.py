"""Operators on weights in packed codes with a scale for each block, as DequantizeLinear and the operator on numbers.

    MatMulNBits           A · W + bias, W (K, N), where w = (q - z) · s with one s and z for each block of W's rows
    GatherBlockQuantized  rows of a table whose numbers have one s and z for each block of an axis

Bytes that hold several codes are stored by output, (N, blocks, bytes), or by row of a table. They are turned here, so
that the blocks lie along the first axis of the matrix: an embedding and the product at the end of a network that share
their codes share them here too. The codes are read in full precision: an `accuracy_level` of the node, by which its
kernel rounds A, is no property of the weights, and comes back with the node (`surgery/packed_codes.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from onnxprune.graph import packed_codes
from onnxprune.graph.quantized import DEQUANTIZE
from onnxprune.normalise.unfused.site import Refusal, Rows, Site
from onnxprune.numerics.arrays import Array

# From this set of operators on DequantizeLinear knows blocks, and codes of four bits.
FROM_OPSET = 21
_DEFAULT_BITS, _DEFAULT_BLOCK = 4, 128
_ONE_BY_ONE = (np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4))


@dataclass(frozen=True)
class _Matrix:
    """A matrix (outputs, inputs) in bytes: the names of its constants, and what they hold."""

    codes: str
    scales: str
    zeros: str
    outputs: int
    inputs: int
    block: int
    bits: int

    @property
    def blocks(self) -> int:
        """How many blocks the inputs of an output make."""
        return -(-self.inputs // self.block)


def _matmul(site: Site) -> Refusal | None:
    a, codes, scales, zeros, order, bias = (site.input(k) for k in range(6))
    if order:
        return Refusal("its blocks are not in the order of its inputs (g_idx)")
    if site.attribute("weight_prepacked", 0):
        return Refusal("its weight lies in the layout of one GPU")
    n, k, block = (int(site.attribute(name, 0)) for name in ("N", "K", "block_size"))
    matrix = _Matrix(codes, scales, zeros, n, k, max(block, 1), int(site.attribute("bits", _DEFAULT_BITS)))
    w = _turned(site, matrix, matrix.blocks * block * matrix.bits // 8)
    if isinstance(w, Refusal):
        return w
    product = site.op("MatMul", a, w, to="" if bias else site.output(), main=True)
    if bias:
        site.op("Add", product, bias, to=site.output())
    return None


def _gather(site: Site) -> Refusal | None:
    """Bytes, which may be a product's weight in another shape, or codes of four bits that stand one by one."""
    data, indices, scales, zeros = (site.input(k) for k in range(4))
    origin = site.origin(data)
    kind, shape = site.constant(origin).dtype, site.shape_of(data)
    block, rank = int(site.attribute("block_size", _DEFAULT_BLOCK)), len(shape)
    along, picked = (int(site.attribute(name, k)) for name, k in (("quantize_axis", 1), ("gather_axis", 0)))
    if not (-rank <= along < rank and -rank <= picked < rank) or block < 1:
        return Refusal("it names an axis or a block that its table does not have")
    along, picked = along % rank, picked % rank
    if kind in _ONE_BY_ONE and not site.origins:
        if site.opset < FROM_OPSET:
            return _too_old(site)
        real = site.node(
            DEQUANTIZE, [data, scales, zeros], [site.unused(f"{data}__real")], axis=along, block_size=block
        )
        site.op("Gather", real, indices, to=site.output(), axis=picked, main=True)
        return None
    if kind != np.uint8 or (rank, along, picked) != (2, 1, 0):
        return Refusal("its table is not of codes in rows, with blocks along them")
    bits = int(site.attribute("bits", _DEFAULT_BITS))
    if bits not in packed_codes.WIDTHS:
        return _no_kernel(bits)
    rows, width = shape
    matrix = _Matrix(origin, scales, zeros, rows, width * 8 // bits, block, bits)
    # A row ends where its last byte does; a product's weight in its place ends with a block.
    table = _turned(site, matrix, width)
    if isinstance(table, Refusal):
        return table
    columns = site.op("Gather", table, indices, axis=1, main=True)
    axes = range(1, site.rank_of(indices) + 1)
    site.op("Transpose", columns, to=site.output(), perm=[*axes, 0])
    return None


def _turned(site: Site, m: _Matrix, row: int) -> str | Refusal:
    """The numbers (inputs, outputs) of a matrix, of which each output has `row` bytes."""
    if site.opset < FROM_OPSET:
        return _too_old(site)
    if m.bits not in packed_codes.WIDTHS:
        return _no_kernel(m.bits)
    stored, scale = site.constant(m.codes), site.constant(m.scales)
    shape = m.outputs, m.blocks
    if min(m.outputs, m.inputs) < 1 or stored.dtype != np.uint8 or stored.size != m.outputs * row:
        return Refusal("its weight is not of the size that its attributes give")
    if scale.size != m.outputs * m.blocks:
        return Refusal("it does not have one scale for each block")
    zero: Array = np.full(shape, 1 << (m.bits - 1), np.uint8)
    if m.zeros:
        points = site.constant(m.zeros)
        if points.dtype != np.uint8:
            return Refusal("its zero points are no codes")
        if points.size * 8 < m.outputs * m.blocks * m.bits or points.size % m.outputs:
            return Refusal("it does not have one zero point for each block")
        zero = packed_codes.unpacked(points.reshape(m.outputs, -1), m.bits, m.blocks)

    def codes() -> Array:
        return packed_codes.as_stored(packed_codes.unpacked(stored.reshape(m.outputs, -1), m.bits, m.inputs).T, m.bits)

    names = [
        site.once(("codes", m), f"{m.codes}__codes", codes),
        site.once(("scales", m), f"{m.scales}__blocks", lambda: np.ascontiguousarray(scale.reshape(shape).T)),
        site.once(("zeros", m), f"{m.zeros or m.codes}__zeros", lambda: packed_codes.as_stored(zero.T, m.bits)),
    ]
    return site.node(DEQUANTIZE, names, [site.unused(f"{names[0]}__real")], axis=0, block_size=m.block)


def _too_old(site: Site) -> Refusal:
    return Refusal(f"blocks of codes have no standard form in opset {site.opset}")


def _no_kernel(bits: int) -> Refusal:
    return Refusal(f"its codes have {bits} bits, for which onnxruntime has no kernel on the CPU")


TABLE: Rows = {f"com.microsoft.{packed_codes.PRODUCT}": _matmul, f"com.microsoft.{packed_codes.LOOK_UP}": _gather}
