"""What was measured: one JSON file, section → key → row, saved after every row, so that a run can be taken up again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.accuracy.runs import Row, plain

_NUMBERS = re.compile(r"\[[^\[\]{}\"]*\]")


def _on_one_line(numbers: re.Match[str]) -> str:
    """A list of numbers without its line breaks."""
    return " ".join(numbers.group().split())


class Records:
    """The file, and whether a row is there already."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, dict[str, Row]] = {}
        self.read()

    def read(self) -> None:
        """What the file holds now: sections may be measured by several processes, one after the other."""
        self.data = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def section(self, name: str) -> dict[str, Row]:
        """Key → row."""
        return self.data.get(name, {})

    def forget(self, name: str) -> None:
        """Measure a section anew."""
        if self.data.pop(name, None) is not None:
            self.write()

    def write(self) -> None:
        """All of it, or nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".part")
        text = json.dumps(self.data, indent=1, sort_keys=True)
        temporary.write_text(_NUMBERS.sub(_on_one_line, text) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def add(self, section: str, key: str, measure: Callable[[], Row]) -> None:
        """Measure a row, unless it is there."""
        if key in self.section(section):
            return
        row = plain(measure())
        self.read()
        self.data.setdefault(section, {})[key] = row
        self.write()
        print(f"{section}: {key}", flush=True)

    def rows(self, section: str) -> Iterator[tuple[str, Row]]:
        """All rows, in the order of their keys."""
        yield from sorted(self.section(section).items())
