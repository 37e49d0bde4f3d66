"""Where results go: refused early where they could not be written in the end."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from onnxprune.errors import RunError, UsageError
from onnxprune.model import Source
from onnxprune.state import Calibration, ModelLike
from onnxprune.storage import beside


def check_outputs(
    outputs: Sequence[str | os.PathLike[str] | None], inputs: Sequence[ModelLike | Calibration], overwrite: bool
) -> None:
    """Refuse output paths that could not be written in the end, before any work is done.

    outputs: of model, plan and report; only the model's may be one of the `inputs`, to replace it.
    Raises UsageError and RunError.
    """
    taken = {Path(i).resolve() for i in inputs if isinstance(i, (str, os.PathLike))}
    for n, output in enumerate(outputs):
        if output is None:
            continue
        p = Path(output)
        _check_output(p, overwrite)
        if n and p.resolve() in taken:
            raise UsageError(f"{p} is used twice; model, data, plan and report are different files")
        taken.add(p.resolve())


def check_data(
    output: str | os.PathLike[str] | None,
    others: Sequence[str | os.PathLike[str] | None],
    model: ModelLike,
    source: Source,
    overwrite: bool,
) -> None:
    """Refuse, once the model is known, what would clash with weights stored beside it or beside the output.

    others: plan and report. Raises UsageError and RunError.
    """
    theirs = {Path(p).resolve() for p in source.files}
    for other in others:
        if other is not None and Path(other).resolve() in theirs:
            raise UsageError(f"{other} holds weights of the model; name another file")
    if output is None or not source.separate:
        return
    path = Path(output)
    if path.resolve() in theirs:
        raise UsageError(f"{path} holds weights of the model; name another file")
    place = beside(path)
    taken = {Path(o).resolve() for o in others if o is not None}
    if place.resolve() in taken:
        raise UsageError(f"{place} is where the output's weights go; name another file for plan or report")
    in_place = isinstance(model, (str, os.PathLike)) and Path(model).resolve() == path.resolve()
    if place.resolve() in theirs and not in_place:
        raise UsageError(f"{place} is where the output's weights go, and holds weights of the model; rename the output")
    _check_output(place, overwrite)


def _check_output(p: Path, overwrite: bool) -> None:
    try:
        p.stat()
    except OSError as e:
        if e.errno == errno.ENAMETOOLONG:
            raise RunError(f"{p.name[:40]}… cannot be written: {e.strerror}") from e
    if p.is_dir():
        raise UsageError(f"{p} is a folder; name the file to write")
    if p.exists() and not p.is_file():
        raise UsageError(f"{p} is not an ordinary file; name another one")
    if p.exists() and not overwrite:
        raise UsageError(f"{p} exists; use --overwrite to replace it")
    if not p.parent.is_dir():
        raise RunError(f"{p} cannot be written: there is no folder {p.parent}")
    if not os.access(p.parent, os.W_OK):
        raise RunError(f"{p} cannot be written: no permission to write in {p.parent}")
