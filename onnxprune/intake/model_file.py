"""A model as it comes: a file with its weights, or one in memory."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnxprune.errors import ModelError, RunError
from onnxprune.graph import external, tensor_files
from onnxprune.graph.external import Placement
from onnxprune.graph.protobuf import as_bytes, copied
from onnxprune.intake import first_run, loose, sparse, wellformed
from onnxprune.intake.declarations import empty_batches, undeclared, with_free_dimensions, with_types
from onnxprune.intake.file_check import check_file
from onnxprune.regular_files import MODEL_BYTES, content

IN_MEMORY = "(in memory)"
# A file, or a model in memory.
ModelLike = str | os.PathLike[str] | onnx.ModelProto


@dataclass(frozen=True)
class Source:
    """Where a model came from: for the report and for checking that a plan belongs to it.

    sha256: of the model file; where weights lie beside it, of the file and their `external.fingerprint`. size: with
    these, as files are. files: where weights lie beside it. placement: where those of the output go. notes: what is to
    be said of how it was read. empty: inputs that are declared with a first size of 0.
    """

    path: str
    sha256: str
    size: int
    files: frozenset[str] = frozenset()
    placement: Placement = Placement.FITTING
    notes: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()


def load(path: str | os.PathLike[str], *, allow_links: bool = False) -> tuple[onnx.ModelProto, Source]:
    """Read and check an ONNX file. Weights of 1 KiB and more that are stored beside it are not read (`graph.external`).

    allow_links: as for `external.resolve`. Raises ModelError for a missing, unreadable, corrupt or invalid file, and
    for external data outside its folder.
    """
    p = Path(path)
    blob = content(p, ModelError, MODEL_BYTES)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(blob)
    except Exception as e:  # protobuf's DecodeError differs between its implementations
        raise ModelError(f"{p} is not an ONNX model, or is cut short") from e
    if not proto.opset_import or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{p} is not an ONNX model: it has no graph")
    wellformed.check(proto)
    external.resolve(proto, p, allow_links=allow_links)
    notes = loose.put_right(proto)
    refused = check_file(p, proto, len(blob) + external.external_bytes(proto))
    source = source_of(str(p), blob, proto)
    notes = (*notes, refused, sparse.made_dense(proto))
    external.read_small(proto)
    proto, said = declared(with_free_dimensions(proto))
    return proto, replace(source, notes=tuple(filter(None, (*notes, said))))


def called(model: ModelLike) -> str:
    """What a model is called before anything of it is read."""
    return IN_MEMORY if isinstance(model, onnx.ModelProto) else os.fspath(model)


def read(model: ModelLike, *, allow_links: bool = False) -> tuple[onnx.ModelProto, Source]:
    """Load a file, or adopt a model that is in memory already."""
    return adopt(model) if isinstance(model, onnx.ModelProto) else load(model, allow_links=allow_links)


def adopt(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Source]:
    """A model that is in memory already, as `load` gives it; `proto` is not changed.

    Raises ModelError where it refers to weights in a folder that is not known.
    """
    wellformed.check(proto)
    right, notes = loose.with_all_right(proto)
    mended, said = declared(right)
    adopted, source = _adopted(mended)
    return adopted, replace(source, notes=(*notes, *filter(None, (said,)), *source.notes))


def declared(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """With what onnxruntime knows of outputs that are not declared, and what to say of that."""
    if not undeclared(proto):
        return proto, ""
    try:
        return with_types(proto, first_run.output_types(proto))
    except RunError:  # the first run says why
        return proto, ""


def _adopted(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Source]:
    if any(sparse.sparse_in(proto)):
        return _adopted_dense(proto)
    if not external.has_external(proto):
        if external.embedded_bytes(proto) < external.MOST_BYTES:
            return with_free_dimensions(proto), source_of(IN_MEMORY, as_bytes(proto), proto)
        # Too large for one message: what is kept of it takes the checksum tensor by tensor.
        proto = tensor_files.outside(proto)
    else:
        copy = copied(proto)
        proto = copy
        external.resolve(proto, None)
    shell, _ = external.separated(proto, "data")
    source = source_of(IN_MEMORY, as_bytes(shell), proto)
    external.read_small(proto)
    return with_free_dimensions(proto), source


def _adopted_dense(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Source]:
    copy = copied(proto)
    external.resolve(copy, None)
    beside = external.has_external(copy)
    note = sparse.made_dense(copy)
    dense, source = _adopted(copy)
    return dense, replace(source, placement=_like(beside), notes=(note,))


def source_of(path: str, blob: bytes, proto: onnx.ModelProto) -> Source:
    """Path, checksum and size of a model: `blob` is its file's content, and `proto` says what lies beside it."""
    more = external.fingerprint(proto)
    files = frozenset(str(p) for p in external.files_of(proto))
    size = len(blob) + sum(Path(p).stat().st_size for p in files)
    empty = empty_batches(proto)
    return Source(path, hashlib.sha256(blob + more).hexdigest(), size, files, _like(bool(files)), empty=empty)


def _like(beside: bool) -> Placement:
    """As the original has them."""
    return Placement.BESIDE if beside else Placement.FITTING
