"""The folder of a sweep: where its models and tables go, and the settings files that lie beside a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxprune.errors import RunError, UsageError
from onnxprune.output.destination import check_outputs
from onnxprune.stages.settings_beside import Beside
from onnxprune.targets.settings_files import SettingsFile


@dataclass(frozen=True, eq=False)
class Folder:
    """Where everything goes; nowhere without a path.

    stem: the name of the model, without its suffix. beside: settings files that lie beside it. Their names are fixed,
    so that where there are any each model of the sweep has a folder of its own.
    """

    path: Path | None
    stem: str
    beside: tuple[SettingsFile, ...] = ()

    def model(self, ratio: float) -> Path | None:
        """The model of a ratio."""
        if self.path is None:
            return None
        name = f"{self.stem}-{ratio:g}"
        return self.path / name / f"{self.stem}.onnx" if self.beside else self.path / f"{name}.onnx"

    def settings(self, ratio: float) -> Beside:
        """The settings files beside the model of a ratio."""
        return Beside(self.beside, self.model(ratio) or Path(f"{self.stem}.onnx"))

    @property
    def tables(self) -> tuple[Path, ...]:
        """The table to read, and the one for programs."""
        return () if self.path is None else (self.path / "sweep.md", self.path / "sweep.json")

    def check(
        self,
        ratios: Sequence[float],
        reports: Sequence[str | os.PathLike[str]],
        inputs: Sequence[object],
        made: list[Path],
        *,
        overwrite: bool,
    ) -> None:
        """Make the folders that are missing, and refuse what could not be written in them.

        ratios: of the models that may be written. inputs: what the run reads, the model first. made: is told of each
        folder that was missing, also where another one is refused.
        """
        if self.path is None:
            check_outputs((None, *reports), inputs, overwrite)
            return
        models = [path for r in ratios if (path := self.model(r)) is not None]
        settings = [path for r in ratios for path in self.settings(r).paths]
        for folder in dict.fromkeys((self.path, *(m.parent for m in models))):
            if folder.is_dir():
                continue
            if folder.exists():
                raise UsageError(f"{folder} is a file; name a folder for the models")
            made.append(folder)  # before it is there: an interrupt may come at any time
            try:
                folder.mkdir(exist_ok=True)
            except OSError as e:
                raise RunError(f"{folder} cannot be made: {e.strerror or e}") from e
        check_outputs((None, *models, *settings, *self.tables, *reports), inputs, overwrite)
