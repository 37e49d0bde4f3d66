"""Every operator that is written in standard ones, as domain.operator, and the function that does it.

A family has a file with a `TABLE` of its own; a new operator is a row there.
"""

from __future__ import annotations

from onnxprune.normalise.unfused import (
    activations,
    attention,
    channels_last,
    codes,
    layouts,
    namesakes,
    normalization,
    products,
    rotary,
)
from onnxprune.normalise.unfused.site import Rows

FAMILIES: tuple[Rows, ...] = (
    activations.TABLE,
    attention.TABLE,
    channels_last.TABLE,
    codes.TABLE,
    layouts.TABLE,
    namesakes.TABLE,
    normalization.TABLE,
    products.TABLE,
    rotary.TABLE,
)
TABLE: Rows = {name: row for family in FAMILIES for name, row in family.items()}
# What can be put back at the end: not codes, which fits change, and not blocks, which are one processor's.
RESTORED = frozenset(TABLE) - codes.TABLE.keys() - layouts.TABLE.keys()
