"""Cutting the graph: the only code that edits one."""

from onnxprune.rewrite.slice import cut, replace_initializers

__all__ = ["cut", "replace_initializers"]
