"""Inputs and outputs that may change their size, as --resize-io names them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import onnx
from onnx import helper

from onnxprune.channels import ChannelGraph
from onnxprune.errors import UsageError
from onnxprune.graph.kept_inputs import unspecified
from onnxprune.normalise import Normalised
from onnxprune.numerics.arrays import is_float
from onnxprune.options import nearest
from onnxprune.surgery.vocabulary_rows import vocabulary_of

RESIZE_IO = "--resize-io"
_NEAREST = 3


def resized(original: onnx.ModelProto, patterns: Sequence[str]) -> tuple[str, ...]:
    """The inputs and outputs that the patterns match. Raises UsageError for a pattern that matches none."""
    names = [v.name for v in (*original.graph.input, *original.graph.output)]
    for p in patterns:
        if not any(fnmatchcase(name, p) for name in names):
            near = nearest(p, names, _NEAREST)
            like = f"; did you mean {near}?" if near else ""
            raise UsageError(f"{RESIZE_IO} {p} matches no input and no output of the model{like}")
    return tuple(name for name in names if any(fnmatchcase(name, p) for p in patterns))


def check_resized(normalised: Normalised, patterns: Sequence[str]) -> None:
    """Raises UsageError for a pattern of which nothing can change in any model: it matches no real numbers.

    Where it is this model that leaves nothing to change (a cache of one key-value head, say), `idle` tells.
    """
    ports = (*normalised.proto.graph.input, *normalised.proto.graph.output)
    real = {v.name for v in ports if is_float(helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type or 1))}
    for p in patterns:
        if not any(fnmatchcase(name, p) for name in real):
            raise UsageError(f"{RESIZE_IO} {p}: what it matches holds no real numbers; leave it out")


def idle(
    original: onnx.ModelProto, channels: ChannelGraph, normalised: Normalised, patterns: Sequence[str], *, whole: bool
) -> tuple[str, ...]:
    """For warnings: the patterns of which nothing can change, as no units of the network are entries there.

    whole: False where operators that onnxruntime does not know are behind the model.
    """
    may = {s.port for s in normalised.states if s.resized and channels.groups_in(s.units)}
    outputs = {v.name for v in original.graph.output}
    said: list[str] = []
    for p in patterns:
        names = resized(original, (p,))
        if may.intersection(names):
            continue
        vocabulary = vocabulary_of(original, heads=whole) if outputs.intersection(names) else None
        heads = [h.output for h in vocabulary.heads if h.output in names] if vocabulary is not None else []
        if heads:
            said.append(
                f"{RESIZE_IO} {p} changes nothing: {heads[0]!r} has a number for each token, at its place; rows of "
                "tokens that no text of yours needs go with --keep-tokens FILE"
            )
        else:
            said.append(
                f"{RESIZE_IO} {p} changes nothing: no units that may go are entries of what it matches (of a cache, "
                "name the input and the output)"
            )
    return tuple(said)


def resized_outputs(normalised: Normalised) -> frozenset[str]:
    """The outputs that may change their size, and those of which not every entry is defined: what they hold is read by
    the model itself, and judged there."""
    return frozenset(s.port for s in normalised.states if s.resized and s.written) | unspecified(normalised.proto)


def alike_caches(
    channels: ChannelGraph, normalised: Normalised, frozen: Collection[int]
) -> tuple[tuple[int, ...], ...]:
    """Sets of groups that caches which may change have, in each those that have equally many heads of one size.

    Where one of a set stays whole, it is none: its caches keep their size.
    """
    sets: dict[tuple[int, int], set[int]] = {}
    for s in normalised.states:
        for g in channels.groups_in(s.units) if s.resized else ():
            if g >= 0:
                group = channels.groups[g]
                sets.setdefault((group.size, group.channels_per_unit), set()).add(g)
    return tuple(tuple(sorted(own)) for own in sets.values() if len(own) > 1 and not own.intersection(frozen))
