"""The operator table: ONNX operator → rule. A new operator is a new row in its family's file."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.channels.rules import contraction, elementwise, layout, normalization, recurrent, reduction
from onnxprune.channels.trace import Rule

TABLE: Mapping[str, Rule] = {
    **elementwise.TABLE,
    **contraction.TABLE,
    **layout.TABLE,
    **normalization.TABLE,
    **recurrent.TABLE,
    **reduction.TABLE,
}
