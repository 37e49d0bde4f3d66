"""A network with gradients of its outputs at gates, run batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.calibration.layers import Layer
from onnxprune.channels import ChannelGraph
from onnxprune.channels.gates import Gate
from onnxprune.data.batches import batch_size
from onnxprune.data.layouts import Layout, Layouts
from onnxprune.data.samples import Samples
from onnxprune.gradients import Backward, backward
from onnxprune.gradients.build import Builder
from onnxprune.graph import protobuf, unrounded
from onnxprune.graph.view import Graph
from onnxprune.numerics.arrays import Array
from onnxprune.objective import Index, Objective
from onnxprune.runtime.session import PROVIDERS, Session

# A backward pass holds every activation of a batch at once.
_PASS_BYTES = 512 << 20


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
    count = samples.per_run or 2
    if len(samples) < 2 or count % 2 or not gates:
        return tuple(gates)
    outputs = [o.name for o in proto.graph.output]
    computed = {o for n in proto.graph.node for o in n.output}
    session = Session(protobuf.submodel(proto, {}, sorted(({x.data for x in gates} | set(outputs)) & computed)))

    def values(*chosen: int) -> dict[str, Array]:
        feeds = samples.take([i for i in chosen for _ in range(count // 2)]).slice(0, count)
        return {**feeds, **session.run(feeds)}

    both, others = values(0, 1), (values(1, 1), values(0, 0))

    def is_axis(name: str, axis: int) -> bool:
        return _shows_halves(both[name], others[0][name], others[1][name], axis)

    def by_sample(output: str) -> bool:
        layout = (layouts or {}).get(output, Layout())
        one, two, three = (layout.first(v[output], count) for v in (both, *others))
        return _shows_halves(one, two, three, 0)

    if not all(by_sample(o) for o in outputs if isinstance(both[o], np.ndarray) and both[o].ndim):
        return tuple(gates)  # a step of a sequence, say, passes for a sample: what is before it reaches it
    batch_axes = {x.data: next((a for a in range(both[x.data].ndim) if is_axis(x.data, a)), None) for x in gates}
    return tuple(replace(x, batch=batch_axes[x.data]) for x in gates)


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


@dataclass(frozen=True, eq=False)
class Probe:
    """A model that computes gate gradients and the metrics of layers' outputs.

    provider: of `runtime.session.PROVIDERS`, where it runs. layouts: of the outputs whose samples do not lie along
    axis 0; those of a batch have them first.
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
        """The session that runs the model with its gradients, opened on first use."""
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
            point = x.outputs, x.index
            seeds = objective.gradient(*point) if rng is None else objective.probe(*point, rng)
            seeds = {o: seeds[o] if o in seeds else np.zeros_like(x.outputs[o]) for o in self.seeds}
            seeds = {o: self.layouts[o].back(v) if o in self.layouts else v for o, v in seeds.items()}
            yield x, self.session.run({**x.feeds, **{self.seeds[o]: v for o, v in seeds.items()}})


def differentiable(
    proto: onnx.ModelProto, graph: Graph, types: Mapping[str, int]
) -> tuple[onnx.ModelProto, Graph, Mapping[str, int]]:
    """(model, view, types) for a reverse pass through `proto`, whose tensors have the names and shapes of `graph`.

    A quantized model is differentiated without the rounding of its activations, the usual straight-through estimate.
    """
    shapes, element_types = dict(graph.shapes), dict(types)
    if unrounded.is_quantized(proto):
        proto = unrounded.without_rounding(proto)
    if any(o and o not in element_types for n in proto.graph.node for o in n.output):
        bound = protobuf.bind_inputs(proto, {v.name: shapes[v.name] for v in proto.graph.input if v.name in shapes})
        foreign = {o for n in proto.graph.node if n.domain for o in n.output} & shapes.keys() & element_types.keys()
        for o in sorted(foreign - set(graph.outputs)):  # inference stops at operators that it does not know
            bound.graph.value_info.append(helper.make_tensor_value_info(o, element_types[o], shapes[o]))
        more, further = protobuf.inferred_shapes(bound)
        # What was a code is a real number where the rounding is gone, so the new types count.
        shapes, element_types = {**more, **shapes}, {**element_types, **further}
    return proto, protobuf.view(proto, shapes, graph.known_values, graph.binding, samples=graph.samples), element_types


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
