"""Selection: which units of a group to keep at every size. Arrays in, a path out; nothing here knows ONNX."""

from onnxprune.select.path import Path, Regression
from onnxprune.select.quadratic import Discrepancy, Quadratic
from onnxprune.select.steps import Step

__all__ = ["Discrepancy", "Path", "Quadratic", "Regression", "Step"]
