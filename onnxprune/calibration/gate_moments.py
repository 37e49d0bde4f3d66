"""What the network's outputs say of every channel: gate gradients, collected in one backward pass per batch.

For a sample with the random seed r of `Objective.probe`, d_j = Σ x_j ⊙ ∂<r, y>/∂x_j is the gradient of a projection
of the outputs with respect to the gate of channel j. Σ E[d dᵀ] is the Gauss-Newton matrix of the discrepancy of the
outputs with respect to the gates, and its diagonal the Taylor score of Molchanov et al. 2019 (arXiv 1906.10771). The
same pass gives Σ g gᵀ of the gradient g at the output of every layer, the other factor of the Kronecker form (Martens &
Grosse 2015, arXiv 1503.05671; for convolutions Grosse & Martens 2016, arXiv 1602.01407).

The sums are formed by nodes appended to the graph, so only what is as small as a layer's width leaves the runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxprune.calibration.input_moments import SHARDS
from onnxprune.calibration.probe import Batch, Probe
from onnxprune.channels import ChannelGraph
from onnxprune.channels.gates import by_group, sums_of
from onnxprune.graph import external
from onnxprune.jobs.work import Here, Scheduler, Work
from onnxprune.numerics.arrays import Doubles
from onnxprune.objective import Objective
from onnxprune.threads import prefetched


@dataclass(eq=False)
class GateMoments:
    """Sums over samples for the gates of one group.

    gram: Σ E[d dᵀ], (U, U), half of the Gauss-Newton Hessian of the discrepancy. slope: its gradient at gates of 1,
    (U,). absolute, square: Σ |d| and Σ d², (U,), with d of the single samples: of the task loss where there are labels,
    else of the random projections.
    """

    gram: Doubles
    slope: Doubles
    absolute: Doubles
    square: Doubles

    @classmethod
    def zeros(cls, units: int) -> GateMoments:
        """Sums over no sample yet, for so many units."""
        return cls(np.zeros((units, units)), *(np.zeros(units) for _ in range(3)))

    def merge(self, other: GateMoments) -> None:
        """Add what another object has seen."""
        self.gram += other.gram
        self.slope += other.slope
        self.absolute += other.absolute
        self.square += other.square


@dataclass(frozen=True, eq=False)
class OutputMoments:
    """gates: by group index. metrics: by weight, Σ g gᵀ at the output of each layer, (groups, O, O).

    missing: group index → why there are no gradients.
    """

    gates: Mapping[int, GateMoments] = field(default_factory=dict)
    metrics: Mapping[str, Doubles] = field(default_factory=dict)
    missing: Mapping[int, str] = field(default_factory=dict)


def collect(
    probe: Probe,
    channels: ChannelGraph,
    batches: Iterable[Batch],
    objective: Objective,
    *,
    probes: int,
    seed: int,
    slope: bool,
    scheduler: Scheduler | None = None,
) -> OutputMoments:
    """Moments of every group that `probe` has gates of, in `probes` passes over the batches.

    slope: one more pass gives the gradient of the objective itself, which is 0 where the network is the original and
    its own outputs are the goal.
    """
    scheduler = scheduler or Here()
    work = GateSums(probe, channels, objective, probes, seed, slope)
    kept = list(batches)
    per_shard = -(-len(kept) // (SHARDS if scheduler.workers else 1))
    parts = [
        GateShard(number, first, tuple(kept[first : first + per_shard]))
        for number in range(probes + slope)
        for first in range(0, len(kept), per_shard)
    ]
    total = OutputMoments(work.zeros(), {}, work.missing)
    metrics: dict[str, Doubles] = {}
    for sums in scheduler.map(work, parts, len(parts)):
        for g, moments in sums.gates.items():
            total.gates[g].merge(moments)
        for weight, metric in sums.metrics.items():
            metrics[weight] = metrics.get(weight, 0.0) + metric
    return replace(total, metrics=metrics)


@dataclass(frozen=True, eq=False)
class GateShard:
    """Some consecutive batches of one pass: the number of the pass, and of the first batch."""

    number: int
    first: int
    batches: tuple[Batch, ...]


@dataclass(frozen=True, eq=False)
class GateSums(Work[GateShard, OutputMoments]):
    """The moments of one shard; fields as the arguments of `collect`. The passes after `probes` give the slope."""

    probe: Probe
    channels: ChannelGraph
    objective: Objective
    probes: int
    seed: int
    slope: bool

    @cached_property
    def groups(self) -> dict[int, list[int]]:
        """Group index → places of its gates in the probe."""
        return by_group(self.channels, self.probe.gates)

    @cached_property
    def missing(self) -> dict[int, str]:
        """Group index → why there are no gradients."""
        reasons = self.probe.missing
        return {g: reasons[i] for g, own in self.groups.items() for i in own if i in reasons}

    def zeros(self) -> dict[int, GateMoments]:
        """Empty sums of the groups with gradients."""
        return {g: GateMoments.zeros(self.channels.groups[g].size) for g in self.groups if g not in self.missing}

    def portable(self) -> GateSums:
        """The same work with the weights inside, as another machine needs it."""
        return replace(self, probe=replace(self.probe, proto=external.sendable(self.probe.proto)))

    def __getstate__(self) -> dict[str, Any]:
        bare = replace(self.channels, graph=replace(self.channels.graph, constants={}))
        return {**super().__getstate__(), "channels": bare}

    def __call__(self, item: GateShard) -> OutputMoments:
        """The sums over the batches of a shard."""
        probe, channels = self.probe, self.channels
        gate_moments, metrics = self.zeros(), dict[str, Doubles]()
        mixed = {g for g, own in self.groups.items() if any(probe.gates[i].batch is None for i in own)}
        probes = item.number < self.probes
        for batch, values in prefetched(probe.run(item.batches, self.objective, self._draws(item))):
            for g, moments in gate_moments.items():
                d = np.zeros((batch.count, channels.groups[g].size))
                for i in self.groups[g]:
                    if i in probe.gradients:
                        sums = sums_of(channels, g, probe.gates[i], values[probe.gradients[i]])
                        d += _per_sample(sums, batch.count, mixed=g in mixed)
                if probes:
                    moments.gram += d.T @ d / self.probes
                else:
                    moments.slope += d.sum(axis=0)
                if probes != self.slope:
                    passes = 1 if self.slope else self.probes
                    moments.absolute += np.abs(d).sum(axis=0) / passes
                    moments.square += (d**2).sum(axis=0) / passes
            if probes:
                for weight, name in probe.metrics.items():
                    metrics[weight] = metrics.get(weight, 0.0) + values[name].astype(np.float64) / self.probes
        return OutputMoments(gate_moments, metrics)

    def _draws(self, item: GateShard) -> list[np.random.Generator | None]:
        """The random numbers of each batch: they depend on the pass and the batch, not on who runs it."""
        if item.number >= self.probes:
            return [None] * len(item.batches)
        return [np.random.default_rng((self.seed, item.number, item.first + i)) for i in range(len(item.batches))]


def _per_sample(d: Doubles, count: int, *, mixed: bool) -> Doubles:
    """Rows (R, U) of `count` samples, one after the other, summed to (count, U).

    mixed: the samples cannot be told apart, so all rows are summed into the first. Seeds of different samples are
    independent, so the moments of the sum are those of all samples together, only less certain.
    """
    if not mixed and len(d) % count == 0:
        rows: Doubles = d.reshape(count, -1, d.shape[1]).sum(axis=1)
        return rows
    return np.concatenate([d.sum(axis=0, keepdims=True), np.zeros((count - 1, d.shape[1]))])
