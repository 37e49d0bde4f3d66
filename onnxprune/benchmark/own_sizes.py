"""Inputs of two models whose caches differ: each model gets those that it declares, in the sizes that it declares.

A model that lost heads reads and gives caches of fewer of them, and one that lost a layer has none of its own, so that
those behind it have other numbers. All other inputs have to be the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx

from onnxprune.data.inputs import InputSpec, input_specs
from onnxprune.errors import ModelError
from onnxprune.graph import kept_inputs
from onnxprune.graph.cache_layers import cache_layers
from onnxprune.intake.empty_caches import may_be_cache
from onnxprune.numerics.arrays import Array


def caches(proto: onnx.ModelProto) -> dict[str, InputSpec]:
    """The inputs of a model that are, or may be, caches or states of earlier positions; none where all would be."""
    states, specs = kept_inputs.states(proto), input_specs(proto)
    found = {s.name: s for s in specs if may_be_cache(s) or s.name in states}
    return found if len(found) < len(specs) else {}


def largest_first(models: Sequence[onnx.ModelProto]) -> list[onnx.ModelProto]:
    """Models by their caches, the most and the largest first: data for these holds what the others are fed, whichever
    of them is timed against which."""

    def size(proto: onnx.ModelProto) -> tuple[int, int]:
        own = caches(proto)
        return len(own), sum(prod(d or 1 for d in s.dims) for s in own.values())

    return sorted(models, key=size, reverse=True)


def fitted(feeds: Mapping[str, Array], proto: onnx.ModelProto, first: onnx.ModelProto) -> dict[str, Array]:
    """What a model is fed of what is for the `first`: caches cut to the sizes that it declares, or repeated, each that
    of the same layer, and none that it does not read. Raises ModelError where both do not take the same empty caches.
    """
    own, layers = caches(proto), cache_layers(proto, first)
    names = layers.names
    if layers.unlike and not np.any(feeds.get(layers.unlike, ())):
        raise ModelError(layers.why_not_empty)
    arrays: dict[str, Array] = {}
    for name in (v.name for v in proto.graph.input):
        if names.get(name, name) not in feeds:
            continue
        arrays[name] = feeds[names.get(name, name)]
        for axis, size in enumerate(own[name].dims if name in own else ()):
            length = arrays[name].shape[axis]
            if axis and length and size not in (None, length):
                arrays[name] = np.take(arrays[name], np.arange(size) % length, axis=axis)
    return arrays
