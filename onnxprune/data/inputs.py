"""The inputs of a model as it declares them: tensors, and those that are no tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxprune.data.declared import dims_of, dtype_of
from onnxprune.errors import CalibrationError
from onnxprune.numerics.arrays import Array


@dataclass(frozen=True)
class InputSpec:
    """A model input: its numpy dtype and declared dimensions, None where symbolic.

    whole: axis 0 counts no samples, as an input that is no tensor has that size too, or as the data has one value for
    all samples. symbols: the names of the dimensions, "" where there is none; () where no dimension has one. absent:
    gives the shape of a sample without entries that stands for the input, by its name, where data leave it out.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | None, ...]
    whole: bool = False
    symbols: tuple[str, ...] = ()
    absent: Callable[[str], tuple[int, ...] | None] | None = field(default=None, compare=False)

    @property
    def batched(self) -> bool:
        """Whether axis 0 counts samples, as far as the declaration says: symbolic, or of size 1."""
        return bool(self.dims) and self.dims[0] in (None, 1) and not self.whole

    def symbol(self, axis: int) -> str:
        """The name of a dimension, "" where it has none."""
        return self.symbols[axis] if self.dims[axis] is None and axis < len(self.symbols) else ""

    def axes_of(self, symbol: str) -> tuple[int, ...]:
        """The axes that have a name."""
        return tuple(a for a in range(len(self.dims)) if symbol and self.symbol(a) == symbol)

    def __str__(self) -> str:
        return "x".join(("?" if k else "N") if d is None else str(d) for k, d in enumerate(self.dims))


def input_specs(proto: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The inputs of a model, initializers excepted. Raises CalibrationError where one is no tensor."""
    for v in other_inputs(proto):
        raise CalibrationError(f"input {v.name!r} is not a tensor; only tensor inputs can be fed")
    return tensor_specs(proto)


def tensor_specs(proto: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The tensors among the inputs of a model, initializers excepted. Raises ModelError for impossible ones."""
    weights = {t.name for t in proto.graph.initializer}
    shared = {s for v in other_inputs(proto) for s in _symbols(v.type)}
    specs: list[InputSpec] = []
    for v in proto.graph.input:
        if v.name in weights or not _is_tensor(v):
            continue
        dtype = dtype_of(v)
        dims = dims_of(v, dtype)
        declared = v.type.tensor_type.shape.dim
        whole = bool(dims) and declared[0].dim_param in shared
        symbols = tuple(d.dim_param for d in declared) if any(d.dim_param for d in declared) else ()
        specs.append(InputSpec(v.name, dtype, dims, whole, symbols))
    return tuple(specs)


def other_inputs(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """The inputs that are no tensors: sequences, and values that may be absent."""
    weights = {t.name for t in proto.graph.initializer}
    return (
        v
        for v in proto.graph.input
        if v.type.WhichOneof("value") not in (None, "tensor_type") and v.name not in weights
    )


def is_sequence(kind: onnx.TypeProto) -> bool:
    """Whether a type is a sequence, or that of one which may be absent."""
    return bool(kind.HasField("sequence_type")) or (
        bool(kind.HasField("optional_type")) and is_sequence(kind.optional_type.elem_type)
    )


def entries_of(name: str, value: Any) -> dict[str, Array]:
    """The arrays of an input that is no tensor: entry i of a sequence x is x[i].

    An empty sequence is an empty array x, and an absent value has none.
    """
    if value is None:
        return {}
    if isinstance(value, list) and value:
        return {k: a for i, v in enumerate(value) for k, a in entries_of(f"{name}[{i}]", v).items()}
    return {name: np.asarray(value)}


def _is_tensor(v: onnx.ValueInfoProto) -> bool:
    """Whether an input is declared as a tensor, or as nothing, which is refused."""
    return v.type.WhichOneof("value") in (None, "tensor_type")


def _symbols(kind: onnx.TypeProto) -> set[str]:
    """Names of the symbolic dimensions of a type."""
    if kind.HasField("tensor_type"):
        return {d.dim_param for d in kind.tensor_type.shape.dim if d.dim_param}
    inner = kind.sequence_type if kind.HasField("sequence_type") else kind.optional_type
    return _symbols(inner.elem_type) if inner.HasField("elem_type") else set()
