"""Sparse weights made dense: by what a file says of them, with a bound on what that takes.

onnxruntime does the same when it loads a model. What is pruned, counted and written has dense ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx

from onnxprune.errors import ModelError
from onnxprune.graph import external, tensor_files
from onnxprune.graph.bodies import every_body, every_node
from onnxprune.numerics.arrays import Array

# Bytes of all dense tensors: so many in any model, and so many for each byte that is stored of the sparse ones. One
# entry in a thousand, with its index, takes a 330th.
_FREE_BYTES = 64 << 20
_TIMES_THE_STORED = 400


def made_dense(proto: onnx.ModelProto) -> str:
    """Replace, in place, sparse initializers and sparse values of Constant nodes; what to say of it, "" for none.

    Raises ModelError for one whose parts do not fit each other, or where the dense ones would take too much.
    """
    sparse = list(sparse_in(proto))
    if not sparse:
        return ""
    size = sum(_dense_bytes(s) for s in sparse)
    stored = sum(external.bytes_of(t) for s in sparse for t in (s.values, s.indices))
    if size > _FREE_BYTES + _TIMES_THE_STORED * stored:
        raise ModelError(
            f"the model's sparse tensors, of {stored:,} bytes, would take {size:,} bytes as the dense ones that they "
            "stand for; store them dense"
        )
    elements = sum(math.prod(s.dims) for s in sparse)
    outside = size >= external.LARGE_BYTES
    for graph in _graphs(proto):
        graph.initializer.extend([_dense(s, outside=outside) for s in graph.sparse_initializer])
        del graph.sparse_initializer[:]
    for a in _constants(proto):
        dense = _dense(a.sparse_tensor, outside=False)
        a.Clear()
        a.CopyFrom(onnx.helper.make_attribute("value", dense))
    return f"{len(sparse)} sparse weights were made dense, and count as the {elements:,} numbers that they are then"


def sparse_in(proto: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """All sparse tensors of a model that stand for weights."""
    for graph in _graphs(proto):
        yield from graph.sparse_initializer
    yield from (a.sparse_tensor for a in _constants(proto))


def _constants(proto: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    for nodes in (every_node(proto.graph), *(every_node(f) for f in proto.functions)):
        yield from (a for n in nodes if n.op_type == "Constant" for a in n.attribute if a.name == "sparse_value")


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield proto.graph
    yield from every_body(proto.graph)
    for f in proto.functions:
        yield from every_body(f)


def _dense_bytes(s: onnx.SparseTensorProto) -> int:
    """Size of the dense tensor, once it is known to be one."""
    where = f"the sparse tensor {s.values.name!r}"
    if s.values.data_type == onnx.TensorProto.STRING or s.values.data_type in external.PACKED:
        kind = onnx.TensorProto.DataType.Name(s.values.data_type).lower()
        raise ModelError(f"{where} is of type {kind}, which is not read as sparse; store it dense")
    if not s.dims or min(s.dims) < 1:
        raise ModelError(f"{where} has the shape {list(s.dims)}; every size has to be 1 or more")
    if len(s.values.dims) != 1:
        raise ModelError(f"{where} holds its values in {len(s.values.dims)} dimensions; there has to be one")
    count = s.values.dims[0]
    if s.indices.data_type != onnx.TensorProto.INT64 or list(s.indices.dims) not in ([count], [count, len(s.dims)]):
        raise ModelError(f"{where} has {count} values, and indices of the shape {list(s.indices.dims)}")
    each = onnx.helper.tensor_dtype_to_np_dtype(s.values.data_type).itemsize
    return int(math.prod(s.dims) * each)


def _dense(s: onnx.SparseTensorProto, *, outside: bool) -> onnx.TensorProto:
    """The tensor that a sparse one stands for; outside: as in `tensor_files.tensor_of`."""
    values, positions = external.array_of(s.values), _positions(s)
    dense = np.zeros(math.prod(s.dims), values.dtype)
    dense[positions] = values
    return tensor_files.tensor_of(dense.reshape(tuple(s.dims)), s.values.name, outside=outside)


def _positions(s: onnx.SparseTensorProto) -> Array:
    """The position of each value in the flattened tensor."""
    indices, dims = external.array_of(s.indices), np.array(s.dims, np.int64)
    most = dims if indices.ndim == 2 else dims.prod()
    if (indices < 0).any() or (indices >= most).any():
        raise ModelError(f"the sparse tensor {s.values.name!r} has an index that is outside of its shape")
    flat = np.ravel_multi_index(tuple(indices.T), tuple(s.dims)) if indices.ndim == 2 else indices
    if (np.diff(flat) <= 0).any():
        raise ModelError(f"the sparse tensor {s.values.name!r} has indices that are not in order, or repeat")
    return np.asarray(flat)
