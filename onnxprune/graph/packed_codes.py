"""Codes of 2, 4 or 8 bits that onnxruntime's operators keep several to a byte, the first one in the lowest bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import ml_dtypes
import numpy as np

from onnxprune.numerics.arrays import Array

PRODUCT, LOOK_UP = "MatMulNBits", "GatherBlockQuantized"
WIDTHS = (2, 4, 8)
# The slots of codes and zero points, which may be packed.
_PACKED: Mapping[str, tuple[int, int]] = {PRODUCT: (1, 3), LOOK_UP: (0, 3)}
_BITS = 4


def unpacked(stored: Array, bits: int, count: int) -> Array:
    """The first `count` codes of each row of bytes (*S, bytes), as uint8 (*S, count)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (stored[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    unpacked: Array = codes.reshape(*stored.shape[:-1], -1)[..., :count]
    return unpacked


def packed(codes: Array, bits: int) -> Array:
    """The inverse: codes (*S, n) as bytes (*S, ⌈n bits / 8⌉), filled up with zeros."""
    each = 8 // bits
    whole = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // each) * each), np.uint8)
    whole[..., : codes.shape[-1]] = codes
    parts = whole.reshape(*codes.shape[:-1], -1, each) << np.arange(0, 8, bits, dtype=np.uint8)
    joined: Array = np.bitwise_or.reduce(parts, axis=-1)
    return joined


def as_stored(codes: Array, bits: int) -> Array:
    """Codes in the narrowest unsigned type that DequantizeLinear knows in the sets of operators from 21 on."""
    return codes.astype(np.uint8 if bits == max(WIDTHS) else ml_dtypes.uint4)


def reads(operator: str) -> bool:
    """Whether an operator reads codes that may be packed."""
    return operator in _PACKED


def numbers_in(
    operator: str, slot: int, shapes: Mapping[int, Sequence[int]], attributes: Mapping[str, int]
) -> int | None:
    """How many numbers a constant of bytes stands for that such an operator reads at `slot`; None where it is plain.

    shapes: of the constants that the operator reads, by slot.
    """
    codes, zeros = _PACKED.get(operator, (-1, -1))
    if slot == zeros:
        return prod(shapes[2]) if 2 in shapes else None
    if slot != codes:
        return None
    if operator == PRODUCT:
        return attributes.get("N", 0) * attributes.get("K", 0)
    if slot not in shapes:
        return None
    return prod(shapes[slot]) * 8 // attributes.get("bits", _BITS)
