"""Operators that onnxruntime fuses, written in standard ones again: `table.py` lists them, `apply.py` does it."""

from onnxprune.normalise.unfused.apply import Fused, Unfused, unfuse
from onnxprune.normalise.unfused.table import TABLE

__all__ = ["TABLE", "Fused", "Unfused", "unfuse"]
