"""The cut model, nothing fitted."""

from __future__ import annotations

import onnx

from onnxprune.numerics.arrays import Masks
from onnxprune.stages.couple import (
    Coupled,
)
from onnxprune.stages.load import Loaded
from onnxprune.surgery import cut


def rewrite(loaded: Loaded, coupled: Coupled, masks: Masks) -> onnx.ModelProto:
    """The cut model, nothing fitted."""
    return cut(loaded.normalised.proto, coupled.channels, coupled.channels.keep_classes(masks))
