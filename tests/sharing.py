"""The same network with its weights shared between nodes, as exporters that de-duplicate equal tensors write it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def with_shared_weights(proto: onnx.ModelProto, least_axes: int, most_axes: int) -> onnx.ModelProto:
    """All floating-point weights of equal shape become one, their mean, where they have so many axes.

    Another network, but one that computes something just as ordinary.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    alike: dict[tuple[int, ...], list[str]] = {}
    for t in result.graph.initializer:
        if t.data_type == onnx.TensorProto.FLOAT and least_axes <= len(t.dims) <= most_axes:
            alike.setdefault(tuple(t.dims), []).append(t.name)
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    first = {name: names[0] for names in alike.values() for name in names}
    kept = [t for t in result.graph.initializer if first.get(t.name, t.name) == t.name]
    for t in kept:
        names = alike.get(tuple(t.dims), []) if t.name in first else []
        if len(names) > 1:
            mean = np.mean([values[n] for n in names], axis=0, dtype=np.float64).astype(np.float32)
            t.CopyFrom(numpy_helper.from_array(mean, t.name))
    copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
    del result.graph.initializer[:]
    result.graph.initializer.extend(copies)
    for n in result.graph.node:
        for i, name in enumerate(n.input):
            n.input[i] = first.get(name, name)
    onnx.checker.check_model(result)
    return result
