"""Layers timed one by one, as models of their own, where no profiler tells what they take inside the whole model.

A provider that compiles the graph into one kernel (OpenVINO, TensorRT, Core ML, QNN), or that only queues its work
(CUDA), shows no time of a layer. A layer alone is not quite what it is inside: it starts by itself, and its input may
have to be brought into another layout. What all of that adds is taken back when whole models are fitted (`whole`).
Activations behind a layer run with it, as providers fuse them; what only renames positions takes no time of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import RunError
from onnxprune.graph import bodies, protobuf
from onnxprune.graph.protobuf import held_by
from onnxprune.latency.kernels import Kernel
from onnxprune.latency.machine import Machine
from onnxprune.numerics.arrays import Array
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.timing import Times

_FUSED = frozenset(
    ("BatchNormalization Relu LeakyRelu PRelu Clip Sigmoid HardSigmoid HardSwish Tanh Elu Selu Softplus Gelu").split()
)
_FREE = frozenset(
    "Shape Constant ConstantOfShape Identity Reshape Flatten Squeeze Unsqueeze Cast Dropout Size Range Expand".split()
)
_PRODUCTS = frozenset("Conv ConvTranspose Gemm MatMul".split())
_QUICKEST = 0.2


@dataclass(eq=False)
class Alone:
    """Another machine that times each layer by itself; whole models as that one does.

    layer_machine: with less time for each, as there are hundreds. known: what was timed already, by the layer and its
    sizes.
    """

    machine: Machine
    layer_machine: Machine
    known: dict[bytes, float | None] = field(default_factory=dict)

    def identity(self) -> Mapping[str, str]:
        """That of the machine."""
        return self.machine.identity()

    def compare(self, models: Sequence[onnx.ModelProto], feeds: Feeds) -> tuple[Times, ...]:
        """Whole runs on the machine, in turns."""
        return self.machine.compare(models, feeds)

    def kernels(self, model: onnx.ModelProto, feeds: Feeds) -> tuple[Kernel, ...]:
        """The layers of a model as kernels, under the names of their nodes; those that do not run alone are missing."""
        bound = protobuf.bind_inputs(model, {k: np.shape(v) for k, v in feeds.items()})
        shapes, types = protobuf.inferred_shapes(bound)
        found: list[Kernel] = []
        for chain in chains_of(model):
            single = layer_model(model, chain, shapes, types)
            seconds = None if single is None else self._seconds(single)
            if single is not None and seconds is not None:
                last = chain[-1].output[0]
                sizes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in single.graph.input]
                found.append(Kernel(chain[0].name, chain[0].op_type, seconds, f"{sizes} {shapes.get(last)}"))
        return tuple(found)

    def _seconds(self, single: onnx.ModelProto) -> float | None:
        """What a layer takes; None where it does not run."""
        key = _without_values(single).SerializeToString(deterministic=True)
        if key not in self.known:
            try:
                (times,) = self.layer_machine.compare([single], _random_feeds(single))
                self.known[key] = float(np.quantile(times.seconds, _QUICKEST))
            except RunError:
                self.known[key] = None
        return self.known[key]


def chains_of(model: onnx.ModelProto) -> list[list[onnx.NodeProto]]:
    """The layers of a graph: nodes that take time, each with the activations that run with it."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in bodies.every_node(model.graph):
        for name in node.input:
            readers.setdefault(name, []).append(node)
    ports = {v.name for v in model.graph.output}
    fused: set[str] = set()
    chains: list[list[onnx.NodeProto]] = []
    for node in model.graph.node:
        if node.op_type in _FREE or node.output[0] in fused or bodies.bodies_of(node):
            continue
        chain = [node]
        while node.op_type in _PRODUCTS:
            last = chain[-1].output[0]
            after = readers.get(last, [])
            if last in ports or len(after) != 1 or after[0].op_type not in _FUSED or after[0].input[0] != last:
                break
            fused.update(after[0].output)
            chain.append(after[0])
        chains.append(chain)
    return chains


def layer_model(
    model: onnx.ModelProto,
    chain: Sequence[onnx.NodeProto],
    shapes: Mapping[str, tuple[int, ...]],
    types: Mapping[str, int],
) -> onnx.ModelProto | None:
    """A model of these nodes alone: weights are its own, all else that they read is fed. None where sizes are unknown.

    Names of tensors are numbers in it, so that equal layers are equal models.
    """
    weights = {t.name: t for t in model.graph.initializer}
    weights |= {n.output[0]: held for n in model.graph.node if (held := held_by(n)) is not None}
    made = {o for n in chain for o in n.output if o}
    names: dict[str, str] = {"": ""}
    inputs: list[onnx.ValueInfoProto] = []
    kept: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(chain):
        for name in node.input:
            if name in names:
                continue
            names[name] = f"t{len(names)}"
            if name in weights:
                own = onnx.TensorProto()
                own.CopyFrom(weights[name])
                own.name = names[name]
                kept.append(own)
            elif name not in made:
                if name not in shapes or not types.get(name):
                    return None
                inputs.append(helper.make_tensor_value_info(names[name], types[name], shapes[name]))
        names.update({o: f"t{len(names) + i}" for i, o in enumerate(node.output) if o})
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = str(place)
        copy.input[:] = [names[i] for i in node.input]
        copy.output[:] = [names[o] if o else "" for o in node.output]
        nodes.append(copy)
    ports = [helper.make_tensor_value_info(names[o], types[o], None) for o in chain[-1].output if o and types.get(o)]
    if not inputs or not ports:
        return None
    graph = helper.make_graph(nodes, "layer", inputs, ports, kept)
    return helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)


def _without_values(single: onnx.ModelProto) -> onnx.ModelProto:
    """The same with the sizes of its weights alone: what they hold takes no time."""
    bare = onnx.ModelProto()
    bare.CopyFrom(single)
    for t in bare.graph.initializer:
        if len(t.dims) > 1:
            name, kind, dims = t.name, t.data_type, list(t.dims)
            t.Clear()
            t.name, t.data_type = name, kind
            t.dims.extend(dims)
    return bare


def _random_feeds(single: onnx.ModelProto) -> dict[str, Array]:
    """Numbers around 0 for what computes; zeros for what counts or points, which are valid wherever something is."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for v in single.graph.input:
        dtype = helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
        sizes = [d.dim_value for d in v.type.tensor_type.shape.dim]
        floating = np.issubdtype(dtype, np.floating)
        feeds[v.name] = rng.standard_normal(sizes).astype(dtype) if floating else np.zeros(sizes, dtype)
    return feeds
