"""Labels from folders: the first folder on the way to a file is the name of its class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from onnxprune.errors import CalibrationError
from onnxprune.numerics.arrays import Ints
from onnxprune.regular_files import content

_MOST_BYTES = 16 << 20
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Classes:
    """The class of every file. of_files: by file. note: what to say of it."""

    KEY: ClassVar[str] = "label"

    of_files: Ints
    note: str

    @classmethod
    def of(cls, folder: Path, files: Sequence[Path], named: str | os.PathLike[str] | None) -> Classes | None:
        """The classes of files below a folder; None where they do not all lie in two folders or more.

        named: a file with the name of a class in each line, from class 0 on. Without it folders whose names are all
        numbers are these classes, and others count in the order of their names, as in torchvision's ImageFolder.
        Raises CalibrationError.
        """
        names = [f.relative_to(folder).parts[0] if f != folder else "" for f in files]
        inner = all(len(f.relative_to(folder).parts) > 1 for f in files if f != folder)
        own = sorted(set(names))
        if named is None and (not inner or len(own) < 2):
            return None
        if named is not None:
            if not inner:
                raise CalibrationError(f"{folder} holds images beside its folders, so that nothing tells their classes")
            index = _named(Path(named))
            missing = next((n for n in own if n not in index), None)
            if missing is not None:
                raise CalibrationError(f"{os.fspath(named)} has no line {missing!r}, which is a folder of {folder}")
        elif all(n.isdecimal() and n.isascii() and len(n) < 10 for n in own):
            index = {n: int(n) for n in own}
        else:
            index = {n: i for i, n in enumerate(own)}
        shown = ", ".join(f"{n} = {index[n]}" for n in own[:_SHOWN]) + (", …" if len(own) > _SHOWN else "")
        return cls(np.array([index[n] for n in names], np.int64), f"labels of {len(own)} class folders: {shown}")


def _named(path: Path) -> dict[str, int]:
    """The classes by name; of a line like "n01440764 tench" also by the first word."""
    try:
        lines = content(path, CalibrationError, _MOST_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise CalibrationError(f"{path} is no text in UTF-8; give a file with the name of a class in each line") from e
    index: dict[str, int] = {}
    for i, line in enumerate(lines):
        index.setdefault(line.strip(), i)
    for i, line in enumerate(lines):
        index.setdefault(line.strip().partition(" ")[0], i)
    return index
