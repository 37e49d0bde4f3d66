"""A model beside the one that it was cut from, where inputs and outputs changed with the units (`--resize-io`).

Both are to be fed the same samples. Of a cache without entries it does not matter which heads a model reads, so the
narrower one gets the first of them, nor of which layer it is: one that went with its layer is an input that nothing
reads. Outputs that lost entries are left out of both, as nobody can tell which are left, and so are those of all layers
where some layer has none any more.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.data.samples import Samples
from onnxprune.errors import ModelError
from onnxprune.graph import bodies
from onnxprune.graph.numbered_names import family
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
    missing = _missing(list(model.graph.input), list(original.graph.input))
    alone = _missing(list(model.graph.output), list(original.graph.output))
    if not inputs and not outputs and not missing:
        return model, original, ()
    for name in (*inputs, *missing):
        if name in samples.arrays and all(samples.arrays[name].shape):
            what = "one of a layer that went" if name in missing else "smaller than the original's"
            raise ModelError(
                f"input {name!r} is {what}, so data for it cannot be shared: leave it out of the data, which makes it "
                "empty"
            )
    wide, before = copied(model), copied(original)
    wide.graph.input.extend(v for v in original.graph.input if v.name in missing)
    every = [v.name for v in original.graph.output]
    of_layers = {n for lost in alone for n in (lost, *(n for _, n in family(lost, every)))} if missing else set()
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
        kept = [v for v in proto.graph.output if v.name not in outputs and v.name not in of_layers]
        del proto.graph.output[:]
        proto.graph.output.extend(kept)
    if not wide.graph.output:
        return model, original, ()
    said = []
    if of_layers:
        named = ", ".join(n for n in every if n in of_layers)
        said.append(f"outputs of layers, of which some went, are not compared: {named}")
    sizes = [n for n in outputs if n not in of_layers]
    if sizes:
        said.append(f"outputs that changed their size are not compared: {', '.join(sizes)}")
    return wide, before, tuple(said)


def _missing(own: list[onnx.ValueInfoProto], others: list[onnx.ValueInfoProto]) -> list[str]:
    """The names of those that only the others have."""
    names = {v.name for v in own}
    return [v.name for v in others if v.name not in names]


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
