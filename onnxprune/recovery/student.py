"""The pruned network as a student of the original: its weights become inputs, and a loss comes with its gradients.

With s a tensor of the student and t the same one of the original, cut to the channels that stay,

    loss = Σ over tensors of weight · Σ (s - t)²,

where the tensors are the network's outputs and some features between. One graph computes the loss and its gradients
with respect to all trained weights; a second one, of the original, gives the targets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from onnxprune.calibration.layers import Layer
from onnxprune.channels import ChannelGraph
from onnxprune.channels.domains import limited_by
from onnxprune.channels.labels import tracked_axes
from onnxprune.gradients import backward
from onnxprune.gradients.build import Builder
from onnxprune.graph import protobuf, unrounded
from onnxprune.graph.protobuf import copied
from onnxprune.graph.view import Graph, Shape, sample_bytes
from onnxprune.measures.answers import Wide
from onnxprune.measures.masked import counting
from onnxprune.normalise.form import all_shapes
from onnxprune.numerics.arrays import Array, Mask, cast, is_float
from onnxprune.runtime.session import PROVIDERS, Feeds, Session

# Operator → inputs that hold a parameter; where it is a parameter only by what it is used for, `_OWN`.
_PARAMETERS: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
    "RMSNormalization": (1,),
}
_OWN: Mapping[str, tuple[int, ...]] = {
    "Add": (0, 1),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "Identity": (0,),  # the bias that a branch has left
    "MatMul": (0, 1),
    "Mul": (0, 1),
    "Sub": (0, 1),
}


def trainable(graph: Graph, channels: ChannelGraph, layers: Sequence[Layer]) -> tuple[str, ...]:
    """Weights and biases of the layers, and what belongs to single channels; no constant that only shapes a function.

    graph: of the pruned model. What is quantized, what a body reads and what any other operator reads stays, and what
    lies in front of an operator that is only defined for some numbers.
    """
    own = {name for x in layers for name in x.stored}
    own |= {r.tensor for g in channels.groups for r in g.parameters}
    limits = limited_by(graph)
    parameters = []
    for name, readers in graph.readers.items():
        values = graph.constants.get(name)
        if values is None or values.size < 2 or not is_float(values.dtype) or name in graph.captured:
            continue
        if name not in graph.outputs and all(
            n.domain == ""
            and n.index not in graph.inside
            and not any(o in limits for o in n.outputs)
            and (slot in _PARAMETERS.get(n.op, ()) or (name in own and slot in _OWN.get(n.op, ())))
            for n, slot in readers
        ):
            parameters.append(name)
    return tuple(parameters)


def features_of(graph: Graph, layers: Sequence[Layer]) -> tuple[str, ...]:
    """Where the student is held to the original: the sums of residual networks, else the outputs of all layers."""
    sums = [
        n.outputs[0]
        for n in graph.nodes
        if n.op == "Add"
        and not any(i in graph.constants for i in n.inputs)
        and all(graph.shape(i) == graph.shape(n.outputs[0]) for i in n.inputs)
    ]
    return tuple(t for t in sums or [x.output for x in layers if x.output] if t not in graph.outputs)


class Teacher:
    """The original model, normalised, and of each tensor the channels that stay."""

    def __init__(
        self,
        original: onnx.ModelProto,
        channels: ChannelGraph,
        tensors: Iterable[str],
        keep: Mask,
        provider: str = "cpu",
    ) -> None:
        """provider: of PROVIDERS, what it runs on."""
        self._names: dict[str, str] = {}
        proto = copied(original)
        for t in tensors:
            gathered = t
            for f in channels.factors.get(t, ()):
                mask, axes = keep[f], tracked_axes(f)
                if mask.all():
                    continue
                if len(axes) > 1:  # rows with channels of their own: no one index holds for all of them
                    gathered = ""
                    break
                indices = f"kept:{t}:{axes[0]}"
                places = np.flatnonzero(mask.ravel())
                proto.graph.initializer.append(onnx.numpy_helper.from_array(places.astype(np.int64), indices))
                proto.graph.node.append(
                    helper.make_node("Gather", [gathered, indices], [f"{indices}:value"], axis=axes[0])
                )
                gathered = f"{indices}:value"
            if gathered:
                self._names[t] = gathered
        self._session = Session(
            protobuf.submodel(proto, {}, self._names.values()), single=True, providers=PROVIDERS[provider]
        )

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors whose values the teacher can give."""
        return tuple(self._names)

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """The teacher's values of its tensors on a batch, with the channels that stay."""
        values = self._session.run(feeds)
        return {t: values[gathered] for t, gathered in self._names.items()}


