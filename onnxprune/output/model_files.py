"""A model on disk: one file, or one beside a file of weights whose name is a checksum of what it holds.

Since other weights have another name, the rename of the model file alone changes from the old pair to the new one.
After it the weights that only the replaced model referred to are removed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import onnx

from onnxprune.errors import RunError
from onnxprune.graph import external
from onnxprune.graph.external import Placement
from onnxprune.graph.protobuf import as_bytes
from onnxprune.output.commit import Stage
from onnxprune.regular_files import shown

_CHUNK = 8 << 20
# What is searched for other models that refer to the same weights; where there is more, the weights stay.
_SEARCHED_BYTES = 1 << 30
_LARGEST_MESSAGE = 2 << 30


def put_model(stage: Stage, proto: onnx.ModelProto, path: Path, *, placement: Placement) -> onnx.ModelProto:
    """Store `proto` for `path`, and its weights there or for beside it.

    The model with its weights where they will be. Raises RunError, also where one file shall hold it and cannot.
    """
    if _in_one(proto, placement):
        whole = external.embedded(proto)
        stage.put(path, as_bytes(whole))
        return whole
    shell, write = external.separated(proto, "weights")
    if not external.has_external(shell):
        stage.put(path, as_bytes(shell))
        return shell
    data = stage.put_by_content(path, lambda digest: external.beside(path, digest), write)
    external.referring_to(shell, data.name)
    stage.put(path, as_bytes(shell))
    external.referring_to(shell, str(data.resolve()))
    return shell


def written_bytes(proto: onnx.ModelProto, path: Path | None, *, placement: Placement) -> int:
    """How many bytes the files will have that `put_model` stores; path: None for a model that stays in memory.

    Raises RunError where one file shall hold it and cannot.
    """
    if _in_one(proto, Placement.FITTING if path is None else placement):
        return int(external.embedded(proto).ByteSize())
    if path is None:
        return external.model_bytes(proto)  # a message above the limit of protobuf does not tell its size
    shell, _ = external.separated(proto, "weights")
    if external.has_external(shell):
        external.referring_to(shell, external.beside(path, "0" * 64).name)
    return int(shell.ByteSize()) + external.end_of_data(shell)


def too_large(size: int, about: str = "") -> str:
    """Why a model of so many bytes does not fit into one file; empty where it does. about: said before the size."""
    if size < external.MOST_BYTES:
        return ""
    return (
        f"the result has {about}{shown(size)}, and one file, a message of protobuf, holds less than 2 GiB: leave out "
        "--single-file, so that its weights go beside it, or remove more"
    )


def refused(proto: onnx.ModelProto, placement: Placement) -> str:
    """Why `put_model` would refuse to store a model so; empty where it would not."""
    return too_large(external.model_bytes(proto)) if placement is Placement.INSIDE else ""


def _in_one(proto: onnx.ModelProto, placement: Placement) -> bool:
    if placement is Placement.BESIDE:
        return False
    if why := refused(proto, placement):
        raise RunError(why)
    return not too_large(external.model_bytes(proto))


def commit(stage: Stage, path: Path) -> None:
    """Commit a stage with the model file `path`, and remove the weights that only the one before referred to.

    Raises RunError.
    """
    before = _weights_of(path)
    stage.commit()
    for data in before:
        with contextlib.suppress(OSError):
            if not _is_named(data):
                data.unlink()


def _weights_of(path: Path) -> list[Path]:
    """The files of weights, among those that are named after the model file `path`, to which its content refers.

    None for a link: what it leads to stays, and its weights with it.
    """
    if path.is_symlink() or not path.is_file():
        return []
    try:
        return [p for p in path.parent.iterdir() if external.is_beside(p.name, path) and _mentions(path, p.name)]
    except OSError:
        return []


def _is_named(data: Path) -> bool:
    """Whether any other file of the folder holds the name of `data`, as a copy of a model file does.

    Also where that cannot be told.
    """
    others = [p for p in data.parent.iterdir() if p != data and p.is_file()]
    # No message of protobuf is larger.
    others = [p for p in others if p.stat().st_size < _LARGEST_MESSAGE and not p.name.endswith(".data")]
    if sum(p.stat().st_size for p in others) > _SEARCHED_BYTES:
        return True
    return any(_mentions(p, data.name) for p in others)


def _mentions(path: Path, name: str) -> bool:
    """Whether the content of a file holds a name."""
    wanted, end = os.fsencode(name), b""
    with path.open("rb") as f:
        while part := f.read(_CHUNK):
            end += part
            if wanted in end:
                return True
            end = end[-len(wanted) :]
    return False
