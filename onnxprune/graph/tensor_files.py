"""Large tensors that a run makes, as ONNX has them: in a file of the run's own, outside of the model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.external import BITS, FileRange, bytes_of, described, is_external, rebuilt, stream
from onnxprune.numerics.arrays import Array
from onnxprune.process.spill import new_spill_file, spill_folder, write_array, write_file

# What is computed on the way goes to a file of its own from this size on.
SPILL_BYTES = 64 << 10


def tensor_of(array: Array, name: str, *, outside: bool) -> onnx.TensorProto:
    """The tensor of an array; outside: in a file where it is large (and `spilling()` has a folder), else embedded.

    Raises RunError where the file cannot be written.
    """
    path = new_spill_file() if outside and array.nbytes >= SPILL_BYTES else None
    if path is None:
        return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
    data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    if data_type in BITS or sys.byteorder != "little":
        return _in_file(numpy_helper.from_array(array, name), path)
    tensor = onnx.TensorProto(name=name, data_type=data_type, dims=array.shape)
    write_file(path, lambda f: write_array(array, f))
    FileRange(str(path), 0, array.nbytes).put(tensor)
    return tensor


def _in_file(tensor: onnx.TensorProto, path: Path) -> onnx.TensorProto:
    """A small stand-in for an embedded tensor, with the values in a file."""
    stand_in = described(tensor)
    write_file(path, lambda f: stream(tensor, f))
    FileRange(str(path), 0, bytes_of(tensor)).put(stand_in)
    return stand_in


def outside(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large embedded weights lie in the folder of `spilling()`; `proto` itself without such a folder."""
    if spill_folder() is None:
        return proto

    def put(tensor: onnx.TensorProto) -> onnx.TensorProto:
        if is_external(tensor) or bytes_of(tensor) < SPILL_BYTES:
            return tensor
        path = new_spill_file()
        return tensor if path is None else _in_file(tensor, path)

    return rebuilt(proto, put)
