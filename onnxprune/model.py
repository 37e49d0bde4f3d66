"""Reading and writing ONNX files, and the bridge between protobuf, onnx-graphsurgeon and `graph.Graph`.

Weights that a model stores beside it stay there (`storage`). A file appears at the output path whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune import storage
from onnxprune.errors import ModelError, RunError
from onnxprune.graph import Array, Graph, Node, Shape

# It warns of every bfloat16 tensor that numpy has no type for it; the tensor stays as it is.
G_LOGGER.severity = G_LOGGER.ERROR

SUBGRAPH_KINDS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass(frozen=True)
class Source:
    """Where a model came from: for the report and for checking that a plan belongs to it.

    sha256: of the model file; where weights lie beside it, of the file and their `storage.fingerprint`. size: with
    these. files: where weights lie beside it. separate: whether those of the output will.
    """

    path: str
    sha256: str
    size: int
    files: frozenset[str] = frozenset()
    separate: bool = False


def load(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, Source]:
    """Read and check an ONNX file. Weights of 1 KiB and more that are stored beside it are not read (`storage`).

    Raises ModelError for a missing, unreadable, corrupt or invalid file, and for external data outside its folder.
    """
    p = Path(path)
    if p.is_dir():
        raise ModelError(f"{p} is a folder; name the .onnx file")
    try:
        blob = p.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{p} does not exist") from None
    except OSError as e:
        raise ModelError(f"{p} cannot be read: {e.strerror}") from e
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(blob)
    except Exception as e:  # protobuf's DecodeError differs between its implementations
        raise ModelError(f"{p} is not an ONNX model, or is cut short") from e
    if not proto.opset_import or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{p} is not an ONNX model: it has no graph")
    storage.resolve(proto, p.parent)
    try:
        # By path, as a model above 2 GiB cannot be checked in memory.
        onnx.checker.check_model(str(p))
    except (onnx.checker.ValidationError, OSError, ValueError, RuntimeError) as e:
        raise ModelError(f"{p} is not a valid ONNX model: {' '.join(str(e).split())[:300]}") from e
    source = source_of(str(p), blob, proto)
    storage.read_small(proto)
    return proto, source


def adopt(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Source]:
    """A model that is in memory already, as `load` gives it; `proto` is not changed.

    Raises ModelError where it refers to weights in a folder that is not known.
    """
    if not storage.has_external(proto):
        if storage.embedded_bytes(proto) < storage.MOST_BYTES:
            return proto, source_of("(in memory)", as_bytes(proto), proto)
        # Too large for one message: what is kept of it takes the checksum tensor by tensor.
        proto = storage.outside(proto)
    else:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        proto = copy
        storage.resolve(proto, None)
    shell, _ = storage.separated(proto, "data")
    source = source_of("(in memory)", as_bytes(shell), proto)
    storage.read_small(proto)
    return proto, source


def source_of(path: str, blob: bytes, proto: onnx.ModelProto) -> Source:
    """Path, checksum and size of a model: `blob` is its file's content, and `proto` says what lies beside it."""
    more = storage.fingerprint(proto)
    size = len(blob) + storage.external_bytes(proto)
    files = frozenset(str(p) for p in storage.files_of(proto))
    return Source(path, hashlib.sha256(blob + more).hexdigest(), size, files, bool(files))


def subgraphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """The bodies that an attribute of an If, Loop or Scan holds."""
    if attribute.type == onnx.AttributeProto.GRAPH:
        return [attribute.g]
    return list(attribute.graphs) if attribute.type == onnx.AttributeProto.GRAPHS else []


def captured_names(node: onnx.NodeProto) -> tuple[str, ...]:
    """Outer tensors that the bodies of `node` read, in order of appearance."""
    found: dict[str, None] = {}
    for a in node.attribute:
        for body in subgraphs(a):
            local = {i.name for i in body.input} | {i.name for i in body.initializer}
            for inner in body.node:
                for name in (*inner.input, *captured_names(inner)):
                    if name and name not in local:
                        found[name] = None
                local.update(inner.output)
            found.update((o.name, None) for o in body.output if o.name not in local)
    return tuple(found)


