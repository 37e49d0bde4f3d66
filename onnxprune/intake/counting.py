"""Whether what a model takes depends on the values that it is given, not on their sizes alone."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

# The inputs that say how large an output is, where that can be more than the inputs have; all but constants elsewhere.
_SIZES: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Expand": (1,),
    "Tile": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "CenterCropPad": (1,),
    "Resize": (2, 3),
    "Upsample": (1,),
    "MaxUnpool": (2,),
    "DFT": (1,),
    "STFT": (1,),
    "MelWeightMatrix": (0, 1),
    "BlackmanWindow": (0,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
}
# What these say of their input is known from its sizes.
_OF_SIZES = ("Shape", "Size")


def reads_as_size(operator: str, place: int) -> bool:
    """Whether a standard operator reads the input at that place as a size."""
    return place in _SIZES.get(operator, ())


def counts(model: onnx.ModelProto) -> bool:
    """Whether a Loop, another body or a function, or sizes computed from values, can make some samples larger runs.

    An operator of another domain may do anything, too, but those that onnxruntime has do not.
    """
    nodes = model.graph.node
    if model.functions or any(a.type in (a.GRAPH, a.GRAPHS) for n in nodes for a in n.attribute):
        return True
    makers = {o: n for n in nodes for o in n.output}
    given = {v.name for v in model.graph.input} - {t.name for t in model.graph.initializer}
    stack = [n.input[i] for n in nodes for i in _SIZES.get(n.op_type, ()) if i < len(n.input)]
    seen: set[str] = set()
    while stack:
        name = stack.pop()
        if name in given:
            return True
        if name in seen or name not in makers or makers[name].op_type in _OF_SIZES:
            continue
        seen.add(name)
        stack += makers[name].input
    return False
