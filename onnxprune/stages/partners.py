"""The inputs and outputs that --resize-io has to name together, as the same units are entries of all of them.

A cache is read at one name and given at another, and of grouped attention keys and values lose the same heads. Where
some of these are named and others are not, those keep the units in all. So the channel graph is drawn once more with
every input and output of real numbers free to change: what shares a group with one that is named belongs to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from fnmatch import fnmatchcase

from onnx import helper

from onnxprune.channels import ChannelGraph
from onnxprune.errors import UsageError
from onnxprune.normalise import Normalised
from onnxprune.normalise.states import with_gathers
from onnxprune.numerics.arrays import is_float
from onnxprune.options import first_of
from onnxprune.stages.ports import RESIZE_IO

_SHOWN = 4


def demand_partners(
    normalised: Normalised,
    channels: ChannelGraph,
    traced: Callable[[Normalised], ChannelGraph],
    named: Collection[str],
    *,
    one_number: bool = False,
) -> None:
    """Raises UsageError where what is named could change, if others were named along.

    traced: the channel graph of a normal form. named: the inputs and outputs that may change. one_number: all caches
    have equally many heads, as a settings file says, so that those of every layer belong together.
    """
    own = [s for s in normalised.states if s.resized and s.port in named]
    still = {s.port for s in own} - {s.port for s in own if channels.groups_in(s.units)}
    others = _real(normalised) - {s.port for s in normalised.states} - {*named}
    if not others or not (still or (one_number and own)):
        return
    more = with_gathers(replace(normalised, states=()), (), others)
    states = (*normalised.states, *more.states)
    free = traced(replace(more, states=states))
    by_port: dict[str, set[int]] = {}
    for s in states:
        by_port.setdefault(s.port, set()).update(free.groups_in(s.units))
    held = [p for p in by_port if p in still and by_port[p]]
    along = [k for k in by_port if k in others and any(by_port[k] & by_port[p] for p in held)]
    if along:
        raise UsageError(
            f"{RESIZE_IO}: {_as_patterns(held, by_port)} can change only together with {_as_patterns(along, by_port)}, "
            "where the same units are entries: name these too"
        )
    if not one_number:
        return
    sizes = {_size(free, g) for s in own for g in by_port[s.port]}
    alike = [k for k in by_port if k in others and {_size(free, g) for g in by_port[k]} & sizes]
    if alike:
        raise UsageError(
            f"{RESIZE_IO}: the settings file beside the model knows one number of heads for all layers: name "
            f"{_as_patterns(alike, by_port)} too, or the layers' caches would differ"
        )


def _real(normalised: Normalised) -> set[str]:
    """The inputs and outputs of real numbers."""
    ports = (*normalised.proto.graph.input, *normalised.proto.graph.output)
    return {v.name for v in ports if is_float(helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type or 1))}


def _size(channels: ChannelGraph, group: int) -> tuple[int, int]:
    g = channels.groups[group]
    return g.size, g.channels_per_unit


def _as_patterns(names: Collection[str], every: Collection[str]) -> str:
    """Names for a message, as patterns where these match no others."""
    said: dict[str, None] = {}
    for name in names:
        pattern = re.sub(r"\d+", "*", name)
        fits = all(other in names for other in every if fnmatchcase(other, pattern))
        said[pattern if fits else name] = None
    return first_of([*map(repr, said)], _SHOWN)
