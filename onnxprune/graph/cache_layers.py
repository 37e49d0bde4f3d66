"""Which layer of a model is which of the one that it was cut from, by the caches of both.

Caches are numbered from 0 on, so those behind a layer that went have other numbers than before: what the original
calls "past_key_values.3.key" is "past_key_values.2.key" then. Nodes keep their names, so that the one which reads a
cache tells whose it is. Where names tell nothing, the kinds of caches do as far as they go: layers keep their order,
and one that keeps the rows of a window is none that keeps every position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import onnx

from onnxprune.graph import bodies, kept_inputs
from onnxprune.graph.numbered_names import parted

# A place where a node reads or gives a tensor: the node's operator and name, the side and the slot, and the tensor's
# name without its number.
_Place = tuple[str, str, bool, int, str]
# Of a cache: how many rows it has at least, and its sizes, 0 for one that is free.
_Kind = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class CacheLayers:
    """names: of a model's inputs and outputs those that the original calls otherwise, name → the original's. layers:
    the numbers in them, ascending, with those in the original's. certain: whether no other layers could be meant.
    unlike: an input, by the original's name, that keeps the rows of a window in one of the models, and more rows or
    every position in the other; "" for none.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[int, int] = field(default_factory=dict)
    certain: bool = True
    unlike: str = ""

    @property
    def why_not_empty(self) -> str:
        """Why caches without a position cannot be fed to both models; "" where they can."""
        if not self.unlike:
            return ""
        return (
            f"the cache {self.unlike!r} keeps the rows of a window in one of the models, and others in the other, so "
            "both cannot be fed the same: compare each with the model that it was cut from"
        )


def cache_layers(model: onnx.ModelProto, original: onnx.ModelProto) -> CacheLayers:
    """The layers of a model with fewer caches than the original, which need no other names where it has all of them."""
    found = _layers(model, original)
    rows, before = (_rows(m) for m in (model, original))
    own = {found.names.get(name, name): n for name, n in rows.items()}
    return replace(found, unlike=next((k for k, n in before.items() if own.get(k, n) != n), ""))


def of_other_layers(model: onnx.ModelProto, other: onnx.ModelProto, caches: Collection[str]) -> frozenset[str]:
    """Of two models with the same inputs and outputs, those that belong to one layer in one of them and to another one
    in the other, by the nodes that read and give them: both were cut from one model and lost different layers. None
    where the names of nodes tell nothing, or the same of both.

    caches: the inputs that are caches, by name.
    """
    if not caches:
        return frozenset()
    names = {v.name for m in (model, other) for v in _ports(m)}
    split = {name: parted(name, names) for name in names}
    numbers: dict[str, set[int]] = defaultdict(set)
    for text, number in split.values():
        numbers[text].add(number)
    layers = {number for name in caches for text, number in [split.get(name, ("", 0))] if text}
    families = {text for text, own in numbers.items() if text and own == layers}
    own, before = (_Ports.of(m, split, families) for m in (model, other))
    found = _named(own, before)
    if not any(found.values()) or all(n in found[n] for n in own.by_number):
        return frozenset()
    return frozenset(name for ports in own.by_number.values() for name in ports.values())


def _layers(model: onnx.ModelProto, original: onnx.ModelProto) -> CacheLayers:
    missing = {v.name for v in _ports(original)} - {v.name for v in _ports(model)}
    if not missing:
        return CacheLayers()
    names = {v.name for m in (model, original) for v in _ports(m)}
    split = {name: parted(name, names) for name in names}
    families = {split[name][0] for name in missing if split[name][0]}
    if not families:
        return CacheLayers(certain=False)
    own, before = (_Ports.of(m, split, families) for m in (model, original))
    by_name = _by_places(own, before)
    if by_name is not None:
        layers, certain = by_name, True
    else:
        first, last = _in_order(own, before), _in_order(own, before, backwards=True)
        layers, certain = first or {}, first is not None and first == last
    called = {
        name: before.by_number[layers[n]][text]
        for n, ports in own.by_number.items()
        if n in layers
        for text, name in ports.items()
    }
    moved = {n: m for n, m in layers.items() if n != m}
    return CacheLayers({k: v for k, v in called.items() if k != v}, moved, certain)


