"""A model beside the one that it was cut from, where rows of tokens went from its vocabulary (`--keep-tokens`).

It has no logits for these tokens: the lowest finite number stands in their places. What it says of the others is
compared with what the original says of them, so the original's logits get that number in the same places.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.data.samples import Samples
from onnxprune.graph import bodies, external
from onnxprune.graph.names import tensors_of
from onnxprune.graph.protobuf import copied, int_attribute, opset_of
from onnxprune.intake import narrower
from onnxprune.numerics.arrays import Array, Mask, is_float, lowest

# The first opset that has Where.
_SINCE = 9


def side_by_side(
    model: onnx.ModelProto, original: onnx.ModelProto, samples: Samples, *, handed: bool = False
) -> tuple[onnx.ModelProto, onnx.ModelProto, tuple[str, ...]]:
    """Both as `narrower.side_by_side` has them, with logits of the same tokens; and notes."""
    model, original, said = narrower.side_by_side(model, original, samples, handed=handed)
    original, more = masked_alike(model, original)
    return model, original, (*said, *more)


def masked_alike(model: onnx.ModelProto, original: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """(the original with the lowest number where the model has no logits, what to say of it); itself for none."""
    gone = _gone(model)
    gone = {k: m for k, m in gone.items() if k not in _gone(original) and _fits(original, k, m)}
    if not gone or opset_of(original) < _SINCE:
        return original, ()
    result = copied(original)
    taken = tensors_of(result)
    types = {v.name: v.type.tensor_type.elem_type for v in result.graph.output}
    for name, mask in gone.items():
        dtype = helper.tensor_dtype_to_np_dtype(types[name])
        inner, where, low = (f"{name}__{what}" for what in ("every", "listed", "lowest"))
        while taken & {inner, where, low}:
            inner, where, low = f"{inner}_", f"{where}_", f"{low}_"
        bodies.rename(result.graph.node, {name: inner})
        result.graph.initializer.append(numpy_helper.from_array(~mask, where))
        result.graph.initializer.append(numpy_helper.from_array(np.array(lowest(dtype), dtype), low))
        result.graph.node.append(
            helper.make_node("Where", [where, inner, low], [name], name=f"{name} of listed tokens")
        )
    told = ", ".join(f"{int(m.sum())} of {m.size} in {k!r}" for k, m in gone.items())
    return result, (f"tokens whose rows went have no logits, and are left out of the original's too: {told}",)


def _gone(proto: onnx.ModelProto) -> dict[str, Mask]:
    """Of each output that puts logits in their places, the tokens that it has none of."""
    stored = {t.name: t for t in proto.graph.initializer}
    by_output = {o: n for n in proto.graph.node for o in n.output if o}
    found: dict[str, Mask] = {}
    for v in proto.graph.output:
        placed = by_output.get(v.name)
        rank = len(v.type.tensor_type.shape.dim)
        if placed is None or placed.op_type != "Gather" or int_attribute(placed, "axis", 0) % max(rank, 1) != rank - 1:
            continue
        pad = by_output.get(placed.input[0])
        if pad is None or pad.op_type != "Pad" or placed.input[1] not in stored:
            continue
        places, value = external.array_of(stored[placed.input[1]]), _padded_with(pad, stored)
        if places.ndim != 1 or value is None or not is_float(value.dtype):
            continue
        if float(value) == lowest(value.dtype):
            found[v.name] = places == places.max()
    return found


def _padded_with(pad: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> Array | None:
    """The number that a Pad writes, where it is stored."""
    if len(pad.input) > 2:
        value = external.array_of(stored[pad.input[2]]) if pad.input[2] in stored else None
        return value if value is not None and value.size == 1 else None
    return next((np.array(a.f, np.float32) for a in pad.attribute if a.name == "value"), None)


def _fits(original: onnx.ModelProto, name: str, mask: Mask) -> bool:
    """Whether the original has an output of that name, of real numbers, with as many entries for tokens."""
    for v in original.graph.output:
        if v.name == name:
            own = v.type.tensor_type
            return bool(
                own.shape.dim
                and own.shape.dim[-1].dim_value == mask.size
                and own.elem_type
                and is_float(helper.tensor_dtype_to_np_dtype(own.elem_type))
            )
    return False