def int_attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node, or `default` where it is not given."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of the standard operator set."""
    return next((int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)


def view(
    proto: onnx.ModelProto,
    shapes: Mapping[str, Shape],
    known_values: Mapping[str, tuple[int | None, ...]],
    binding: Mapping[str, Shape],
) -> Graph:
    """The read-only view of a normalised model."""
    nodes: list[Node] = []
    for i, n in enumerate(proto.graph.node):
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute if a.type not in SUBGRAPH_KINDS}
        attrs = {k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in attrs.items()}
        domain = "" if n.domain == "ai.onnx" else n.domain
        name = n.name or f"{n.op_type}_{i}"
        nodes.append(Node(i, name, n.op_type, domain, tuple(n.input), tuple(n.output), attrs, captured_names(n)))
    return Graph(
        tuple(nodes),
        storage.Weights(proto.graph.initializer),
        tuple(i.name for i in proto.graph.input),
        tuple(o.name for o in proto.graph.output),
        dict(shapes),
        opset_of(proto),
        dict(known_values),
        dict(binding),
    )


def to_gs(proto: onnx.ModelProto) -> Any:
    """onnx-graphsurgeon's editable graph of a model."""
    graph = gs.import_onnx(proto)
    for part in (graph, *graph.subgraphs(recursive=True)):
        for t in part.tensors().values():
            if isinstance(t, gs.Constant):
                _leave_in_file(t)
        for node in part.nodes:
            for value in node.attrs.values():
                if isinstance(value, gs.Constant):
                    _leave_in_file(value)
    for body in graph.subgraphs(recursive=True):
        # Constant folding exports bodies on their own, by default at a version that onnxruntime may not know yet.
        body.ir_version = proto.ir_version
    return graph


class _Stored(LazyValues):  # type: ignore[misc]  # untyped
    """Values that onnx-graphsurgeon reads through `storage`; unread, they go back as the tensor that they are."""

    def load(self) -> Array:
        return storage.array_of(self.tensor)


def _leave_in_file(constant: Any) -> None:
    lazy = constant._values
    if isinstance(lazy, LazyValues) and not isinstance(lazy, SparseValues) and storage.is_external(lazy.tensor):
        constant._values = _Stored(lazy.tensor)
        # Else new values, which are embedded, would be exported as external.
        constant.data_location = None


def values_of(constant: Any) -> Array:
    """The values of a weight of onnx-graphsurgeon's graph, left where they lie."""
    lazy = constant._values
    if isinstance(lazy, LazyValues) and not isinstance(lazy, SparseValues):
        return storage.array_of(lazy.tensor)
    return np.asarray(constant.values)


def set_values(constant: Any, values: Array) -> None:
    """Replace the values of a weight of onnx-graphsurgeon's graph; those of a file go to a file (`storage`)."""
    lazy = constant._values
    outside = isinstance(lazy, LazyValues) and storage.is_external(lazy.tensor)
    constant.values = _Stored(storage.tensor_of(values, constant.name, outside=outside))


def from_gs(graph: Any, like: onnx.ModelProto) -> onnx.ModelProto:
    """Back to protobuf, with everything that onnx-graphsurgeon drops restored from `like`.

    That is: the exact input and output declarations, model metadata, the documentation, metadata and overload of each
    node whose first output still exists, and the place of the weights that bodies read from outside (each body would
    hold a copy of its own).
    """
    proto: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    _hoist_captured(proto, {t.name for t in like.graph.initializer})
    proto.ir_version = like.ir_version
    del proto.opset_import[:]
    proto.opset_import.extend(like.opset_import)
    proto.producer_name, proto.producer_version = like.producer_name, like.producer_version
    proto.domain, proto.model_version, proto.doc_string = like.domain, like.model_version, like.doc_string
    del proto.metadata_props[:]
    proto.metadata_props.extend(like.metadata_props)
    for side in ("input", "output"):
        fields = getattr(proto.graph, side)
        declared = {v.name: v for v in getattr(like.graph, side)}
        for v in fields:
            if v.name in declared:
                v.CopyFrom(declared[v.name])
    del proto.graph.value_info[:]
    old = {n.output[0]: n for n in like.graph.node if n.output}
    for n in proto.graph.node:
        before = old.get(n.output[0]) if n.output else None
        if before is not None and before.op_type == n.op_type:
            n.doc_string = before.doc_string
            n.overload = before.overload
            n.metadata_props.extend(before.metadata_props)
    proto.graph.doc_string = like.graph.doc_string
    return proto


