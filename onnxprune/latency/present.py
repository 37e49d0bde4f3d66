"""Times of layers at other widths from those at the present ones alone, by what the layers do: an extrapolation.

    t = a + b · MACs + c · bytes        a, b, c ≥ 0

is fitted to all layers of a profile that are timed: what starting a layer takes, what a product takes, and what a byte
does that is read or written. Each layer then takes at its present widths what was measured, and at others that times t
there over t here. Widths are rounded up to the target's alignment, as they are padded to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

import numpy as np
from scipy.optimize import nnls

from onnxprune.channels import ChannelGraph
from onnxprune.cost import length_of_axis
from onnxprune.cost.macs import macs_by_node
from onnxprune.cost.terms import Length, Term
from onnxprune.graph.view import Node
from onnxprune.latency.table import Sample, Table, fit
from onnxprune.latency.timing_file import LayerRow, Target
from onnxprune.numerics.arrays import Doubles

_BYTES = 4.0
_SHARES = (0.25, 0.5, 0.75, 1.0)
_NEGLIGIBLE = 1e-12


def fixed_share(target: Target) -> float:
    """The share of the time of the whole that no layer with a width takes."""
    timed = sum(s for s in target.cuts[0].seconds if s is not None)
    return max(1.0 - timed / target.seconds, 0.0)


def tables_of(target: Target, channels: ChannelGraph) -> list[Table]:
    """The table of each layer of a profile."""
    nodes = {o: n for n in channels.graph.every_node for o in n.outputs if o}
    macs = macs_by_node(channels)
    works = [_work_of(row, nodes.get(row.output), channels, macs) for row in target.layers]
    seconds = np.array([s or 0.0 for s in target.cuts[0].seconds])
    terms = np.array([w.at(tuple(1.0 for _ in row.axes)) for w, row in zip(works, target.layers, strict=True)])
    units = terms.max(axis=0)
    units[units == 0.0] = 1.0
    scale = 1.0 / np.maximum(seconds, max(float(seconds.mean()), _NEGLIGIBLE))
    weights, _ = nnls(terms / units * scale[:, None], seconds * scale)
    return [
        _table(row, w, s, weights / units, target.alignment)
        for row, w, s in zip(target.layers, works, seconds, strict=True)
    ]


def _table(row: LayerRow, work: _Work, seconds: float, weights: Doubles, alignment: int) -> Table:
    full = tuple(a.size for a in row.axes)
    whole = float(work.at(tuple(1.0 for _ in full)) @ weights)
    samples: list[Sample] = []
    for shares in product(_SHARES, repeat=len(full)):
        lengths = tuple(max(s * f, 1.0) for s, f in zip(shares, full, strict=True))
        padded = tuple(ceil(x / alignment) / ceil(f / alignment) for x, f in zip(lengths, full, strict=True))
        at = float(work.at(padded) @ weights) / whole if whole > 0.0 else 1.0
        samples.append(Sample(lengths, seconds * at))
    return fit(samples, full, (alignment,))


@dataclass(frozen=True)
class _Work:
    """What a layer does, as a function of its lengths over their present ones.

    products: MACs; moved: of each tensor its bytes, and which of the lengths it has.
    """

    products: float
    moved: tuple[tuple[float, tuple[int, ...]], ...] = ()

    def at(self, shares: Sequence[float]) -> Doubles:
        """(1, MACs, bytes) where each length has this share of its present one."""
        moved = sum(size * prod(shares[i] for i in axes) for size, axes in self.moved)
        return np.array([1.0, self.products * prod(shares), moved])


def _work_of(row: LayerRow, node: Node | None, channels: ChannelGraph, macs: Mapping[int, Sequence[Term]]) -> _Work:
    """The work of a node; none that is known, where the graph does not have it."""
    if node is None:
        return _Work(0.0)
    full = channels.sizes
    lengths = [_length(channels, a.tensor, a.axis) for a in row.axes]
    moved: list[tuple[float, tuple[int, ...]]] = []
    for name in dict.fromkeys((*node.inputs, *node.outputs)):
        shape = channels.graph.shape(name) if name else None
        if shape is None:
            continue
        own = [length_of_axis(channels, name, i, size) for i, size in enumerate(shape)]
        moved.append((_BYTES * prod(shape), tuple(i for i, x in enumerate(lengths) if x in own)))
    return _Work(sum(t.at(full) for t in macs.get(node.index, ())), tuple(moved))


def _length(channels: ChannelGraph, tensor: str, axis: int) -> Length | None:
    shape = channels.graph.shape(tensor)
    return None if shape is None or axis >= len(shape) else length_of_axis(channels, tensor, axis, shape[axis])
