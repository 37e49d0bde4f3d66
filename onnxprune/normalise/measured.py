"""What is measured of a model: the values of some tensors on one set of inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import RunError
from onnxprune.graph import protobuf
from onnxprune.graph.protobuf import copied
from onnxprune.graph.view import Shape
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Feeds, Session

# Sessions that are started to find out which values a changed model leaves computable.
_MOST_PARTS = 32

Shapes = Mapping[str, Shape]


@dataclass(frozen=True, eq=False)
class Measured:
    """A model as it was run, the inputs of that run, and the values that were asked for."""

    proto: onnx.ModelProto
    feeds: Feeds
    values: Mapping[str, Array]


def by_name(runs: Iterable[Measured]) -> dict[str, list[Array]]:
    """The values of each tensor, run by run; sequences are left out."""
    values_by_name: dict[str, list[Array]] = {}
    for r in runs:
        for name, v in r.values.items():
            if isinstance(v, np.ndarray):
                values_by_name.setdefault(name, []).append(v)
    return values_by_name


def as_far_as_it_runs(proto: onnx.ModelProto, names: Sequence[str], feeds: Feeds) -> dict[str, Array]:
    """The values of those of `names` that can be computed: where all of them cannot, halves are tried."""
    values: dict[str, Array] = {}
    left = [list(names)] if names else []
    for _ in range(_MOST_PARTS):
        if not left:
            break
        part = left.pop(0)
        try:
            values |= Session(protobuf.submodel(proto, {}, part), optimize=False).run(feeds)
        except RunError:
            half = len(part) // 2
            left += [p for p in (part[:half], part[half:]) if half]
    return values


def untold(missing: Sequence[set[str]]) -> set[str]:
    """The names of which runs tell nothing, given those that each lacks: of changes all at once, then of each alone.

    Without runs there are no such names. The first run alone tells a name, or all of the others together do.
    """
    if not missing:
        return set()
    return missing[0] & set().union(*missing[1:]) if len(missing) > 1 else missing[0]


def shapes_in(proto: onnx.ModelProto, feeds: Feeds, names: Sequence[str]) -> Shapes:
    """The shapes of these tensors in a model, as far as it runs; the model is changed."""
    probes = probed(proto, names)
    values = as_far_as_it_runs(proto, list(probes.values()), feeds)
    return {t: tuple(values[p].tolist()) for t, p in probes.items() if p in values}


def with_lengths(proto: onnx.ModelProto, names: Sequence[str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with what gives the shape of each of these tensors, and that by tensor."""
    if not names:
        return proto, {}
    copy = copied(proto)
    return copy, probed(copy, names)


def probed(proto: onnx.ModelProto, names: Sequence[str]) -> dict[str, str]:
    """What gives the shape of each of these tensors, by tensor; added in place."""
    probes = {t: f"{t}__length" for t in dict.fromkeys(names)}
    proto.graph.node.extend(helper.make_node("Shape", [t], [p]) for t, p in probes.items())
    return probes
