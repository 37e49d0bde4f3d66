"""The time of a model at any widths, as a share of the original's, for `budget.allocate`.

    T(kept) = constant + scale · Σ_layers t(lengths at kept)

`constant` is what no layer with a length that can change explains: fixed layers, and what a run costs beside its
kernels. Both numbers follow from two whole models that were timed against the original: all units kept, and few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.cost import Length
from onnxprune.latency.table import Table
from onnxprune.numerics.arrays import Ints

Counts = Ints


@dataclass(frozen=True, eq=False)
class LayerCost:
    """A layer: its lengths, and what it takes at them; nothing where a group that it `needs` keeps no unit."""

    lengths: tuple[Length, ...]
    table: Table
    needs: tuple[int, ...] = ()

    def at(self, kept: Counts | Sequence[int]) -> float:
        """Seconds with `kept[g]` units of each group."""
        if any(kept[g] == 0 for g in self.needs):
            return 0.0
        return self.table.at(tuple(length.at(kept) for length in self.lengths))


@dataclass(frozen=True, eq=False)
class LatencyCost:
    """T above, over a sequence of layers; satisfies `budget.CostModel`."""

    layers: tuple[LayerCost, ...]
    constant: float
    scale: float
    touching: tuple[tuple[int, ...], ...]

    @classmethod
    def between(
        cls,
        layers: Sequence[LayerCost],
        groups: int,
        full: tuple[Sequence[int], float],
        few: tuple[Sequence[int], float],
    ) -> LatencyCost:
        """Through two whole models, each as (units kept, measured share of the original's time).

        Where fewer units are not quicker, the cost is the same at all widths, and no cut saves anything.
        """
        high, low = (sum(x.at(kept) for x in layers) for kept, _ in (full, few))
        gained = full[1] - few[1]
        scale = gained / (high - low) if gained > 0.0 and high > low else 0.0
        return cls.of(layers, groups, full[1] - scale * high, scale)

    @classmethod
    def of(cls, layers: Sequence[LayerCost], groups: int, constant: float, scale: float = 1.0) -> LatencyCost:
        """Index the layers by the groups that they depend on."""
        touching: list[list[int]] = [[] for _ in range(groups)]
        for i, layer in enumerate(layers):
            for g in sorted({g for length in layer.lengths for g, _ in length.groups}.union(layer.needs)):
                touching[g].append(i)
        return cls(tuple(layers), constant, scale, tuple(tuple(t) for t in touching))

    @classmethod
    def mean(cls, costs: Sequence[LatencyCost], groups: int) -> LatencyCost:
        """The mean of several costs of one model."""
        if len(costs) == 1:
            return costs[0]
        layers = [
            LayerCost(x.lengths, Table(x.table.full, x.table.block, c.scale / len(costs) * x.table.weights), x.needs)
            for c in costs
            for x in c.layers
        ]
        return cls.of(layers, groups, sum(c.constant for c in costs) / len(costs))

    def at(self, kept: Counts | Sequence[int]) -> float:
        """The share of the original's time."""
        return self.constant + self.scale * sum(x.at(kept) for x in self.layers)

    def saving(self, kept: Counts, group: int, fewer: int) -> float:
        """What keeping `fewer` units less of one group saves; only layers that touch it are looked at."""
        less = kept.copy()
        less[group] -= fewer
        touched = [self.layers[i] for i in self.touching[group]]
        return self.scale * sum(x.at(kept) - x.at(less) for x in touched)
