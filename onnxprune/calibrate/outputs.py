"""What the network's outputs say of every channel: gate gradients, collected in one backward pass per batch.

For a sample with the random seed r of `Objective.probe`, d_j = Σ x_j ⊙ ∂<r, y>/∂x_j is the gradient of a projection of
the outputs with respect to the gate of channel j. Σ E[d dᵀ] is the Gauss-Newton matrix of the discrepancy of the outputs
with respect to the gates, and its diagonal the Taylor score of Molchanov et al. 2019 (arXiv 1906.10771). The same pass
gives Σ g gᵀ of the gradient g at the output of every layer, the other factor of the Kronecker form (Martens & Grosse
2015, arXiv 1503.05671; for convolutions Grosse & Martens 2016, arXiv 1602.01407).

The sums are formed by nodes appended to the graph, so only what is as small as a layer's width leaves the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune import model as m
from onnxprune.calibrate.layers import Layer
from onnxprune.calibrate.samples import Samples
from onnxprune.calibrate.statistics import batch_size
from onnxprune.channels import ChannelGraph
from onnxprune.gates import Gate, by_group, sums_of
from onnxprune.gradients import Backward, backward
from onnxprune.gradients.build import Builder
from onnxprune.graph import Array, Graph
from onnxprune.objective import Objective
from onnxprune.prefetch import prefetched
from onnxprune.runtime import Session

Floats = NDArray[np.float64]


@dataclass(eq=False)
class GateMoments:
    """Of one group's gates, all sums over samples and gradients of the value of the objective.

    gram: Σ E[d dᵀ], (U, U), half of the Gauss-Newton Hessian. slope: the gradient at gates of 1, (U,). absolute, square:
    Σ |d| and Σ d² of the single samples, (U,): d of the task loss where there are labels, else of the random
    projections.
    """

    gram: Floats
    slope: Floats
    absolute: Floats
    square: Floats

    @classmethod
    def zeros(cls, units: int) -> GateMoments:
        """Empty sums."""
        return cls(np.zeros((units, units)), *(np.zeros(units) for _ in range(3)))


@dataclass(frozen=True, eq=False)
class OutputMoments:
    """gates: by group index. metrics: by weight, Σ g gᵀ at the output of each layer, (groups, O, O).

    missing: group index → why there are no gradients.
    """

    gates: Mapping[int, GateMoments] = field(default_factory=dict)
    metrics: Mapping[str, Floats] = field(default_factory=dict)
    missing: Mapping[int, str] = field(default_factory=dict)


def collect(
    proto: onnx.ModelProto,
    channels: ChannelGraph,
    gates: Sequence[Gate],
    layers: Sequence[Layer],
    types: Mapping[str, int],
    samples: Samples,
    objective: Objective,
    *,
    probes: int,
    seed: int,
) -> OutputMoments:
    """Gate moments of every group and output metrics of `layers`, at the uncut network.

    `channels.graph` must be the view of `proto`. probes: random seeds per sample. The objective's reference must be the
    outputs of `proto` on `samples`.
    """
    probe = Probe.of(proto, channels.graph, gates, layers, types)
    groups = by_group(channels, gates)
    missing = {g: why for g, own in groups.items() for x in own if (why := probe.missing.get(id(x)))}
    found = {g: GateMoments.zeros(channels.groups[g].size) for g in groups if g not in missing}
    metrics: dict[str, Floats] = {}
    rng = np.random.default_rng(seed)
    for kind in ["probe"] * probes + (["gradient"] if objective.labelled else []):
        seeds = seeded(objective, samples, channels.graph, kind, rng)
        for values, count in prefetched(probe.run(seeds)):
            for g, moments in found.items():
                d = np.zeros((count, channels.groups[g].size))
                for gate in groups[g]:
                    if id(gate) in probe.gradients:
                        d += per_sample(sums_of(channels, g, gate, values[probe.gradients[id(gate)]]), count)
                if kind == "probe":
                    moments.gram += d.T @ d / probes
                else:
                    moments.slope += d.sum(axis=0)
                if (kind == "gradient") == objective.labelled:
                    moments.absolute += np.abs(d).sum(axis=0)
                    moments.square += (d**2).sum(axis=0)
            if kind == "probe":
                for weight, name in probe.metrics.items():
                    metrics[weight] = metrics.get(weight, 0.0) + values[name].astype(np.float64) / probes
    return OutputMoments(found, metrics, missing)


def seeded(
    objective: Objective, samples: Samples, graph: Graph, kind: str, rng: np.random.Generator
) -> Iterator[tuple[dict[str, Array], dict[str, Array], int]]:
    """(feeds, seeds by output, number of samples) of every batch at the uncut network."""
    start = 0
    for feeds in samples.batches(batch_of(graph, len(samples))):
        count = samples.count(feeds)
        index = slice(start, start + count)
        outputs = objective.reference(index)
        yield feeds, (objective.probe(outputs, index, rng) if kind == "probe" else objective.gradient(outputs, index)), count
        start += count


def batch_of(graph: Graph, samples: int) -> int:
    """Samples per batch of a backward pass, which holds every activation at once."""
    return batch_size(graph.shapes, [o for n in graph.nodes for o in n.outputs if o], samples, _PASS_BYTES)


_PASS_BYTES = 512 << 20


def per_sample(d: Floats, count: int) -> Floats:
    """Rows (R, U) of `count` samples, one after the other, summed to (count, U).

    Where the rows belong to no single sample all are summed: seeds of different samples are independent, so the moments
    of the sum are those of all samples together.
    """
    if len(d) % count == 0:
        return d.reshape(count, -1, d.shape[1]).sum(axis=1)
    return np.concatenate([d.sum(axis=0, keepdims=True), np.zeros((count - 1, d.shape[1]))])


@dataclass(frozen=True, eq=False)
class Probe:
    """A model that computes gate gradients: gates and weights to the outputs that hold what was asked of them."""

    session: Session
    seeds: Mapping[str, str]
    gradients: Mapping[int, str]
    metrics: Mapping[str, str]
    missing: Mapping[int, str]

    @classmethod
    def of(
        cls,
        proto: onnx.ModelProto,
        graph: Graph,
        gates: Sequence[Gate],
        layers: Sequence[Layer],
        types: Mapping[str, int],
    ) -> Probe:
        """Build the backward pass and the sums behind it; keyed by the identity of each gate, and by weight."""
        back = backward(
            proto,
            graph,
            types,
            uses=[(x.node.index, x.slot) for x in gates],
            tensors=[x.output for x in layers if x.output],
        )
        b = Builder(graph, types, "sum")
        gradients = {
            id(x): b.total(b.op("Mul", x.data, back.of_use[use]), x.summed, keepdims=False)
            for x in gates
            if (use := (x.node.index, x.slot)) in back.of_use
        }
        metrics = {x.weight: _metric(b, x, back) for x in layers if x.output in back.of_tensor}
        missing = {id(x): back.missing[x.node.index, x.slot] for x in gates if (x.node.index, x.slot) in back.missing}
        whole = back.proto
        whole.graph.node.extend(b.nodes)
        whole.graph.initializer.extend(b.constants)
        session = Session(m.submodel(whole, {}, [*gradients.values(), *metrics.values()]), single=True)
        return cls(session, back.seeds, gradients, metrics, missing)

    def run(
        self, batches: Iterator[tuple[dict[str, Array], dict[str, Array], int]]
    ) -> Iterator[tuple[dict[str, Array], int]]:
        """(values by name, number of samples) of every batch."""
        for feeds, seeds, count in batches:
            yield self.session.run({**feeds, **{self.seeds[o]: v for o, v in seeds.items()}}), count


def _metric(b: Builder, layer: Layer, back: Backward) -> str:
    """Σ g gᵀ over samples and positions, (groups, O, O)."""
    g, width = back.of_tensor[layer.output], layer.outputs.size
    if layer.window is None:
        rows = b.op("Transpose", b.op("Reshape", g, b.ints(-1, width)), perm=[1, 0])
    else:
        rank = b.rank(layer.output)
        rows = b.op("Transpose", g, perm=[1, 0, *range(2, rank)])
    rows = b.op("Reshape", rows, b.ints(layer.groups, width // layer.groups, -1))
    return b.op("MatMul", rows, b.op("Transpose", rows, perm=[0, 2, 1]))
