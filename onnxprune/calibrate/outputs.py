"""What the network's outputs say of every channel: gate gradients, collected in one backward pass per batch.

For a sample with the random seed r of `Objective.probe`, d_j = Σ x_j ⊙ ∂<r, y>/∂x_j is the gradient of a projection
of the outputs with respect to the gate of channel j. Σ E[d dᵀ] is the Gauss-Newton matrix of the discrepancy of the
outputs with respect to the gates, and its diagonal the Taylor score of Molchanov et al. 2019 (arXiv 1906.10771). The
same pass gives Σ g gᵀ of the gradient g at the output of every layer, the other factor of the Kronecker form (Martens &
Grosse 2015, arXiv 1503.05671; for convolutions Grosse & Martens 2016, arXiv 1602.01407).

The sums are formed by nodes appended to the graph, so only what is as small as a layer's width leaves the runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.calibrate.layers import Layer
from onnxprune.calibrate.statistics import SHARDS, batch_size
from onnxprune.channels import ChannelGraph
from onnxprune.channels.gates import Gate, by_group, sums_of
from onnxprune.data.samples import Samples
from onnxprune.gradients import Backward, backward
from onnxprune.gradients.build import Builder
from onnxprune.graph import external, protobuf, unrounded
from onnxprune.graph.view import Graph
from onnxprune.jobs.work import Here, Scheduler, Work
from onnxprune.measures.layouts import Layout, Layouts
from onnxprune.numerics.arrays import Array, Doubles
from onnxprune.objective import Index, Objective
from onnxprune.runtime.session import PROVIDERS, Session
from onnxprune.threads import prefetched

# A backward pass holds every activation of a batch at once.
_PASS_BYTES = 512 << 20


@dataclass(eq=False)
class GateMoments:
    """Of one group's gates, sums over samples.

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
        """Empty sums."""
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


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of a pass: what to feed, the model's present outputs, and which samples these are."""

    feeds: Mapping[str, Array]
    outputs: Mapping[str, Array]
    index: Index
    count: int


def batches_of(samples: Samples, graph: Graph, outputs: Mapping[str, Array]) -> Iterator[Batch]:
    """The batches of a whole pass, where `outputs` are the model's on all samples."""
    every = [o for n in graph.nodes for o in n.outputs if o]
    start = 0
    for feeds in samples.batches(batch_size(graph.shapes, graph.batch, every, len(samples), _PASS_BYTES)):
        count = samples.count(feeds)
        index = slice(start, start + count)
        yield Batch(feeds, part_of(outputs, index, len(samples)), index, count)
        start += count


