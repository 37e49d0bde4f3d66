"""All that is measured: the image classifiers of a kit, and the networks of the table NETWORKS, which lie in a folder.

A row of the table says where a network lies, what it is calibrated with, how a pruned file is judged, and how it is
made. What is missing, of the folder or of the kit, is said in a line, and its row is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.accuracy import reading, sentences, text, vit
from benchmarks.accuracy.kits import Inputs, Kit


@dataclass(frozen=True)
class Folders:
    """kit: `kit.py`, `models/` and what else belongs to them; made: of networks that are made or fetched, or None."""

    kit: Path
    made: Path | None = None


@dataclass(frozen=True)
class Network:
    """One that is no classifier of the kit; `made` and `kit` are the two folders.

    file: below `made`. calib: (made, kit, samples, seed) → inputs. judged: (made, kit, pruned file) → what it keeps on
    the test split. make: (made, kit), writes the file and its data. needs: files of the kit.
    """

    file: str
    calib: Callable[[Path, Path, int, int], Inputs]
    judged: Callable[[Path, Path, Path], dict[str, float]]
    make: Callable[[Path, Path], None]
    needs: tuple[str, ...] = ()


NETWORKS: Mapping[str, Network] = {
    "minilm": Network(sentences.FILE, sentences.calib, sentences.judged, sentences.make, sentences.NEEDS),
    "vit": Network(vit.FILE, vit.calib, vit.judged, vit.make),
    "decoder": Network(text.FILE, text.calib, text.judged, text.make),
    "ocr": Network(reading.FILE, reading.calib, reading.judged, reading.make),
}


class Networks(Kit):
    """The kit, with the networks of the table that are there."""

    def __init__(self, folders: Folders) -> None:
        super().__init__(folders.kit)
        self.made = folders.made

    def path(self, model: str) -> Path:
        """The file of a model. Raises FileNotFoundError, which says what is missing, where there is none."""
        if model not in NETWORKS:
            return super().path(model)
        why = self.missing(model)
        if why:
            raise FileNotFoundError(why)
        return self._made / NETWORKS[model].file

    def models(self, patterns: Iterable[str], *, exports: str = "all") -> list[str]:
        """Names that match one of the patterns, those of the table last; what is missing is left out."""
        patterns = list(patterns)
        there = [n for n in NETWORKS if any(fnmatch(n, p) for p in patterns) and not self.missing(n)]
        return super().models(patterns, exports=exports) + there

    def own(self, model: str, samples: int, seed: int) -> Inputs:
        """At most `samples` calibration inputs, a seeded choice."""
        if model not in NETWORKS:
            return super().own(model, samples, seed)
        return NETWORKS[model].calib(self._made, self.folder, samples, seed)

    def judged(self, model: str, pruned: Path) -> dict[str, float]:
        """What a pruned file of this model keeps, on the test split."""
        if model not in NETWORKS:
            return super().judged(model, pruned)
        return NETWORKS[model].judged(self._made, self.folder, pruned)

    def missing(self, name: str) -> str:
        """Why a network of the table is left out; "" where it is there."""
        network = NETWORKS[name]
        absent = [f for f in network.needs if not (self.folder / f).exists()]
        if absent:
            return f"{name}: {self.folder} holds no {absent[0]}"
        if self.made is None:
            return f"{name}: give the folder of networks that are made (--made)"
        if not (self.made / network.file).exists():
            return f"{name}: {self.made} holds no {network.file}; --make writes it"
        return ""

    def make(self, names: Iterable[str]) -> None:
        """Write the networks of these names that are not there. Raises what making them raises."""
        for name in names:
            absent = [f for f in NETWORKS[name].needs if not (self.folder / f).exists()]
            if not absent and not (self._made / NETWORKS[name].file).exists():
                self._made.mkdir(parents=True, exist_ok=True)
                NETWORKS[name].make(self._made, self.folder)

    @property
    def _made(self) -> Path:
        if self.made is None:
            raise FileNotFoundError("there is no folder of networks that are made (--made)")
        return self.made
