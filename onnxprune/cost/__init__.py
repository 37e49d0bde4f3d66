"""What a model costs as a function of how many units of each group are kept: MACs and parameters."""

from onnxprune.cost.macs import macs, macs_by_node
from onnxprune.cost.operators import Uncounted, repeated, uncounted
from onnxprune.cost.terms import Cost, Counts, Length, Term, length_of_axis
from onnxprune.cost.weights import parameters, parameters_of_result

__all__ = [
    "Cost",
    "Counts",
    "Length",
    "Term",
    "Uncounted",
    "length_of_axis",
    "macs",
    "macs_by_node",
    "parameters",
    "parameters_of_result",
    "repeated",
    "uncounted",
]
