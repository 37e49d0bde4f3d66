"""A quantized model held against another from code to code.

Two models that compute the same function in other nodes round a sum that lies between two codes to one or to the other,
and what follows differs by far more than any tolerance for numbers. So the second model is not run as a whole: wherever
both have the same tensor of codes, it goes on with those of the first. What it gives for that tensor itself is compared
too: codes that lie beside each other are taken for the same, as long as few do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx

from onnxprune.graph.operators import QUANTIZED_LSTM
from onnxprune.graph.protobuf import copied, element_type
from onnxprune.graph.quantized import DYNAMIC, QUANTIZE
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Feeds, Session

# Operators that give codes, and those that make codes of the numbers that they read first.
_GIVES = (QUANTIZE, DYNAMIC, "QGemm")
_READS = ("DynamicQuantizeMatMul", QUANTIZED_LSTM)
# Of operators that are written anew: on codes themselves, not on what stands for them.
_REWRITTEN = ("MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm")
# The share of codes that may be those beside: a mean of four codes lies in the middle between two in a quarter of all
# cases. And how many of a tensor with a few.
_SHARE, _FEW = 0.25, 8


def computes_on_codes(proto: onnx.ModelProto) -> bool:
    """Whether operators of a model compute with codes themselves, which no other model need do in the same way."""
    return any(n.op_type.startswith("QLinear") or n.op_type in _REWRITTEN for n in proto.graph.node)


class Stepwise:
    """A model that runs from the codes of another one, `reference`, and answers with its outputs and codes.

    What runs as the reference itself is `reference`, a session with the same answers.
    """

    def __init__(self, model: onnx.ModelProto, reference: onnx.ModelProto) -> None:
        own = {o for n in model.graph.node for o in n.output}
        self._names = [name for name in _steps(reference) if name in own]
        tapped = copied(reference)
        known = {o.name for o in tapped.graph.output}
        tapped.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in self._names if n not in known)
        self.reference: Session = Session(tapped, optimize=False)
        self._model = model
        self._session: Session | None = None

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """The outputs, and each tensor of codes as it follows from the codes of the reference before it."""
        given = self.reference.run(feeds)
        if self._session is None:
            types = {n: element_type(given[n].dtype) for n in self._names}
            self._session = Session(_from_codes(self._model, types), optimize=False)
        outputs = self._session.run({**feeds, **{n: given[n] for n in self._names}})
        for name in self._names:
            own = outputs.pop(_own(name))
            outputs[name] = given[name] if _beside(own, given[name]) else own
        return outputs


def _steps(proto: onnx.ModelProto) -> Iterable[str]:
    names: dict[str, None] = {}
    outputs = {o for n in proto.graph.node for o in n.output}
    for n in proto.graph.node:
        if n.op_type in _READS and n.input[0] in outputs:
            names[n.input[0]] = None
        if n.op_type in _GIVES or n.op_type.startswith("QLinear"):
            names.update((o, None) for o in n.output if o)
    return names


def _own(name: str) -> str:
    return f"{name}__own"


def _from_codes(model: onnx.ModelProto, types: Mapping[str, int]) -> onnx.ModelProto:
    """A copy that reads these tensors (name → element type), and gives what it would make of them under other names."""
    result = copied(model)
    del result.graph.value_info[:]
    for n in result.graph.node:
        for k, name in enumerate(n.output):
            if name in types:
                n.output[k] = _own(name)
    kept = [o for o in result.graph.output if o.name not in types]
    del result.graph.output[:]
    result.graph.output.extend([*kept, *(onnx.helper.make_empty_tensor_value_info(_own(n)) for n in types)])
    result.graph.input.extend(onnx.helper.make_tensor_value_info(n, t, None) for n, t in types.items())
    return result


def _beside(own: Array, given: Array) -> bool:
    """Whether two tensors of codes are the same but for a few that lie beside each other."""
    if own.dtype != given.dtype or own.shape != given.shape or not np.issubdtype(own.dtype, np.integer):
        return False
    apart = np.abs(own.astype(np.int64) - given)
    return apart.max(initial=0) <= 1 and bool(apart.sum() <= max(_SHARE * apart.size, _FEW))