def _hoist_captured(proto: onnx.ModelProto, outer: Collection[str]) -> None:
    """Move the initializers called `outer` from the bodies of If, Loop and Scan to the main graph, each once."""
    present = {t.name for t in proto.graph.initializer}
    stack = [b for n in proto.graph.node for a in n.attribute for b in subgraphs(a)]
    while stack:
        body = stack.pop()
        stack.extend(b for n in body.node for a in n.attribute for b in subgraphs(a))
        for t in [t for t in body.initializer if t.name in outer]:
            if t.name not in present:
                present.add(t.name)
                proto.graph.initializer.add().CopyFrom(t)
            body.initializer.remove(t)


def submodel(
    proto: onnx.ModelProto, inputs: Mapping[str, int], outputs: Iterable[str], *, overridable: Iterable[str] = ()
) -> onnx.ModelProto:
    """The part of a model between `inputs` (name → ONNX element type) and `outputs`.

    overridable: initializers that a run may replace by feeding them.
    """
    producer = {o: i for i, n in enumerate(proto.graph.node) for o in n.output if o}
    wanted = list(dict.fromkeys(outputs))
    needed: set[int] = set()
    used: set[str] = set()
    stack = list(wanted)
    while stack:
        name = stack.pop()
        if name in used:
            continue
        used.add(name)
        if name in inputs or name not in producer or producer[name] in needed:
            continue
        node = proto.graph.node[producer[name]]
        needed.add(producer[name])
        stack.extend(i for i in (*node.input, *captured_names(node)) if i)
    initializers = [t for t in proto.graph.initializer if t.name in used and t.name not in inputs]
    override = set(overridable)
    declared = {v.name: v for v in proto.graph.input}
    ports = [
        declared[k] if k in declared else onnx.helper.make_tensor_value_info(k, t, None) for k, t in inputs.items()
    ]
    ports += [declared[k] for k in declared if k in used and k not in inputs]
    ports += [
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers if t.name in override
    ]
    graph = onnx.helper.make_graph(
        [proto.graph.node[i] for i in sorted(needed)],
        "part",
        ports,
        [onnx.helper.make_empty_tensor_value_info(o) for o in wanted],
        initializers,
    )
    part = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=max(proto.ir_version, 4))
    part.functions.extend(proto.functions)
    return part


def bind_inputs(proto: onnx.ModelProto, binding: Mapping[str, Shape]) -> onnx.ModelProto:
    """A copy whose input dimensions are the given sizes, and whose inner and output shapes are left to inference."""
    bound = onnx.ModelProto()
    bound.CopyFrom(proto)
    del bound.graph.value_info[:]
    for v in bound.graph.input:
        if v.name in binding:
            del v.type.tensor_type.shape.dim[:]
            for size in binding[v.name]:
                v.type.tensor_type.shape.dim.add().dim_value = size
    for v in bound.graph.output:
        if v.type.HasField("tensor_type"):
            v.type.tensor_type.ClearField("shape")
    return bound


