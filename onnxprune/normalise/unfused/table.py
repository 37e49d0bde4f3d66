"""Every operator that is written in standard ones, as domain.operator, and the function that does it.

A family has a file with a `TABLE` of its own; a new operator is a row there.
"""

from __future__ import annotations

from onnxprune.normalise.unfused import (
    activations,
    attention,
    channels_last,
    codes,
    experts,
    layouts,
    namesakes,
    normalization,
    packed_codes,
    products,
    rotary,
)
from onnxprune.normalise.unfused.site import Rows

FAMILIES: tuple[Rows, ...] = (
    activations.TABLE,
    attention.TABLE,
    channels_last.TABLE,
    codes.TABLE,
    experts.TABLE,
    layouts.TABLE,
    namesakes.TABLE,
    normalization.TABLE,
    packed_codes.TABLE,
    products.TABLE,
    rotary.TABLE,
)
TABLE: Rows = {name: row for family in FAMILIES for name, row in family.items()}
# What `--keep-fused` can put back: not codes, which fits change, and not blocks of channels, which are one processor's.
RESTORED = (
    frozenset(TABLE) - codes.TABLE.keys() - layouts.TABLE.keys() - packed_codes.TABLE.keys() - experts.TABLE.keys()
)
# What always is, with whatever weights it has by then (`surgery/packed_codes.py`, `surgery/experts.py`).
PACKED, EXPERTS = frozenset(packed_codes.TABLE), frozenset(experts.TABLE)
