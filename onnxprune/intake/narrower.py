"""A model beside the one that it was cut from, where inputs and outputs changed with the units (`--resize-io`).

Both are to be fed the same samples. Of a cache without entries it does not matter which heads a model reads, so the
narrower one gets the first of them. Outputs that lost entries are left out of both: nobody can tell which are left.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.data.samples import Samples
from onnxprune.errors import ModelError
from onnxprune.graph import bodies
from onnxprune.graph.protobuf import copied


def side_by_side(
    model: onnx.ModelProto, original: onnx.ModelProto, samples: Samples
) -> tuple[onnx.ModelProto, onnx.ModelProto, tuple[str, ...]]:
    """The model as one that takes what the original takes, and the original, both without the outputs that the model
    has less of; and notes.

    Raises ModelError where the samples hold entries for an input that the model has less of.
    """
    inputs = _smaller(list(model.graph.input), list(original.graph.input))
    outputs = _smaller(list(model.graph.output), list(original.graph.output))
    if not inputs and not outputs:
        return model, original, ()
    for name in inputs:
        if name in samples.arrays and all(samples.arrays[name].shape):
            raise ModelError(
                f"input {name!r} is smaller than the original's, so data for it cannot be shared: leave it out of the "
                "data, which makes it empty"
            )
    wide, before = copied(model), copied(original)
    declared = {v.name: v for v in original.graph.input}
    taken = {o for n in wide.graph.node for o in n.output} | {t.name for t in wide.graph.initializer}
    for v in wide.graph.input:
        for axis, size in inputs.get(v.name, {}).items():
            inner, first = (f"{v.name}__{what}{axis}" for what in ("first", "places"))
            while inner in taken or first in taken:
                inner, first = f"{inner}_", f"{first}_"
            bodies.rename(wide.graph.node, {v.name: inner})
            wide.graph.initializer.append(numpy_helper.from_array(np.arange(size, dtype=np.int64), first))
            wide.graph.node.insert(0, helper.make_node("Gather", [v.name, first], [inner], axis=axis))
        if v.name in inputs:
            v.CopyFrom(declared[v.name])
    for proto in (wide, before):
        kept = [v for v in proto.graph.output if v.name not in outputs]
        del proto.graph.output[:]
        proto.graph.output.extend(kept)
    if not wide.graph.output:
        return model, original, ()
    return wide, before, (f"outputs that changed their size are not compared: {', '.join(outputs)}",) if outputs else ()


def _smaller(own: list[onnx.ValueInfoProto], others: list[onnx.ValueInfoProto]) -> dict[str, dict[int, int]]:
    """Of each tensor that is declared smaller than another of its name, its sizes on these axes."""
    before = {v.name: v.type.tensor_type.shape.dim for v in others}
    found: dict[str, dict[int, int]] = {}
    for v in own:
        dims, theirs = v.type.tensor_type.shape.dim, before.get(v.name, ())
        if len(dims) == len(theirs):
            sizes = {
                a: d.dim_value for a, (d, w) in enumerate(zip(dims, theirs, strict=True)) if d.dim_value < w.dim_value
            }
            if sizes and all(sizes.values()):
                found[v.name] = sizes
    return found
