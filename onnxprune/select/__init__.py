"""Selection: which units of a group to keep at every size. Arrays in, a path out; nothing here knows ONNX."""

from onnxprune.select.path import Path, Regression

__all__ = ["Path", "Regression"]
