"""In which numbers the result is stored, and what each target wants of a model in 8-bit integers.

A quantized model keeps its float operators, between QuantizeLinear and DequantizeLinear (QDQ): the runtime that reads
it fuses these. Where such pairs have to stand differs:

- *onnxruntime on the CPU* (its quantization guide): an operator computes in integers where its inputs come from
  DequantizeLinear and its outputs go to QuantizeLinear, so what lies between two layers is quantized too. Activations
  are uint8 with a zero point, weights int8 without one, per channel. An x86 processor without VNNI adds products of
  uint8 and int8 two by two in 16 bits, which overflow: weights of 7 bits (`reduce_range`) do not.
- *TensorRT* (developer guide, "Working with Quantized Types"; the guide of onnxruntime's TensorRT provider):
  activations without a zero point, weights as float with a pair of their own, per channel, biases in float, and pairs
  at the inputs of layers and of residual branches where they are added, nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

INT8, FP16 = "int8", "fp16"
PRECISIONS = (INT8, FP16)
# What they are called in words.
IN_WORDS = {INT8: "8-bit integers", FP16: "half precision"}
# How the range of an activation is found; auto: each of them is tried.
MIN_MAX, ENTROPY, PERCENTILE = "min-max", "entropy", "percentile"
RANGES = ("auto", MIN_MAX, ENTROPY, PERCENTILE)
REDUCE_RANGE = ("auto", "yes", "no")
# The share of the multiplications that may stay in float.
FLOAT_SHARE = 0.2

_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where pairs of QuantizeLinear and DequantizeLinear stand, and of which type they are.

    layers: operators with weights that compute in integers. between: those that do so where they lie between two of
    these, and the slots of the activations that they read, () for all; through: those that hand codes on without a pair
    of their own. symmetric: activations have no zero point, and
    are int8; otherwise they are uint8. outputs: what layers give is quantized too. biases: they are stored as int32.
    pairs: weights stay float in the file, with a pair of their own.
    """

    layers: frozenset[str] = _LAYERS
    between: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    through: frozenset[str] = frozenset()
    symmetric: bool = False
    outputs: bool = True
    biases: bool = True
    pairs: bool = False


ONNXRUNTIME = Placement(
    between=MappingProxyType(
        {
            "Add": (),
            "AveragePool": (0,),
            "Clip": (0,),
            "Concat": (),
            "Flatten": (0,),
            "GlobalAveragePool": (0,),
            "LeakyRelu": (0,),
            "MaxPool": (0,),
            "Mul": (),
            "Pad": (0,),
            "Relu": (0,),
            "Reshape": (0,),
            "Resize": (0,),
            "Sigmoid": (0,),
            "Split": (0,),
            "Squeeze": (0,),
            "Transpose": (0,),
            "Unsqueeze": (0,),
        }
    )
)
TENSORRT = Placement(
    layers=_LAYERS | {"ConvTranspose"},
    between=MappingProxyType({"Add": ()}),
    through=frozenset({"Clip", "MaxPool", "Relu"}),
    symmetric=True,
    outputs=False,
    biases=False,
    pairs=True,
)


def placement_of(tensorrt: bool) -> Placement:
    """What a target wants. tensorrt: whether its parser reads the model."""
    return TENSORRT if tensorrt else ONNXRUNTIME


def reduces(choice: str, tensorrt: bool, machine: str, instructions: Collection[str]) -> bool:
    """Whether weights get 7 bits.

    choice: of `REDUCE_RANGE`. machine: of the processor, as `platform.machine` calls it. instructions: the sets that it
    knows, as `runtime.processor` calls them; none where they are not known.
    """
    if choice != "auto":
        return choice == "yes"
    x86 = machine.lower() in ("x86_64", "amd64", "i386", "i686")
    return not tensorrt and x86 and bool(instructions) and "vnni" not in instructions
