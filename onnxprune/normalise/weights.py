"""Weights: copies of shared vectors for each use, and a bias for every layer that has room for one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
from onnx import helper

from onnxprune.graph import bodies, protobuf
from onnxprune.normalise.constants import returned


def clone_shared_vectors(proto: onnx.ModelProto) -> dict[str, str]:
    """Give every use its own copy of a weight with at most one axis above 1: sharing those is an exporter's economy."""
    small = {t.name: t for t in proto.graph.initializer if sum(d > 1 for d in t.dims) <= 1}
    seen: set[str] = set()
    clones: dict[str, str] = {}
    pinned = returned(proto)
    for n in bodies.every_node(proto.graph):
        for i, name in enumerate(n.input):
            if name not in small or name in pinned:
                continue
            if name in seen:
                clone = onnx.TensorProto()
                clone.CopyFrom(small[name])
                clone.name = f"{name}__use{bodies.main_output(n)}_{i}"
                proto.graph.initializer.append(clone)
                n.input[i] = clone.name
                clones[clone.name] = name
            seen.add(name)
    return clones


def give_biases(proto: onnx.ModelProto) -> frozenset[str]:
    """A zero bias for every layer that has room for one and none yet: the refit may need it.

    `surgery.drop_zero_biases` takes back those that stay zero.
    """
    weights = {t.name: t for t in proto.graph.initializer}
    added: list[str] = []
    for n in proto.graph.node:
        if n.op_type not in ("Conv", "ConvTranspose", "Gemm") or n.domain not in ("", "ai.onnx"):
            continue
        w = weights.get(n.input[1])
        if w is None or (len(n.input) > 2 and n.input[2]):
            continue
        if n.op_type == "ConvTranspose":
            width = w.dims[1] * protobuf.int_attribute(n, "group", 1)
        else:
            width = w.dims[1] if n.op_type == "Gemm" and not protobuf.int_attribute(n, "transB", 0) else w.dims[0]
        name = f"{n.output[0]}__bias"
        zeros = np.zeros(width, helper.tensor_dtype_to_np_dtype(w.data_type))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(zeros, name))
        del n.input[2:]
        n.input.append(name)
        added.append(name)
    return frozenset(added)
