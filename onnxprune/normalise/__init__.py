"""Bring any ONNX graph into the one form that the other stages read; `form.py` says what that is."""

from onnxprune.normalise.form import Normalised, normalise
from onnxprune.normalise.resizing import accepts, distinct, resized, symbols, together

__all__ = ["Normalised", "accepts", "distinct", "normalise", "resized", "symbols", "together"]
