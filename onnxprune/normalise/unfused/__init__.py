"""Operators that onnxruntime fuses, written in standard ones again: `table.py` lists them, `apply.py` does it."""

from onnxprune.normalise.unfused.apply import Fused, Unfused, operator_of, unfuse
from onnxprune.normalise.unfused.table import EXPERTS, PACKED, RESTORED, TABLE

__all__ = ["EXPERTS", "PACKED", "RESTORED", "TABLE", "Fused", "Unfused", "operator_of", "unfuse"]
