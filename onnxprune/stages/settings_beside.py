"""Settings files beside the model, written anew beside the result where its inputs and outputs may change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnxprune.config import PruneConfig
from onnxprune.errors import UsageError
from onnxprune.output.destination import same_file
from onnxprune.stages.load import Loaded
from onnxprune.stages.ports import RESIZE_IO
from onnxprune.stages.verify import Checked
from onnxprune.targets import settings_files
from onnxprune.targets.settings_files import SettingsFile


@dataclass(frozen=True, eq=False)
class Beside:
    """The files that lie beside the model, and where they go."""

    files: tuple[SettingsFile, ...] = ()
    output: Path = field(default_factory=Path)

    @property
    def paths(self) -> tuple[Path, ...]:
        """What will be written."""
        return tuple(self.output.parent / f.name for f in self.files)

    @property
    def one_number_of_heads(self) -> bool:
        """Whether a file says how many heads every cache has."""
        return any(f.numbers.num_key_value_heads is not None for f in self.files)

    def written(self, loaded: Loaded, checked: Checked) -> tuple[Mapping[Path, bytes], tuple[str, ...]]:
        """(The bytes of each file for a finished model, notes). Raises CheckFailed where no file can say what it is."""
        experts = () if loaded.experts is None else loaded.experts.sizes
        changed = {r.name: (r.positions, int(r.kept.size)) for r in checked.resized}
        caches = {p: changed.get(p, (size, size)) for p, size in checked.ports.items() if p not in checked.caches.gone}
        blobs: dict[Path, bytes] = {}
        notes: list[str] = []
        for f, path in zip(self.files, self.paths, strict=True):
            new, said = settings_files.numbers_of(f.numbers, loaded.original, checked.whole, caches)
            blobs[path] = f.rewritten(new, self.output.name, checked.caches.layers, experts)
            notes += [f"{f.name} is written for the result", *said]
        if self.files and len({before for before, _ in experts}) < len({*experts}):
            notes.append(
                "mixtures keep different numbers of experts, and settings files know one: it is left as it was"
            )
        return blobs, tuple(dict.fromkeys(notes))


def read_beside(model: object, settings: PruneConfig) -> tuple[SettingsFile, ...]:
    """The settings files beside a model in a file, where inputs and outputs may change.

    Raises InputError for one that cannot be read.
    """
    return tuple(map(settings_files.read, _paths(model, settings)))


def found(model: object, output: str | os.PathLike[str] | None, settings: PruneConfig) -> Beside:
    """The settings files beside a model in a file, where inputs and outputs may change and a result is written.

    Raises InputError for one that cannot be read, and UsageError where it would be replaced.
    """
    if output is None:
        return Beside()
    target = Path(output)
    for path in _paths(model, settings):
        if same_file(path, target.parent / path.name):
            raise UsageError(
                f"{RESIZE_IO} writes {path.name} anew beside the result, where the model's own lies: name a file in "
                "another folder"
            )
    return Beside(read_beside(model, settings), target)


def _paths(model: object, settings: PruneConfig) -> list[Path]:
    if not settings.resize_io or not isinstance(model, (str, os.PathLike)):
        return []
    return [p for p in (Path(model).with_name(name) for name in settings_files.NAMES) if p.is_file()]
