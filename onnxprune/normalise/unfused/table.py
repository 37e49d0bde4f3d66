"""Every operator that is written in standard ones, as domain.operator, and the function that does it.

A family has a file with a `TABLE` of its own; a new operator is a row there.
"""

from __future__ import annotations

from onnxprune.normalise.unfused import activations, products
from onnxprune.normalise.unfused.site import Rows

FAMILIES: tuple[Rows, ...] = (activations.TABLE, products.TABLE)
TABLE: Rows = {name: row for family in FAMILIES for name, row in family.items()}
