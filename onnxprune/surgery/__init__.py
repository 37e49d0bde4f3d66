"""Cutting the graph: the only code that removes channels from one."""

from onnxprune.surgery.branches import settle
from onnxprune.surgery.restore import finish
from onnxprune.surgery.slice import (
    cut,
    drop_zero_biases,
    merge_equal_clones,
    replace_initializers,
    set_initializers,
    take_initializers,
)

__all__ = [
    "cut",
    "drop_zero_biases",
    "finish",
    "merge_equal_clones",
    "replace_initializers",
    "set_initializers",
    "settle",
    "take_initializers",
]
