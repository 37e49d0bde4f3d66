"""What a model costs as a function of how many units of each group are kept.

Every cost is a sum of terms, coefficient · Π (axis length), and an axis length is linear in the numbers of kept units:
length = constant + Σ_g positions_g · n_g, with a fraction of a position where each row of a tensor has channels of its
own. MACs are in × out, so they are not additive over groups; the terms are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import ChannelGraph
from onnxprune.channels.branches import Drop
from onnxprune.channels.groups import INDEX_TYPES, weight_axes
from onnxprune.channels.labels import Labels, rows_of, tracked_axes
from onnxprune.channels.rules.recurrent import GATES
from onnxprune.channels.trace import Linear
from onnxprune.graph import Node

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Length:
    """constant + Σ positions · kept units, over (group index, positions)."""

    constant: float
    groups: tuple[tuple[int, float], ...] = ()

    def at(self, kept: Counts | Sequence[int]) -> float:
        """The length with `kept[g]` units of each group."""
        return self.constant + sum(p * kept[g] for g, p in self.groups)


@dataclass(frozen=True)
class Term:
    """coefficient · Π lengths, and 0 where nothing is kept of a group of which it needs some."""

    coefficient: float
    lengths: tuple[Length, ...]
    needs: tuple[int, ...] = ()

    def at(self, kept: Counts | Sequence[int]) -> float:
        """The value with `kept[g]` units of each group."""
        if any(kept[g] == 0 for g in self.needs):
            return 0.0
        value = self.coefficient
        for length in self.lengths:
            value *= length.at(kept)
        return value


@dataclass(frozen=True)
class Cost:
    """A sum of terms over `groups` groups."""

    terms: tuple[Term, ...]
    groups: int
    _touching: tuple[tuple[int, ...], ...] = field(default=())

    @classmethod
    def of(cls, terms: Iterable[Term], groups: int) -> Cost:
        """Index the terms by the groups that they depend on."""
        kept = tuple(terms)
        touching: list[list[int]] = [[] for _ in range(groups)]
        for i, t in enumerate(kept):
            for g in sorted({g for length in t.lengths for g, _ in length.groups}.union(t.needs)):
                touching[g].append(i)
        return cls(kept, groups, tuple(tuple(t) for t in touching))

    def at(self, kept: Counts | Sequence[int]) -> float:
        """The whole cost with `kept[g]` units of each group."""
        counts = _numbers(kept)
        return sum(t.at(counts) for t in self.terms)

    def saving(self, kept: Counts, group: int, fewer: int) -> float:
        """What keeping `fewer` units less of one group saves."""
        terms = [self.terms[i] for i in self._touching[group]]
        less = _numbers(kept).copy()
        before = sum(t.at(less) for t in terms)
        less[group] -= fewer
        return before - sum(t.at(less) for t in terms)


def _numbers(kept: Counts | Sequence[int]) -> list[int]:
    """Plain numbers: an entry of an array takes several times as long to read."""
    return kept.tolist() if isinstance(kept, np.ndarray) else list(kept)


def _length(channels: ChannelGraph, factor: Labels | None, size: int) -> Length:
    """The length of the axis that a factor tracks; with rows of channels of their own, that of each row."""
    if factor is None:
        return Length(size)
    groups = channels.group_of[factor]
    rows = 1 if factor.ndim == 1 else len(rows_of(factor))
    constant = int((groups < 0).sum()) / rows
    found, counts = np.unique(groups[groups >= 0], return_counts=True)
    return Length(
        constant,
        tuple((int(g), int(c) / rows / channels.groups[g].size) for g, c in zip(found, counts, strict=True)),
    )


def macs(channels: ChannelGraph, drops: Mapping[int, Drop] | None = None) -> Cost:
    """Multiply-accumulates of all contractions, at the batch and sizes that the shapes are bound to.

    Of an If both branches count, of a Loop or Scan one iteration. drops: what disappears with a group, as
    `channels.branches` finds it.
    """
    graph = channels.graph
    terms: list[Term] = []
    by_node = {linear.node.index: linear for linear in channels.linears}
    for node in graph.every_node:
        before = len(terms)
        linear = by_node.get(node.index)
        out = graph.shape(node.outputs[0]) if node.outputs else None
        if node.op in GATES and node.domain == "":
            terms += _recurrent(channels, node)
        elif linear is not None and out is not None:
            weight = graph.constants.get(linear.weight)
            wshape = weight.shape if weight is not None else graph.shape(linear.weight) or ()
            x = graph.shape(linear.data) or ()
            convolution = node.op in ("Conv", "ConvTranspose", "DeformConv")
            reads, _ = weight_axes(linear)
            inputs = _length(channels, linear.inputs, x[1] if convolution else wshape[reads])
            outputs = _length(channels, linear.outputs, out[1] if convolution else out[-1])
            if node.op in ("Conv", "DeformConv"):
                positions = int(np.prod(wshape[2:])) * out[0] * int(np.prod(out[2:]))
                terms.append(_convolution(positions, inputs, outputs, linear, wshape[1]))
            elif node.op == "ConvTranspose":
                positions = int(np.prod(wshape[2:])) * x[0] * int(np.prod(x[2:]))
                terms.append(_convolution(positions, outputs, inputs, linear, wshape[1]))
            else:
                rows = [length_of_axis(channels, node.outputs[0], i, s) for i, s in enumerate(out[:-1])]
                terms.append(Term(1.0, (inputs, outputs, *rows)))
        elif node.op in ("MatMul", "Gemm") and out is not None:
            a = graph.shape(node.inputs[0]) or (1,)
            summed = 0 if node.op == "Gemm" and node.attrs.get("transA", 0) else len(a) - 1
            lengths = [length_of_axis(channels, node.inputs[0], summed, a[summed])]
            lengths += [length_of_axis(channels, node.outputs[0], i, s) for i, s in enumerate(out)]
            terms.append(Term(1.0, tuple(lengths)))
        elif node.op == "Attention":
            terms += _attention(channels, node)
        needs = tuple(d.group for d in (drops or {}).values() if node.index in d.nodes)
        terms[before:] = [replace(t, needs=needs) for t in terms[before:]]
    return Cost.of(terms, len(channels.groups))


def _recurrent(channels: ChannelGraph, node: Node) -> list[Term]:
    """Every step of every sequence multiplies W (D, G H, I) and R (D, G H, H), in all directions."""
    x, w, r = node.inputs[:3]
    steps, sequences, _ = channels.graph.shape(x) or (1, 1, 1)
    directions, _, wide = channels.graph.shape(w) or (1, 1, 1)
    hidden = length_of_axis(channels, r, 2, (channels.graph.shape(r) or (1, 1, 1))[2])
    each = float(steps * sequences * directions * GATES[node.op])
    return [Term(each, (hidden, length_of_axis(channels, w, 2, wide))), Term(each, (hidden, hidden))]


def _attention(channels: ChannelGraph, node: Node) -> list[Term]:
    """Q·Kᵀ and the sum over the values: queries × keys for each entry of q and of the output."""
    found: list[Term] = []
    for name in (node.inputs[0], node.outputs[0]):
        shape, keys = channels.graph.shape(name) or (), channels.graph.shape(node.inputs[1]) or ()
        past = channels.graph.shape(node.input(4)) if node.input(4) else None
        if len(shape) not in (3, 4) or len(shape) != len(keys):
            continue
        total = keys[-2] + (past[2] if past else 0)
        wide = (2,) if len(shape) == 3 else (1, 3)
        lengths = tuple(length_of_axis(channels, name, a, shape[a]) for a in wide)
        found.append(Term(float(shape[0] * shape[-2] * total), lengths))
    return found


def length_of_axis(channels: ChannelGraph, tensor: str, axis: int, size: int) -> Length:
    """The length of an axis of a tensor, which has `size` positions in the original."""
    return _length(channels, channels.axis_factor(tensor, axis), size)


def _convolution(positions: int, inside: Length, outside: Length, linear: Linear, per_group: int) -> Term:
    """positions · outside · inside / groups; where whole groups are the units, channels per group stay."""
    if linear.groups == 1:
        return Term(float(positions), (inside, outside))
    if linear.inputs is not None:
        rows = linear.inputs.reshape(linear.groups, -1)
        if (rows == rows[:, :1]).all():
            return Term(float(positions * per_group), (outside,))
    return Term(positions / linear.groups, (inside, outside))


def parameters(channels: ChannelGraph, drops: Mapping[int, Drop] | None = None) -> Cost:
    """Elements of all weights; drops: as for `macs`."""
    terms: list[Term] = []
    owners = _only_read_by(channels, drops or {})
    for name, values in channels.graph.constants.items():
        if values.dtype in INDEX_TYPES:
            continue
        rest = values.size
        lengths: list[Length] = []
        for f in channels.factors.get(name, ()):
            axis = tracked_axes(f)[-1]
            length = _length(channels, f, values.shape[axis])
            if length.groups:
                rest //= values.shape[axis]
                lengths.append(length)
        terms.append(Term(float(rest), tuple(lengths), tuple(owners.get(name, ()))))
    return Cost.of(terms, len(channels.groups))


def _only_read_by(channels: ChannelGraph, drops: Mapping[int, Drop]) -> dict[str, list[int]]:
    """By weight, the groups with which all nodes disappear that read it."""
    graph = channels.graph
    found: dict[str, list[int]] = {}
    for name, readers in graph.readers.items():
        if name in graph.constants and name not in graph.captured:
            reading = {n.index for n, _ in readers}
            found[name] = [d.group for d in drops.values() if reading <= d.nodes]
    return found
