"""Codes of 2, 4 or 8 bits that onnxruntime's operators keep several to a byte, the first one in the lowest bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import ml_dtypes
import numpy as np

from onnxprune.numerics.arrays import Array

PRODUCT, LOOK_UP, MIXTURE = "MatMulNBits", "GatherBlockQuantized", "QMoE"
WIDTHS = (2, 4, 8)
# The slots of codes, which may be packed; and of zero points, with those of their scales.
_CODES: Mapping[str, Sequence[int]] = {PRODUCT: (1,), LOOK_UP: (0,), MIXTURE: (2, 5, 8)}
_ZEROS: Mapping[str, Mapping[int, int]] = {PRODUCT: {3: 2}, LOOK_UP: {3: 2}, MIXTURE: {11: 3, 12: 6, 13: 9}}
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
    return operator in _CODES


def numbers_in(
    operator: str, slot: int, shapes: Mapping[int, Sequence[int]], attributes: Mapping[str, int]
) -> int | None:
    """How many numbers a constant of bytes stands for that such an operator reads at `slot`; None where it is plain.

    shapes: of the constants that the operator reads, by slot.
    """
    zeros = _ZEROS.get(operator, {})
    if slot in zeros:
        return prod(shapes[zeros[slot]]) if zeros[slot] in shapes else None
    if slot not in _CODES.get(operator, ()) or slot not in shapes:
        return None
    if operator == PRODUCT:
        return attributes.get("N", 0) * attributes.get("K", 0)
    bits = attributes.get("bits", _BITS)
    if operator == MIXTURE:
        number = _CODES[MIXTURE].index(slot) + 1
        bits = attributes.get(f"fc{number}_expert_weight_bits", 0) or attributes.get("expert_weight_bits", _BITS)
    return prod(shapes[slot]) * 8 // max(bits, 1)
