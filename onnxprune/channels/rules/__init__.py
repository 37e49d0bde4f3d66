"""The operator table: ONNX operator → rule. A new operator is a new row in its family's file."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.channels.rules import contraction, control, elementwise, layout, normalization, reduction
from onnxprune.channels.trace import Rule

TABLE: Mapping[str, Rule] = {
    **elementwise.TABLE,
    **contraction.TABLE,
    **layout.TABLE,
    **normalization.TABLE,
    **reduction.TABLE,
    **control.TABLE,
}
