"""Sizes as unknowns: what is computed from them is constant only where any numbers in their place give the same.

At a handful of small sizes "at most 200", "at most as many as there are columns" and "the number of tiles" stay what
they are. So the arithmetic of sizes is run by itself, with larger numbers in place of each size that the model reads
and that changes: one unknown after the other, far beyond what was measured, and all at once. Sizes to which shape
inference gives one name are one unknown; of others it is not assumed that they are related.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import RunError
from onnxprune.graph import protobuf
from onnxprune.normalise.measured import Measured, as_far_as_it_runs, by_name
from onnxprune.normalise.steps import behind, unchanged
from onnxprune.numerics.arrays import Array, Mask
from onnxprune.runtime.session import Feeds, Session

# By what an unknown grows, in turn: some arithmetic takes multiples alone; and what is added, as some rounds seldom.
_FACTORS = (4, 5, 6, 7, 9, 12, 17, 25, 51, 250, 1009)
_ADDED = range(1, 33)
_TAKEN = (1, 2, 3, 5, 11)
_DRAWN = 24
# Bytes that the next run may come to, if what grew grows as a square does.
_MOST_BYTES = 32 << 20
# Stands for a size that shape inference knows.
_NUMBER = "#"
# Unknowns that grow one by one; where there are more, all of them at once only.
_MOST_ALONE = 64

# The name that shape inference gives a size, or a tensor and its axis.
Unknown = str | tuple[str, int]
# A factor, and the unknowns that it is multiplied with.
Entry = tuple[int, tuple[Unknown, ...]]


@dataclass(frozen=True, eq=False)
class Loose:
    """What stood still and is no constant: entries by name, none where it is the length or the only number of a tensor
    that changes; and the names of which no run with other sizes told anything."""

    entries: Mapping[str, Mask]
    untold: frozenset[str]


@dataclass(frozen=True, eq=False)
class _Read:
    """A tensor of sizes, as the first run had it, and what its entries are made of."""

    value: Array
    entries: tuple[Entry, ...]

    @property
    def open(self) -> Mask:
        """Which entries are unknowns."""
        return np.array([bool(of) for _, of in self.entries], bool).reshape(self.value.shape)

    def at(self, sizes: Mapping[Unknown, int]) -> Array:
        """The tensor with these sizes in place of its unknowns."""
        flat = [factor * prod(sizes[u] for u in unknowns) for factor, unknowns in self.entries]
        return np.array(flat, self.value.dtype).reshape(self.value.shape)


def loose(proto: onnx.ModelProto, runs: Sequence[Measured]) -> Loose:
    """What of the values in `runs`, which follow from sizes alone, other sizes change though they stood still."""
    plain = by_name(runs)
    reads, base = _reads(proto, runs[0], plain)
    names = [k for k in plain if k not in reads]
    if not base or not names:
        return Loose({}, frozenset())
    types = {k: int(helper.np_dtype_to_tensor_dtype(r.value.dtype)) for k, r in reads.items()}
    part = protobuf.submodel(proto, types, names)
    session = Session(part, optimize=False)
    still = {k: unchanged(plain[k]) for k in names if len({v.shape for v in plain[k]}) == 1}
    uniform = {k: plain[k][0].flat[0] for k in names if k not in still and _alike(plain[k])}
    entries: dict[str, Mask] = {k: r.open for k, r in reads.items() if r.open.any()}

    def told(grown: Sequence[Unknown]) -> set[str]:
        """What runs with these unknowns larger tell of; what they change is added to `entries`."""
        names: set[str] = set()
        for values in _values(session, part, reads, base, grown, plain):
            names |= values.keys()
            for k in still.keys() & values.keys():
                changed = still[k] & ~unchanged([plain[k][0], values[k]])
                if changed.any() or values[k].shape != still[k].shape:  # of what is empty no entry changes
                    entries[k] = changed | entries.get(k, np.False_)
            for k in uniform.keys() & values.keys():
                if (values[k] != uniform[k]).any():
                    entries[k] = np.zeros(plain[k][0].shape, bool)
        return names

    def behind_any(grown: Set[Unknown]) -> set[str]:
        """What is computed from these unknowns and stood still."""
        return (
            behind(proto, [k for k, r in reads.items() if any(grown & set(of) for _, of in r.entries)]) & still.keys()
        )

    untold = behind_any(base.keys()) - told(list(base))
    if untold and len(base) > 1:
        # All at once they do not go together: one by one, where they are not too many.
        alone = [(behind_any({u}) & untold) - told([u]) for u in base] if len(base) <= _MOST_ALONE else [untold]
        untold = set().union(*alone)
    return Loose(entries, frozenset(untold))


def _alike(values: Sequence[Array]) -> bool:
    """Whether every entry in every run is the same number."""
    return all(v.size > 0 and bool((v == values[0].flat[0]).all()) for v in values)


def _values(
    session: Session,
    part: onnx.ModelProto,
    reads: Mapping[str, _Read],
    base: Mapping[Unknown, int],
    grown: Sequence[Unknown],
    plain: Mapping[str, Sequence[Array]],
) -> Iterator[dict[str, Array]]:
    """The values with these unknowns larger and larger, and at random; where they do not go together, as far as they
    can be had."""
    names = [k for k in plain if k not in reads]

    def feeds(sizes: Mapping[Unknown, int]) -> Feeds:
        return {name: r.at({**base, **sizes}) for name, r in reads.items()}

    def values(sizes: Mapping[Unknown, int]) -> dict[str, Array]:
        """The values of `names` at these sizes; none where the arithmetic does not take them."""
        try:
            outputs = session.run(feeds(sizes))
        except RunError:
            return {}
        return {n: outputs[n] for n in names if isinstance(outputs[n], np.ndarray)}

    tried = [*((1, k) for k in _ADDED), *((f, 0) for f in _FACTORS)]
    most, now = 0, {}
    for k, (factor, more) in enumerate(tried):
        now = {u: max(base[u], 1) * (factor + i) + more for i, u in enumerate(grown)}
        computed = values(now)
        if computed:
            most = factor
            yield computed
            larger = sum(v.nbytes for n, v in computed.items() if v.nbytes > plain[n][0].nbytes)
            if k + 1 < len(tried) and larger * (tried[k + 1][0] / factor) ** 2 > _MOST_BYTES:
                break
    if most:
        rng = np.random.default_rng(0)
        for _ in range(_DRAWN):
            draws = {u: int(np.exp(rng.uniform(0, np.log(max(base[u], 1) * most + 1)))) for u in grown}
            yield values(draws)
        return
    # A model may take no more than what was measured.
    fewer = [computed for less in _TAKEN if (computed := values({u: max(base[u] - less, 1) for u in grown}))]
    yield from fewer or [as_far_as_it_runs(part, names, feeds(now))]


def _reads(
    proto: onnx.ModelProto, run: Measured, plain: Mapping[str, Sequence[Array]]
) -> tuple[dict[str, _Read], dict[Unknown, int]]:
    """The tensors of sizes that the model reads of others, and the unknowns in them with their sizes in a run."""
    axes = _axes(proto)
    nodes = [n for n in proto.graph.node if n.op_type in ("Shape", "Size") and n.output[0] in plain]
    nodes = [n for n in nodes if n.input[0] not in plain]
    base: dict[Unknown, int] = {}
    reads: dict[str, _Read] = {}

    def unknown(tensor: str, axis: int, size: int) -> Unknown:
        name: Unknown = axes.get(tensor, {}).get(axis, "") or (tensor, axis)
        if base.get(name, size) != size:
            name = (tensor, axis)
        base[name] = size
        return name

    for n in sorted(nodes, key=lambda n: n.op_type != "Shape"):
        value = run.values[n.output[0]]
        changes = ~unchanged(plain[n.output[0]]) | (value == 0)  # nothing is left, so far
        entries: list[Entry] = [(int(v), ()) for v in value.ravel()]
        if n.op_type == "Shape":
            start = protobuf.int_attribute(n, "start", 0)
            rank = len(axes.get(n.input[0], {})) or len(entries)
            first = start + rank if start < 0 else start
            for k in np.flatnonzero(changes).tolist():
                if axes.get(n.input[0], {}).get(first + k) != _NUMBER:
                    entries[k] = (1, (unknown(n.input[0], first + k, int(value[k])),))
        elif changes.any():
            named = axes.get(n.input[0], {})
            every = ((a, name) for a, name in named.items() if name != _NUMBER)
            of = tuple(u for a, name in every if (u := name or (n.input[0], a)) in base)
            rest = prod(base[u] for u in of)
            whole = len(of) > 0 and rest > 0 and int(value) % rest == 0
            entries = [(int(value) // rest, of)] if whole else [(1, (unknown(n.input[0], -1, int(value)),))]
        reads[n.output[0]] = _Read(value, tuple(entries))
    return reads, base


def _axes(proto: onnx.ModelProto) -> dict[str, dict[int, str]]:
    """By tensor and axis the name that shape inference finds for its size, `_NUMBER` for a number, "" for nothing."""
    proto = protobuf.inferred(proto)
    axis_names: dict[str, dict[int, str]] = {}
    for v in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        shape = v.type.tensor_type.shape
        if v.type.tensor_type.HasField("shape"):
            axis_names[v.name] = {
                a: _NUMBER if d.HasField("dim_value") else d.dim_param for a, d in enumerate(shape.dim)
            }
    return axis_names