def part_of(outputs: Mapping[str, Array], index: slice, samples: int) -> dict[str, Array]:
    """The outputs of some samples, where each has equally many rows."""
    rows = {k: len(y) // samples if y.ndim else 1 for k, y in outputs.items()}
    return {k: y[index.start * rows[k] : index.stop * rows[k]] if y.ndim else y for k, y in outputs.items()}


def with_samples(
    gates: Sequence[Gate], proto: onnx.ModelProto, samples: Samples, layouts: Layouts | None = None
) -> tuple[Gate, ...]:
    """The gates with the axes of the samples, as the model itself shows them.

    Of two samples one is exchanged, then the other: along the axis of the samples just one half changes. So steps of a
    sequence never pass for samples, in front or merged with them, and nothing does where samples are mixed. layouts: of
    the outputs whose samples do not lie along axis 0.
    """
    if len(samples) < 2 or samples.fixed_batch or not gates:
        return tuple(gates)
    outputs = [o.name for o in proto.graph.output]
    computed = {o for n in proto.graph.node for o in n.output}
    session = Session(protobuf.submodel(proto, {}, sorted(({x.data for x in gates} | set(outputs)) & computed)))

    def values(*chosen: int) -> dict[str, Array]:
        feeds = samples.take(list(chosen)).slice(0, len(chosen))
        return {**feeds, **session.run(feeds)}

    both, others = values(0, 1), (values(1, 1), values(0, 0))

    def is_axis(name: str, axis: int) -> bool:
        return _shows_halves(both[name], others[0][name], others[1][name], axis)

    def by_sample(output: str) -> bool:
        layout = (layouts or {}).get(output, Layout())
        one, two, three = (layout.first(v[output], 2) for v in (both, *others))
        return _shows_halves(one, two, three, 0)

    if not all(by_sample(o) for o in outputs if isinstance(both[o], np.ndarray) and both[o].ndim):
        return tuple(gates)  # a step of a sequence, say, passes for a sample: what is before it reaches it
    found = {x.data: next((a for a in range(both[x.data].ndim) if is_axis(x.data, a)), None) for x in gates}
    return tuple(replace(x, batch=found[x.data]) for x in gates)


def _shows_halves(both: Array, without_first: Array, without_second: Array, axis: int) -> bool:
    """Whether the first half along an axis depends on the first sample alone, and the second on the other."""
    size = both.shape[axis]
    if not both.shape == without_first.shape == without_second.shape or not size or size % 2:
        return False
    wide = both.astype(np.float64)
    least = 1e-5 * float(np.abs(wide).max(initial=0.0))
    _, second = np.split(np.abs(wide - without_first) > least, 2, axis)
    first, _ = np.split(np.abs(wide - without_second) > least, 2, axis)
    return not (first.any() or second.any())


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
        Shard(number, first, tuple(kept[first : first + per_shard]))
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
class Shard:
    """Some consecutive batches of one pass: the number of the pass, and of the first batch."""

    number: int
    first: int
    batches: tuple[Batch, ...]


@dataclass(frozen=True, eq=False)
class GateSums(Work[Shard, OutputMoments]):
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
        known = self.probe.missing
        return {g: known[i] for g, own in self.groups.items() for i in own if i in known}

    def zeros(self) -> dict[int, GateMoments]:
        """Empty sums of the groups with gradients."""
        return {g: GateMoments.zeros(self.channels.groups[g].size) for g in self.groups if g not in self.missing}

    def portable(self) -> GateSums:
        """With the weights in it."""
        return replace(self, probe=replace(self.probe, proto=external.sendable(self.probe.proto)))

    def __getstate__(self) -> dict[str, Any]:
        bare = replace(self.channels, graph=replace(self.channels.graph, constants={}))
        return {**super().__getstate__(), "channels": bare}

    def __call__(self, item: Shard) -> OutputMoments:
        """The sums over the batches of a shard."""
        probe, channels = self.probe, self.channels
        found, metrics = self.zeros(), dict[str, Doubles]()
        mixed = {g for g, own in self.groups.items() if any(probe.gates[i].batch is None for i in own)}
        probes = item.number < self.probes
        for batch, values in prefetched(probe.run(item.batches, self.objective, self._draws(item))):
            for g, moments in found.items():
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
        return OutputMoments(found, metrics)

    def _draws(self, item: Shard) -> list[np.random.Generator | None]:
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


@dataclass(frozen=True, eq=False)
class Probe:
    """A model that computes gate gradients and the metrics of layers' outputs.

    provider: of `runtime.PROVIDERS`, where it runs. layouts: of the outputs whose samples do not lie along axis 0;
    those of a batch have them first.
    gates: those that were asked for, with their nodes in this model. gradients: place in `gates` → the tensor with the
    gradient of every sample. metrics: weight → tensor. missing: place in `gates` → why it has no gradient; a gate in
    neither has no effect on the outputs.
    """

    proto: onnx.ModelProto
    gates: tuple[Gate, ...]
    seeds: Mapping[str, str]
    gradients: Mapping[int, str]
    metrics: Mapping[str, str]
    missing: Mapping[int, str]
    provider: str = "cpu"
    layouts: Layouts = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        proto: onnx.ModelProto,
        channels: ChannelGraph,
        gates: Sequence[Gate],
        layers: Sequence[Layer],
        types: Mapping[str, int],
        provider: str = "cpu",
        layouts: Layouts | None = None,
    ) -> Probe:
        """Build the backward pass of `proto`, the model of `channels` or a part of it, and the sums behind it."""
        proto, graph, types = differentiable(proto, channels.graph, types)
        own = located(gates, graph)
        uses = [(x.node.index, x.slot) for x in own]
        outputs = {x.weight: x for x in layers if x.output in graph.producer}
        back = backward(proto, graph, types, uses=uses, tensors=[x.output for x in outputs.values()])
        b = Builder(graph, types, "sum")
        gradients = {
            i: b.total(b.op("Mul", x.data, back.of_use[use]), x.summed, keepdims=False)
            for i, (x, use) in enumerate(zip(own, uses, strict=True))
            if use in back.of_use
        }
        metrics = {w: _metric(b, x, back) for w, x in outputs.items() if x.output in back.of_tensor}
        missing = {i: back.missing[use] for i, use in enumerate(uses) if use in back.missing}
        back.proto.graph.node.extend(b.nodes)
        back.proto.graph.initializer.extend(b.constants)
        wanted = [*gradients.values(), *metrics.values()]
        ports = {v.name: v.type.tensor_type.elem_type for v in back.proto.graph.input}
        part = protobuf.submodel(back.proto, ports, wanted or back.seeds)
        return cls(part, own, back.seeds, gradients, metrics, missing, provider, layouts or {})

    @cached_property
    def session(self) -> Session:
        """Of the model."""
        return Session(self.proto, single=True, providers=PROVIDERS[self.provider])

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def run(
        self, batches: Iterable[Batch], objective: Objective, draws: Iterable[np.random.Generator | None]
    ) -> Iterator[tuple[Batch, dict[str, Array]]]:
        """What the model computes for every batch, with random seeds or, where `draws` has None, the gradient's."""
        if not (self.gradients or self.metrics):
            return
        for x, rng in zip(batches, draws, strict=True):
            at = x.outputs, x.index
            seeds = objective.gradient(*at) if rng is None else objective.probe(*at, rng)
            seeds = {o: seeds[o] if o in seeds else np.zeros_like(x.outputs[o]) for o in self.seeds}
            seeds = {o: self.layouts[o].back(v) if o in self.layouts else v for o, v in seeds.items()}
            yield x, self.session.run({**x.feeds, **{self.seeds[o]: v for o, v in seeds.items()}})


