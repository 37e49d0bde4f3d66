"""Slice every weight along its labelled axes, then repair what names a size (`repair`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune import model as m
from onnxprune.channels import ChannelGraph
from onnxprune.graph import Array
from onnxprune.rewrite.repair import REPAIRS, Cut

_NARROW = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


def cut(proto: onnx.ModelProto, channels: ChannelGraph, keep: NDArray[np.bool_]) -> onnx.ModelProto:
    """A copy of the normalised model `proto` without the classes that `keep` (classes,) marks False.

    Weights of the result have the shapes that the kept labels give; input and output declarations do not change.
    Raises ValueError where an axis would lose all its positions (see `ChannelGraph.needed`).
    """
    emptied = channels.emptied(keep)
    if emptied:
        tensor, axis = emptied[0]
        raise ValueError(f"axis {axis} of {tensor!r} would keep no channel ({len(emptied)} such axes)")
    graph = m.to_gs(proto)
    tensors = graph.tensors()
    # onnx-graphsurgeon does not pack what is narrower than a byte.
    narrow = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.data_type in _NARROW}
    for name, factors in channels.factors.items():
        if name not in channels.graph.constants:
            continue
        masks = [keep[f] for f in factors]
        shrinking = [mask for mask in masks if not mask.all()]
        if not shrinking:
            continue  # also what only the bodies of an If, Loop or Scan read, which `tensors` does not list
        values = narrow[name] if name in narrow else np.asarray(tensors[name].values)
        # Rows with channels of their own first: they are as long as before.
        for mask in sorted(shrinking, key=lambda mask: mask.shape.count(1)):
            values = _without(values, mask)
        if name in narrow:
            narrow[name] = values
        else:
            tensors[name].values = np.ascontiguousarray(values)
    context = Cut(channels, keep, graph, tensors)
    for node, view in zip(list(graph.nodes), channels.graph.nodes, strict=True):
        repair = REPAIRS.get(view.op) if view.domain == "" else None
        if repair is not None:
            repair(node, view, context)
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    result = m.from_gs(graph, proto)
    for t in result.graph.initializer:
        if t.name in narrow:
            t.CopyFrom(onnx.numpy_helper.from_array(narrow[t.name], t.name))
    return _with_inferred_types(result)


def _without(values: Array, keep: NDArray[np.bool_]) -> Array:
    """`values` where `keep` (its shape, 1 on axes that it does not track) is True.

    Over several axes, every row keeps equally many positions of the last one.
    """
    *rows, column = (a for a, s in enumerate(keep.shape) if s > 1)
    if not rows:
        return np.compress(keep.ravel(), values, axis=column)
    moved = np.moveaxis(values, (*rows, column), range(len(rows) + 1))
    mask = np.moveaxis(keep, (*rows, column), range(len(rows) + 1)).reshape(moved.shape[: len(rows) + 1])
    per_row = mask.sum(axis=-1)
    if (per_row != per_row.flat[0]).any():
        raise ValueError("rows of a balanced set would keep different numbers of channels")
    kept = moved[mask].reshape(*moved.shape[: len(rows)], -1, *moved.shape[len(rows) + 1 :])
    return np.moveaxis(kept, range(len(rows) + 1), (*rows, column))


def _with_inferred_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except Exception:  # noqa: BLE001  only annotations are missing then; `verify` runs the strict inference
        return proto
    # The inference also writes sizes into the outputs' declarations, which are not ours to change.
    del inferred.graph.output[:]
    inferred.graph.output.extend(proto.graph.output)
    return inferred


def set_initializers(proto: onnx.ModelProto, values: Mapping[str, Array]) -> None:
    """Replace initializers in place by arrays of the same size, stored in the model's own type."""
    for t in proto.graph.initializer:
        if t.name in values:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(t.data_type)
            array = np.asarray(values[t.name]).reshape(tuple(t.dims)).astype(dtype)
            t.CopyFrom(onnx.numpy_helper.from_array(array, t.name))


def replace_initializers(proto: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """As `set_initializers`, on a copy."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    set_initializers(result, values)
    return result


def drop_zero_biases(proto: onnx.ModelProto, added: Collection[str]) -> None:
    """Take back, in place, the biases that normalisation added and that are still zero."""
    zero = {t.name for t in proto.graph.initializer if t.name in added and not onnx.numpy_helper.to_array(t).any()}
    for n in proto.graph.node:
        if len(n.input) == 3 and n.input[2] in zero:
            del n.input[2:]
    kept = [t for t in proto.graph.initializer if t.name not in zero]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def merge_equal_clones(proto: onnx.ModelProto, clones: Mapping[str, str]) -> None:
    """Share again, in place, the copies that normalisation made and that ended equal to their original."""
    stored = {t.name: t for t in proto.graph.initializer}
    outer = {c for n in proto.graph.node for c in m.captured_names(n)} | {o.name for o in proto.graph.output}
    alias: dict[str, str] = {}
    for copy, origin in clones.items():
        if copy in stored and origin in stored and copy not in outer:
            a, b = stored[copy], stored[origin]
            if a.dims == b.dims and onnx.numpy_helper.to_array(a).tobytes() == onnx.numpy_helper.to_array(b).tobytes():
                alias[copy] = origin
    for n in proto.graph.node:
        for i, name in enumerate(n.input):
            n.input[i] = alias.get(name, name)
    kept = [t for t in proto.graph.initializer if t.name not in alias]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