def inferred_shapes(proto: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    """(static shapes, element types) that ONNX shape inference finds; models that it refuses yield what is declared."""
    with contextlib.suppress(Exception):  # inference is best effort here: the caller measures what is missing
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    shapes: dict[str, Shape] = {}
    types: dict[str, int] = {}
    for v in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        if not v.type.HasField("tensor_type"):
            continue
        t = v.type.tensor_type
        types[v.name] = t.elem_type
        if t.HasField("shape") and all(d.HasField("dim_value") for d in t.shape.dim):
            shapes[v.name] = tuple(int(d.dim_value) for d in t.shape.dim)
    return shapes, types


def check(proto: onnx.ModelProto, *, strict: bool = True) -> None:
    """ONNX's checker and, where `strict`, strict shape inference; raises onnx's own errors."""
    storage.check(proto)
    if strict:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)


Content = bytes | Callable[[IO[bytes]], None]


def save(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write beside the target, then rename: files appear whole or not at all. Raises RunError."""
    write_all_atomically(files_of(proto, Path(path), separate=storage.has_external(proto)))


def files_of(proto: onnx.ModelProto, path: Path, *, separate: bool) -> dict[Path, Content]:
    """What to write at `path` and, where `separate` or where one file cannot hold it all, beside it."""
    if not separate and storage.model_bytes(proto) < storage.MOST_BYTES:
        return {path: as_bytes(storage.embedded(proto))}
    data = storage.beside(path)
    shell, write = storage.separated(proto, data.name)
    files: dict[Path, Content] = {data: write} if storage.has_external(shell) else {}
    return {**files, path: as_bytes(shell)}


def as_bytes(proto: onnx.ModelProto) -> bytes:
    """The content of the model's file; equal models give equal bytes."""
    blob: bytes = proto.SerializeToString(deterministic=True)
    return blob


def write_atomically(path: str | os.PathLike[str], blob: bytes) -> None:
    """Write `blob` to a temporary file in the target's folder and rename it into place. Raises RunError."""
    write_all_atomically({Path(path): blob})


def write_all_atomically(files: Mapping[Path, Content]) -> None:
    """Write several files, in this order; nothing is renamed into place before all of them are stored.

    Where one cannot be renamed, those before it are taken back. Raises RunError.
    """
    temporaries: dict[Path, Path] = {}
    target = Path()
    try:
        for target, content in files.items():
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name[:100]}.", delete=False) as f:
                temporaries[target] = Path(f.name)
                if isinstance(content, bytes):
                    f.write(content)
                else:
                    content(f)
            mask = os.umask(0)
            os.umask(mask)
            temporaries[target].chmod(0o666 & ~mask)
        _rename_all(temporaries)
    except OSError as e:
        raise RunError(f"{target} cannot be written: {e.strerror or e}") from e
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def _rename_all(temporaries: Mapping[Path, Path]) -> None:
    """Rename each value to its key; where one fails, those before it become what they were. Raises RunError."""
    olds: dict[Path, Path | None] = {}
    try:
        for target, temporary in temporaries.items():
            olds[target] = _second_name(target, temporary) if len(olds) + 1 < len(temporaries) else None
            try:
                temporary.replace(target)
            except OSError as e:
                raise RunError(f"{target} cannot be written: {e.strerror}") from e
    except BaseException:
        for target, old in olds.items():
            if old is None:
                continue
            if old.exists():
                old.replace(target)
            elif not temporaries[target].exists():
                target.unlink(missing_ok=True)
        raise
    finally:
        for old in olds.values():
            if old is not None:
                old.unlink(missing_ok=True)


def _second_name(target: Path, temporary: Path) -> Path | None:
    """Another name under which the present file lives on, one that does not exist where there is no such file.

    None where the file system has no second names: then the file cannot be brought back.
    """
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        old.hardlink_to(target)
    except FileNotFoundError:
        return old
    except OSError:
        return None
    return old


def parameters(proto: onnx.ModelProto) -> int:
    """Elements of all weights, Constant nodes included; int64, boolean and string tensors are indices, not weights."""
    skip = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)
    return sum(int(np.prod(t.dims)) for t in storage.stored_tensors(proto) if t.data_type not in skip)