def differentiable(
    proto: onnx.ModelProto, graph: Graph, types: Mapping[str, int]
) -> tuple[onnx.ModelProto, Graph, Mapping[str, int]]:
    """(model, view, types) for a reverse pass through `proto`, whose tensors have the names and shapes of `graph`.

    A quantized model is differentiated without the rounding of its activations, the usual straight-through estimate.
    """
    shapes, known = dict(graph.shapes), dict(types)
    if unrounded.is_quantized(proto):
        proto = unrounded.without_rounding(proto)
    if any(o and o not in known for n in proto.graph.node for o in n.output):
        bound = protobuf.bind_inputs(proto, {v.name: shapes[v.name] for v in proto.graph.input if v.name in shapes})
        foreign = {o for n in proto.graph.node if n.domain for o in n.output} & shapes.keys() & known.keys()
        for o in sorted(foreign - set(graph.outputs)):  # inference stops at operators that it does not know
            bound.graph.value_info.append(helper.make_tensor_value_info(o, known[o], shapes[o]))
        more, further = protobuf.inferred_shapes(bound)
        # What was a code is a real number where the rounding is gone, so the new types count.
        shapes, known = {**more, **shapes}, {**known, **further}
    return proto, protobuf.view(proto, shapes, graph.known_values, graph.binding), known


def located(gates: Sequence[Gate], graph: Graph) -> tuple[Gate, ...]:
    """Those of the gates whose nodes are in `graph`, with the nodes as they stand there."""
    nodes = {n.outputs[0]: n for n in graph.nodes if n.outputs}
    return tuple(replace(x, node=nodes[x.node.outputs[0]]) for x in gates if x.node.outputs[0] in nodes)


def _metric(b: Builder, layer: Layer, back: Backward) -> str:
    """Σ g gᵀ over samples and positions, (groups, O, O)."""
    g, width = back.of_tensor[layer.output], layer.outputs.size
    if layer.window is None:
        rows = b.op("Transpose", b.op("Reshape", g, b.ints(-1, width)), perm=[1, 0])
    else:
        rows = b.op("Transpose", g, perm=[1, 0, *range(2, b.rank(layer.output))])
    rows = b.op("Reshape", rows, b.ints(layer.groups, width // layer.groups, -1))
    return b.op("MatMul", rows, b.op("Transpose", rows, perm=[0, 2, 1]))
