"""Where results go: refused early where they could not be written in the end."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from onnxprune.errors import RunError, UsageError
from onnxprune.graph.external import Placement, beside, is_beside
from onnxprune.intake.model_file import Source
from onnxprune.regular_files import brief, reason

# What the system keeps there are no files, and a rename would take its place: /dev/stdout is a link.
_SYSTEM = tuple(map(Path, ("/dev", "/proc", "/sys")))
GONE = "the working folder has been removed; change to one that exists (cd), then run it again"
_SHARED_MEMORY = Path("/dev/shm")  # an ordinary file system


def check_outputs(outputs: Sequence[str | os.PathLike[str] | None], inputs: Sequence[object], overwrite: bool) -> None:
    """Refuse output paths that could not be written in the end, or that are a file the run reads, before any work.

    outputs: of model, plan and report. inputs: the model, then data (a folder stands for what lies in it) and a plan,
    as paths or as anything else; only the first output may be the model, to replace it. Two spellings, links and
    further names of one file are that file. Raises UsageError and RunError.
    """
    paths = [Path(i) if isinstance(i, (str, os.PathLike)) else None for i in inputs]
    taken = [f for p in paths[1:] if p is not None for f in _files_of(p)]
    for n, output in enumerate(outputs):
        if output is None:
            continue
        p = Path(output)
        if not p.is_absolute() and folder_is_gone():
            raise RunError(f"{p} cannot be written: {GONE}")
        if os.path.basename(output) in ("", ".", ".."):  # noqa: PTH119  Path drops the slash of "out/"
            raise UsageError(f"{os.fspath(output)!r} is the name of a folder; name the file to write")
        _check_output(p, overwrite)
        if any(same_file(p, t) for t in taken) or (n and paths[0] is not None and same_file(p, paths[0])):
            raise UsageError(f"{p} is used twice; model, data, plan and report are different files")
        taken.append(p)


def folder_is_gone() -> bool:
    """Whether the working folder has been removed, so that relative paths lead nowhere."""
    try:
        Path.cwd()
    except OSError:
        return True
    return False


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths lead to one file, existing or not."""
    try:
        return a.samefile(b)
    except ValueError:  # no path at all
        return False
    except OSError:  # one that is not there yet
        return os.path.realpath(a) == os.path.realpath(b)


def _files_of(p: Path) -> list[Path]:
    """What a path to data stands for. One that cannot be read is refused when it is."""
    try:
        return [p, *p.iterdir()] if p.is_dir() else [p]
    except (OSError, ValueError):
        return [p]


def check_data(
    output: str | os.PathLike[str] | None,
    others: Sequence[str | os.PathLike[str] | None],
    source: Source,
) -> None:
    """Refuse, once the model is known, what would clash with weights stored beside it or beside the output.

    others: plan and report. Raises UsageError and RunError.
    """
    theirs = {Path(p).resolve() for p in source.files}
    for other in others:
        if other is not None and any(same_file(Path(other), t) for t in theirs):
            raise UsageError(f"{other} holds weights of the model; name another file")
    if output is None:
        return
    path = Path(output)
    if any(same_file(path, t) for t in theirs):
        raise UsageError(f"{path} holds weights of the model; name another file")
    if source.placement is not Placement.BESIDE:
        return
    for other in others:
        if other is not None and is_beside(Path(other).name, path) and same_file(Path(other).parent, path.parent):
            raise UsageError(f"{other} is where the output's weights go; name another file for plan or report")
    _check_output(beside(path, "0" * 64), overwrite=True)


def _check_output(p: Path, overwrite: bool) -> None:
    try:
        mode = p.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except (OSError, ValueError) as e:  # a name that is too long, a link to itself, a NUL
        raise RunError(f"{brief(p)} cannot be written: {reason(e)}") from e
    if stat.S_ISDIR(mode):
        raise UsageError(f"{p} is a folder; name the file to write")
    if (mode and not stat.S_ISREG(mode)) or _is_of_the_system(p.parent):
        raise UsageError(f"{p} is not an ordinary file; name another one")
    if mode and not overwrite:
        raise UsageError(f"{p} exists; use --overwrite to replace it")
    if not p.parent.is_dir():
        raise RunError(f"{p} cannot be written: there is no folder {p.parent}")
    if not os.access(p.parent, os.W_OK):
        raise RunError(f"{p} cannot be written: no permission to write in {p.parent}")


def _is_of_the_system(folder: Path) -> bool:
    try:
        place = Path(os.path.realpath(folder))
    except OSError:  # a working folder that is gone
        return False
    return any(place.is_relative_to(s) for s in _SYSTEM) and not place.is_relative_to(_SHARED_MEMORY)
