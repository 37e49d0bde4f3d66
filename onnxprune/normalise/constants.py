"""Constants: what depends on weights alone is folded; an Identity of a weight is the weight."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import onnx
import onnx.inliner
from onnx import helper

from onnxprune.errors import RunError
from onnxprune.graph import bodies, external, surgeon, tensor_files
from onnxprune.runtime.saturation import PRODUCTS
from onnxprune.runtime.session import Session

# Operators whose results differ from run to run.
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
QUANTIZED = {"DequantizeLinear", "QuantizeLinear"}
# What these give is no tensor, and so no constant.
_NO_TENSORS = {"Optional", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SplitToSequence"}


def fold_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with everything that depends on constants alone evaluated, in bodies too.

    What onnxruntime runs in the model but not by itself stays as it is.
    """
    folded = bodies.rewritten(proto, _with_folded_constants)
    give_ranges_scalars(folded)
    return folded


def give_ranges_scalars(proto: onnx.ModelProto) -> None:
    """Let each Range, in place and in bodies too, read scalars where its inputs are constant vectors of one element.

    onnxruntime takes such vectors while they are computed, but does not load a model in which they are constants.
    """
    vectors = {t.name: t for t in proto.graph.initializer if list(t.dims) == [1]}
    for n in bodies.every_node(proto.graph):
        if n.op_type != "Range" or n.domain not in ("", "ai.onnx"):
            continue
        for i, name in enumerate(n.input):
            if name in vectors:
                scalar = proto.graph.initializer.add()
                scalar.CopyFrom(vectors[name])
                scalar.name = f"{n.output[0]}__scalar{i}"
                del scalar.dims[:]
                n.input[i] = scalar.name


def _with_folded_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    if _is_folded(proto):
        return proto  # there may be thousands of bodies, and most hold nothing to fold
    kept = {*QUANTIZED, *PRODUCTS, *RANDOM, *_NO_TENSORS}
    whole = {bodies.main_output(n) for n in proto.graph.node if bodies.bodies_of(n)}
    apart = _apart(proto)

    def excluded(n: Any) -> bool:
        return n.op in kept or any(o.name in whole for o in n.outputs) or any(i.name in apart for i in n.inputs)

    def evaluated(**how: Any) -> Any:
        graph = surgeon.to_gs(proto).toposort()
        graph.fold_constants(
            fold_shapes=False,
            size_threshold=None,
            should_exclude_node=excluded,
            flatten_subgraphs=False,
            **how,
        )
        return graph

    try:
        graph = evaluated(error_ok=False)
    except Exception:  # noqa: BLE001  onnx-graphsurgeon passes on whatever onnxruntime raises
        # Slower: the graph is split again and again, until what fails stands alone.
        graph = evaluated(error_ok=True, partitioning="recursive")
    folded = surgeon.from_gs(surgeon.remove_unused(graph), proto)
    _fold_apart(folded)
    return folded


def _is_folded(proto: onnx.ModelProto) -> bool:
    """Whether no node reads constants alone, and everything is read by something.

    An Identity that returns a constant as it is stored has to stay: a body may not return what lies outside it.
    """
    weights = {t.name for t in proto.graph.initializer}
    outputs = {o.name for o in proto.graph.output}
    read = outputs | {i for n in proto.graph.node for i in (*n.input, *bodies.captured_names(n))}
    if not weights <= read:
        return False
    for n in proto.graph.node:
        if read.isdisjoint(n.output):
            return False
        if weights.issuperset(i for i in n.input if i) and not returns_weight(n, weights, outputs):
            return False
    return True


def returns_weight(n: onnx.NodeProto, weights: Collection[str], outputs: Collection[str]) -> bool:
    """Whether a node is the Identity that gives a graph's output from a weight."""
    return n.op_type == "Identity" and n.input[0] in weights and n.output[0] in outputs


def _apart(proto: onnx.ModelProto) -> set[str]:
    """Constants that onnx-graphsurgeon cannot fold with: those that lie in files, and bfloat16."""
    held = [(t.name, t) for t in proto.graph.initializer]
    held += [(n.output[0], a.t) for n in proto.graph.node if n.op_type == "Constant" for a in n.attribute]
    return {name for name, t in held if external.is_external(t) or t.data_type == onnx.TensorProto.BFLOAT16}


def _fold_apart(proto: onnx.ModelProto) -> None:
    """Fold, in place and node by node, what reads such constants: a result that is large goes to a file as well."""
    weights = {t.name: t for t in proto.graph.initializer}
    apart = _apart(proto)
    outputs = {o.name for o in proto.graph.output}
    folded: set[str] = set()
    for n in proto.graph.node:
        sources = {i: weights.get(i) for i in n.input if i}
        skipped = n.op_type in {*QUANTIZED, *PRODUCTS} or n.op_type in RANDOM or outputs & set(n.output)
        if skipped or not apart & sources.keys() or bodies.bodies_of(n):
            continue
        constants = [t for t in sources.values() if t is not None]
        names = [o for o in n.output if o]
        if len(constants) < len(sources) or not names:
            continue
        ports = [helper.make_empty_tensor_value_info(o) for o in names]
        part = helper.make_model(
            helper.make_graph([n], "part", [], ports, constants),
            opset_imports=proto.opset_import,
            ir_version=max(proto.ir_version, 4),
        )
        try:
            values = Session(part, optimize=False).run({})
        except RunError:
            continue
        outside = any(external.is_external(t) for t in constants)
        for o in names:
            weights[o] = tensor_files.tensor_of(values[o], o, outside=outside)
            proto.graph.initializer.append(weights[o])
        apart.update(names)
        folded.update(names)
    kept = [bodies.copy_node(n) for n in proto.graph.node if not folded & set(n.output)]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def see_through_identities(proto: onnx.ModelProto) -> None:
    """Identity of an initializer is the initializer: shared matrices stay shared."""
    alias: dict[str, str] = {}
    weights = {t.name for t in proto.graph.initializer}
    outputs = returned(proto)
    for n in bodies.every_node(proto.graph):
        for i, name in enumerate(n.input):
            n.input[i] = alias.get(name, name)
        if n.op_type == "Identity" and n.input[0] in weights and n.output[0] not in outputs:
            alias[n.output[0]] = n.input[0]


def returned(proto: onnx.ModelProto) -> set[str]:
    """The outputs of the graph and of every body."""
    return {o.name for g in (proto.graph, *bodies.every_body(proto.graph)) for o in g.output}


def constant_condition(weights: Mapping[str, onnx.TensorProto]) -> Callable[[onnx.NodeProto], bool | None]:
    """Which branch an If with a constant condition takes."""

    def taken(node: onnx.NodeProto) -> bool | None:
        condition = weights.get(node.input[0])
        return None if condition is None else bool(external.array_of(condition).ravel()[0])

    return taken