@dataclass(frozen=True)
class _Ports:
    """by_number: inputs and outputs by their number and the rest of their names; kinds: of the same; places: where
    nodes read and give them, with the number."""

    by_number: Mapping[int, Mapping[str, str]]
    kinds: Mapping[int, Mapping[str, _Kind]]
    places: Mapping[_Place, frozenset[int]]

    @classmethod
    def of(cls, proto: onnx.ModelProto, split: Mapping[str, tuple[str, int]], families: Iterable[str]) -> _Ports:
        rows = kept_inputs.windows(proto)
        by_number: dict[int, dict[str, str]] = defaultdict(dict)
        kinds: dict[int, dict[str, _Kind]] = defaultdict(dict)
        ports: dict[str, tuple[str, int]] = {}
        for v in _ports(proto):
            text, number = split[v.name]
            if text in families:
                ports[v.name] = text, number
                by_number[number][text] = v.name
                sizes = tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
                kinds[number][text] = rows.get(v.name, 0), sizes
        places: dict[_Place, set[int]] = defaultdict(set)
        # What takes the sizes of the past takes those of any cache.
        for n in (n for n in bodies.every_node(proto.graph) if n.op_type != "Shape"):
            for given, values in ((False, n.input), (True, n.output)):
                for slot, (text, number) in ((k, ports[t]) for k, t in enumerate(values) if t in ports):
                    places[n.op_type, n.name or bodies.main_output(n), given, slot, text].add(number)
        return cls(dict(sorted(by_number.items())), kinds, {k: frozenset(v) for k, v in places.items()})


def _by_places(own: _Ports, before: _Ports) -> dict[int, int] | None:
    """The layers by the nodes that read and give their caches; None where these do not name one for each, in order."""
    named = _named(own, before)
    found = {n: next(iter(named[n])) for n in own.by_number if len(named[n]) == 1}
    if len(found) < len(own.by_number) or any(b <= a for a, b in pairwise(found.values())):
        return None
    return found if all(_fits(own.kinds[n], before.kinds[m]) for n, m in found.items()) else None


def _named(own: _Ports, before: _Ports) -> Mapping[int, set[int]]:
    """By number, those of the caches that the same nodes read and give in the other model."""
    named: dict[int, set[int]] = defaultdict(set)
    for place, numbers in own.places.items():
        for n in numbers:
            named[n] |= before.places.get(place, frozenset())
    return named


def _in_order(own: _Ports, before: _Ports, *, backwards: bool = False) -> dict[int, int] | None:
    """The first layers of the original, or the last ones, that have caches as a model's have; None where none do."""
    found: dict[int, int] = {}
    waiting = sorted(before.by_number, reverse=backwards)
    for n in sorted(own.by_number, reverse=backwards):
        fitting = next((k for k, m in enumerate(waiting) if _fits(own.kinds[n], before.kinds[m])), None)
        if fitting is None:
            return None
        found[n] = waiting[fitting]
        waiting = waiting[fitting + 1 :]
    return dict(sorted(found.items()))


def _fits(own: Mapping[str, _Kind], before: Mapping[str, _Kind]) -> bool:
    """Whether caches may be what is left of others: of the same kinds, and nowhere larger."""
    return own.keys() <= before.keys() and all(
        rows == before[text][0]
        and len(sizes) == len(before[text][1])
        and all(not a or not b or a <= b for a, b in zip(sizes, before[text][1], strict=True))
        for text, (rows, sizes) in own.items()
    )


def _rows(proto: onnx.ModelProto) -> dict[str, int]:
    """Of each input, the rows of a window that it keeps; 0 for one that is no such cache."""
    windows = kept_inputs.windows(proto)
    return {v.name: windows.get(v.name, 0) for v in proto.graph.input}


def _ports(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    yield from proto.graph.input
    yield from proto.graph.output
