"""The operator table: ONNX operator → rule. A new operator is a new row in its family's file."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.channels.rules import (
    attention,
    contraction,
    elementwise,
    indexing,
    layout,
    normalization,
    reduction,
    refusals,
    sampling,
)
from onnxprune.channels.trace import Rule

TABLE: Mapping[str, Rule] = {
    **elementwise.TABLE,
    **contraction.TABLE,
    **attention.TABLE,
    **layout.TABLE,
    **indexing.TABLE,
    **sampling.TABLE,
    **normalization.TABLE,
    **reduction.TABLE,
    **refusals.TABLE,
}