class Spread:
    """Of each tensor Σ ||t - mean t||² per sample, the mean taken over samples, in one pass.

    Masked entries (logits of -1e9 or infinite ones) stay out. masked: the tensors that have some.
    """

    def __init__(self) -> None:
        self.masked: set[str] = set()
        self._count = 0
        self._sums: dict[str, Wide] = {}
        self._rows: dict[str, Wide] = {}
        self._squares: dict[str, float] = {}

    def update(self, targets: Mapping[str, Array], count: int) -> None:
        """Add a batch of `count` samples; where shapes differ between batches no mean is taken off."""
        self._count += count
        for k, t in targets.items():
            values = np.atleast_1d(t)
            rows = np.asarray(len(values), np.float64)
            fine = counting(values) | np.isnan(values)
            if not fine.all():
                self.masked.add(k)
                values, rows = np.where(fine, values, 0), fine.sum(axis=0, dtype=np.float64)
            self._squares[k] = self._squares.get(k, 0.0) + float(np.square(values, dtype=np.float64).sum())
            total: Wide = values.sum(axis=0, dtype=np.float64)
            if self._sums.setdefault(k, total * 0).shape == total.shape:
                self._sums[k], self._rows[k] = self._sums[k] + total, self._rows.get(k, rows * 0) + rows
            else:
                self._sums[k], self._rows[k] = np.full((0,), np.nan), np.zeros(())

    def per_sample(self) -> dict[str, float]:
        """The spread per sample of each tensor that varies and is finite."""
        spreads = {}
        for k, square in self._squares.items():
            total, rows = self._sums[k], self._rows[k]
            rest = square
            if rows.max() > 1:
                rest -= float(np.divide(np.square(total), rows, out=np.zeros(total.shape), where=rows > 0).sum())
            if np.isfinite(rest) and rest > 1e-9 * square:
                spreads[k] = rest / self._count
        return spreads


def bytes_of_a_sample(graph: Graph) -> int:
    """What all activations of one sample take, and their gradients."""
    every = (o for n in graph.nodes for o in n.outputs if graph.shapes.get(o))
    return 2 * sample_bytes(graph.shapes, graph.batch, every)


