"""What a model says of its parts and does not compute with: metadata, documentation, quantization annotations.

None of it is read on the way, and editing graphs loses most of it, so it is put back at the end, by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import onnx

from onnxprune.channels import ChannelGraph
from onnxprune.channels.labels import rows_of, tracked_axes
from onnxprune.graph import bodies, external
from onnxprune.numerics.arrays import Mask

T = TypeVar("T")


def put_back(final: onnx.ModelProto, original: onnx.ModelProto, channels: ChannelGraph, keep: Mask) -> list[str]:
    """Describe, in place, the graph, nodes, weights and tensors of `final` as `original` does; what was left out.

    keep: over all classes of channels. A parameter of a quantization annotation that no node reads is cut with the
    tensor that it is of; where it is not plain how, the annotation is left out.
    """
    _describe(final.graph, original.graph)
    before = _once((bodies.main_output(n), n) for n in bodies.every_node(original.graph))
    for n in bodies.every_node(final.graph):
        old = before.get(bodies.main_output(n))
        if old is not None and (old.op_type, old.domain) == (n.op_type, n.domain):
            _describe(n, old)
    weights = _once((t.name, t) for t in _initializers(original))
    for t in _initializers(final):
        if t.name in weights:
            _describe(t, weights[t.name])
    _describe_tensors(final.graph, original.graph)
    return _annotate(final.graph, original.graph, channels, keep)


def _once(named: Iterable[tuple[str, T]]) -> dict[str, T]:
    """By name, without what bodies beside each other call the same."""
    pairs = [*named]
    count = Counter(name for name, _ in pairs)
    return {name: part for name, part in pairs if count[name] == 1}


def _describe(part: Any, like: Any) -> None:
    """Give a part of a model, in place, the documentation and the metadata of another."""
    if like.doc_string:
        part.doc_string = like.doc_string
    if like.metadata_props:
        del part.metadata_props[:]
        part.metadata_props.extend(like.metadata_props)


def _initializers(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [t for g in (proto.graph, *bodies.every_body(proto.graph)) for t in g.initializer]


def _describe_tensors(graph: onnx.GraphProto, like: onnx.GraphProto) -> None:
    """Tensors of nodes, which are declared with the sizes that they have now."""
    computed = {o for n in graph.node for o in n.output}
    declared = {v.name: v for v in graph.value_info}
    for v in like.value_info:
        if v.name not in computed or not (v.doc_string or v.metadata_props):
            continue
        now = declared.get(v.name)
        if now is None:
            now = graph.value_info.add(name=v.name)
            now.type.CopyFrom(v.type)
            if now.type.HasField("tensor_type"):
                now.type.tensor_type.ClearField("shape")
        _describe(now, v)


def _annotate(graph: onnx.GraphProto, like: onnx.GraphProto, channels: ChannelGraph, keep: Mask) -> list[str]:
    del graph.quantization_annotation[:]
    stored = {t.name: t for t in graph.initializer}
    known = {*stored, *(v.name for v in graph.input), *(o for n in graph.node for o in n.output)}
    unread = {t.name: t for t in like.initializer if t.name not in stored}
    left_out: list[str] = []
    for a in like.quantization_annotation:
        if a.tensor_name not in known:
            continue
        cut: dict[str, onnx.TensorProto] = {}
        for p in a.quant_parameter_tensor_names:
            if p.value in unread:
                parameter = _cut(unread[p.value], a.tensor_name, channels, keep)
                if parameter is None or parameter != stored.get(p.value, parameter):
                    left_out.append(a.tensor_name)
                    break
                cut[p.value] = parameter
        else:
            _store(graph, cut, stored)
            graph.quantization_annotation.add().CopyFrom(a)
    names = ", ".join(left_out)
    return [f"the quantization annotations of {names} were left out, as they do not say what was cut"] if names else []


def _store(
    graph: onnx.GraphProto, tensors: Mapping[str, onnx.TensorProto], stored: dict[str, onnx.TensorProto]
) -> None:
    for name, tensor in tensors.items():
        if name not in stored:
            stored[name] = graph.initializer.add()
            stored[name].CopyFrom(tensor)


def _cut(parameter: onnx.TensorProto, of: str, channels: ChannelGraph, keep: Mask) -> onnx.TensorProto | None:
    """A parameter of an annotation for the tensor as it is cut; None where its axis is not plain."""
    lost = [f for f in channels.factors.get(of, ()) if not keep[f].all()]
    if not lost or int(np.prod(parameter.dims)) == 1:
        return parameter
    fitting = [f for f in lost if len(tracked_axes(f)) == 1 and [f.size] == list(parameter.dims)]
    if len(lost) != 1 or len(fitting) != 1:
        return None
    values = np.compress(keep[rows_of(fitting[0])[0]], external.array_of(parameter))
    cut = onnx.numpy_helper.from_array(values, parameter.name)
    _describe(cut, parameter)
    return cut
