"""What a model declares of its inputs and outputs: sizes that are none are free, false ones of outputs are left out.

What it does not declare of outputs is what onnxruntime says of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx

from onnxprune.graph.bodies import every_body
from onnxprune.graph.protobuf import SIZE_TYPES, copied, declared_sizes
from onnxprune.graph.view import Shape

# Exporters write these for "any size"; they name no size that two axes could share.
_NO_NAMES = {"?", "-1", "None", "*"}
_ELEMENTS = frozenset(onnx.TensorProto.DataType.keys())


def with_free_dimensions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every declared size below 0, and every "?", unset: a free dimension of its own, as onnxruntime
    takes it. A copy where there are any.

    So is a size of 0 in a batch of none (`_batch_of_none`), and in the outputs of a model that declares one.
    """
    zeros = any(_batch_of_none(v) for v in proto.graph.input)
    if not zeros and not any(_is_free(d) for d in _dimensions(proto)):
        return proto
    result = copied(proto)
    for d in _dimensions(result):
        if _is_free(d):
            d.Clear()
    if zeros:
        freed = [v for v in result.graph.input if _batch_of_none(v)]
        for v in (*freed, *result.graph.output, *result.graph.value_info):
            for d in _dimensions_of(v.type):
                if d.HasField("dim_value") and d.dim_value == 0:
                    d.Clear()
    return result


def empty_batches(proto: onnx.ModelProto) -> tuple[str, ...]:
    """The names of the inputs that are declared with a first size of 0."""
    return tuple(v.name for v in proto.graph.input if _batch_of_none(v))


def _batch_of_none(v: onnx.ValueInfoProto) -> bool:
    """Whether an input is declared with a first size of 0, which exporters write for "any".

    A list of axes may be empty, and so may a state at first, along another axis.
    """
    sizes = [*_dimensions_of(v.type)]
    listed = len(sizes) == 1 and v.type.tensor_type.elem_type in SIZE_TYPES
    return bool(sizes and sizes[0].HasField("dim_value") and sizes[0].dim_value == 0 and not listed)


def _is_free(dimension: Any) -> bool:
    return bool(dimension.dim_value < 0 or dimension.dim_param in _NO_NAMES)


def _dimensions(proto: onnx.ModelProto) -> Iterator[Any]:
    for graph in (proto.graph, *every_body(proto.graph)):
        for v in (*graph.input, *graph.output, *graph.value_info):
            yield from _dimensions_of(v.type)


def _dimensions_of(declared: onnx.TypeProto) -> Iterator[Any]:
    kind = declared.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        yield from getattr(declared, kind).shape.dim
    elif kind in ("sequence_type", "optional_type"):
        yield from _dimensions_of(getattr(declared, kind).elem_type)


def undeclared(proto: onnx.ModelProto) -> list[str]:
    """The outputs of which no type is declared, or no shape."""
    return [
        v.name
        for v in proto.graph.output
        if v.type.WhichOneof("value") is None
        or (v.type.HasField("tensor_type") and not v.type.tensor_type.HasField("shape"))
    ]


def with_any_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that onnx's checker does not refuse for want of an output's shape, be it a false one."""
    missing = set(undeclared(proto))
    if not missing:
        return proto
    result = copied(proto)
    for v in result.graph.output:
        if v.name in missing:
            v.type.tensor_type.elem_type = v.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
            v.type.tensor_type.shape.SetInParent()
    return result


def with_types(
    proto: onnx.ModelProto, types: Mapping[str, tuple[str, Sequence[int | str | None]]]
) -> tuple[onnx.ModelProto, str]:
    """(a copy that declares of every `undeclared` output what onnxruntime knows, what to say of it).

    types: as `first_run.output_types` gives them. The shape of what may be a scalar or have any rank stays out.
    """
    result, missing = copied(proto), set(undeclared(proto))
    for v in result.graph.output:
        text, sizes = types.get(v.name, ("", ()))
        if v.name not in missing or not text:
            continue
        _set_type(v.type, text)
        if v.type.HasField("tensor_type") and sizes:
            for size in sizes:
                dimension = v.type.tensor_type.shape.dim.add()
                if isinstance(size, str):
                    dimension.dim_param = size
                elif size is not None:
                    dimension.dim_value = size
    shown = ", ".join(sorted(missing))
    return result, f"outputs without a type or shape in the file ({shown}) are declared as onnxruntime knows them"


def _set_type(declared: onnx.TypeProto, text: str) -> None:
    """Set a type by onnxruntime's words: tensor(float), seq(tensor(int64)), optional(...)."""
    kind, _, inner = text.removesuffix(")").partition("(")
    if kind == "tensor" and inner.upper() in _ELEMENTS:
        declared.tensor_type.elem_type = onnx.TensorProto.DataType.Value(inner.upper())
    elif kind in ("seq", "optional"):
        _set_type(getattr(declared, {"seq": "sequence_type"}.get(kind, "optional_type")).elem_type, inner)


def false_outputs(proto: onnx.ModelProto, shapes: Mapping[str, Shape]) -> list[str]:
    """What is declared of the outputs and is not so with these shapes, in words, one for each."""
    faults: list[str] = []
    for v in proto.graph.output:
        real = shapes.get(v.name)
        if not v.type.HasField("tensor_type") or real is None:
            continue
        if not v.type.tensor_type.HasField("shape"):
            faults.append(f"output {v.name!r} is declared without a shape; it has {len(real)} axes")
        else:
            declared = v.type.tensor_type.shape
            if len(declared.dim) != len(real) or any(map(_differs, declared.dim, real)):
                names = ["?" if d is None else str(d) for d in declared_sizes(v)]
                faults.append(
                    f"output {v.name!r} is declared as {'×'.join(names) or 'a scalar'} and is "
                    f"{'×'.join(map(str, real)) or 'a scalar'}: what is wrong of the declaration was left out"
                )
    return faults


def with_true_outputs(proto: onnx.ModelProto, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
    """A copy that declares its outputs with as many axes as they have, and without sizes that are false."""
    result = copied(proto)
    for v in result.graph.output:
        real = shapes.get(v.name)
        if real is None or not v.type.HasField("tensor_type"):
            continue
        known = v.type.tensor_type.HasField("shape")
        declared = v.type.tensor_type.shape
        declared.SetInParent()
        if not known or len(declared.dim) != len(real):
            del declared.dim[:]
            for _ in real:
                declared.dim.add()
        for d, size in zip(declared.dim, real, strict=True):
            if _differs(d, size):
                d.Clear()
    return result


def _differs(dimension: Any, size: int) -> bool:
    return bool(dimension.HasField("dim_value") and dimension.dim_value != size)
