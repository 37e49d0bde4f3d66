"""Gradients of ONNX graphs, as plain ONNX: one reverse pass over a table of rules, one rule per operator."""

from onnxprune.gradients.reverse import Backward, backward

__all__ = ["Backward", "backward"]
