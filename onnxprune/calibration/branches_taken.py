"""What the calibration data runs: the model with every If replaced by the branch that all samples take, and with the
axes named that a Squeeze takes.

Statistics, trial cuts and the refit see this model, so that layers in a branch are treated as any other. Every tensor
keeps its name, so what is found for a weight holds for the model itself. An If that takes different branches stays, and
so do Loop and Scan: the layers inside those are cut by magnitude and trial, and not refitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.calibration.layers import Layer, layers_of
from onnxprune.channels import ChannelGraph
from onnxprune.data.batches import BATCH
from onnxprune.data.samples import Samples
from onnxprune.graph import bodies, protobuf
from onnxprune.graph.protobuf import copied
from onnxprune.normalise import Normalised
from onnxprune.runtime.session import Session


@dataclass(frozen=True, eq=False)
class TakenBranches:
    """branches: the first output of each If that takes one branch only → whether that is the first.

    proto, channels: the normalised model and its channels without these Ifs; classes and groups are those of the whole.
    idle: groups of which no sample reads a weight. squeezed: the output of each Squeeze without axes → those that it
    takes from a batch of several samples; of a single one it would take that axis too, and every rank would change.
    """

    branches: dict[str, bool]
    proto: onnx.ModelProto
    channels: ChannelGraph
    idle: frozenset[int]
    squeezed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def of(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """Another model with the same Ifs, a cut one say, likewise without these."""
        return _replaced(proto, self.branches, self.squeezed)


def taken_by(normalised: Normalised, channels: ChannelGraph, parts: Sequence[Samples]) -> TakenBranches:
    """The model that all samples of `parts` run."""
    branches: dict[str, bool] = {}
    squeezed = _squeezes(normalised)
    proto = _replaced(normalised.proto, branches, squeezed) if squeezed else normalised.proto
    while True:
        taken = _branches(proto, parts)
        if not taken:
            break
        branches |= taken
        proto = _replaced(normalised.proto, branches, squeezed)
    if not branches:
        return TakenBranches({}, proto, channels, frozenset(), squeezed)
    n = normalised
    graph = protobuf.view(proto, n.shapes, n.known_values, n.binding, samples=n.samples)
    node_of = {o: n for n in graph.every_node for o in n.outputs if o}
    linears = [replace(x, node=node_of[x.node.outputs[0]]) for x in channels.linears if x.node.outputs[0] in node_of]
    reads = [
        replace(r, node=node_of[o]) for r in channels.reads for o in r.node.outputs[:1] if r.node.outputs[0] in node_of
    ]
    idle = frozenset(
        g.index
        for g in channels.groups
        if not any(r.tensor in graph.readers for r in (*g.producers, *g.consumers, *g.parameters))
    )
    return TakenBranches(
        branches, proto, replace(channels, graph=graph, linears=tuple(linears), reads=tuple(reads)), idle, squeezed
    )


def layers_taken(taken: TakenBranches, channels: ChannelGraph) -> tuple[Layer, ...]:
    """The linear layers of what is run, without those whose weights a branch that is not taken reads too."""

    def alone(name: str) -> bool:
        now, whole = (len(c.graph.readers.get(name, ())) for c in (taken.channels, channels))
        return now == whole

    return tuple(x for x in layers_of(taken.channels) if alone(x.weight) and (not x.bias or alone(x.bias)))


def _branches(proto: onnx.ModelProto, parts: Sequence[Samples]) -> dict[str, bool]:
    """First output → which branch, of each If of the main graph that takes the same one for all samples."""
    conditions = {bodies.main_output(n): n.input[0] for n in proto.graph.node if n.op_type == "If" and not n.domain}
    if not conditions:
        return {}
    fed = {v.name for v in proto.graph.input}
    wanted = sorted(set(conditions.values()) - fed)
    session = Session(protobuf.submodel(proto, {}, wanted)) if wanted else None
    seen: dict[str, set[bool]] = {c: set() for c in conditions.values()}
    for part in parts:
        for feeds in part.batches(BATCH):
            values = {**feeds, **(session.run(feeds) if session is not None else {})}
            for c, met in seen.items():
                met.update(np.ravel(values[c]).astype(bool).tolist())
    return {out: next(iter(seen[c])) for out, c in conditions.items() if len(seen[c]) == 1}


def _squeezes(normalised: Normalised) -> dict[str, tuple[int, ...]]:
    """The output of each Squeeze of the main graph that names no axes → those of size 1."""
    return {
        n.output[0]: tuple(a for a, s in enumerate(normalised.shapes[n.input[0]]) if s == 1)
        for n in normalised.proto.graph.node
        if n.op_type == "Squeeze" and not n.domain and not n.attribute and len(n.input) == 1
        if 1 in normalised.shapes.get(n.input[0], ())
    }


def _replaced(
    proto: onnx.ModelProto, branches: Mapping[str, bool], squeezed: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto:
    result = copied(proto)
    for n in result.graph.node:
        if n.output and n.output[0] in squeezed:  # a Squeeze still, or what repairs made of it
            axes = squeezed[n.output[0]]
            name = f"{n.output[0]}__squeezed"
            attribute = protobuf.opset_of(result) < 13
            node = helper.make_node("Squeeze", [n.input[0]] if attribute else [n.input[0], name], [n.output[0]], n.name)
            if attribute:
                node.attribute.append(helper.make_attribute("axes", axes))
            else:
                result.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), name))
            n.CopyFrom(node)
    # A branch of a branch moves up with it, and is replaced in its turn.
    while bodies.replace_ifs(result.graph, lambda n: branches.get(bodies.main_output(n)), rename_inner=False):
        pass
    return result
