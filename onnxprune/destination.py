"""Where results go: refused early where they could not be written in the end."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from onnxprune.errors import RunError, UsageError
from onnxprune.state import Calibration, ModelLike


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
