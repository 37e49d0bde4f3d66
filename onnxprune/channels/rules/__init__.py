"""The operator table: ONNX operator → rule. A new operator is a new row in its family's file.

An operator of another domain stands as domain.operator.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.channels.rules import (
    attention,
    contraction,
    contributed_attention,
    contributed_states,
    control,
    elementwise,
    indexing,
    layout,
    normalization,
    quantization,
    recurrent,
    reduction,
    refusals,
    sampling,
    slicing,
    states,
)
from onnxprune.channels.trace import Rule

TABLE: Mapping[str, Rule] = {
    **elementwise.TABLE,
    **contraction.TABLE,
    **attention.TABLE,
    **contributed_attention.TABLE,
    **contributed_states.TABLE,
    **layout.TABLE,
    **slicing.TABLE,
    **indexing.TABLE,
    **states.TABLE,
    **sampling.TABLE,
    **normalization.TABLE,
    **recurrent.TABLE,
    **reduction.TABLE,
    **control.TABLE,
    **quantization.TABLE,
    **refusals.TABLE,
}
