"""A model beside the one that it was cut from, where inputs and outputs changed with the units (`--resize-io`).

Both are to be fed the same samples. Of a cache without entries it does not matter which heads a model reads, so the
narrower one gets the first of them. Caches go by the layers that they belong to (`graph.cache_layers`), whatever their
numbers are by now; that of a layer which went is an input that nothing reads. Outputs that lost entries are left out of
both, as nobody can tell which are left, and so are those of all layers where some layer has none any more.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.data.inputs import input_specs
from onnxprune.data.ragged import Ragged
from onnxprune.data.samples import Samples
from onnxprune.errors import ModelError
from onnxprune.graph import bodies
from onnxprune.graph.cache_layers import cache_layers, of_other_layers
from onnxprune.graph.names import tensors_of, unused
from onnxprune.graph.numbered_names import family
from onnxprune.graph.protobuf import copied
from onnxprune.intake.empty_caches import may_be_cache
from onnxprune.options import first_of

# Of the layers that a note names.
_SHOWN = 4


def side_by_side(
    model: onnx.ModelProto, original: onnx.ModelProto, samples: Samples, *, handed: bool = False
) -> tuple[onnx.ModelProto, onnx.ModelProto, tuple[str, ...]]:
    """The model as `taking` has it, and the original, both without the outputs that the model has less of; and notes.

    Raises ModelError as `taking` does.
    """
    taken, layers = taking(model, original, samples, handed=handed)
    outputs = _smaller(list(taken.graph.output), list(original.graph.output))
    others = _of_other_layers(model, original)
    if taken is model and not outputs and not others:
        return model, original, ()
    alone = _missing(list(taken.graph.output), list(original.graph.output))
    every = [v.name for v in original.graph.output]
    lost = _missing(list(model.graph.input), list(original.graph.input))
    of_layers = {n for one in alone for n in (one, *(n for _, n in family(one, every)))} if lost else set()
    wide, before = copied(taken), copied(original)
    for proto in (wide, before):
        gone = outputs.keys() | of_layers | others
        kept = [v for v in proto.graph.output if v.name not in gone]
        del proto.graph.output[:]
        proto.graph.output.extend(kept)
    if not wide.graph.output:
        return model, original, ()
    said = []
    if layers:
        told = [f"{n} is {m} there" for n, m in layers.items()]
        said.append(f"caches of layers are those of the same layers of the original: {first_of(told, _SHOWN)}")
    elif any(_has_values(samples, n) for one in lost for _, n in family(one, [v.name for v in model.graph.input])):
        said.append(f"caches go by their numbers: the layers that went are taken for those of {first_of(lost, _SHOWN)}")
    if of_layers:
        named = ", ".join(n for n in every if n in of_layers)
        said.append(f"outputs of layers, of which some went, are not compared: {named}")
    elif others:
        named = ", ".join(n for n in every if n in others)
        said.append(f"the models lost different layers; what is of these is not compared: {named}")
    sizes = [n for n in outputs if n not in of_layers | others]
    if sizes:
        said.append(f"outputs that changed their size are not compared: {', '.join(sizes)}")
    return wide, before, tuple(said)


def taking(
    model: onnx.ModelProto, original: onnx.ModelProto, samples: Samples, *, handed: bool = False
) -> tuple[onnx.ModelProto, Mapping[int, int]]:
    """The model as one that takes what the original takes, with all outputs, by the original's names; itself where it
    does so already. And the layers whose caches have other numbers in the original, each with that. handed: whether
    the samples hold states that the original handed from step to step.

    Raises ModelError where the samples hold values for an input that the model has less of, or for caches of layers of
    which there is no telling which went, and where both models do not take the same empty caches, or not the same past.
    """
    own = cache_layers(model, original)
    if own.unlike and not _has_values(samples, own.unlike):
        raise ModelError(own.why_not_empty)
    past = next((n for n in sorted(_of_other_layers(model, original)) if _has_values(samples, n)), None)
    if past is not None:
        advice = "leave out --state, and give texts instead of steps" if handed else "leave caches out of the data"
        raise ModelError(
            f"the models lost different layers, so that {past!r} is the past of one in one of them and of another in "
            f"the other: {advice}, or compare each with the model that it was cut from"
        )
    wide = _called(model, own.names)
    inputs = _smaller(list(wide.graph.input), list(original.graph.input))
    missing = _missing(list(wide.graph.input), list(original.graph.input))
    if not inputs and not missing:
        return model, {}
    for name in (*inputs, *(() if own.certain else missing)):
        if _has_values(samples, name):
            what = "one of a layer that went" if name in missing else "smaller than the original's"
            advice = "leave it out of the data, which makes it empty"
            if handed:
                advice = "leave out --state, and give texts instead of steps"
            raise ModelError(f"input {name!r} is {what}, so data for it cannot be shared: {advice}")
    wide = copied(wide)
    wide.graph.input.extend(v for v in original.graph.input if v.name in missing)
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
    return wide, own.layers


def _of_other_layers(model: onnx.ModelProto, original: onnx.ModelProto) -> frozenset[str]:
    """As `cache_layers.of_other_layers`; none where one has caches that the other lacks: `cache_layers` pairs these."""
    names = [{v.name for v in (*m.graph.input, *m.graph.output)} for m in (model, original)]
    if names[0] != names[1]:
        return frozenset()
    return of_other_layers(model, original, [s.name for s in input_specs(original) if may_be_cache(s)])


def _called(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """A copy whose tensors are called so, old → new; itself for none."""
    if not names:
        return model
    result, taken = copied(model), tensors_of(model)
    aside = {new: unused(new, taken) for new in names.values() if new in taken and new not in names}
    bodies.rename(result.graph.node, {**names, **aside})
    for v in (*result.graph.input, *result.graph.output, *result.graph.initializer, *result.graph.value_info):
        v.name = names.get(v.name, aside.get(v.name, v.name))
    return result


def _has_values(samples: Samples, name: str) -> bool:
    """Whether the samples hold anything but zeros for an input, which are the same of any heads and layers."""
    stored = samples.arrays.get(name)
    if stored is None:
        return False
    return any(bool(np.any(e)) for e in (stored.entries if isinstance(stored, Ragged) else (stored[:],)))


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
