"""Make an ONNX model slimmer by removing whole channels."""

__version__ = "0.1.0"
