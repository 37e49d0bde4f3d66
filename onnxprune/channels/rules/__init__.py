"""The operator table: ONNX operator → rule. A new operator is a new row in its family's file.

An operator of another domain stands as domain.operator.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.channels.rules import contraction, elementwise, layout, normalization, quantization, recurrent, reduction
from onnxprune.channels.trace import Rule

TABLE: Mapping[str, Rule] = {
    **elementwise.TABLE,
    **contraction.TABLE,
    **layout.TABLE,
    **normalization.TABLE,
    **recurrent.TABLE,
    **reduction.TABLE,
    **quantization.TABLE,
}
