"""One run and its key, and the file of results: a JSON line per run, the last line of a key counts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
OURS = "onnxprune"
DEFAULT = "default"
# Calibration with images of the model's own training set.
OWN = "own"


@dataclass(frozen=True)
class Run:
    """What is run: `tool` prunes `model` (a file's stem) to a share `ratio` of its MACs removed.

    method, refit: as the tool names them; DEFAULT leaves the choice to it. samples: of calibration, at most.
    source: where they come from, a name in `sources`. options: more of the tool's options, by name.
    """

    model: str
    ratio: float
    tool: str = OURS
    method: str = DEFAULT
    refit: str = DEFAULT
    seed: int = 0
    samples: int = 1024
    source: str = OWN
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Of its row: the same for equal runs, whatever the order of their options."""
        options = [f"{k}={json.dumps(self.options[k], sort_keys=True)}" for k in sorted(self.options)]
        start = f"{self.model} {self.ratio:g} {self.tool} {self.method} {self.refit}"
        return " ".join([start, f"seed {self.seed} samples {self.samples} {self.source}", *options])

    def __hash__(self) -> int:
        return hash(self.key)

    def row(self, found: Mapping[str, Any]) -> Row:
        """The line of the results: the run and what was found."""
        return {"key": self.key, **asdict(self), **plain(found)}


def plain(value: Any) -> Any:
    """Values that JSON knows; floats to six significant digits, infinities and NaN as null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def read(path: Path) -> dict[str, Row]:
    """The last row of every key; none where there is no file. A line left unfinished is no row."""
    rows: dict[str, Row] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            rows[row["key"]] = row
    return rows


def append(path: Path, row: Row) -> None:
    """Add one line, written at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as f:
        f.write("\n" * unfinished + json.dumps(row) + "\n")


def missing(runs: Iterable[Run], known: Mapping[str, Row], *, retry: bool, again: bool) -> list[Run]:
    """The runs to do, each once: those without a row, with `retry` also those that failed, with `again` all."""
    found: dict[str, Run] = {}
    for run in runs:
        row = known.get(run.key)
        if again or row is None or (retry and "failure" in row):
            found.setdefault(run.key, run)
    return list(found.values())
