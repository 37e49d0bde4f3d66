"""Selection: which units of a group to keep at every size. Arrays in, a path out; nothing here knows ONNX."""

from onnxprune.selection.path import Path, Regression
from onnxprune.selection.quadratic import Discrepancy, Quadratic
from onnxprune.selection.steps import Step

__all__ = ["Discrepancy", "Path", "Quadratic", "Regression", "Step"]
