"""Bring any ONNX graph into the one form that the other stages read; `form.py` says what that is."""

from onnxprune.normalise.form import Normalised, normalise
from onnxprune.normalise.sizes import accepts, resized

__all__ = ["Normalised", "accepts", "normalise", "resized"]
