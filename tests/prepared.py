"""The stages that nearly every test needs, from a model to its channel graph, and random plans over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.channels import ChannelGraph, Group, build
from onnxprune.graph import protobuf
from onnxprune.graph.unrounded import is_quantized, without_rounding
from onnxprune.normalise import Normalised, normalise
from onnxprune.runtime.session import Session
from onnxprune.selection.path import Path, in_turns
from onnxprune.surgery import cut
from onnxprune.verification.oracle import masked_model
from tests.graphs import TABLE

Array = NDArray[Any]
Keep = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model, the inputs that fixed its sizes, its normalised form and its channels."""

    original: onnx.ModelProto
    example: Mapping[str, Array]
    normalised: Normalised
    channels: ChannelGraph


def prepare(original: onnx.ModelProto, example: Mapping[str, Array], attention: str = "heads") -> Prepared:
    """Normalise and trace."""
    return traced(original, example, normalise(original, example), attention)


def traced(
    original: onnx.ModelProto, example: Mapping[str, Array], n: Normalised, attention: str = "heads"
) -> Prepared:
    """Trace what is normalised already."""
    return Prepared(
        original,
        example,
        n,
        build(
            protobuf.view(n.proto, n.shapes, n.known_values, n.binding, n.free, balanced=n.balanced, alike=n.alike),
            attention,
        ),
    )


def prepare_row(name: str) -> Prepared:
    """A row of the table of topologies, at batch 2."""
    row = TABLE[name]
    return prepare(row.model(), row.feeds(2), row.attention)


def random_keep(channels: ChannelGraph, seed: int, shares: tuple[float, ...] = (0.2, 0.5, 0.8)) -> Keep:
    """Which classes stay: a random subset of every group that leaves no tensor without channels."""
    rng = np.random.default_rng(seed)
    kept: dict[int, Keep] = {}
    for group in channels.groups:
        count = min(max(1, round(group.size * float(rng.choice(shares)))), max(group.size - 1, 1))
        order = rng.permutation(group.size)[::-1]
        path = Path(in_turns(order, group.rows), np.zeros(group.size + 1))
        kept[group.index] = path.kept(max(count // group.step, 1) * group.step)
    keep = channels.keep_classes(kept)
    for needed in channels.needed:
        if not keep[needed].any():
            _restore(channels, keep, int(rng.choice(needed)), rng)
    return keep


def _restore(channels: ChannelGraph, keep: Keep, unit: int, rng: np.random.Generator) -> None:
    """Keep a unit after all and, where it stands in a balanced set, one more of every other set."""
    group = channels.groups[channels.group_of[unit]]
    keep[unit] = True
    if group.rows is not None:
        own = group.rows[group.units == unit]
        for row in set(range(group.step)) - set(own.tolist()):
            gone = [u for u in group.units[group.rows == row].tolist() if not keep[u]]
            keep[rng.choice(gone)] = True


def least_removals(group: Group) -> list[NDArray[np.int64]]:
    """The fewest units that can go at once, one choice per unit: of balanced sets one of each, at another place."""
    if group.rows is None:
        return [group.units[[i]] for i in range(group.size)]
    sets = [group.units[group.rows == r] for r in range(group.step)]
    return [np.array([s[(i + r) % s.size] for r, s in enumerate(sets)]) for i in range(sets[0].size)]


def sliced(p: Prepared, keep: Keep) -> onnx.ModelProto:
    """The model without what `keep` marks False."""
    return cut(p.normalised.proto, p.channels, keep)


def masked(p: Prepared, keep: Keep) -> onnx.ModelProto:
    """The oracle of the same removal."""
    return masked_model(p.normalised.proto, p.channels, keep, p.normalised.types)


def comparable(proto: onnx.ModelProto) -> Session:
    """A session of a sliced model or its oracle; of a quantized one without rounding, which makes a step of 1e-7."""
    return Session(without_rounding(proto), optimize=False) if is_quantized(proto) else Session(proto)