class Student:
    """A model (cut, or any other) in training.

    proto, layers: the model, and its linear layers. weights: those that are trained, as they are at present, in float32
    (float64 of a model in double precision). missing: weights without a gradient → why. goals: the tensors
    that the loss compares.
    """

    def __init__(
        self,
        pruned: onnx.ModelProto,
        example: Feeds,
        channels: ChannelGraph,
        layers: Sequence[Layer],
        keep: Mask,
        fixed: Collection[str] = (),
        provider: str = "cpu",
    ) -> None:
        """fixed: weights that are not trained. provider: of PROVIDERS, what it runs on."""
        proto = unrounded.without_rounding(pruned) if unrounded.is_quantized(pruned) else pruned
        binding: dict[str, Shape] = {k: tuple(np.shape(v)) for k, v in example.items()}
        shapes, self._types = all_shapes(proto, binding, example)
        self.proto = proto
        self._graph = protobuf.view(proto, shapes, {}, binding, samples=channels.graph.samples)
        self.layers: tuple[Layer, ...] = _sliced(layers, self._graph, keep)
        self._computed = _depending(self._graph)
        self._candidates = tuple(w for w in trainable(self._graph, channels, layers) if w not in fixed)
        self.weights: dict[str, Array] = {}
        self.missing: dict[str, str] = {}
        self._session: Session | None = None
        self._providers = PROVIDERS[provider]
        self._gradients: dict[str, str] = {}
        self._losses: tuple[str, ...] = ()
        self.goals: tuple[str, ...] = ()
        self._masked: frozenset[str] = frozenset()

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The shapes of the student's tensors, at the example's batch."""
        return self._graph.shapes

    @property
    def sizes(self) -> Mapping[str, int]:
        """Entries of each array that may be trained."""
        return {k: self._graph.constants[k].size for k in self._candidates}

    @property
    def per_sample(self) -> int:
        """Bytes of all activations of one sample, and of their gradients."""
        return bytes_of_a_sample(self._graph)

    def has(self, tensor: str) -> bool:
        """Whether the student computes this tensor from its inputs, as one of floating-point numbers."""
        kind = self._types.get(tensor)
        computed = tensor in self._computed and self._graph.producer[tensor].index not in self._graph.inside
        return computed and kind is not None and is_float(helper.tensor_dtype_to_np_dtype(kind))

    def follow(self, goals: Mapping[str, Wide], masked: Collection[str] = ()) -> None:
        """Build the graph that computes the loss, goals being tensors and their weights in it, and its gradients.

        masked: those of whose targets the masked ones do not count.
        """
        given = [k for k in self._candidates if k not in self.missing]
        while True:
            gradients, missing, losses, proto = self._built(goals, given, masked)
            if not missing:
                break
            self.missing.update(missing)
            given = [k for k in given if k not in missing]
        # In their order: that of names in a set is another in each process.
        gradients = {k: gradients[k] for k in given}
        self._gradients, self._losses, self.goals, self._masked = gradients, losses, tuple(goals), frozenset(masked)
        self.weights = {k: _wide(self._graph.constants[k]) for k in gradients}
        self._session = Session(
            protobuf.submodel(proto, {}, [*losses, *gradients.values()]), single=True, providers=self._providers
        )

    def restore(self, weights: Mapping[str, Array]) -> None:
        """Take these values, of all trained weights, as the present ones; they stay the caller's."""
        for k, w in self.weights.items():
            w[...] = weights[k]

    def _built(
        self, goals: Mapping[str, Wide], given: Sequence[str], masked: Collection[str]
    ) -> tuple[dict[str, str], Mapping[str, str], tuple[str, ...], onnx.ModelProto]:
        """(weight → gradient, weight → why it has none, parts of the loss, the model), weights `given` being inputs."""
        proto = _with_inputs(self.proto, given, {t: self._types[t] for t in goals})
        constants = self._graph.constants
        shapes = {**self._graph.shapes, **{k: constants[k].shape for k in given}}
        types = {**self._types, **{t.name: t.data_type for t in self.proto.graph.initializer if t.name in set(given)}}
        view = protobuf.view(proto, shapes, {}, self._graph.binding, samples=self._graph.samples)
        back = backward(proto, view, types, tensors=given)
        b = Builder(view, types, "loss")
        losses = []
        for t, weight in goals.items():
            difference = b.op("Sub", t, f"target:{t}")
            if t in masked:
                difference = b.op("Where", b.op("IsInf", f"target:{t}"), b.number(0.0, t), difference)
            seed = b.op("Mul", difference, b.number(2.0 * weight, t))
            b.nodes.append(helper.make_node("Identity", [seed], [back.seeds[t]]))
            axes = list(range(b.rank(t)))
            square = b.op("Mul", b.op("Mul", difference, difference), b.number(weight, t))
            losses.append(b.total(square, axes, keepdims=False))
        behind = list(back.proto.graph.node)[len(proto.graph.node) :]
        proto.graph.node.extend([*b.nodes, *behind])
        proto.graph.initializer.extend(
            [*b.constants, *list(back.proto.graph.initializer)[len(proto.graph.initializer) :]]
        )
        missing = {k: back.missing[k] for k in given if k in back.missing}
        missing |= {k: "no goal depends on it" for k in given if k not in back.missing and k not in back.of_tensor}
        return dict(back.of_tensor), missing, tuple(losses), proto

    def step(self, feeds: Feeds, targets: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
        """(loss, its gradients) on one batch."""
        assert self._session is not None
        given = {f"target:{t}": _without_masks(v) if t in self._masked else v for t, v in targets.items()}
        values = self._session.run({**feeds, **self.weights, **given})
        return sum(float(values[k]) for k in self._losses), {k: values[g] for k, g in self._gradients.items()}


def _sliced(layers: Sequence[Layer], graph: Graph, keep: Mask) -> tuple[Layer, ...]:
    """These layers as they are in the cut model, without those that read their own state, or nothing any more."""
    nodes = {n.outputs[0]: n for n in graph.nodes}
    sliced = (
        x.sliced(keep, int(nodes[x.node.outputs[0]].attrs.get("group", 1)))
        for x in layers
        if x.output and x.node.outputs[0] in nodes
    )
    return tuple(x for x in sliced if x.data)


def _depending(graph: Graph) -> set[str]:
    """The tensors that depend on the inputs."""
    depending = set(graph.inputs)
    for n in graph.every_node:
        if n.bodies or any(i in depending for i in (*n.inputs, *n.captures)):
            depending.update(n.outputs)
    return depending


def _without_masks(values: Array) -> Array:
    """The values with minus infinity where an entry is masked, by which the loss knows it."""
    return np.where(counting(values) | ~np.isfinite(values), values, cast(np.array(-np.inf), values.dtype))


def _wide(values: Array) -> Array:
    return values.astype(np.float64 if values.dtype == np.float64 else np.float32)


def _with_inputs(proto: onnx.ModelProto, given: Collection[str], goals: Mapping[str, int]) -> onnx.ModelProto:
    """A copy whose outputs are the goals (tensor → type), with the weights `given` and targets as further inputs."""
    result, names = onnx.ModelProto(), set(given)
    result.CopyFrom(proto)
    weights = {t.name: t for t in proto.graph.initializer if t.name in names}
    kept = [t for t in proto.graph.initializer if t.name not in names]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    for name in given:
        t = weights[name]
        result.graph.input.append(helper.make_tensor_value_info(name, t.data_type, t.dims))
    for t, kind in goals.items():
        result.graph.input.append(helper.make_tensor_value_info(f"target:{t}", kind, None))
    del result.graph.output[:]
    result.graph.output.extend(helper.make_empty_tensor_value_info(g) for g in goals)
    return result
